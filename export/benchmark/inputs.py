"""The images that artifacts are timed on: their type, shape and layout."""

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

DESCRIPTION = "normal noise, always the same (bytes 0 to 255 for artifacts that take uint8)"
DTYPES = ("float32", "float16", "float64", "uint8")
_CHANNELS = (1, 3)


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """The images that an artifact is timed on.

    Attributes:
        dtype: of :data:`DTYPES`.
        shape: of one image, in the input's own order.
        layout: that order, ``NCHW`` or ``NHWC``.
        any_size: the artifact takes images of any height and width; those of ``shape`` were chosen.
    """

    dtype: str
    shape: tuple[int, int, int]
    layout: str
    any_size: bool = False

    def images(self, batch: int) -> Any:
        """A batch of them, always the same: bytes 0 to 255, or normal noise."""
        if self.dtype == "uint8":
            return np.random.default_rng(0).integers(0, 256, (batch, *self.shape), dtype=np.uint8)
        return noise(batch, self.shape).astype(self.dtype, copy=False)

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{size} {self.dtype} ({self.layout}" + (", its height and width are free)" if self.any_size else ")")


def image_input(path: Path | None, manifest: Manifest | None, session: Session) -> ImageInput:
    """The images that an artifact takes: its manifest says so, or its own graph where there is no manifest.

    Free heights and widths are the ``image_size`` of the manifest's ``preprocess``, else what the session gives.

    Args:
        path: the file; None for a timm model in PyTorch.
        session: the loaded artifact.

    Raises:
        CheckpointError: an input of a type that images don't have, or nothing says of which size they are.
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
        raise CheckpointError(f"{path}: its input is of type {dtype}; images are {choices(DTYPES)}")
    return ImageInput(dtype=dtype, shape=shape, layout=layout, any_size=any_size)


def bytes_moved(images: Any, outputs_per_image: int) -> int:
    """Bytes of a run's inputs and outputs (float32)."""
    return int(images.nbytes) + 4 * outputs_per_image * len(images)


def _graph_input(path: Path | None) -> TensorRecord:
    """The input as an ONNX file or an IR describes it; of other formats, and of what can't be read, nothing is known."""
    try:
        inputs = read_graph(path).get("inputs") if path else None
    except CheckpointError:
        inputs = None  # the session says what is wrong
    return TensorRecord.model_validate(inputs[0]) if inputs else TensorRecord()
