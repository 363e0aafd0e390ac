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
    """Converts images with the run's preprocessing into an artifact's input.

    Attributes:
        preprocess: the run's preprocessing record.
        normalisation: the run's mean and standard deviation, ``(1, channels, 1, 1)`` each.
        artifact_normalisation: mean and standard deviation in the artifact's manifest.
        pixels: whether the artifact takes uint8 pixels ``(batch, height, width, channels)`` and normalises them itself.
        margin: pixels before and after the image, on both axes, that a graph with resizing will crop.
    """

    preprocess: Mapping[str, Any]
    normalisation: tuple[Array, Array]
    artifact_normalisation: tuple[Array, Array]
    pixels: bool
    margin: tuple[int, int] = (0, 0)

    def convert(self, images: Array) -> NDArray[Any]:
        """Returns the artifact's input for images ``(batch, channels, height, width)``."""
        if self.pixels:
            padding = ((0, 0), self.margin, self.margin, (0, 0))
            return np.ascontiguousarray(np.pad(pixels_of(images, self.preprocess), padding, mode="edge"))
        if np.array_equal(self.normalisation, self.artifact_normalisation):
            return images
        (mean, std), (artifact_mean, artifact_std) = self.normalisation, self.artifact_normalisation
        return np.ascontiguousarray((images * std + mean - artifact_mean) / artifact_std, np.float32)

    def logits(self, run: Callable[[Any], Array]) -> Logits:
        """Turns the artifact into a function of normalised images; ``run`` computes the logits of the artifact's input."""
        return lambda images: run(self.convert(images))

    def round_to_pixels(self, images: VerificationImages) -> VerificationImages:
        """Rounds the images to 8-bit pixels, if the artifact takes pixels; otherwise returns them unchanged.

        Images of a data set are whole pixels already; crops of photographs are not.
        """
        if not self.pixels:
            return images
        levels = pixels_of(images.images, self.preprocess).transpose(0, 3, 1, 2).astype(np.float32)
        mean, std = self.normalisation
        return dataclasses.replace(images, images=np.ascontiguousarray((levels / 255 - mean) / std, np.float32))


def artifact_input(path: Path, manifest: Manifest | None, preprocess: Mapping[str, Any]) -> ArtifactInput:
    """Reads the description of an artifact's input from its manifest.

    Args:
        path: the artifact, for messages.
        manifest: the manifest. Without one, the artifact takes the run's images.
        preprocess: the run's preprocessing record.

    Raises:
        ParityError: the manifest's preprocessing is absent or damaged, or its size, channels, interpolation, crop or decoding
            differs from the run's.
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
    """Pixels to add around an image so that the graph's resizing changes nothing and its crop returns the image.

    The rounding is that of :func:`growtas.export.graph.resize.resize_nodes`: the sides down, the crop's corner half to even. If the
    number is odd, one side gets one pixel more; without that pixel the whole image would be resampled.
    """
    size: int = preprocess["image_size"]
    both = max(0, math.floor(size / preprocess["crop_pct"]) - size)
    before = round(both / 2)
    return before, both - before
