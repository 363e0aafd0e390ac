"""Memory for cached activations of several sizes, up to a budget."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

from torch import Tensor

_BLOCK_BYTES = 64 << 20
# Spans begin at multiples of so many elements: a few cache lines.
_ALIGNED = 64


@dataclass(frozen=True, order=True)
class Span:
    """Elements ``start`` to ``stop`` of a block."""

    block: int
    start: int
    stop: int


class ActivationMemory:
    """Allocates spans of memory for tensors and takes them back.

    A new page of memory costs the system several times what writing it costs, so memory is allocated once, in blocks that fit the
    system's large pages, and used again. Allocation is first fit; neighbouring free spans are merged.

    Args:
        numbers: total capacity in elements.
        like: a tensor of the device and type.
    """

    def __init__(self, numbers: int, like: Tensor) -> None:
        self._left, self._like = numbers, like.detach()
        self._blocks: list[Tensor] = []
        self._free: list[Span] = []

    def empty(self) -> None:
        """Frees all spans."""
        self._free = [Span(number, 0, len(block)) for number, block in enumerate(self._blocks)]

    def take(self, numbers: int) -> Span | None:
        """Allocates a span of at least so many elements; None where there is no room."""
        needed = -(-numbers // _ALIGNED) * _ALIGNED
        at = next((i for i, span in enumerate(self._free) if span.stop - span.start >= needed), None)
        if at is None:
            size = min(self._left, max(needed, _BLOCK_BYTES // self._like.element_size()))
            if size < needed:
                return None
            self._left -= size
            self._blocks.append(self._like.new_empty(size))
            self._free.append(Span(len(self._blocks) - 1, 0, size))
            at = len(self._free) - 1
        span = self._free[at]
        taken = Span(span.block, span.start, span.start + needed)
        self._free[at : at + 1] = [Span(span.block, taken.stop, span.stop)] if taken.stop < span.stop else []
        return taken

    def give(self, span: Span) -> None:
        """Frees a span."""
        at = bisect.bisect(self._free, span)
        start, stop, first, last = span.start, span.stop, at, at
        if at and self._free[at - 1].block == span.block and self._free[at - 1].stop == start:
            start, first = self._free[at - 1].start, at - 1
        if at < len(self._free) and self._free[at].block == span.block and self._free[at].start == stop:
            stop, last = self._free[at].stop, at + 1
        self._free[first:last] = [Span(span.block, start, stop)]

    def at(self, span: Span, shape: tuple[int, ...]) -> Tensor:
        """The beginning of a span as a tensor of a shape; its values are what was written last."""
        return self._blocks[span.block][span.start : span.start + math.prod(shape)].view(shape)
