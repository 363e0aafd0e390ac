"""Cuts a global batch into parts. Each process loads some parts and computes their gradients one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from growtas.errors import ConfigError, choices


@dataclass(frozen=True)
class Parts:
    """The parts of every global batch that a process loads: ``first`` to ``last - 1`` of ``count``.

    Attributes:
        count: number of parts of a global batch: processes times accumulated parts per process.
        first: the first part of this process.
        last: one more than the last part of this process.

    Raises:
        ConfigError: The process would load no part, or a part that doesn't exist.
    """

    count: int = 1
    first: int = 0
    last: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last <= self.count:
            raise ConfigError(
                f"parts {self.first} to {self.last - 1} of {self.count} can't be loaded; legal are consecutive parts "
                f"from 0 to {self.count - 1}"
            )

    @classmethod
    def of_process(cls, rank: int, processes: int, accumulate: int = 1) -> Parts:
        """Returns the parts of process ``rank`` of ``processes``, each of which loads ``accumulate`` parts per step."""
        return cls(processes * accumulate, rank * accumulate, (rank + 1) * accumulate)

    def rows(self, size: int) -> NDArray[np.int64]:
        """Returns the rows of a global batch of ``size`` images that this process loads, one part after the other.

        Raises:
            ConfigError: The batch can't be cut into so many parts.
        """
        return np.concatenate([part_rows(size, self.count, part) for part in range(self.first, self.last)])


def part_rows(size: int, count: int, part: int) -> NDArray[np.int64]:
    """Returns the rows of one part. With each row, the part has the row at the mirrored place in the batch.

    timm's Mixup mixes a batch with itself in reverse order. A part in reverse order has the same pairs of images as the global
    batch, so that Mixup does not depend on the number of parts.

    Args:
        size: number of images in the global batch.
        count: number of parts; 1 returns all rows in order.
        part: the part, from 0.

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
