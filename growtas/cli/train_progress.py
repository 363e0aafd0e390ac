"""How a training shows that it gets on: a bar in a terminal, a line an epoch in a log."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from growtas.cli.output import note, progress_console


class _Bar:
    """A progress bar over the steps."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._task: Any = None

    def on_start(self, first_step: int, steps: int) -> None:
        self._task = self._progress.add_task("training", total=steps, completed=first_step)

    def on_step(self, step: int, epoch: int, stage: int, loss: float) -> None:
        text = f"epoch {epoch + 1}, stage {stage + 1}, loss {loss:.3f}"
        self._progress.update(self._task, completed=step, description=text)

    def on_epoch(self, metrics: dict[str, Any]) -> None:
        """The bar goes by steps; the accuracies are in metrics.jsonl."""


class _Lines:
    """A line an epoch, for whoever reads a batch system's log."""

    def __init__(self) -> None:
        self._steps = 0
        self._done = 0

    def on_start(self, first_step: int, steps: int) -> None:
        self._done, self._steps = first_step, steps

    def on_step(self, step: int, epoch: int, stage: int, loss: float) -> None:
        """A line a step would be too many."""

    def on_epoch(self, metrics: dict[str, Any]) -> None:
        note(epoch_line(metrics, self._done, self._steps))
        self._done = metrics["step"]


def epoch_line(metrics: dict[str, Any], before: int, steps: int) -> str:
    """An epoch in words.

    Args:
        metrics: its line of ``metrics.jsonl``.
        before: steps of the training that were done before what ``seconds`` counts.
        steps: of the whole training.
    """
    from growtas.watch.terminal import format_seconds

    parts = [f"epoch {metrics['epoch']}", f"stage {metrics['stage']}", f"loss {metrics['loss']:.3f}"]
    if accuracy := metrics.get("accuracy"):
        parts.append("accuracy " + " / ".join(f"{100 * value:.1f}" for value in dict.fromkeys(accuracy.values())) + " %")
    parts.append(f"{metrics['images_per_s']:,.0f} images/s")
    left, done = steps - metrics["step"], metrics["step"] - before
    if left > 0 and done > 0:
        parts.append(f"about {format_seconds(metrics['seconds'] / done * left)} left")
    return ", ".join(parts)


@contextlib.contextmanager
def training_progress(*, quiet: bool) -> Iterator[tuple[Any, Any]]:
    """An observer of the training and a tracker of loops on stderr: bars where it is a terminal, else a line an epoch."""
    from growtas.data.images import silent
    from growtas.train.observer import Silent

    if quiet or not progress_console().is_terminal:
        yield Silent() if quiet else _Lines(), silent
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.description}")
    columns = (text, BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(compact=True), TextColumn("left"))
    with Progress(*columns, console=progress_console(), transient=True) as progress:

        def track(items: Sequence[Any], title: str) -> Iterable[Any]:
            yield from progress.track(items, description=title)

        yield _Bar(progress), track
