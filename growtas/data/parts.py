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
    unit = 2 * count
    half = size // unit
    if size % unit:
        nearest = choices(multiple for multiple in (half * unit, half * unit + unit) if multiple)
        raise ConfigError(
            f"batch_size is {size}, which can't be cut into {count} parts (processes x accumulate) of an even number of images; "
            f"legal is a multiple of {unit}, such as {nearest}"
        )
    return np.concatenate([np.arange(part * half, (part + 1) * half), np.arange(size - (part + 1) * half, size - part * half)])
