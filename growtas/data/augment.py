"""Random shifts and flips of whole batches of small images, in NumPy.

NumPy and not torch: this runs in a background thread, in which torch's operators would start another pool of threads. Random
numbers are drawn for a whole batch before any row of it is touched, so that a process can augment some rows alone and get the same.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray


def draw_shifts(count: int, limit: int, rng: Generator) -> NDArray[np.int64]:
    """Offsets of the crops of ``count`` padded images: ``(count, 2)``, row and column in 0..2 * limit."""
    return rng.integers(0, 2 * limit + 1, (count, 2))


def shift(pixels: NDArray[np.uint8], offsets: NDArray[np.int64], limit: int) -> NDArray[np.uint8]:
    """Pad ``(n, C, H, W)`` with ``limit`` zeros on each side, and crop each image to its old size at its offset, ``(n, 2)``."""
    count, channels, height, width = pixels.shape
    padded = np.zeros((count, channels, height + 2 * limit, width + 2 * limit), np.uint8)
    padded[:, :, limit : limit + height, limit : limit + width] = pixels
    # Every crop of every image as a view, of which indexing then copies one an image: (n, C, offsets, offsets, H, W).
    crops = np.lib.stride_tricks.sliding_window_view(padded, (height, width), (2, 3))
    return crops[np.arange(count), :, offsets[:, 0], offsets[:, 1]]


def draw_flips(count: int, probability: float, rng: Generator) -> NDArray[np.bool_]:
    """Which of ``count`` images are mirrored."""
    return rng.random(count) < probability


def flip(pixels: NDArray[np.uint8], mirrored: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Mirror the chosen images of ``(n, C, H, W)`` left to right, in place."""
    pixels[mirrored] = pixels[mirrored, :, :, ::-1]
    return pixels
