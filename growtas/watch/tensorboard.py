"""A run's metrics as scalars for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from growtas.errors import MissingExtra
from growtas.progress import Progress
from growtas.train.events import EpochDone, RunReady, TrainingStarted

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_GROUPS = ("accuracy", "probes", "time", "compute")
_SINGLE = ("loss", "lr", "images_per_s", "stage", "epoch", "seconds")


class TensorBoardProgress(Progress):
    """Writes a training's epochs as scalars into ``RUN/tensorboard``, and passes everything on.

    The scalars stand at the number of steps that were complete then. The tags are ``loss``, ``lr``, ``images_per_s``, ``stage``,
    ``epoch``, ``seconds``, and those of the groups, such as ``accuracy/smallest``, ``probes/A1 smallest``, ``time/forward`` and
    ``compute/macs``; entries that are no numbers are left out. Every epoch is on the disk when :meth:`event` returns.

    A training that goes on opens the same folder again; what was written of steps that are done once more is then hidden.

    Args:
        inner: receives everything too.
    """

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self._writer: SummaryWriter | None = None
        self.stage, self.advance, self.note = inner.stage, inner.advance, inner.note  # type: ignore[method-assign]

    def event(self, event: object) -> None:
        """See :class:`growtas.progress.Progress`.

        Raises:
            MissingExtra: the package tensorboard is not installed.
        """
        if isinstance(event, RunReady):
            try:
                import tensorboard  # noqa: F401
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise MissingExtra("tensorboard", "watch", "logging for TensorBoard") from None
            self._open = partial(SummaryWriter, str(event.run.path / "tensorboard"))
        elif isinstance(event, TrainingStarted):
            # TensorBoard hides the purged step too, and a line's step is the number of those that are complete.
            self._writer = self._open(purge_step=event.step + 1)
        elif isinstance(event, EpochDone) and self._writer is not None:
            for tag, value in _scalars(event.metrics):
                self._writer.add_scalar(tag, value, event.metrics["step"])
            self._writer.flush()
        self._inner.event(event)

    def close(self) -> None:
        """Closes the event file; it may be called more than once."""
        if self._writer is not None:
            self._writer.close()


def _scalars(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    entries = {key: metrics.get(key) for key in _SINGLE}
    for group in _GROUPS:
        entries |= {f"{group}/{key}": value for key, value in (metrics.get(group) or {}).items()}
    for tag, value in entries.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield tag, float(value)
