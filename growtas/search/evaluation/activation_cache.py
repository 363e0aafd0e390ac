"""Cache of block outputs, shared by subnets with the same first blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from growtas.search.evaluation.activation_memory import ActivationMemory, Span

Path = tuple[int, ...]
"""The width, then heads and hidden channels of block after block: a node of the tree, or, in full, a subnet."""


class ActivationCache:
    """Caches the outputs of nodes by batch of images and path.

    Where memory runs out, the longest paths are dropped first: short paths are few, and more subnets share them. Among paths of one
    length the least recently used goes first. Outputs in use are never dropped, nor are paths shorter than the new one.

    Args:
        activation_bytes: memory for the outputs.
        longest: length of the longest path.
        like: a tensor of the device and type.
    """

    def __init__(self, activation_bytes: int, longest: int, like: Tensor) -> None:
        self._memory = ActivationMemory(activation_bytes // like.element_size(), like)
        # By the length of the path.
        self._outputs: list[dict[tuple[int, Path], tuple[Span, Tensor]]] = [{} for _ in range(longest + 1)]
        self._in_use: set[tuple[int, Path]] = set()

    def clear(self) -> None:
        """Drops all outputs; the memory is used again."""
        for outputs in self._outputs:
            outputs.clear()
        self._in_use.clear()
        self._memory.empty()

    def get(self, batch: int, path: Path) -> Tensor | None:
        """The output of a node, which becomes the most recently used one; None where it is not cached."""
        outputs, key = self._outputs[len(path)], (batch, path)
        if key not in outputs:
            return None
        outputs[key] = outputs.pop(key)
        return outputs[key][1]

    def use(self, batch: int, paths: Iterable[Path]) -> None:
        """Keeps the outputs of these paths, where they are cached, until :meth:`release`."""
        self._in_use.update((batch, path) for path in paths)

    def release(self, batch: int, paths: Iterable[Path]) -> None:
        """Lets the outputs of these paths be dropped again."""
        self._in_use.difference_update((batch, path) for path in paths)

    def reserve(self, batch: int, path: Path, shape: tuple[int, ...]) -> Tensor | None:
        """An uninitialised tensor for the output of a node, cached from now on; None where no memory can be freed."""
        while (place := self._memory.take(math.prod(shape))) is None:
            if not self._drop(len(path)):
                return None
        output = self._memory.at(place, shape)
        self._outputs[len(path)][batch, path] = place, output
        return output

    def _drop(self, length: int) -> bool:
        """Whether an output that is not in use, and whose path is at least so long, could be dropped."""
        for outputs in reversed(self._outputs[length:]):
            key = next((key for key in outputs if key not in self._in_use), None)
            if key is not None:
                self._memory.give(outputs.pop(key)[0])
                return True
        return False
