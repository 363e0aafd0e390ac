"""Predicts accuracies of subnets from those that a search has evaluated, to choose which subnets it evaluates next.

A Gaussian process. What is known of one subnet says the more about another one, the more they have in common: the correlation is
exp(-distance / length), and the distance is the share of different heads and ratios, and a half each for another width and another
depth. The length, and how much of an accuracy can't be predicted, are those that make the evaluated accuracies likeliest. No
predicted accuracy is ever reported.
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
"""Variance of what can't be predicted, relative to that of what can."""
_DECIMALS = 9
"""Of a prediction: other machines add products up in another order, and that must not decide between subnets."""
_DRAWS, _POOL, _ROUNDS = 1000, 200, 10
"""Random subnets that an evolution on predictions begins with, those that it keeps at least, and its generations."""


class AccuracyPredictor:
    """The process, fitted to evaluated subnets.

    Args:
        space: of the subnets.
        subnets: evaluated ones; one at least.
        accuracies: theirs.
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
        """What an evaluation may well find: the expected accuracy and a standard deviation more, shape ``(len(subnets),)``.

        So a subnet is chosen because it is likely good, or because little is known of its kind.
        """
        correlations = np.exp(-self._distances(SubnetBatch.from_subnets(subnets)) / self._length)
        left = 1 - ((correlations @ self._vectors) ** 2 / self._noisy).sum(axis=1)
        deviations = np.sqrt(self._scale * np.maximum(left, 0))
        return np.round(self._mean + correlations @ self._weights + deviations, _DECIMALS)

    def _distances(self, batch: SubnetBatch) -> NDArray[np.float64]:
        """How far subnets are from the known ones, 0 to 2; shape ``(len(batch), len(known))``."""
        both, split = SubnetBatch.concatenate([batch, self._known]), len(batch)

        def differing(genes: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
            return np.sum([gene[:split, None] != gene[split:] for gene in genes], axis=0)

        shape, blocks = differing([both.embed_dim, both.depth]), differing([*both.num_heads.T, *both.mlp_ratio.T])
        return shape / 2 + blocks / self._genes


def legal_shapes(space: SearchSpace, feasible: Feasible, most: int) -> list[Subnet]:
    """The smallest subnet of each width and depth that has a legal one; where they are more than ``most``, some of them.

    A prediction for a width that was never evaluated is a guess, and few random subnets have one that is just legal.
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
    """New legal subnets that are predicted to be worth an evaluation: an evolution on predictions, which cost next to nothing.

    It begins with random subnets too: what is best at a limit may have no good relative among those that were evaluated.

    Args:
        known: all evaluated subnets; none of them is returned.
        parents: the best of those.
        best: so many of some subnets, the best by their predictions first.
        count: how many; fewer where no more are found.
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
