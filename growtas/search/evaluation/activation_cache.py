"""Cache of block outputs, shared by subnets with the same first blocks, and the memory that it uses."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

Path = tuple[int, ...]
"""A node of the tree: the width, then heads and hidden channels of block after block. A full path is a subnet."""

_BLOCK_BYTES = 64 << 20
# Spans begin at multiples of this number of elements, which is a few cache lines.
_ALIGNED = 64


@dataclass(frozen=True, order=True)
class Span:
    """Elements ``start`` to ``stop`` of a block."""

    block: int
    start: int
    stop: int


class ActivationMemory:
    """Allocates and frees spans of memory for tensors.

    Getting a new page of memory from the system takes several times as long as writing it. So memory is allocated once, in blocks
    that fit the system's large pages, and reused. Allocation is first fit; neighbouring free spans are merged.

    Args:
        numbers: total capacity in elements.
        like: a tensor with the device and data type to use.
    """

    def __init__(self, numbers: int, like: Tensor) -> None:
        self._left, self._like = numbers, like.detach()
        self._blocks: list[Tensor] = []
        self._free: list[Span] = []

    def empty(self) -> None:
        """Frees all spans."""
        self._free = [Span(number, 0, len(block)) for number, block in enumerate(self._blocks)]

    def take(self, numbers: int) -> Span | None:
        """Allocates a span of at least ``numbers`` elements; returns None if there is no room."""
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
        """Returns the beginning of a span as a tensor of a shape. It contains the values that were written last."""
        return self._blocks[span.block][span.start : span.start + math.prod(shape)].view(shape)


class ActivationCache:
    """Caches the outputs of nodes by batch of images and path.

    When memory runs out, the longest paths are dropped first, because short paths are few and more subnets share them. Among paths
    of equal length the least recently used one is dropped first. Outputs in use and paths shorter than the new one are kept.

    Args:
        activation_bytes: memory for the outputs in bytes.
        longest: length of the longest path.
        like: a tensor with the device and data type to use.
    """

    def __init__(self, activation_bytes: int, longest: int, like: Tensor) -> None:
        self._memory = ActivationMemory(activation_bytes // like.element_size(), like)
        # Indexed by the length of the path.
        self._outputs: list[dict[tuple[int, Path], tuple[Span, Tensor]]] = [{} for _ in range(longest + 1)]
        self._in_use: set[tuple[int, Path]] = set()

    def clear(self) -> None:
        """Drops all outputs and keeps their memory for reuse."""
        for outputs in self._outputs:
            outputs.clear()
        self._in_use.clear()
        self._memory.empty()

    def get(self, batch: int, path: Path) -> Tensor | None:
        """Returns the output of a node and marks it as the most recently used one; None if it is not cached."""
        outputs, key = self._outputs[len(path)], (batch, path)
        if key not in outputs:
            return None
        outputs[key] = outputs.pop(key)
        return outputs[key][1]

    def use(self, batch: int, paths: Iterable[Path]) -> None:
        """Protects the cached outputs of these paths from being dropped until :meth:`release`."""
        self._in_use.update((batch, path) for path in paths)

    def release(self, batch: int, paths: Iterable[Path]) -> None:
        """Allows the outputs of these paths to be dropped again."""
        self._in_use.difference_update((batch, path) for path in paths)

    def reserve(self, batch: int, path: Path, shape: tuple[int, ...]) -> Tensor | None:
        """Returns an uninitialised tensor for the output of a node, which is cached from now on; None if no memory can be freed."""
        while (place := self._memory.take(math.prod(shape))) is None:
            if not self._drop(len(path)):
                return None
        output = self._memory.at(place, shape)
        self._outputs[len(path)][batch, path] = place, output
        return output

    def _drop(self, length: int) -> bool:
        """Drops one output that is not in use and whose path has at least ``length`` entries. Returns whether there was one."""
        for outputs in reversed(self._outputs[length:]):
            key = next((key for key in outputs if key not in self._in_use), None)
            if key is not None:
                self._memory.give(outputs.pop(key)[0])
                return True
        return False
