"""Chooses a stratified part of a labelled set."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray


def stratified_split(labels: NDArray[np.int64], count: int, rng: Generator, *, leave: int = 1) -> NDArray[np.int64]:
    """Returns the indices of about ``count`` images, with the same share of every class, in ascending order.

    Shares are rounded by largest remainder, so that the sum is ``count``. The part is smaller if a class would otherwise have fewer
    than ``leave`` images outside of it.

    Args:
        labels: class of each image, ``(n,)``.
        count: size of the part.
        rng: the random generator.
        leave: least number of images of each class outside the part.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    quota = sizes * count / max(len(labels), 1)
    counts = np.minimum(np.floor(quota).astype(np.int64), sizes - leave)
    missing = count - int(counts.sum())
    # A class with no more images to give gets no remainder; the next class gets it.
    open_classes = np.flatnonzero(counts < sizes - leave)
    counts[open_classes[np.argsort(-(quota - counts)[open_classes], kind="stable")[:missing]]] += 1
    parts = [rng.permutation(np.flatnonzero(labels == c))[:k] for c, k in zip(classes, counts, strict=True)]
    return np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64)


def complement(indices: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Returns the indices below ``size`` that are not in ``indices``, in ascending order."""
    mask = np.ones(size, bool)
    mask[indices] = False
    return np.flatnonzero(mask)


def evenly_spaced(length: int, count: int) -> NDArray[np.int64]:
    """Returns at most ``count`` indices of ``length`` items, evenly spaced from the first to the last item."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(np.int64)
