from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from growtas.batch import SubnetBatch
from growtas.costs import count_costs_batch
from growtas.errors import LimitError, MissingExtra
from growtas.sampling import sample_feasible
from growtas.search.evolution import EvolutionConfig
from growtas.search.limits import Limits
from growtas.search.pareto import evolve_front, hypervolume, non_dominated
from growtas.space import PRESETS, SearchSpace
from tests.unit.search.test_evolution import Landscape
from tests.unit.search.test_limits import every_subnet

MICRO = PRESETS["micro"]
PART = SearchSpace(name="s", embed_dim=(8, 12, 16), num_heads=(1, 2), mlp_ratio=(2.0, 3.0), depth=(3, 4))
points = st.integers(1, 3).flatmap(
    lambda k: arrays(np.float64, st.tuples(st.integers(1, 12), st.just(k)), elements=st.integers(0, 6).map(float))
)


@given(points)
def test_the_front_is_what_the_definition_says(values):
    def dominates(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    expected = [not any(dominates(other, point) for other in values) for point in values]
    assert non_dominated(values).tolist() == expected


@given(points)
def test_the_hypervolume_is_the_number_of_unit_cells_that_a_point_dominates(values):
    reference = np.full(values.shape[1], 5.0)
    cells = itertools.product(range(5), repeat=values.shape[1])
    expected = sum(any(all(p <= c for p, c in zip(point, cell, strict=True)) for point in values) for cell in cells)
    assert hypervolume(values, reference) == expected


def test_the_hypervolume_agrees_with_pymoo():
    from pymoo.indicators.hv import HV

    for objectives in (2, 3, 4):
        values = np.random.default_rng(objectives).random((25, objectives))
        reference = np.full(objectives, 0.9)
        assert hypervolume(values, reference) == pytest.approx(HV(ref_point=reference)(values), rel=1e-9)


LANDSCAPE = Landscape(3, PART)


def accuracy(subnet):
    """Grows with MACs, less and less, and by what each block and each pair of neighbours happen to be worth."""
    cost = int(count_costs_batch(PART, SubnetBatch.from_subnets([subnet]))[1][0])
    return float(np.log(cost) / 20 + LANDSCAPE.value(subnet) * 0.02)


def evaluate(subnets):
    return [(accuracy(subnet), 0.0, 0) for subnet in subnets]


def params(batch):
    return count_costs_batch(PART, batch)[0].astype(float)


def search(seed=0, feasible=None, space=PART, **config):
    config = EvolutionConfig(**{"generations": 10, "population": 24, **config})
    return evolve_front(
        space,
        evaluate,
        lambda batch: params(batch)[:, None],
        feasible or Limits().feasible(space),
        np.random.default_rng(seed),
        config,
    )


def test_finds_most_of_a_known_front():
    everything = list(every_subnet(PART))

    def volume(subnets):
        values = np.column_stack([[-accuracy(s) for s in subnets], params(SubnetBatch.from_subnets(subnets))])
        return hypervolume(
            values, np.array([-min(map(accuracy, everything)), float(params(SubnetBatch.from_subnets([PART.largest]))[0]) + 1])
        )

    found, drawn = [], []
    for seed in range(5):
        subnets = [subnet for subnet, _ in search(seed, generations=6).ranked]
        assert len(subnets) == len(set(subnets)) == 144
        found.append(volume(subnets) / volume(everything))
        draws = sample_feasible(PART, 144, np.random.default_rng(100 + seed), Limits().feasible(PART))
        drawn.append(volume(list(draws)) / volume(everything))
    assert min(found) >= 0.9
    assert np.mean(found) > max(0.95, np.mean(drawn) + 0.02), drawn


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.floats(0.05, 1))
def test_nothing_beyond_a_limit_is_evaluated(seed, share):
    low, high = params(SubnetBatch.from_subnets([PART.smallest, PART.largest]))
    limit = int(low + share * (high - low))
    found = search(seed, Limits(max_params=limit).feasible(PART), generations=4)
    subnets = [subnet for subnet, _ in found.ranked]
    assert (params(SubnetBatch.from_subnets(subnets)) <= limit).all()
    assert all(PART.holds(subnet) for subnet in subnets)


def test_the_first_generation_reaches_from_the_smallest_subnet_over_the_whole_cost():
    first = search(generations=1).ranked
    costs = np.sort(params(SubnetBatch.from_subnets([subnet for subnet, _ in first])))
    everything = np.sort(params(SubnetBatch.from_subnets(list(every_subnet(PART)))))
    assert PART.smallest in dict(first)
    assert len(first) == 24
    assert np.diff(costs).max() < 0.15 * (everything[-1] - everything[0])
    assert costs[-1] > 0.95 * everything[-1]


def test_the_seed_decides_and_scores_are_ranked():
    assert search(1).ranked == search(1).ranked != search(2).ranked
    scores = [score for _, score in search(1).ranked]
    assert scores == sorted(scores, reverse=True)


def test_a_small_space_is_searched_to_its_last_subnet_and_ends():
    small = SearchSpace(name="small", embed_dim=(8, 16), num_heads=(1, 2), mlp_ratio=(2.0,), depth=(1, 2))
    found = search(space=small, generations=50)
    assert {subnet for subnet, _ in found.ranked} == set(every_subnet(small))
    assert len(found.history) <= 3
    with pytest.raises(LimitError):
        search(feasible=Limits(max_params=10).feasible(PART))


def test_without_pymoo_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymoo.algorithms.moo.nsga2", None)
    with pytest.raises(MissingExtra, match=r"pip install 'growtas\[pareto\]'"):
        search()
