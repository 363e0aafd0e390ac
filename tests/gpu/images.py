"""Images for a machine without data sets: noise with a different brightness for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 4


def noise(index: int, size: int) -> Image.Image:
    """Returns an image of class ``index % CLASSES``, the same at every call."""
    brightness = 60 * (index % CLASSES)
    return Image.fromarray(np.random.default_rng(index).integers(brightness, brightness + 60, (size, size, 3), np.uint8))


def write_folder(folder: Path, count: int, size: int) -> Path:
    """Writes ``count`` images as PNG files into one folder per class, unless they exist already."""
    for index in range(count):
        path = folder / f"class-{index % CLASSES}" / f"{index:04d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            noise(index, size).save(path)
    return folder
