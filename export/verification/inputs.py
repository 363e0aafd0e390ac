"""What an artifact is fed, as its manifest says: its users know no other normalisation than the one written there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.errors import ParityError
from growtas.export.artifact import Manifest, TensorRecord
from growtas.export.runtimes.base import Array
from growtas.export.verification.labelled_images import LabelledImages

_MUST_AGREE = ("image_size", "in_chans", "interpolation", "crop_pct")


@dataclass(frozen=True, kw_only=True)
class Feed:
    """Makes of images that were preprocessed as the run's are what the artifact takes.

    Attributes:
        mean, std: of the run's images, ``(1, channels, 1, 1)``.
        own_mean, own_std: what the artifact's manifest says.
        pixels: the artifact takes uint8 pixels ``(batch, height, width, channels)`` and normalises them itself.
        margin: pixels that a graph which resizes and crops would cut off, before and after the image on either axis.
    """

    mean: Array
    std: Array
    own_mean: Array
    own_std: Array
    pixels: bool
    margin: tuple[int, int] = (0, 0)

    def images(self, images: Array) -> NDArray[Any]:
        """The artifact's input for images ``(batch, channels, height, width)``."""
        if self.pixels:
            levels = _levels(images, self.mean, self.std).transpose(0, 2, 3, 1)
            return np.ascontiguousarray(np.pad(levels, ((0, 0), self.margin, self.margin, (0, 0)), mode="edge"))
        if np.array_equal(self.mean, self.own_mean) and np.array_equal(self.std, self.own_std):
            return images
        return np.ascontiguousarray((images * self.std + self.mean - self.own_mean) / self.own_std, np.float32)

    def snap(self, images: LabelledImages) -> LabelledImages:
        """The images as pixels of 8 bits can hold them, where the artifact takes such; unchanged otherwise."""
        if not self.pixels:
            return images
        levels = _levels(images.images, self.mean, self.std).astype(np.float32)
        return dataclasses.replace(images, images=np.ascontiguousarray((levels / 255 - self.mean) / self.std, np.float32))


def _levels(images: Array, mean: Array, std: Array) -> NDArray[np.uint8]:
    return np.clip(np.rint((images * std + mean) * 255), 0, 255).astype(np.uint8)


def feed_of(path: Path, manifest: Manifest | None, preprocess: Mapping[str, Any]) -> Feed:
    """What an artifact takes.

    Args:
        path: for messages.
        manifest: its manifest; without one, it takes the run's images.
        preprocess: how the run's images were made.

    Raises:
        ParityError: the manifest's preprocessing is absent, or another than the run's in size, channels, interpolation or crop.
    """
    own = preprocess if manifest is None else manifest.preprocess
    if own is None:
        raise ParityError(f"{path}: its manifest doesn't say how images are normalised, and the run's images are; export it again")
    for field in _MUST_AGREE:
        if field in preprocess and own.get(field) != preprocess[field]:
            raise ParityError(
                f"{path}: its manifest's preprocess.{field} is {own.get(field)!r}, the run's is {preprocess[field]!r}"
            )

    def plane(record: Mapping[str, Any], name: str) -> Array:
        values = np.asarray(record.get(name, []), np.float32).reshape(1, -1, 1, 1)
        if values.size != int(preprocess["in_chans"]):
            raise ParityError(
                f"{path}: its manifest's preprocess.{name} has {values.size} numbers for {preprocess['in_chans']} channels"
            )
        return values

    taken = (manifest and manifest.input) or TensorRecord()
    return Feed(
        mean=plane(preprocess, "mean"),
        std=plane(preprocess, "std"),
        own_mean=plane(own, "mean"),
        own_std=plane(own, "std"),
        pixels=taken.takes_pixels,
        margin=_margin(preprocess) if taken.resize else (0, 0),
    )


def _margin(preprocess: Mapping[str, Any]) -> tuple[int, int]:
    """What has to lie around an image so that the graph's resizing finds nothing to do, and its crop is the image.

    As :func:`growtas.export.graph.resize.resize_nodes` has it: the sides rounded down, the corner half to even. An odd number
    of pixels is one more on one side; left out, every pixel would be resampled.
    """
    size = int(preprocess["image_size"])
    both = max(0, math.floor(size / float(preprocess.get("crop_pct") or 1.0)) - size)
    before = round(both / 2)
    return before, both - before
