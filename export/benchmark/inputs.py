"""The images for measurements: their type, shape and layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from growtas.errors import CheckpointError, choices
from growtas.export.artifact import Manifest, TensorRecord
from growtas.export.graph.contents import read_graph
from growtas.export.runtimes.base import Session
from growtas.export.verification.images import noise

DESCRIPTION = "normal noise, always the same (random bytes 0 to 255 for artifacts that take uint8)"
DTYPES = ("float32", "float16", "float64", "uint8")
_CHANNELS = (1, 3)


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """The images for measuring an artifact.

    Attributes:
        dtype: one of :data:`DTYPES`.
        shape: shape of one image, in the order of the input.
        layout: order of the axes, ``NCHW`` or ``NHWC``.
        any_size: whether the artifact takes images of any height and width; ``shape`` is then the model's own size.
    """

    dtype: str
    shape: tuple[int, int, int]
    layout: str
    any_size: bool = False

    def images(self, batch: int) -> Any:
        """Returns a batch of images, always the same: random bytes 0 to 255, or normal noise."""
        if self.dtype == "uint8":
            return np.random.default_rng(0).integers(0, 256, (batch, *self.shape), dtype=np.uint8)
        return noise(batch, self.shape).astype(self.dtype, copy=False)

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{size} {self.dtype} ({self.layout}" + (", its height and width are free)" if self.any_size else ")")


def image_input(path: Path | None, manifest: Manifest | None, session: Session) -> ImageInput:
    """Returns the images for an artifact, from its manifest or, without a manifest, from its graph.

    A free height or width is the ``image_size`` in the manifest's ``preprocess``, or else that of the session.

    Args:
        path: the file; None for a timm model in PyTorch.
        manifest: the artifact's manifest; None without one.
        session: the loaded artifact.

    Raises:
        CheckpointError: the type of the input is not one of images, or the size of the images is unknown.
    """
    manifest = manifest or Manifest()
    record = manifest.input or _graph_input(path)
    sizes, size = record.sizes, (manifest.preprocess or {}).get("image_size")
    any_size = len(sizes) == 3 and None in sizes
    if len(sizes) == 3 and (size or not any_size):
        first, second, third = (int(size or 0) if side is None else side for side in sizes)
        shape = (first, second, third)
    else:
        shape = session.image_shape
    channels_last = shape[-1] in _CHANNELS and shape[0] not in _CHANNELS
    layout, dtype = record.layout or ("NHWC" if channels_last else "NCHW"), record.dtype or "float32"
    if dtype not in DTYPES:
        raise CheckpointError(f"{path}: its input is of type {dtype}; legal are {choices(DTYPES)}")
    return ImageInput(dtype=dtype, shape=shape, layout=layout, any_size=any_size)


def bytes_moved(images: Any, outputs_per_image: int) -> int:
    """Returns the size of a run's inputs and of its float32 outputs in bytes."""
    return int(images.nbytes) + 4 * outputs_per_image * len(images)


def _graph_input(path: Path | None) -> TensorRecord:
    """The input in the graph of an ONNX file or an IR; empty for other formats and unreadable files."""
    try:
        inputs = read_graph(path).get("inputs") if path else None
    except CheckpointError:
        inputs = None  # opening the session reports the error
    return TensorRecord.model_validate(inputs[0]) if inputs else TensorRecord()
