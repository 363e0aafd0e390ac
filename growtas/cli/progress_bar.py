"""The progress of a command as a bar on stderr."""

from __future__ import annotations

from growtas.cli.output import note, progress
from growtas.progress import Progress


class ProgressBar(Progress):
    """A bar that names the current stage and counts its units; a context manager. Notes become lines on stderr.

    Args:
        hidden: show only notes, as where stderr is no terminal.
    """

    def __init__(self, *, hidden: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = progress(*columns, hidden=hidden)
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def stage(self, name: str, total: int | None = None) -> None:
        """The bar begins again under another name."""
        self._bar.reset(self._task, total=total, description=name)

    def advance(self, count: int = 1) -> None:
        """The bar grows."""
        self._bar.advance(self._task, count)

    def note(self, text: str) -> None:
        """A line on stderr."""
        note(text)
