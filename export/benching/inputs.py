"""What an artifact is fed while it is timed; the one place that knows of input types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from growtas.export.images import noise

DESCRIPTION = "normal noise, always the same (bytes 0 to 255 for artifacts that take uint8)"


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
    written = described.get("shape") or []
    # Where the graph resizes, height and width are names: then the session's shape is as good as any.
    shape = written[1:] if len(written) == 4 and all(isinstance(size, int) for size in written[1:]) else image_shape
    return np.random.default_rng(0).integers(0, 256, (batch, *shape), dtype=np.uint8)


def bytes_moved(images: Any, outputs_per_image: int) -> int:
    """Bytes of a run's inputs and outputs (float32)."""
    return int(images.nbytes) + 4 * outputs_per_image * len(images)
