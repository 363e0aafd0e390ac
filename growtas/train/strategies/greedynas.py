"""Greedy sampling: GreedyNAS (You et al., CVPR 2020, Section 3).

Uniform sampling spends most steps on subnets that nobody will choose. Here several subnets are scored before they are trained, and
only the best are trained. A pool remembers good subnets, and more and more candidates come from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator

from growtas.costs import count_costs_batch
from growtas.fields import checked, real, whole
from growtas.sampling import sample, sample_batch
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.train.recipe import Recipe
from growtas.train.strategies.base import Pass, Strategy, Tools

_DRAWS = 256


@dataclass(frozen=True, kw_only=True)
class GreedyNasOptions:
    """Options of ``greedynas``.

    Attributes:
        candidates: number of subnets that are scored in a round.
        keep: number of the best candidates that are trained, one step each; it is also the number of steps of a round.
        images: number of images of the search split on which a candidate's loss is measured; at most the recipe's
            ``monitor_images``.
        pool: number of subnets that the pool holds.
        start: share of the training (0 to 1) in which all candidates are drawn uniformly.
        epsilon: probability that a candidate comes from the pool at the end of the training. It grows linearly from zero at
            ``start``.
        bins: number of intervals of parameters. The candidates of a round are of the same interval, because otherwise a small loss
            would mostly mean a large subnet.
        turnover: the training ends after an epoch in which at most this share of the pool is new since the comparison before. Two
            comparisons are at least as many steps apart as the pool has subnets. 0 never ends it.
    """

    candidates: int = checked(10, whole(1, 10_000))
    keep: int = checked(5, whole(1, 10_000))
    images: int = checked(1000, whole(1, 100_000_000))
    pool: int = checked(1000, whole(1, 1_000_000))
    start: float = checked(0.1, real(0, 1))
    epsilon: float = checked(0.8, real(0, 1))
    bins: int = checked(5, whole(1, 1000))
    turnover: float = checked(0.08, real(0, 1))


class GreedyNas(Strategy):
    """Scores some subnets in each round by their loss on held-out images, and trains the best of them.

    Differences from the paper: the candidates of a round have similar numbers of parameters, and each interval of parameters has
    its own part of the pool. The paper's space has one cost limit.

    Attributes:
        edges: largest number of parameters of each interval but the last. Uniform draws fall equally often into each interval.
        pool: for each interval, the subnets of the pool, those with the smallest loss first; with the loss when it was measured,
            and the number of the period in which the subnet entered.
        queue: the subnets that the steps of the round train.
        round: the first step of the round; -1 before the first round.
        period: number of comparisons of the pool so far. A period has at least as many steps as the pool has subnets.
        trained: number of steps in this period.
        steady: whether few subnets entered the pool in the period before.
    """

    name: ClassVar[str] = "greedynas"
    Options: ClassVar[type[GreedyNasOptions]] = GreedyNasOptions

    def __init__(self, space: SearchSpace, recipe: Recipe) -> None:
        super().__init__(space, recipe)
        sizes = count_costs_batch(space, sample_batch(space, 10_000, np.random.default_rng(0)))[0]
        shares = np.arange(1, self.options.bins) / self.options.bins
        quantiles = np.unique(np.quantile(sizes, shares, method="lower"))
        self.edges: list[int] = quantiles[quantiles < sizes.max()].tolist()  # each interval contains a subnet
        self.pool: list[dict[Subnet, tuple[float, int]]] = [{} for _ in range(len(self.edges) + 1)]
        self.queue: list[Subnet] = []
        self.round, self.period, self.trained, self.steady = -1, 0, 0, False

    @property
    def _capacity(self) -> int:
        """Number of subnets of an interval's part of the pool."""
        return max(1, self.options.pool // len(self.pool))

    def draw(self, step: int, epoch: float) -> tuple[Pass, ...]:
        # Before the first round, as in a plan of the training, a subnet is drawn uniformly.
        subnet = self.queue[step % self.options.keep] if self.queue else sample(self.space, self.rng(step))
        return (Pass(subnet),)

    def before_step(self, step: int, epoch: float, tools: Tools) -> None:
        # A training that was stopped after this and before the step calls it again.
        if step % self.options.keep or step == self.round:
            return
        rng = np.random.default_rng((self.recipe.seed, step, 1))
        number = int(rng.integers(len(self.pool)))
        part, candidates = self.pool[number], self._candidates(number, epoch, rng)
        losses = tools.losses(candidates, self.options.images)  # it may raise, so nothing has changed before
        self.round, self.trained = step, self.trained + self.options.keep
        ranked = sorted((loss if np.isfinite(loss) else np.inf, place) for place, loss in enumerate(losses))[: self.options.keep]
        kept = {candidates[place]: loss for loss, place in ranked}
        # If there are few different candidates, a round trains some of them more than once.
        self.queue = [list(kept)[index % len(kept)] for index in range(self.options.keep)]
        entered = {
            subnet: (loss, part[subnet][1] if subnet in part else self.period) for subnet, loss in kept.items() if loss < np.inf
        }
        best_first = sorted({**part, **entered}.items(), key=lambda entry: entry[1])
        self.pool[number] = dict(best_first[: self._capacity])

    def _candidates(self, number: int, epoch: float, rng: Generator) -> list[Subnet]:
        """Draws the different candidates of an interval, each from the pool with the epoch's probability, else uniformly."""
        start, epochs = self.options.start * self.recipe.epochs, self.recipe.epochs
        probability = self.options.epsilon * (epoch - start) / (epochs - start) if epoch > start else 0.0
        known, fresh, chosen = list(self.pool[number]), list[Subnet](), list[Subnet]()
        for _ in range(self.options.candidates):
            while not fresh:
                draws = sample_batch(self.space, _DRAWS, rng)
                fresh = list(draws[np.searchsorted(self.edges, count_costs_batch(self.space, draws)[0]) == number])
            from_pool = known and rng.random() < probability
            chosen.append(known[int(rng.integers(len(known)))] if from_pool else fresh.pop())
        return list(dict.fromkeys(chosen))

    def after_epoch(self, epochs: int, metrics: Mapping[str, Any]) -> None:
        capacity = self._capacity * len(self.pool)
        if self.trained < capacity:  # so few steps could not have renewed the pool
            return
        entries = [entered for part in self.pool for _, entered in part.values()]
        new = sum(entered == self.period for entered in entries)
        self.steady = len(entries) == capacity and new <= self.options.turnover * capacity
        self.period, self.trained = self.period + 1, 0

    def converged(self, epochs: int) -> bool:
        return self.options.turnover > 0 and self.steady

    def state(self) -> dict[str, Any]:
        return {
            "pool": [[[subnet.to_dict(), loss, entered] for subnet, (loss, entered) in part.items()] for part in self.pool],
            "queue": [subnet.to_dict() for subnet in self.queue],
            **{name: getattr(self, name) for name in ("round", "period", "trained", "steady")},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.pool = [{Subnet.from_dict(subnet): (loss, entered) for subnet, loss, entered in part} for part in state["pool"]]
        self.queue = [Subnet.from_dict(subnet) for subnet in state["queue"]]
        self.round, self.period, self.trained, self.steady = (state[name] for name in ("round", "period", "trained", "steady"))
