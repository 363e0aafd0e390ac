"""Builds an artifact's input from its manifest: dtype, layout and normalisation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.errors import ParityError
from growtas.export.artifact import Manifest, TensorRecord
from growtas.export.graph.pre_post import pixels_of
from growtas.export.runtimes.base import Array
from growtas.export.signature import check_preprocess
from growtas.export.verification.batches import Logits
from growtas.export.verification.images import VerificationImages


@dataclass(frozen=True, kw_only=True)
class ArtifactInput:
    """Converts images that were preprocessed as the run's are into what an artifact takes.

    Attributes:
        preprocess: how the run's images were made.
        normalisation: their mean and standard deviation, ``(1, channels, 1, 1)`` each.
        artifact_normalisation: the artifact's, as its manifest says.
        pixels: the artifact takes uint8 pixels ``(batch, height, width, channels)`` and normalises them itself.
        margin: pixels that a graph which resizes and crops would cut off, before and after the image on either axis.
    """

    preprocess: Mapping[str, Any]
    normalisation: tuple[Array, Array]
    artifact_normalisation: tuple[Array, Array]
    pixels: bool
    margin: tuple[int, int] = (0, 0)

    def convert(self, images: Array) -> NDArray[Any]:
        """The artifact's input for images ``(batch, channels, height, width)``."""
        if self.pixels:
            padding = ((0, 0), self.margin, self.margin, (0, 0))
            return np.ascontiguousarray(np.pad(pixels_of(images, self.preprocess), padding, mode="edge"))
        if np.array_equal(self.normalisation, self.artifact_normalisation):
            return images
        (mean, std), (artifact_mean, artifact_std) = self.normalisation, self.artifact_normalisation
        return np.ascontiguousarray((images * std + mean - artifact_mean) / artifact_std, np.float32)

    def logits(self, run: Callable[[Any], Array]) -> Logits:
        """The artifact as a function of normalised images; ``run`` takes what the artifact takes."""
        return lambda images: run(self.convert(images))

    def round_to_pixels(self, images: VerificationImages) -> VerificationImages:
        """The images as 8-bit pixels can hold them, where the artifact takes pixels; unchanged otherwise.

        Images of a data set are whole pixels already, crops of photographs are not.
        """
        if not self.pixels:
            return images
        levels = pixels_of(images.images, self.preprocess).transpose(0, 3, 1, 2).astype(np.float32)
        mean, std = self.normalisation
        return dataclasses.replace(images, images=np.ascontiguousarray((levels / 255 - mean) / std, np.float32))


def artifact_input(path: Path, manifest: Manifest | None, preprocess: Mapping[str, Any]) -> ArtifactInput:
    """Reads from a manifest what an artifact takes.

    Args:
        path: for messages.
        manifest: without one, the artifact takes the run's images.
        preprocess: how the run's images were made.

    Raises:
        ParityError: the manifest's preprocessing is absent or damaged, or another than the run's in size, channels, interpolation,
            crop or decoding.
    """
    recorded = preprocess if manifest is None else manifest.preprocess
    recorded = check_preprocess(recorded, f"{path}: the record of the preprocessing in its manifest", ParityError)
    for field in ("image_size", "in_chans", "interpolation", "crop_pct", "decode"):
        if field in preprocess and recorded.get(field) != preprocess[field]:
            raise ParityError(
                f"{path}: its manifest's preprocess.{field} is {recorded.get(field)!r}, the run's is {preprocess[field]!r}"
            )

    def plane(record: Mapping[str, Any], name: str) -> Array:
        return np.asarray(record[name], np.float32).reshape(1, -1, 1, 1)

    entry = (manifest and manifest.input) or TensorRecord()
    return ArtifactInput(
        preprocess=preprocess,
        normalisation=(plane(preprocess, "mean"), plane(preprocess, "std")),
        artifact_normalisation=(plane(recorded, "mean"), plane(recorded, "std")),
        pixels=entry.takes_pixels,
        margin=_margin(preprocess) if entry.resize else (0, 0),
    )


def _margin(preprocess: Mapping[str, Any]) -> tuple[int, int]:
    """What has to lie around an image so that the graph's resizing finds nothing to do, and its crop is the image.

    As :func:`growtas.export.graph.resize.resize_nodes` has it: the sides rounded down, the corner half to even. An odd number
    of pixels is one more on one side; left out, every pixel would be resampled.
    """
    size: int = preprocess["image_size"]
    both = max(0, math.floor(size / preprocess["crop_pct"]) - size)
    before = round(both / 2)
    return before, both - before
