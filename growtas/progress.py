"""Progress of long work: one class that every function of :mod:`growtas.api` takes as ``progress``.

The commands draw bars and tables from it, a notebook can print lines, and the default shows nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Item = TypeVar("Item")


class Progress:
    """Receives what long work reports. This class ignores everything: override the methods that you want to see.

    A method may raise ``KeyboardInterrupt`` to stop the work; whatever was done until then is kept as after Ctrl-C.
    """

    def stage(self, name: str, total: int | None = None) -> None:
        """A part of the work begins.

        Args:
            name: what is being done, such as ``"exporting ONNX"``.
            total: how many units it has (steps, images, samples ...); None where that is not known.
        """

    def advance(self, count: int = 1) -> None:
        """``count`` more units of the current stage are done."""

    def note(self, text: str) -> None:
        """Something that the user should know: one sentence, such as which images stand in for absent ones."""

    def event(self, event: object) -> None:
        """A result on the way, as a value of a class of its own, such as :class:`growtas.train.events.EpochDone`."""


SILENT = Progress()
"""Shows nothing."""


def tracked(items: Iterable[Item], name: str, progress: Progress = SILENT, total: int | None = None) -> Iterator[Item]:
    """The items one by one, as a stage of their own that advances with each.

    Args:
        total: how many there are, where the items don't know their number.
    """
    progress.stage(name, len(items) if total is None and isinstance(items, Sized) else total)
    for item in items:
        yield item
        progress.advance()
