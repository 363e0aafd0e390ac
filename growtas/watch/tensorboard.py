"""A run's metrics as scalars for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from growtas.errors import MissingExtra
from growtas.files import read_json_lines
from growtas.progress import Progress
from growtas.train.events import EpochDone, RunReady

_GROUPS = ("accuracy", "probes", "time", "compute")
_SINGLE = ("loss", "lr", "images_per_s", "stage", "epoch", "seconds")


class TensorBoardLog:
    """Writes the lines of ``metrics.jsonl`` as scalars, at the number of steps that were complete then.

    The tags are ``loss``, ``lr``, ``images_per_s``, ``stage``, ``epoch``, ``seconds``, and those of the groups, such as
    ``accuracy/smallest``, ``probes/A1 smallest``, ``time/forward`` and ``compute/macs``. Every line is on the disk when
    :meth:`add` returns.

    A training that goes on opens the same folder again; what was written of steps after ``first_step`` is then hidden, as those
    steps are done once more.

    Args:
        folder: where the event files go, ``RUN/tensorboard``.
        first_step: steps that are complete before the first one to come, 0 for a new training.

    Raises:
        MissingExtra: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        try:
            import tensorboard  # noqa: F401
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtra("tensorboard", "watch", "logging for TensorBoard") from None
        # TensorBoard hides this step too, and a line's step is the number of those that are complete.
        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Write a line of ``metrics.jsonl``; entries that are no numbers are left out."""
        for tag, value in _scalars(metrics):
            self._writer.add_scalar(tag, value, metrics["step"])
        self._writer.flush()

    def close(self) -> None:
        """Close the event file; more than once is fine."""
        self._writer.close()


class TensorBoardProgress(Progress):
    """Writes a training's metrics for TensorBoard into the run's folder, and passes everything on.

    Args:
        inner: is told of everything.
    """

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self._log: TensorBoardLog | None = None
        self.stage, self.advance, self.note = inner.stage, inner.advance, inner.note  # type: ignore[method-assign]

    def event(self, event: object) -> None:
        """See :class:`growtas.progress.Progress`."""
        if isinstance(event, RunReady):
            steps = len(read_json_lines(event.run.path / "metrics.jsonl"))
            self._log = TensorBoardLog(event.run.path / "tensorboard", steps)
        elif isinstance(event, EpochDone) and self._log is not None:
            self._log.add(event.metrics)
        self._inner.event(event)

    def close(self) -> None:
        """Closes the event file."""
        if self._log is not None:
            self._log.close()


def _scalars(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    entries = {key: metrics.get(key) for key in _SINGLE}
    for group in _GROUPS:
        entries |= {f"{group}/{key}": value for key, value in (metrics.get(group) or {}).items()}
    for tag, value in entries.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield tag, float(value)
