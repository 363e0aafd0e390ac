"""GrowTAS with transitions that the training finds itself (``transitions: auto``); not in the paper.

The paper picks T_1 by hand for each space (Section 4.1.2). Here a subspace is left when it has converged: when training it for
another epoch gains little against what an epoch gained at best since it was opened.

**The series.** Two series of the open stage, a value an epoch: the mean accuracy of subnets inside the open subspace (the
space's smallest, and the probes of this subspace and the earlier ones, where they are measured), and the training loss. A
series has converged when its smoothed gain is at most ``share`` of the largest smoothed gain of the stage. All series that
can be judged have to agree: accuracy alone is noisy on few images, and loss alone also falls by learning the images by heart.

**Smoothing.** The gain at an epoch is the slope of a straight line fitted to the last ``window`` values; of accuracies that are
measured every few epochs only, to those of about as long a time, at least 3. Between measurements the last gain stands.

**The learning rate** follows one cosine over the whole training, so gains shrink towards its end just because steps do. Gains
are therefore counted against the sum of learning rates and not against epochs: a slope says what an epoch at the full rate
would gain. A gain that has halved because the rate has is no convergence.

**Warm-up.** Epochs that begin inside the warm-up are not part of the first series: their gains say how the rate rose.

**Bounds.** A stage lasts at least ``least`` and at most ``most`` of an equal share of the epochs, and never so long that those
after it can't have their ``least``. At the upper bound it ends, converged or not.

**Nothing to judge.** Without a finite accuracy the loss decides alone, and the other way round; where accuracies are measured, but
are too few yet, the loss has to wait for them up to an equal share. With neither, a stage ends after an equal share, the paper's
default.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from growtas.errors import ConfigError
from growtas.fields import checked, real, whole
from growtas.space import SearchSpace
from growtas.train.recipe import Recipe
from growtas.train.strategies.growtas import Progressive

_PROBE = re.compile(r"A(\d+) ")


@dataclass(frozen=True, kw_only=True)
class AutoOptions:
    """Settings of ``growtas`` with ``transitions: auto``.

    Attributes:
        share: of the stage's largest gain, at or below which a series has converged.
        window: epochs that a gain is fitted to, or 0 for a twentieth of the epochs, at least 3.
        least: shortest stage, as a share of the epochs divided by the number of stages.
        most: longest stage but for the last, as a share of the same.
    """

    share: float = checked(0.1, real(0, 1))
    window: int = checked(0, whole(0))
    least: float = checked(0.5, real(0, 1))
    most: float = checked(1.25, real(1, 100))

    def __post_init__(self) -> None:
        if self.window == 1:
            raise ConfigError("method_options: window is 1; a gain needs 2 epochs or more (0 for the default)")


class AutoProgressive(Progressive):
    """One subnet a step, uniformly from the open subspace; the next one is opened when it has converged.

    Attributes:
        transitions: the epochs chosen so far, whole ones.
        reasons: for each, ``converged``, ``bound`` or ``unmeasured``.
    """

    name: ClassVar[str] = "growtas"
    Options: ClassVar[type[AutoOptions]] = AutoOptions

    def __init__(self, space: SearchSpace, recipe: Recipe) -> None:
        super().__init__(space, recipe)
        if recipe.epochs < len(self.growth.subspaces):
            raise ConfigError(
                f"transitions: auto opens a subspace after a whole epoch: {len(self.growth.subspaces)} stages need as many epochs, "
                f"and there are {recipe.epochs}"
            )
        self.window: int = self.options.window or max(3, round(recipe.epochs / 20))
        self.transitions: list[int] = []
        self.reasons: list[str] = []
        # The open stage alone: epoch, loss, accuracy of the smallest subnet, mean with the probes, learning rate.
        self._history: list[dict[str, Any]] = []

    def stage(self, epoch: float) -> int:
        return sum(epoch >= transition for transition in self.transitions)

    def after_epoch(self, epochs: int, metrics: Mapping[str, Any]) -> None:
        stage = len(self.transitions)
        known = self._history[-1]["epoch"] if self._history else max(self.transitions, default=0)
        # An epoch that is reported again, after a checkpoint that already holds it, must not count twice.
        if epochs <= known or stage == len(self.growth.subspaces) - 1:
            return
        self._history.append({"epoch": epochs, **_readings(metrics, stage)})
        reason = self._reason_to_go_on(stage, epochs)
        if reason is not None:
            self.transitions.append(epochs)
            self.reasons.append(reason)
            self._history = []

    def bounds(self, stage: int) -> tuple[int, int]:
        """First and last epoch at which an open stage may end, counted from the start of the training."""
        stages, epochs = len(self.growth.subspaces), self.recipe.epochs
        equal, opened = epochs / stages, self.transitions[stage - 1] if stage else 0
        later = stages - 1 - stage
        # The small number keeps 0.1 * 30 from being 3.0000000000000004.
        last = math.floor(min(opened + self.options.most * equal, epochs - later * self.options.least * equal) + 1e-9)
        # Whatever the options say, each stage has an epoch.
        last = min(max(last, opened + 1), epochs - later)
        return min(max(math.ceil(opened + self.options.least * equal - 1e-9), opened + 1), last), last

    def gains(self) -> dict[str, list[float]]:
        """The smoothed gains of each series of the open stage that can be judged, per epoch at the full learning rate."""
        first = math.ceil(self.recipe.warmup_epochs)
        entries = [entry for entry in self._history if entry["epoch"] > first]
        rates = [entry["lr"] for entry in entries]
        known = all(rate is not None for rate in rates)
        place = np.cumsum([rate / self.recipe.lr if known else 1.0 for rate in rates])
        # Accuracies that are not measured every epoch need fewer of them for the same stretch of time, but enough for a line.
        sparse = max(min(3, self.window), math.ceil(self.window / self.recipe.probe_epochs))
        gains = {}
        for name, sources, sign, window in (
            ("accuracy", ("probes", "smallest"), 1.0, sparse),
            ("loss", ("loss",), -1.0, self.window),
        ):
            for source in sources:
                points = [(x, sign * entry[source]) for x, entry in zip(place, entries, strict=True) if entry[source] is not None]
                if len(points) >= window:
                    gains[name] = _slopes(points, window)
                    break
        return gains

    def _reason_to_go_on(self, stage: int, epochs: int) -> str | None:
        earliest, latest = self.bounds(stage)
        if epochs < earliest:
            return None
        gains, passed = self.gains(), epochs - (self.transitions[stage - 1] if stage else 0)
        late = passed >= self.recipe.epochs / len(self.growth.subspaces)
        # Accuracies that are on their way are worth waiting for, but not for longer than an equal share.
        coming = passed < self.recipe.probe_epochs or any(entry["smallest"] is not None for entry in self._history)
        waiting = "accuracy" not in gains and coming and not late
        if gains and not waiting and all(slopes[-1] <= self.options.share * max(slopes) for slopes in gains.values()):
            return "converged"
        if epochs >= latest:
            return "bound"
        return "unmeasured" if late and not gains else None

    def state(self) -> dict[str, Any]:
        return {"transitions": list(self.transitions), "reasons": list(self.reasons), "history": [dict(e) for e in self._history]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.transitions, self.reasons = list(state["transitions"]), list(state["reasons"])
        self._history = [dict(entry) for entry in state["history"]]


def _readings(metrics: Mapping[str, Any], stage: int) -> dict[str, float | None]:
    """What the rule reads of an epoch's metrics, in numbers that are finite or None."""
    smallest = _finite((metrics.get("accuracy") or {}).get("smallest"))
    probes = [
        _finite(accuracy)
        for label, accuracy in (metrics.get("probes") or {}).items()
        if (match := _PROBE.match(label)) and int(match[1]) <= stage + 1
    ]
    inside = [accuracy for accuracy in (smallest, *probes) if accuracy is not None]
    complete = bool(probes) and len(inside) == len(probes) + 1
    return {
        "loss": _finite(metrics.get("loss")),
        "smallest": smallest,
        "probes": sum(inside) / len(inside) if complete else None,
        "lr": _finite(metrics.get("lr")),
    }


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _slopes(points: Sequence[tuple[float, float]], window: int) -> list[float]:
    """Slopes of the lines through each ``window`` points in a row, by least squares."""
    slopes = []
    for end in range(window, len(points) + 1):
        x, y = np.array(points[end - window : end]).T
        x = x - x.mean()
        spread = float((x * x).sum())
        # A learning rate of zero moves nothing.
        slopes.append(float((x * y).sum()) / spread if spread > 0 else 0.0)
    return slopes
