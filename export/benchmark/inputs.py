"""What an artifact is fed while it is timed; the one place that knows of input types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from growtas.errors import CheckpointError, choices
from growtas.export.contents import read_graph
from growtas.export.runtimes.base import Session
from growtas.export.verification.images import noise

DESCRIPTION = "normal noise, always the same (bytes 0 to 255 for artifacts that take uint8)"
DTYPES = ("float32", "float16", "float64", "uint8")
_CHANNELS = (1, 3)


@dataclass(frozen=True, kw_only=True)
class Fed:
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


def fed_to(path: Path | None, manifest: Mapping[str, Any] | None, session: Session) -> Fed:
    """What an artifact takes: its manifest says so, or its own graph where there is no manifest.

    Free heights and widths are the ``image_size`` of the manifest's ``preprocess``, else what the session gives.

    Args:
        path: the file; None for a timm model in PyTorch.
        session: the loaded artifact.

    Raises:
        CheckpointError: an input of a type that images don't have, or nothing says of which size they are.
    """
    described = (manifest or {}).get("input") or _graph_input(path)
    fed = _fed(described, (manifest or {}).get("preprocess") or {}, lambda: session.image_shape)
    if fed.dtype not in DTYPES:
        raise CheckpointError(f"{path}: its input is of type {fed.dtype}; images are {choices(DTYPES)}")
    return fed


def bench_images(batch: int, image_shape: tuple[int, int, int], manifest: Mapping[str, Any] | None) -> Any:
    """Images of the type and layout that the artifact takes, always the same.

    Args:
        batch: images a run.
        image_shape: the session's; rules unless the manifest names uint8.
        manifest: its ``input`` has ``dtype`` and ``shape``; without one the input is float32.

    Returns:
        float32 ``(batch, channels, height, width)``; uint8 in the manifest's layout for a graph with its own pre-processing.
    """
    described = (manifest or {}).get("input") or {}
    if described.get("dtype") != "uint8":
        return noise(batch, image_shape)
    return _fed(described, (manifest or {}).get("preprocess") or {}, lambda: image_shape).images(batch)


def bytes_moved(images: Any, outputs_per_image: int) -> int:
    """Bytes of a run's inputs and outputs (float32)."""
    return int(images.nbytes) + 4 * outputs_per_image * len(images)


def _fed(described: Mapping[str, Any], preprocess: Mapping[str, Any], image_shape: Callable[[], tuple[int, int, int]]) -> Fed:
    written = tuple(described.get("shape") or ())[1:]
    fixed = [isinstance(size, int) and size > 0 for size in written]
    any_size = len(written) == 3 and not all(fixed)
    if len(written) == 3 and (not any_size or preprocess.get("image_size")):
        first, second, third = (
            int(each if is_fixed else preprocess["image_size"]) for each, is_fixed in zip(written, fixed, strict=True)
        )
        shape = (first, second, third)
    else:
        shape = image_shape()
    channels_last = shape[-1] in _CHANNELS and shape[0] not in _CHANNELS
    layout = str(described.get("layout") or ("NHWC" if channels_last else "NCHW"))
    return Fed(dtype=str(described.get("dtype", "float32")), shape=shape, layout=layout, any_size=any_size)


def _graph_input(path: Path | None) -> Mapping[str, Any]:
    """The input as an ONNX file or an IR describes it; empty for other formats, and for what can't be read."""
    if path is None or path.suffix not in (".onnx", ".xml"):
        return {}
    try:
        inputs = read_graph(path).get("inputs") or [{}]
    except CheckpointError:
        return {}  # The session says what is wrong.
    return dict(inputs[0])
