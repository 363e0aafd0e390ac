"""Cuts a global batch into parts: every process loads some of them and computes their gradients one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from growtas.errors import ConfigError, choices


@dataclass(frozen=True)
class Parts:
    """Which parts of every global batch a process loads: ``first`` to ``last - 1`` of ``count``.

    Attributes:
        count: parts of a global batch: processes times accumulated parts a process.
        first: the first part of this process.
        last: the part after this process's last one.

    Raises:
        ConfigError: the process would load no part, or one that isn't there.
    """

    count: int = 1
    first: int = 0
    last: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last <= self.count:
            raise ConfigError(
                f"parts {self.first} to {self.last - 1} can't be loaded out of {self.count}; legal are runs of parts "
                f"from 0 to {self.count - 1}"
            )

    @classmethod
    def of_process(cls, rank: int, processes: int, accumulate: int = 1) -> Parts:
        """The parts of process ``rank`` among ``processes``, each of which goes through ``accumulate`` parts a step."""
        return cls(processes * accumulate, rank * accumulate, (rank + 1) * accumulate)

    def rows(self, size: int) -> NDArray[np.int64]:
        """Rows of a global batch of ``size`` that this process loads, one part after the other.

        Raises:
            ConfigError: the batch can't be cut into so many parts.
        """
        return np.concatenate([part_rows(size, self.count, part) for part in range(self.first, self.last)])


def part_rows(size: int, count: int, part: int) -> NDArray[np.int64]:
    """Rows of one part: every row with its mirror image in the batch.

    timm's Mixup mixes a batch with itself in reverse order. A part in reverse order pairs the same images as the global batch does,
    so what is mixed does not depend on the number of parts.

    Args:
        size: images of the global batch.
        count: parts; 1 leaves all rows in order.
        part: which one, from 0.

    Raises:
        ConfigError: ``size`` is not a multiple of ``2 * count``.
    """
    if count == 1:
        return np.arange(size)
    if size % (2 * count):
        raise ConfigError(
            f"batch_size is {size}, which can't be cut into {count} parts (processes x accumulate) of an even number of images; "
            f"legal is a multiple of {2 * count}, such as {_near(size, 2 * count)}"
        )
    half = size // (2 * count)
    return np.concatenate([np.arange(part * half, (part + 1) * half), np.arange(size - (part + 1) * half, size - part * half)])


def check_parts(batch_size: int, images: int, batch: int, parts: Parts) -> None:
    """Make sure that the batches of a set can be cut.

    Args:
        batch_size: as the recipe says.
        images: of the set.
        batch: what a batch of the set holds, less than ``batch_size`` where the set is smaller.
        parts: how it is to be cut.

    Raises:
        ConfigError: they can't; the message says what would be legal.
    """
    if batch == batch_size or parts.count == 1 or batch % (2 * parts.count) == 0:
        part_rows(batch, parts.count, parts.first)
        return
    unit = 2 * parts.count
    if images < unit:
        raise ConfigError(
            f"batch_size is {batch_size}, but there are only {images} training images, too few for {parts.count} parts "
            f"(processes x accumulate) of 2 images or more; use fewer"
        )
    raise ConfigError(
        f"batch_size is {batch_size}, but there are only {images} training images, and their one batch of {batch} can't be cut "
        f"into {parts.count} parts (processes x accumulate); set batch_size to a multiple of {unit} up to {images // unit * unit}"
    )


def _near(size: int, unit: int) -> str:
    """The multiples of ``unit`` on both sides of ``size``."""
    below = size // unit * unit
    return choices(value for value in (below, below + unit) if value)
