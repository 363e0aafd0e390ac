"""The events of a training, as :meth:`growtas.progress.Progress.event` gets them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from growtas.data.report import DataReport
    from growtas.data.sources import Data
    from growtas.runs import Run
    from growtas.train.recipe import Recipe


@dataclass(frozen=True)
class RunReady:
    """Everything is opened and checked, and the run's folder exists.

    Attributes:
        run: the run, new or continued.
        recipe: what will be done.
        data: the opened data set.
        device: where it will be done, ``cpu`` or ``cuda``.
        processes: how many will do it.
        report: what the data hold; None for a run that is continued.
    """

    run: Run
    recipe: Recipe
    data: Data
    device: str
    processes: int
    report: DataReport | None


@dataclass(frozen=True)
class TrainingStarted:
    """The first step is about to begin.

    Attributes:
        step: steps that are complete already; above 0 for a run that is continued.
        steps: of the whole training.
    """

    step: int
    steps: int


@dataclass(frozen=True)
class StepDone:
    """An optimiser step is done.

    Attributes:
        step: steps that are complete.
        epoch: epochs that are complete.
        stage: index of the open stage, from 0.
        loss: mean over the batch and the step's passes.
    """

    step: int
    epoch: int
    stage: int
    loss: float


@dataclass(frozen=True)
class StopRequested:
    """Ctrl-C, SIGTERM, or a KeyboardInterrupt of the progress asked to stop, which the training does after the running step."""


@dataclass(frozen=True)
class EpochDone:
    """An epoch is done and saved.

    Attributes:
        metrics: its line of ``metrics.jsonl``.
    """

    metrics: dict[str, Any]
