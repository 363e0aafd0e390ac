"""Progress of long work: a class for the parameter ``progress`` of the functions in :mod:`growtas.api`.

The commands show bars and tables with it, a notebook can print lines, and the default shows nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Item = TypeVar("Item")


class Progress:
    """Receives the reports of long work. This class ignores all of them; a subclass overrides methods to show them.

    A method may raise ``KeyboardInterrupt`` to stop the work; the results so far are kept as after Ctrl-C.
    """

    def stage(self, name: str, total: int | None = None) -> None:
        """Called when a part of the work begins.

        Args:
            name: the work of this stage, such as ``"exporting ONNX"``.
            total: number of units (steps, images, samples ...); None if it is unknown.
        """

    def advance(self, count: int = 1) -> None:
        """Called when ``count`` more units of the current stage are done."""

    def note(self, text: str) -> None:
        """Called with a sentence that the user should read, such as which run is used by default."""

    def event(self, event: object) -> None:
        """Called with an intermediate result, such as a :class:`growtas.train.events.EpochDone`."""


SILENT = Progress()
"""A progress that shows nothing."""


def tracked(items: Iterable[Item], name: str, progress: Progress = SILENT, total: int | None = None) -> Iterator[Item]:
    """Yields items as a stage of their own, which advances with each item.

    Args:
        items: the items.
        name: name of the stage.
        progress: receives the stage.
        total: number of items; by default their length, if they have one.
    """
    progress.stage(name, len(items) if total is None and isinstance(items, Sized) else total)
    for item in items:
        yield item
        progress.advance()
