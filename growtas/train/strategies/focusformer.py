"""A learned sampler of subnets: FocusFormer (Liu et al., 2022, Section 3).

The training draws its subnets from the sampler. The sampler learns by policy gradient which subnets are accurate near each budget
(REINFORCE with a baseline: Williams, Machine Learning 1992, Section 4).
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
"""Weight of the old value in a running mean of rewards."""


@dataclass(frozen=True, kw_only=True)
class FocusFormerOptions:
    """Options of ``focusformer``.

    Attributes:
        budgets: number of MACs budgets, spread evenly over the range of the space. The sampler has a distribution for each.
        start: share of the training (0 to 1) before the sampler starts to learn; until then subnets are drawn uniformly.
        every: number of training steps between two updates of the sampler.
        samples: number of subnets that are measured for each update, taken from the budgets in turn.
        images: number of images of the search split on which each of these subnets is measured.
        lr: learning rate of the sampler: change of a logit caused by one subnet of typical advantage.
        penalty: reduction of the reward, in accuracy (0..1), for MACs that differ from the budget by 100 %; it is proportional to
            the difference.
        entropy: weight of the entropy bonus. It keeps the distributions broad where accuracies do not differ clearly.
        epsilon: share of training steps (0 to 1) that draw uniformly even after the sampler has learned.
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
    """A subnet drawn by the sampler, as indices into the choices of the space."""

    embed_dim: int
    depth: int
    num_heads: tuple[int, ...]
    mlp_ratio: tuple[int, ...]


class FocusFormer(Strategy):
    """Draws one subnet per step: first a budget at random, then a subnet from the sampler's distribution for that budget.

    A distribution is a product of independent distributions for the width, the depth, and the heads and MLP ratio of each block. An
    update draws subnets from it. The reward of a subnet is its accuracy on the search split, minus a penalty for missing the budget
    in either direction. The gradient of its log-probability is weighted by the advantage: the reward minus the budget's running
    mean, divided by the running mean of that difference's absolute value. So the size of an update does not depend on how much
    accuracies differ.

    Difference from the paper, whose sampler is a recurrent network: here the choices are independent given the budget. So the whole
    sampler is a few hundred numbers, which a checkpoint stores exactly.

    Attributes:
        targets: MACs of each budget.
        logits: logits by dimension: float64 arrays of shape ``(budgets, choices)``, or ``(budgets, blocks, choices)`` for blocks.
        baseline: running mean of each budget's reward; NaN before the first update.
        spread: running mean of the reward's absolute difference from the baseline; NaN before the first update.
        lessons: number of updates so far.
    """

    name: ClassVar[str] = "focusformer"
    Options: ClassVar[type[FocusFormerOptions]] = FocusFormerOptions

    def __init__(self, space: SearchSpace, recipe: Recipe) -> None:
        super().__init__(space, recipe)
        budgets, blocks = self.options.budgets, space.depth[-1]
        low, high = (count_costs(space, subnet).macs for subnet in (space.smallest, space.largest))
        # The centres of equal intervals, because a budget at either end of the range would fit a single subnet only.
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
        # A separate random stream; otherwise the update would draw the same numbers as the step.
        rng = np.random.default_rng((self.recipe.seed, step, 1))
        measured: list[tuple[int, Choice, float]] = []
        for number in range(self.options.samples):
            # With fewer samples than budgets, the next update continues with the next budget.
            budget = (self.lessons * self.options.samples + number) % self.options.budgets
            choice = self.choose(budget, rng)
            measured.append((budget, choice, self.reward(budget, choice, tools)))
        self.learn(measured)

    def choose(self, budget: int, rng: Generator) -> Choice:
        """Draws a subnet from a budget's distribution."""
        depth = _draw(self.logits["depth"][budget], rng)
        blocks = range(self.space.depth[depth])
        heads, ratios = (
            tuple(_draw(self.logits[dimension][budget, block], rng) for block in blocks) for dimension in ("num_heads", "mlp_ratio")
        )
        return Choice(_draw(self.logits["embed_dim"][budget], rng), depth, heads, ratios)

    def subnet(self, choice: Choice) -> Subnet:
        """Returns the subnet for drawn indices."""
        heads = tuple(self.space.num_heads[index] for index in choice.num_heads)
        return Subnet(
            self.space.embed_dim[choice.embed_dim], heads, tuple(self.space.mlp_ratio[index] for index in choice.mlp_ratio)
        )

    def reward(self, budget: int, choice: Choice, tools: Tools) -> float:
        """Returns the accuracy minus the penalty for the distance from the budget."""
        subnet = self.subnet(choice)
        missed = abs(count_costs(self.space, subnet).macs / self.targets[budget] - 1)
        return float(tools.accuracy(subnet, self.options.images) - self.options.penalty * missed)

    def learn(self, measured: list[tuple[int, Choice, float]]) -> None:
        """Updates the sampler by one step of policy gradient.

        Args:
            measured: drawn subnets as (budget, choice, reward); rewards that are not finite are left out.
        """
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
            # A single subnet, or equal rewards, give no information about the spread of rewards.
            scaled = advantages / self.spread[budget] if self.spread[budget] > 0 else np.sign(advantages)
            for (choice, _), advantage in zip(draws, np.clip(scaled, -3, 3), strict=True):
                self._add_gradient(gradient, budget, choice, float(advantage))
            self.baseline[budget] += (1 - _MEMORY) * (rewards.mean() - self.baseline[budget])
            self.spread[budget] += (1 - _MEMORY) * (np.abs(advantages).mean() - self.spread[budget])
        for dimension, logits in self.logits.items():
            logits += self.options.lr * gradient[dimension]

    def _add_gradient(self, gradient: dict[str, NDArray[np.float64]], budget: int, choice: Choice, advantage: float) -> None:
        """Adds one subnet's part of the gradient. Blocks beyond its depth were not drawn and get no gradient."""
        taken: list[tuple[str, tuple[int, ...], int]] = [
            ("embed_dim", (budget,), choice.embed_dim),
            ("depth", (budget,), choice.depth),
            *(("num_heads", (budget, block), index) for block, index in enumerate(choice.num_heads)),
            *(("mlp_ratio", (budget, block), index) for block, index in enumerate(choice.mlp_ratio)),
        ]
        for dimension, where, index in taken:
            log_p = _log_softmax(self.logits[dimension][where])
            p = np.exp(log_p)
            # Gradients with respect to the logits: of log p[index], and of the entropy -sum(p log p).
            gradient[dimension][where] += advantage * (np.arange(len(p)) == index) - advantage * p
            gradient[dimension][where] -= self.options.entropy * p * (log_p - (p * log_p).sum())

    def state(self) -> dict[str, Any]:
        # JSON stores a float64 with all its digits, so a resumed sampler is bit-identical.
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
    """Replaces NaN by None, because JSON has no NaN. NumPy converts None back to NaN."""
    return [None if np.isnan(value) else float(value) for value in values]
