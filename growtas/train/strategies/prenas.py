"""Preferred one-shot learning: PreNAS (Wang et al., ICML 2023, Section 3).

The subnets worth training are chosen before the training, by their sensitivities at initialisation, and nothing else is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.costs import count_costs, count_costs_batch
from growtas.errors import TrainingError
from growtas.fields import checked, whole
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.train.recipe import Recipe
from growtas.train.strategies.base import Pass, Strategy, Tools
from growtas.train.strategies.sensitivity import Sensitivity


@dataclass(frozen=True, kw_only=True)
class PreNasOptions:
    """Settings of ``prenas``.

    Attributes:
        budgets: intervals of equal width that the space's range of parameters is cut into.
        per_budget: preferred subnets of each interval.
        batches: training batches whose mean gradient is taken.
    """

    budgets: int = checked(6, whole(1, 1000))
    per_budget: int = checked(2, whole(1, 1000))
    batches: int = checked(4, whole(1, 1000))


class PreNas(Strategy):
    """One of the preferred subnets a step, uniformly.

    The choice has two steps, as in the paper. Subnets of the same width and depth, with as many heads and as many hidden channels
    in total, have the same size; of these the one is kept whose blocks' normalised sensitivities add up to the most. Of those
    that are left, the most sensitive in each interval of parameters are preferred.

    What differs: the first step is solved exactly, since its score is a sum over blocks, where the authors' code searches;
    and drop path is off while the gradient is taken, so that the choice is a function of weights and images.

    Attributes:
        preferred: the chosen subnets, from small to large; empty before :meth:`prepare`.
    """

    name: ClassVar[str] = "prenas"
    Options: ClassVar[type[PreNasOptions]] = PreNasOptions

    def __init__(self, space: SearchSpace, recipe: Recipe) -> None:
        super().__init__(space, recipe)
        self.preferred: tuple[Subnet, ...] = ()

    def prepare(self, tools: Tools) -> None:
        sensitivity = Sensitivity.measure(self.space, tools, self.options.batches)
        self.preferred = prefer(self.space, best_isomers(self.space, sensitivity), sensitivity, self.options)

    def draw(self, step: int, epoch: float) -> tuple[Pass, ...]:
        """See :class:`Strategy`.

        Raises:
            TrainingError: the preferred subnets are not chosen yet.
        """
        if not self.preferred:
            raise TrainingError("prenas has no preferred subnets: the training was neither prepared nor resumed with its state")
        return (Pass(self.preferred[self.rng(step).integers(len(self.preferred))]),)

    def state(self) -> dict[str, Any]:
        return {"preferred": [subnet.to_dict() for subnet in self.preferred]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.preferred = tuple(Subnet.from_dict(subnet) for subnet in state["preferred"])


def best_isomers(space: SearchSpace, sensitivity: Sensitivity) -> list[Subnet]:
    """The best of each group of subnets with the same width, depth, total of heads and total of hidden channels.

    All subnets of a group have the same parameters and MACs. The best has the largest sum of normalised sensitivities; heads and
    MLPs are chosen apart, because neither's terms depend on the other. Of equal ones the first in the order of the choices wins.
    """
    winners = []
    for d, dim in enumerate(space.embed_dim):
        hidden = [int(dim * ratio) for ratio in space.mlp_ratio]
        heads = _best_sums(space.num_heads, space.num_heads, sensitivity.normal_attention[d])
        ratios = _best_sums(hidden, space.mlp_ratio, sensitivity.normal_mlp[d])
        for depth in space.depth:
            winners += [Subnet(dim, h, r) for h, r in product(heads[depth - 1], ratios[depth - 1])]
    return winners


def _best_sums(sizes: Sequence[int], values: Sequence[Any], scores: NDArray[np.float64]) -> list[list[tuple[Any, ...]]]:
    """For each number of leading blocks and each total of sizes, the values of the largest score; ``scores[block, choice]``."""
    best: dict[int, tuple[float, tuple[Any, ...]]] = {0: (0.0, ())}
    best_by_depth = []
    for row in scores:
        longer: dict[int, tuple[float, tuple[Any, ...]]] = {}
        for total, (score, chosen) in best.items():
            for size, value, gain in zip(sizes, values, row.tolist(), strict=True):
                if total + size not in longer or score + gain > longer[total + size][0]:
                    longer[total + size] = (score + gain, (*chosen, value))
        best = longer
        best_by_depth.append([chosen for _, (_, chosen) in sorted(best.items())])
    return best_by_depth


def prefer(space: SearchSpace, subnets: Sequence[Subnet], sensitivity: Sensitivity, options: PreNasOptions) -> tuple[Subnet, ...]:
    """The most sensitive subnets of each interval of parameters, from small to large; an interval may hold fewer, or none."""
    params = count_costs_batch(space, SubnetBatch.from_subnets(subnets))[0]
    low, high = (count_costs(space, subnet).params for subnet in (space.smallest, space.largest))
    edges = np.linspace(low, high, options.budgets + 1)
    interval = np.clip(np.searchsorted(edges, params) - 1, 0, options.budgets - 1)
    score = np.array([sensitivity.total(space, subnet) for subnet in subnets])
    chosen: list[int] = []
    for budget in range(options.budgets):
        rows = np.flatnonzero(interval == budget)
        chosen += rows[np.argsort(-score[rows], kind="stable")][: options.per_budget].tolist()
    return tuple(subnets[row] for row in sorted(chosen, key=lambda row: (params[row], row)))
