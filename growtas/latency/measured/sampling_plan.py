"""Chooses the subnets to measure for a latency model, so that they distinguish the model's terms well.

Random subnets are too similar: with a dozen blocks, every draw has about the average number of heads and the average ratio. So the
choice is greedily D-optimal: each next subnet is the one in a pool whose predicted latency has the largest variance, given the
subnets chosen so far (V. V. Fedorov, "Theory of Optimal Experiments", 1972).

Most of these subnets have equal blocks, while the subnets of a search have different blocks, which take a little longer. So a third
of the subnets is drawn at random.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.costs import count_costs_batch
from growtas.errors import ConfigError
from growtas.latency.measured.campaign import Campaign, Role, Sample
from growtas.latency.measured.terms import terms
from growtas.sampling import Feasible, sample_batch, sample_feasible
from growtas.space import SearchSpace
from growtas.subnet import Subnet

POOL = 2000
_SEED = 0
_HELD_OUT_SEED = 1
_ORDER_SEED = 2
_PRIOR = 1e-6
_DRAWN = 3
"""One in this many subnets is drawn at random."""


@dataclass(frozen=True)
class SamplingPlan:
    """The subnets that a profile measures.

    Attributes:
        fit: subnets to which the model is fitted; chosen to distinguish its terms.
        held_out: subnets on which the model is tested; drawn at random, none of them in ``fit``.
        repeated: subnets out of both that are measured again at the end.
    """

    fit: tuple[Subnet, ...]
    held_out: tuple[Subnet, ...]
    repeated: tuple[Subnet, ...]

    @property
    def first(self) -> list[Subnet]:
        """``fit`` and ``held_out`` in a random order, so that both are measured under the same conditions."""
        subnets = [*self.fit, *self.held_out]
        return [subnets[i] for i in np.random.default_rng(_ORDER_SEED).permutation(len(subnets))]

    def measure(self, campaign: Campaign) -> list[tuple[Role, Sample]]:
        """Returns all samples with their roles, from the journal or measured now.

        Raises:
            UnsteadyMachine: the machine is too busy.
            OutputError: the journal can't be written.
        """
        by_subnet = {sample.subnet: sample for sample in campaign.measure(self.first)}
        roles: list[tuple[Role, Sample]] = [("fit", by_subnet[subnet]) for subnet in self.fit]
        roles += [("held-out", by_subnet[subnet]) for subnet in self.held_out]
        return roles + [("repeat", sample) for sample in campaign.measure(self.repeated, visit=1)]


def plan_profile(space: SearchSpace, *, samples: int = 60, held_out: int = 40, repeats: int = 10) -> SamplingPlan:
    """Chooses the subnets of a profile. Equal arguments give equal subnets.

    Args:
        space: the search space.
        samples: number of subnets to which the model is fitted.
        held_out: number of subnets on which it is tested.
        repeats: number of subnets that are measured twice.

    Raises:
        ConfigError: a number is too small, or the space has fewer subnets.
    """
    for name, value, lowest in (("samples", samples, 4), ("held-out", held_out, 2), ("repeats", repeats, 0)):
        if value < lowest:
            raise ConfigError(f"--{name} is {value}; it must be {lowest} or more")
    if space.size < samples + held_out:
        raise ConfigError(f"{space.name} has {space.size} subnets, but --samples and --held-out need {samples + held_out}")

    fit = choose_subnets(space, lambda batch: np.ones(len(batch), bool), samples)
    rng, taken, drawn = np.random.default_rng(_HELD_OUT_SEED), set(fit), dict[Subnet, None]()
    while len(drawn) < held_out:
        drawn |= {subnet: None for subnet in sample_batch(space, held_out, rng) if subnet not in taken}
    plan = SamplingPlan(tuple(fit), tuple(drawn)[:held_out], ())
    # They are among the first to be measured, so that much time passes before they are measured again.
    early = plan.first[: max(len(plan.first) // 2, 1)]
    return dataclasses.replace(plan, repeated=tuple(early[:repeats]))


def choose_subnets(space: SearchSpace, feasible: Feasible, count: int, *, basis: str = "stepped") -> list[Subnet]:
    """Chooses legal subnets to measure, sorted by MACs, including the smallest and the pool's largest. The choice is deterministic.

    Args:
        space: the search space.
        feasible: the monotone predicate of the limits; the smallest subnet is chosen in any case.
        count: number of subnets, at least two; fewer are returned if there are no more.
        basis: set of terms to distinguish.

    Raises:
        ConfigError: ``count`` is below two.
        LimitError: no subnet is legal.
    """
    if count < 2:
        raise ConfigError(f"a latency model needs at least 2 subnets to measure, not {count}")
    rng = np.random.default_rng(_SEED)
    candidates = _candidates(space, feasible, POOL, rng)
    batch = SubnetBatch.from_subnets(candidates)
    macs = count_costs_batch(space, batch)[1]
    table = terms(space, basis, batch)
    # Errors of latencies are relative, so rows are divided by the latency, approximated by the MACs plus a constant.
    rough = macs / macs.mean() + 0.2
    table = table / np.maximum(table.max(axis=0), 1e-300) / rough[:, None]
    chosen = min(count - count // _DRAWN, len(candidates))
    picks = _d_optimal(table, [0, int(np.argmax(macs))], chosen)
    # The last candidates are uniform draws, like the subnets of a search.
    others = [row for row in range(len(candidates) - 1, -1, -1) if row not in set(picks)]
    return [candidates[row] for row in sorted([*picks, *others[: count - chosen]], key=lambda row: (macs[row], row))]


def _d_optimal(table: NDArray[np.float64], first: list[int], count: int) -> list[int]:
    """Returns ``count`` rows of a table: ``first``, and then each time the row whose prediction has the largest variance."""
    first = list(dict.fromkeys(first))
    inverse = np.eye(table.shape[1]) / _PRIOR
    variance = np.einsum("ij,jk,ik->i", table, inverse, table)
    taken = np.zeros(len(table), bool)
    picks: list[int] = []
    while len(picks) < count:
        row = first[len(picks)] if len(picks) < len(first) else int(np.argmax(np.where(taken, -1.0, variance)))
        picks.append(row)
        taken[row] = True
        # Sherman-Morrison update of the inverse, and with it of the variance of every row.
        moved = inverse @ table[row]
        spread = 1 + float(table[row] @ moved)
        inverse -= np.outer(moved, moved) / spread
        variance -= (table @ moved) ** 2 / spread
    return picks


def _candidates(space: SearchSpace, feasible: Feasible, pool: int, rng: Generator) -> list[Subnet]:
    """Returns the smallest subnet, then legal subnets with equal blocks, biased draws, and uniform draws."""
    alike = [
        Subnet(width, (heads,) * depth, (ratio,) * depth)
        for width, heads, ratio, depth in product(space.embed_dim, space.num_heads, space.mlp_ratio, space.depth)
    ]
    draws = SubnetBatch.concatenate([SubnetBatch.from_subnets(alike), _biased(space, pool // 2, rng)])
    legal = draws[feasible(draws)]
    plain = sample_feasible(space, pool // 2, rng, feasible)
    return list(dict.fromkeys([space.smallest, *legal, *plain]))


def _biased(space: SearchSpace, count: int, rng: Generator) -> SubnetBatch:
    """Draws subnets that each prefer some heads and ratios: sums over blocks then reach extremes that uniform draws never do."""
    depth = rng.choice(np.array(space.depth), count)
    shape = (count, space.depth[-1])
    present = np.arange(shape[1]) < depth[:, None]
    drawn = []
    for values in (np.array(space.num_heads), np.array(space.mlp_ratio)):
        preference = rng.dirichlet(np.full(len(values), 0.5), count).cumsum(axis=1)
        index = (rng.random(shape)[:, :, None] > preference[:, None, :-1]).sum(axis=2)
        drawn.append(np.where(present, values[index], 0))
    return SubnetBatch(rng.choice(np.array(space.embed_dim), count).astype(np.int64), drawn[0], drawn[1])
