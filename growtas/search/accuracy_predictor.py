"""Predicts accuracies of subnets from those that a search has evaluated, to choose the subnets that it evaluates next.

The predictor is a Gaussian process. The correlation of two subnets is exp(-distance / length). Their distance is the share of heads
and MLP ratios that differ, plus a half for a different width and a half for a different depth. The length and the noise maximise
the likelihood of the evaluated accuracies. Predicted accuracies are never reported.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.sampling import Feasible, crossover, mutate, sample_feasible
from growtas.space import SearchSpace
from growtas.subnet import Subnet

_LENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
_NOISES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Candidates for the variance of the noise, relative to the variance of the process."""
_DECIMALS = 9
"""Predictions are rounded to these decimals, so that rounding errors that differ between machines decide nothing."""
_DRAWS, _POOL, _ROUNDS = 1000, 200, 10
"""For the evolution on predictions: number of random subnets at its start, least size of its pool, and number of generations."""


class AccuracyPredictor:
    """A Gaussian process fitted to evaluated subnets.

    Args:
        space: the search space.
        subnets: evaluated subnets, at least one.
        accuracies: their accuracies, 0 to 1.
    """

    def __init__(self, space: SearchSpace, subnets: Sequence[Subnet], accuracies: Sequence[float]) -> None:
        self._genes, self._known = 2 * space.depth[-1], SubnetBatch.from_subnets(subnets)
        values = np.asarray(accuracies, np.float64)
        self._mean = values.mean()
        values, count = values - self._mean, len(values)
        distances, likeliest = self._distances(self._known), -np.inf
        for length in _LENGTHS:
            variances, vectors = np.linalg.eigh(np.exp(-distances / length))
            projected = values @ vectors
            for noise in _NOISES:
                noisy = np.maximum(variances, 0) + noise
                scale = max(float(np.mean(projected**2 / noisy)), np.finfo(float).tiny)
                likelihood = -float(np.log(scale) * count + np.log(noisy).sum())
                if likelihood > likeliest:
                    likeliest, self._length, self._scale = likelihood, length, scale
                    self._vectors, self._noisy, self._weights = vectors, noisy, vectors @ (projected / noisy)

    def __call__(self, subnets: Sequence[Subnet]) -> NDArray[np.float64]:
        """Returns the expected accuracy plus one standard deviation, shape ``(len(subnets),)``.

        So a subnet is chosen because it is probably good, or because little is known about similar subnets.
        """
        correlations = np.exp(-self._distances(SubnetBatch.from_subnets(subnets)) / self._length)
        left = 1 - ((correlations @ self._vectors) ** 2 / self._noisy).sum(axis=1)
        deviations = np.sqrt(self._scale * np.maximum(left, 0))
        return np.round(self._mean + correlations @ self._weights + deviations, _DECIMALS)

    def _distances(self, batch: SubnetBatch) -> NDArray[np.float64]:
        """Returns the distances between subnets and evaluated subnets, 0 to 2, shape ``(len(batch), len(known))``."""
        both, split = SubnetBatch.concatenate([batch, self._known]), len(batch)

        def differing(genes: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
            return np.sum([gene[:split, None] != gene[split:] for gene in genes], axis=0)

        shape, blocks = differing([both.embed_dim, both.depth]), differing([*both.num_heads.T, *both.mlp_ratio.T])
        return shape / 2 + blocks / self._genes


def legal_shapes(space: SearchSpace, feasible: Feasible, most: int) -> list[Subnet]:
    """Returns the smallest subnet of each width and depth, if it is legal; at most ``most`` of them, spread evenly.

    They belong to the first generation, because predictions need evaluated subnets of each width, and random draws rarely contain
    the largest widths that are still legal.
    """
    heads, ratio = space.num_heads[0], space.mlp_ratio[0]
    subnets = [Subnet(dim, (heads,) * depth, (ratio,) * depth) for dim in space.embed_dim for depth in space.depth]
    legal = [subnet for subnet, fits in zip(subnets, feasible(SubnetBatch.from_subnets(subnets)), strict=True) if fits]
    if len(legal) <= most:
        return legal
    return [legal[int(row)] for row in np.linspace(0, len(legal) - 1, most).round()]


def promising(
    space: SearchSpace,
    known: Container[Subnet],
    parents: Sequence[Subnet],
    best: Callable[[Sequence[Subnet], int], list[Subnet]],
    feasible: Feasible,
    rng: Generator,
    count: int,
) -> list[Subnet]:
    """Returns new legal subnets with the best predictions, found by an evolution on predictions, which cost almost nothing.

    The evolution starts with random subnets too, because the best subnet at a limit may differ much from all evaluated subnets.

    Args:
        space: the search space.
        known: all evaluated subnets; none of them is returned.
        parents: the best of the evaluated subnets.
        best: returns the given number of subnets with the best predictions, best first.
        feasible: the monotone predicate of the limits.
        rng: the random generator.
        count: number of subnets to return; fewer are returned if no more are found.
    """
    size = max(_POOL, 2 * count)
    pool = [subnet for subnet in dict.fromkeys(sample_feasible(space, _DRAWS, rng, feasible)) if subnet not in known]
    for _ in range(_ROUNDS):
        pool = best(pool, size)
        families = [*parents, *pool]
        children = []
        for _ in range(size):
            first, second = (families[int(row)] for row in rng.integers(len(families), size=2))
            children.append(mutate(space, first, rng) if rng.random() < 0.5 else crossover(first, second, rng))
        legal = feasible(SubnetBatch.from_subnets(children))
        new = (child for child, fits in zip(children, legal, strict=True) if fits and child not in known)
        pool = list(dict.fromkeys([*pool, *new]))
    return best(pool, count)
