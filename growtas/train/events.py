"""The events that a training passes to :meth:`growtas.progress.Progress.event`."""

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
    """All inputs are opened and checked, and the run folder exists.

    Attributes:
        run: the run, new or resumed.
        recipe: the recipe of the training.
        data: the opened data set.
        device: device of the training, ``cpu`` or ``cuda``.
        processes: number of training processes.
        report: the check of the data; None for a resumed run.
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
        step: number of complete steps; above 0 for a resumed run.
        steps: number of steps of the whole training.
    """

    step: int
    steps: int


@dataclass(frozen=True)
class StepDone:
    """An optimiser step is done.

    Attributes:
        step: number of complete steps.
        epoch: number of complete epochs.
        stage: index of the current stage, from 0.
        loss: mean loss over the batch and the passes of the step.
    """

    step: int
    epoch: int
    stage: int
    loss: float


@dataclass(frozen=True)
class StopRequested:
    """Ctrl-C, SIGTERM or a KeyboardInterrupt of the progress object requested a stop. The training stops after the current step."""


@dataclass(frozen=True)
class EpochDone:
    """An epoch is done and its checkpoint is saved.

    Attributes:
        metrics: the epoch's line of ``metrics.jsonl``.
    """

    metrics: dict[str, Any]
