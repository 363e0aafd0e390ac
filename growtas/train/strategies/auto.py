"""GrowTAS with transitions that the training chooses itself (``transitions: auto``); not in the paper.

The paper picks T_1 by hand for each space (Section 4.1.2). Here the next subspace is opened when the current one has converged: the
gain of another epoch is small compared with the best gain of an epoch in this stage.

**Series.** Each stage has two series with one value per epoch: the training loss, and the mean accuracy of subnets inside the open
subspace. These are the space's smallest subnet and the probes of this and the earlier subspaces, if they are measured. A series has
converged when its smoothed gain is at most ``share`` of the stage's largest smoothed gain. All usable series must agree: accuracy
alone is noisy on few images, and loss alone also falls when the network memorises the images.

**Smoothing.** The gain at an epoch is the slope of a straight line fitted to the last ``window`` values. If accuracies are measured
only every few epochs, the line is fitted to those of about the same time span, at least 3. Between measurements the gain stays.

**Learning rate.** It follows one cosine over the whole training, so gains shrink towards the end because the steps shrink. The
slope is therefore taken over the sum of learning rates instead of epochs: it is the gain of an epoch at the full rate. A gain that
halves because the rate halves does not count as convergence.

**Warm-up.** Epochs that begin during the warm-up are left out of the first series, because the rising rate dominates their gains.

**Bounds.** A stage lasts at least ``least`` and at most ``most`` times an equal share of the epochs. It always leaves enough epochs
for the ``least`` of the later stages. At the upper bound it ends even without convergence.

**Missing values.** Without finite accuracies the loss decides alone, and the other way round. If accuracies are measured but are
still too few, the loss waits for them until the stage has had an equal share of the epochs. Without both, a stage ends after an
equal share, the paper's default.
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
    """Options of ``growtas`` with ``transitions: auto``.

    Attributes:
        share: a series has converged when its gain is at most this share of the stage's largest gain.
        window: number of epochs that a gain is fitted to; 0 means a twentieth of the epochs, at least 3.
        least: shortest length of a stage, as a multiple of the epochs divided by the number of stages.
        most: longest length of a stage, except the last, as a multiple of the epochs divided by the number of stages.
    """

    share: float = checked(0.1, real(0, 1))
    window: int = checked(0, whole(0))
    least: float = checked(0.5, real(0, 1))
    most: float = checked(1.25, real(1, 100))

    def __post_init__(self) -> None:
        if self.window == 1:
            raise ConfigError("method_options: window is 1; it must be 2 epochs or more, or 0 for the default")


class AutoProgressive(Progressive):
    """Draws one subnet per step uniformly from the open subspace, and opens the next subspace when this one has converged.

    Attributes:
        transitions: the transitions chosen so far, in whole epochs.
        reasons: the reason for each transition: ``converged``, ``bound`` or ``unmeasured``.
    """

    name: ClassVar[str] = "growtas"
    Options: ClassVar[type[AutoOptions]] = AutoOptions

    def __init__(self, space: SearchSpace, recipe: Recipe) -> None:
        super().__init__(space, recipe)
        if recipe.epochs < len(self.growth.subspaces):
            raise ConfigError(
                f"transitions: auto needs at least one epoch per stage; there are {len(self.growth.subspaces)} stages "
                f"and epochs is {recipe.epochs}"
            )
        self.window: int = self.options.window or max(3, round(recipe.epochs / 20))
        self.transitions: list[int] = []
        self.reasons: list[str] = []
        # Epochs of the current stage: epoch, loss, accuracy of the smallest subnet, mean accuracy with the probes, learning rate.
        self._history: list[dict[str, Any]] = []

    def stage(self, epoch: float) -> int:
        return sum(epoch >= transition for transition in self.transitions)

    def after_epoch(self, epochs: int, metrics: Mapping[str, Any]) -> None:
        stage = len(self.transitions)
        known = self._history[-1]["epoch"] if self._history else max(self.transitions, default=0)
        # A resumed training may report an epoch that the loaded state already contains; it must not count twice.
        if epochs <= known or stage == len(self.growth.subspaces) - 1:
            return
        self._history.append({"epoch": epochs, **_readings(metrics, stage)})
        reason = self._reason_to_go_on(stage, epochs)
        if reason is not None:
            self.transitions.append(epochs)
            self.reasons.append(reason)
            self._history = []

    def bounds(self, stage: int) -> tuple[int, int]:
        """Returns the first and the last epoch at which a stage may end, counted from the start of the training."""
        stages, epochs = len(self.growth.subspaces), self.recipe.epochs
        equal, opened = epochs / stages, self.transitions[stage - 1] if stage else 0
        later = stages - 1 - stage
        # The small number keeps 0.1 * 30 from being 3.0000000000000004.
        last = math.floor(min(opened + self.options.most * equal, epochs - later * self.options.least * equal) + 1e-9)
        # Each stage gets at least one epoch, whatever the options are.
        last = min(max(last, opened + 1), epochs - later)
        return min(max(math.ceil(opened + self.options.least * equal - 1e-9), opened + 1), last), last

    def gains(self) -> dict[str, list[float]]:
        """Returns the smoothed gains of each usable series of the current stage, per epoch at the full learning rate."""
        first = math.ceil(self.recipe.warmup_epochs)
        entries = [entry for entry in self._history if entry["epoch"] > first]
        rates = [entry["lr"] for entry in entries]
        known = all(rate is not None for rate in rates)
        place = np.cumsum([rate / self.recipe.lr if known else 1.0 for rate in rates])
        # Accuracies that are not measured every epoch give fewer values in the same time span; a line needs at least some.
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
        # It is worth waiting for accuracies that will come, but not longer than an equal share of the epochs.
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
    """Returns the values of an epoch's metrics that the rule uses; values that are absent or not finite are None."""
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
    """Returns the least-squares slopes of all ``window`` consecutive points."""
    slopes = []
    for end in range(window, len(points) + 1):
        x, y = np.array(points[end - window : end]).T
        x = x - x.mean()
        spread = float((x * x).sum())
        # With a learning rate of zero there is no gain.
        slopes.append(float((x * y).sum()) / spread if spread > 0 else 0.0)
    return slopes
