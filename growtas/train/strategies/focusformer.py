"""A learned sampler of subnets: FocusFormer (Liu et al., 2022, Section 3).

The sampler learns by policy gradient (Williams, Machine Learning 1992, Section 4: REINFORCE with a baseline) which subnets
are accurate near each budget, and the training draws from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from growtas.costs import count_costs
from growtas.fields import checked, real, whole
from growtas.sampling import sample
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.train.recipe import Recipe
from growtas.train.strategies.base import Pass, Strategy, Tools

_MEMORY = 0.9
"""What a running mean of rewards keeps of its old value."""


@dataclass(frozen=True, kw_only=True)
class FocusFormerOptions:
    """Settings of ``focusformer``.

    Attributes:
        budgets: numbers of MACs, spread evenly over the space's range, for each of which the sampler has a distribution.
        start: share of the training before the sampler learns; until then subnets are drawn uniformly.
        every: steps from one lesson of the sampler to the next.
        samples: subnets that are measured for each lesson, taken from the budgets in turn.
        images: validation images that each of them is measured on.
        lr: by how much one subnet of typical advantage moves the logits.
        penalty: what a subnet that misses its budget by its whole size loses in reward, in accuracy (0..1).
        entropy: weight of the bonus for a distribution that stays broad; it keeps noise from deciding what accuracy doesn't.
        epsilon: share of training steps whose subnet is drawn uniformly all the same.
    """

    budgets: int = checked(4, whole(1, 1000))
    start: float = checked(0.1, real(0, 1))
    every: int = checked(200, whole(1, 10_000_000))
    samples: int = checked(8, whole(1, 10_000))
    images: int = checked(500, whole(1, 100_000_000))
    lr: float = checked(0.05, real(0, 100, above=True))
    penalty: float = checked(0.5, real(0, 100))
    entropy: float = checked(0.1, real(0, 100))
    epsilon: float = checked(0.1, real(0, 1))


@dataclass(frozen=True)
class Choice:
    """A subnet as the sampler draws it: indices of the choices."""

    embed_dim: int
    depth: int
    num_heads: tuple[int, ...]
    mlp_ratio: tuple[int, ...]


class FocusFormer(Strategy):
    """One subnet a step: a budget at random, then a subnet from the sampler's distribution for that budget.

    A distribution is a product of independent ones for the width, the depth, and each block's heads and MLP ratio. A lesson
    draws subnets from it and rewards each with its validation accuracy, less a penalty for missing the budget on either side.
    The gradient of a subnet's log-probability is weighted by its reward against the budget's running mean, over the running mean
    of how far rewards are from it, so that the size of a step doesn't hang on how much accuracies differ.

    What differs from the paper, whose sampler is a recurrent network: the choices are independent given the budget, so
    that the whole sampler is a few hundred numbers that a checkpoint holds as they are.

    Attributes:
        targets: MACs of each budget.
        logits: by dimension, float64 arrays of shape ``(budgets, choices)``, or ``(budgets, blocks, choices)`` for blocks.
        baseline, spread: running means of each budget's reward and of its absolute difference from the baseline, NaN before
            the first lesson.
        lessons: how many there were.
    """

    name: ClassVar[str] = "focusformer"
    Options: ClassVar[type[FocusFormerOptions]] = FocusFormerOptions

    def __init__(self, space: SearchSpace, recipe: Recipe) -> None:
        super().__init__(space, recipe)
        budgets, blocks = self.options.budgets, space.depth[-1]
        low, high = (count_costs(space, subnet).macs for subnet in (space.smallest, space.largest))
        # The middles of equal intervals: a budget at the very end would have a single subnet.
        self.targets: NDArray[np.float64] = low + (high - low) * (np.arange(budgets) + 0.5) / budgets
        self.logits: dict[str, NDArray[np.float64]] = {
            "embed_dim": np.zeros((budgets, len(space.embed_dim))),
            "depth": np.zeros((budgets, len(space.depth))),
            "num_heads": np.zeros((budgets, blocks, len(space.num_heads))),
            "mlp_ratio": np.zeros((budgets, blocks, len(space.mlp_ratio))),
        }
        self.baseline: NDArray[np.float64] = np.full(budgets, np.nan)
        self.spread: NDArray[np.float64] = np.full(budgets, np.nan)
        self.lessons = 0

    def draw(self, step: int, epoch: float) -> tuple[Pass, ...]:
        rng = self.rng(step)
        if self.lessons == 0 or rng.random() < self.options.epsilon:
            return (Pass(sample(self.space, rng)),)
        return (Pass(self.subnet(self.choose(int(rng.integers(self.options.budgets)), rng))),)

    def before_step(self, step: int, epoch: float, tools: Tools) -> None:
        if step == 0 or step % self.options.every or epoch < self.options.start * self.recipe.epochs:
            return
        # A stream of its own, or a lesson would draw what the step draws.
        rng = np.random.default_rng((self.recipe.seed, step, 1))
        measured: list[tuple[int, Choice, float]] = []
        for number in range(self.options.samples):
            # Where a lesson is shorter than the budgets are many, the next one goes on with the next budget.
            budget = (self.lessons * self.options.samples + number) % self.options.budgets
            choice = self.choose(budget, rng)
            measured.append((budget, choice, self.reward(budget, choice, tools)))
        self.learn(measured)

    def choose(self, budget: int, rng: Generator) -> Choice:
        """Draw from a budget's distribution."""
        depth = _draw(self.logits["depth"][budget], rng)
        blocks = range(self.space.depth[depth])
        heads, ratios = (
            tuple(_draw(self.logits[dimension][budget, block], rng) for block in blocks) for dimension in ("num_heads", "mlp_ratio")
        )
        return Choice(_draw(self.logits["embed_dim"][budget], rng), depth, heads, ratios)

    def subnet(self, choice: Choice) -> Subnet:
        """The subnet of a draw."""
        heads = tuple(self.space.num_heads[index] for index in choice.num_heads)
        return Subnet(
            self.space.embed_dim[choice.embed_dim], heads, tuple(self.space.mlp_ratio[index] for index in choice.mlp_ratio)
        )

    def reward(self, budget: int, choice: Choice, tools: Tools) -> float:
        """Validation accuracy less the penalty for the distance from the budget."""
        subnet = self.subnet(choice)
        missed = abs(count_costs(self.space, subnet).macs / self.targets[budget] - 1)
        return float(tools.accuracy(subnet, self.options.images) - self.options.penalty * missed)

    def learn(self, measured: list[tuple[int, Choice, float]]) -> None:
        """One step of policy gradient from (budget, draw, reward); rewards that are not finite are left out."""
        self.lessons += 1
        gradient = {dimension: np.zeros_like(logits) for dimension, logits in self.logits.items()}
        for budget in range(self.options.budgets):
            draws = [(choice, reward) for of, choice, reward in measured if of == budget and np.isfinite(reward)]
            if not draws:
                continue
            rewards = np.array([reward for _, reward in draws])
            if np.isnan(self.baseline[budget]):
                self.baseline[budget] = rewards.mean()
                self.spread[budget] = np.abs(rewards - self.baseline[budget]).mean()
            advantages = rewards - self.baseline[budget]
            # Of one subnet, or of equal ones, nothing can be learned about how far rewards spread.
            scaled = advantages / self.spread[budget] if self.spread[budget] > 0 else np.sign(advantages)
            for (choice, _), advantage in zip(draws, np.clip(scaled, -3, 3), strict=True):
                self._add_gradient(gradient, budget, choice, float(advantage))
            self.baseline[budget] += (1 - _MEMORY) * (rewards.mean() - self.baseline[budget])
            self.spread[budget] += (1 - _MEMORY) * (np.abs(advantages).mean() - self.spread[budget])
        for dimension, logits in self.logits.items():
            logits += self.options.lr * gradient[dimension]

    def _add_gradient(self, gradient: dict[str, NDArray[np.float64]], budget: int, choice: Choice, advantage: float) -> None:
        """Add one draw's part; blocks beyond its depth were not drawn and learn nothing."""
        taken: list[tuple[str, tuple[int, ...], int]] = [
            ("embed_dim", (budget,), choice.embed_dim),
            ("depth", (budget,), choice.depth),
            *(("num_heads", (budget, block), index) for block, index in enumerate(choice.num_heads)),
            *(("mlp_ratio", (budget, block), index) for block, index in enumerate(choice.mlp_ratio)),
        ]
        for dimension, where, index in taken:
            log_p = _log_softmax(self.logits[dimension][where])
            p = np.exp(log_p)
            # Gradients by the logits: of log p[index], and of the entropy -sum(p log p).
            gradient[dimension][where] += advantage * (np.arange(len(p)) == index) - advantage * p
            gradient[dimension][where] -= self.options.entropy * p * (log_p - (p * log_p).sum())

    def state(self) -> dict[str, Any]:
        # JSON holds a float64 with all its digits, so a resumed sampler is the same to the bit.
        return {
            "logits": {dimension: logits.tolist() for dimension, logits in self.logits.items()},
            "baseline": _nullable(self.baseline),
            "spread": _nullable(self.spread),
            "lessons": self.lessons,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.logits = {dimension: np.array(logits, np.float64) for dimension, logits in state["logits"].items()}
        self.baseline, self.spread = (np.array(state[name], np.float64) for name in ("baseline", "spread"))
        self.lessons = state["lessons"]


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def _draw(logits: NDArray[np.float64], rng: Generator) -> int:
    return int(rng.choice(len(logits), p=np.exp(_log_softmax(logits))))


def _nullable(values: NDArray[np.float64]) -> list[float | None]:
    """JSON has no NaN; NumPy reads null back as one."""
    return [None if np.isnan(value) else float(value) for value in values]
