"""Cuts a stratified part from a labelled set."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray


def stratified_split(labels: NDArray[np.int64], count: int, rng: Generator, *, leave: int = 1) -> NDArray[np.int64]:
    """Indices of about ``count`` images, the same share of every class, in ascending order.

    Shares are rounded by largest remainder, so that the sum is ``count``; every class keeps at least ``leave`` images outside the
    part, which can make it smaller.

    Args:
        labels: class of each image, ``(n,)``.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    quota = sizes * count / max(len(labels), 1)
    counts = np.minimum(np.floor(quota).astype(np.int64), sizes - leave)
    missing = count - int(counts.sum())
    # A class that has no image to spare gets no remainder either; it goes to the next one.
    open_classes = np.flatnonzero(counts < sizes - leave)
    counts[open_classes[np.argsort(-(quota - counts)[open_classes], kind="stable")[:missing]]] += 1
    parts = [rng.permutation(np.flatnonzero(labels == c))[:k] for c, k in zip(classes, counts, strict=True)]
    return np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64)


def complement(indices: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The indices below ``size`` that are not in ``indices``."""
    mask = np.ones(size, bool)
    mask[indices] = False
    return np.flatnonzero(mask)


def evenly_spaced(length: int, count: int) -> NDArray[np.int64]:
    """The indices of at most ``count`` of ``length`` items, evenly spaced from the first to the last one."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(np.int64)
