"""Preferred one-shot learning: PreNAS (Wang et al., ICML 2023, Section 3).

The subnets to train are chosen before the training, by their sensitivities at initialisation. No other subnets are trained.
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
from growtas.fields import checked, one_of, whole
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.train.recipe import Recipe
from growtas.train.strategies.base import Pass, Strategy, Tools
from growtas.train.strategies.sensitivity import Sensitivity


@dataclass(frozen=True, kw_only=True)
class PreNasOptions:
    """Options of ``prenas``.

    Attributes:
        budgets: number of equal intervals into which the space's range of parameters is divided.
        per_budget: number of preferred subnets per interval.
        batches: number of training batches over which the gradient is averaged.
        draw: ``subnets`` draws uniformly from all preferred subnets. ``groups`` first draws one of their pairs of width and depth.
            The published method has ``groups`` and one subnet per interval.
    """

    budgets: int = checked(6, whole(1, 1000))
    per_budget: int = checked(2, whole(1, 1000))
    batches: int = checked(4, whole(1, 1000))
    draw: str = checked("subnets", one_of("subnets", "groups"))


class PreNas(Strategy):
    """Draws one of the preferred subnets per step.

    As in the paper, they are chosen in two steps. First, subnets with the same width, depth, total of heads and total of hidden
    channels form a group of equal size; of each group the subnet with the largest sum of normalised block sensitivities is kept.
    Then the most sensitive of these in each interval of parameters are preferred.

    Differences from the authors' code: the first step is solved exactly and not searched, because its score is a sum over blocks.
    Drop path is off while the gradient is computed, so that the choice depends on weights and images alone.

    Attributes:
        preferred: the chosen subnets from small to large; empty before :meth:`prepare`.
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
            raise TrainingError("prenas has no preferred subnets; call prepare or load_state first")
        rng, subnets = self.rng(step), self.preferred
        if self.options.draw == "groups":
            groups = sorted({(subnet.embed_dim, subnet.depth) for subnet in subnets})
            group = groups[rng.integers(len(groups))]
            subnets = tuple(subnet for subnet in subnets if (subnet.embed_dim, subnet.depth) == group)
        return (Pass(subnets[rng.integers(len(subnets))]),)

    def state(self) -> dict[str, Any]:
        return {"preferred": [subnet.to_dict() for subnet in self.preferred]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.preferred = tuple(Subnet.from_dict(subnet) for subnet in state["preferred"])


def best_isomers(space: SearchSpace, sensitivity: Sensitivity) -> list[Subnet]:
    """Returns the best subnet of each group with the same width, depth, total of heads and total of hidden channels.

    All subnets of a group have the same parameters and MACs. The best has the largest sum of normalised sensitivities. Heads and
    MLPs are chosen separately, because their terms are independent. Among equals the first in the order of the choices wins.
    """
    winners = []
    for d, dim in enumerate(space.embed_dim):
        hidden = [int(dim * ratio) for ratio in space.mlp_ratio]
        for depth in space.depth:
            blocks = list(space.blocks_of(depth))
            heads = _best_sums(space.num_heads, space.num_heads, sensitivity.normal_attention[d, blocks])
            ratios = _best_sums(hidden, space.mlp_ratio, sensitivity.normal_mlp[d, blocks])
            winners += [Subnet(dim, h, r) for h, r in product(heads, ratios)]
    return winners


def _best_sums(sizes: Sequence[int], values: Sequence[Any], scores: NDArray[np.float64]) -> list[tuple[Any, ...]]:
    """Returns the best choice of values for each total of sizes, by dynamic programming.

    Args:
        sizes: size of each choice, which is summed over blocks.
        values: value of each choice.
        scores: ``scores[block, choice]``; their sum is maximised.
    """
    best: dict[int, tuple[float, tuple[Any, ...]]] = {0: (0.0, ())}
    for row in scores:
        longer: dict[int, tuple[float, tuple[Any, ...]]] = {}
        for total, (score, chosen) in best.items():
            for size, value, gain in zip(sizes, values, row.tolist(), strict=True):
                if total + size not in longer or score + gain > longer[total + size][0]:
                    longer[total + size] = (score + gain, (*chosen, value))
        best = longer
    return [chosen for _, (_, chosen) in sorted(best.items())]


def prefer(space: SearchSpace, subnets: Sequence[Subnet], sensitivity: Sensitivity, options: PreNasOptions) -> tuple[Subnet, ...]:
    """Returns the most sensitive subnets of each interval of parameters, from small to large. An interval may contain none."""
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
