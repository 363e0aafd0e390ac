"""Random shifts and flips of whole batches of small images.

The code uses NumPy, because it runs in a background thread, in which torch's operators would start another thread pool. Random
numbers are drawn for the whole batch first, so that a process that augments only some rows gets the same images.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray


def draw_shifts(count: int, limit: int, rng: Generator) -> NDArray[np.int64]:
    """Draws crop offsets for ``count`` padded images: ``(count, 2)``, row and column in 0..2 * limit."""
    return rng.integers(0, 2 * limit + 1, (count, 2))


def shift(pixels: NDArray[np.uint8], offsets: NDArray[np.int64], limit: int) -> NDArray[np.uint8]:
    """Pads images ``(n, C, H, W)`` with ``limit`` zeros on each side and crops each to its old size at its offset ``(n, 2)``."""
    count, channels, height, width = pixels.shape
    padded = np.zeros((count, channels, height + 2 * limit, width + 2 * limit), np.uint8)
    padded[:, :, limit : limit + height, limit : limit + width] = pixels
    # A view of every crop of every image, (n, C, offsets, offsets, H, W); the indexing copies one crop per image.
    crops = np.lib.stride_tricks.sliding_window_view(padded, (height, width), (2, 3))
    return crops[np.arange(count), :, offsets[:, 0], offsets[:, 1]]


def draw_flips(count: int, probability: float, rng: Generator) -> NDArray[np.bool_]:
    """Draws which of ``count`` images are flipped: ``(count,)``."""
    return rng.random(count) < probability


def flip(pixels: NDArray[np.uint8], mirrored: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Flips the chosen images of ``(n, C, H, W)`` left to right, in place."""
    pixels[mirrored] = pixels[mirrored, :, :, ::-1]
    return pixels
