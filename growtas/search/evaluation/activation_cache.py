"""What left the nodes of an evaluation's tree, kept for the subnets to come."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from growtas.search.evaluation.activation_memory import Arena, Span

Path = tuple[int, ...]
"""The width, then heads and hidden channels of block after block: a node of the tree, or, in full, a subnet."""


@dataclass(frozen=True)
class _Output:
    place: Span
    x: Tensor


class KeptOutputs:
    """Outputs of nodes by batch of images and path.

    Where memory runs out, the longest paths go first: the short ones are few, and shared by more subnets; among equals the one that
    was not used for longest. What is in use stays, and so does all that is shorter than what is new.

    Args:
        activation_bytes: memory for them.
        longest: length of the longest path.
        like: a tensor of the device and type.
    """

    def __init__(self, activation_bytes: int, longest: int, like: Tensor) -> None:
        self._arena = Arena(activation_bytes // like.element_size(), like)
        # By the length of the path.
        self._outputs: list[dict[tuple[int, Path], _Output]] = [{} for _ in range(longest + 1)]
        self._in_use: set[tuple[int, Path]] = set()

    def clear(self) -> None:
        """Forget all; the memory stays."""
        for outputs in self._outputs:
            outputs.clear()
        self._in_use.clear()
        self._arena.empty()

    def get(self, batch: int, path: Path) -> Tensor | None:
        """What left a node, if it is there; from now on the last that was used."""
        outputs, key = self._outputs[len(path)], (batch, path)
        output = outputs.pop(key, None)
        if output is None:
            return None
        outputs[key] = output
        return output.x

    def use(self, batch: int, paths: Iterable[Path]) -> None:
        """These, where they are there, must not go until :meth:`release`."""
        self._in_use.update((batch, path) for path in paths)

    def release(self, batch: int, paths: Iterable[Path]) -> None:
        """These are no longer in use."""
        self._in_use.difference_update((batch, path) for path in paths)

    def reserve(self, batch: int, path: Path, shape: tuple[int, ...]) -> Tensor | None:
        """A place to write what leaves a node to, which then counts as kept; None where it can't be."""
        numbers = 1
        for size in shape:
            numbers *= size
        while (place := self._arena.take(numbers)) is None:
            if not self._drop(len(path)):
                return None
        output = _Output(place, self._arena.at(place, shape))
        self._outputs[len(path)][batch, path] = output
        return output.x

    def _drop(self, length: int) -> bool:
        """Give up one of a path at least so long; whether there was one that is not in use."""
        for outputs in reversed(self._outputs[length:]):
            key = next((key for key in outputs if key not in self._in_use), None)
            if key is not None:
                self._arena.give(outputs.pop(key).place)
                return True
        return False
