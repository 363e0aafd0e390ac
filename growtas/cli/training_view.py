"""Shows a training on stderr, as a bar in a terminal or as one line per epoch in a log, and the accuracies at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from growtas.cli.output import ProgressBar, command_line, new_table, note, print_line, print_table, print_text
from growtas.cli.screen import Words
from growtas.costs import count_costs
from growtas.errors import CheckpointError
from growtas.files import read_json
from growtas.runs import Run, data_title
from growtas.subnet import Subnet
from growtas.train.events import EpochDone, RunReady, StepDone, StopRequested, TrainingStarted
from growtas.units import format_accuracy, format_count, format_seconds


class TrainingView(ProgressBar):
    """Shows a training. After Ctrl-C it prints the command that continues the run and exits with code 130.

    Args:
        quiet: show nothing but that command.
        resume_options: options of the ``growtas train --resume`` command; those that are None or False are left out.
    """

    def __init__(self, *, quiet: bool, **resume_options: str | int | Path | None) -> None:
        left = (TimeRemainingColumn(compact=True), Words("left"))
        super().__init__(Words(), BarColumn(20), MofNCompleteColumn(), *left, hidden=quiet)
        self._run: Run | None = None
        self._quiet, self._resume_options, self._processes = quiet, resume_options, 1
        self._first_step, self._steps = 0, 0

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        super().__exit__(kind, *exception)
        if kind is KeyboardInterrupt and self._run is not None:
            finished = self._run.info["state"] == "finished"
            note("growtas: interrupted; " + (f"{self._run.path} is finished" if finished else f"continue with: {self._resume}"))
            raise typer.Exit(130) from None

    @property
    def _resume(self) -> str:
        """The command that continues the run; it starts as many processes if all of them are on this machine."""
        assert self._run is not None
        command = command_line("train", "--resume", self._run.path, **self._resume_options)
        if self._processes == 1:
            return command
        alone = os.environ.get("LOCAL_WORLD_SIZE") == str(self._processes)
        return f"torchrun {f'--standalone --nproc-per-node {self._processes}' if alone else '...'} -m {command}"

    def note(self, text: str) -> None:
        """Prints a note, unless quiet."""
        if not self._quiet:
            super().note(text)

    def event(self, event: object) -> None:
        """Prints the run's description, then moves the bar or prints one line per epoch."""
        if isinstance(event, RunReady):
            self._run, self._processes = event.run, event.processes
            for line in _description(event):
                self.note(line)
        elif isinstance(event, TrainingStarted):
            self._first_step, self._steps = event.step, event.steps
            self.stage("training", event.steps)
            self.advance(event.step)
        elif isinstance(event, StepDone):
            text = f"epoch {event.epoch + 1}, stage {event.stage + 1}, loss {event.loss:.3f}"
            self.bar.update(self.task, completed=event.step, description=text)
        elif isinstance(event, StopRequested):
            super().note(f"growtas: stopping after this step; continue the run with: {self._resume}")
        elif isinstance(event, EpochDone) and self.bar.disable:
            self.note(epoch_line(event.metrics, self._first_step, self._steps))
            self._first_step = event.metrics["step"]


def _description(ready: RunReady) -> Iterator[str]:
    """Describes the training: space, data, method, epochs and device."""
    run, recipe, data = ready.run, ready.recipe, ready.data
    done = run.checkpoints
    verb = f"continuing after {done[-1].name.replace('-', ' ')}" if done else "training"
    images = f"{data.title} ({len(data.train):,} training, {len(data.test):,} test images, {len(data.class_names)} classes)"
    where = ready.device + (f", {ready.processes} processes" if ready.processes > 1 else "")
    epochs = f"{recipe.epochs} epoch{'s' if recipe.epochs > 1 else ''}"
    yield f"{verb}: {run.space.name} on {images}, {recipe.method}, {epochs}, on {where}"
    for label, value in ready.report.rows()[1:] if ready.report else ():
        yield f"  {label:<13} {value}"
    yield f"run: {run.path}"
    changes = run.info.get("finetune")
    if changes and ready.report:
        yield _changes(changes)


def _changes(record: dict[str, Any]) -> str:
    """Describes how fine-tuning changed the model: image size, channels and head."""
    what = {"image_size": "image size", "max_relative_position": "longest relative distance", "in_chans": "channels"}
    changes = [f"{words} {old} -> {new}" for key, words in what.items() for old, new in [record[key]] if old != new]
    return f"model: {record['weights']} ({'; '.join([*changes, record['head'] + ' head'])})"


def epoch_line(metrics: dict[str, Any], before: int, steps: int) -> str:
    """Describes an epoch in one line.

    Args:
        metrics: the epoch's record in ``metrics.jsonl``.
        before: number of training steps done before the time span that ``seconds`` covers.
        steps: number of steps of the whole training.
    """
    parts = [f"epoch {metrics['epoch']}", f"stage {metrics['stage']}", f"loss {metrics['loss']:.3f}"]
    if accuracy := metrics.get("accuracy"):
        parts.append("accuracy " + " / ".join(f"{name} {100 * value:.1f}" for name, value in accuracy.items()) + " %")
    parts.append(f"{metrics['images_per_s']:,.0f} images/s")
    left, done = steps - metrics["step"], metrics["step"] - before
    if left > 0 and done > 0:
        parts.append(f"about {format_seconds(metrics['seconds'] / done * left)} left")
    return ", ".join(parts)


def data_warnings(run: Run) -> list[str]:
    """Returns the warnings about a run's data from its ``data.json``; an empty list if there is no such file."""
    path = run.path / "data.json"
    if not path.is_file():
        return []
    try:
        warnings = read_json(path, "data report")["warnings"]
    except (CheckpointError, TypeError):
        return []  # the warnings were shown when the run began
    return [str(warning) for warning in warnings] if isinstance(warnings, list) else []


def show_result(run: Run, subnets: Mapping[str, tuple[Subnet, float]], step: str) -> None:
    """Prints a table of subnets with their costs and accuracies, and the next command.

    Args:
        subnets: subnet and accuracy (0 to 1) by label. If all subnets are equal, only the first is shown; an empty label adds no
            column.
        step: the next command.
    """
    space, info = run.space, run.info
    data, numbers = info["data"], ("params", "MACs", "accuracy")
    print_text(f"{space.name} on {data_title(data)}: accuracy on the {data['test_size']:,} test images, ± its standard error")
    headings = ("subnet", "architecture", *numbers) if all(subnets) else ("architecture", *numbers)
    table = new_table(*headings, right=numbers, fold="architecture")
    for label, (subnet, accuracy) in subnets.items():
        costs = count_costs(space, subnet)
        shown = format_accuracy(accuracy, data["test_size"])
        cells = (str(subnet), format_count(costs.params), format_count(costs.macs), shown)
        table.add_row(*([label] if label else []), *cells)
        if len({subnet for subnet, _ in subnets.values()}) == 1:
            break
    print_table(table)
    print_line(f"run {run.path}   {info['seconds']:.0f} s   next: {step}")
