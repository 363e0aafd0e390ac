from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growtas.batch import SubnetBatch
from growtas.costs import count_costs_batch
from growtas.errors import ConfigError, LimitError
from growtas.sampling import sample_feasible
from growtas.search.evolution import EvolutionConfig, evolve
from growtas.search.limits import Limits
from growtas.space import PRESETS, SearchSpace
from tests.unit.search.test_limits import every_subnet

MICRO = PRESETS["micro"]
SMALL = SearchSpace(name="small", embed_dim=(8, 16), num_heads=(1, 2), mlp_ratio=(2.0, 3.0), depth=(1, 2))
ANY = Limits().feasible(SMALL)


class Landscape:
    """A random, rugged function of the genes: a weight for each choice of each block, and one for each pair of neighbours."""

    def __init__(self, seed, space=MICRO):
        self.space, self.calls = space, []
        rng = np.random.default_rng(seed)
        choices = len(space.num_heads) * len(space.mlp_ratio)
        self.single = rng.normal(size=(len(space.embed_dim), space.max_depth, choices))
        self.pairs = rng.normal(size=(space.max_depth, choices, choices))

    def value(self, subnet):
        space = self.space
        genes = [
            space.num_heads.index(h) * len(space.mlp_ratio) + space.mlp_ratio.index(r)
            for h, r in zip(subnet.num_heads, subnet.mlp_ratio, strict=True)
        ]
        single = sum(self.single[space.embed_dim.index(subnet.embed_dim), i, g] for i, g in enumerate(genes))
        return float(single + sum(self.pairs[i, a, b] for i, (a, b) in enumerate(itertools.pairwise(genes))))

    def __call__(self, subnets):
        self.calls.append(list(subnets))
        return [self.value(subnet) for subnet in subnets]


@pytest.mark.parametrize("seed", range(5))
def test_finds_the_true_best_of_a_space_that_can_be_counted(seed):
    landscape = Landscape(seed, SMALL)
    result = evolve(SMALL, landscape, ANY, np.random.default_rng(seed), EvolutionConfig(generations=8, population=10))
    assert result.ranked[0][0] == max(every_subnet(SMALL), key=landscape.value)
    assert result.history[-1].best == result.ranked[0]


def test_finds_the_best_of_720_subnets_in_a_quarter_of_the_evaluations():
    space = SearchSpace(name="s", embed_dim=(8, 12, 16), num_heads=(1, 2), mlp_ratio=(2.0, 3.0), depth=(3, 4))
    everything = list(every_subnet(space))
    hits = 0
    for seed in range(6):
        landscape = Landscape(seed, space)
        config = EvolutionConfig(generations=10, population=24)
        result = evolve(space, landscape, Limits().feasible(space), np.random.default_rng(seed), config)
        assert len(result.ranked) == 240 <= len(everything) / 3.9
        order = sorted((landscape.value(s) for s in everything), reverse=True)
        hits += result.ranked[0][1] == order[0]
        assert result.ranked[0][1] >= order[3]
    assert hits >= 4


def test_beats_random_search_at_equal_evaluations():
    feasible = Limits(max_params=180_000).feasible(MICRO)
    wins = []
    for seed in range(6):
        landscape = Landscape(seed)
        config = EvolutionConfig(generations=12, population=30)
        best = evolve(MICRO, landscape, feasible, np.random.default_rng(seed), config).ranked[0][1]
        draws = sample_feasible(MICRO, 360, np.random.default_rng(1000 + seed), feasible)
        wins.append(best - max(landscape.value(s) for s in draws))
    assert sum(win > 0 for win in wins) >= 5
    assert np.mean(wins) > 1.0


def test_the_paper_evaluates_a_thousand_different_subnets():
    landscape = Landscape(0)
    result = evolve(MICRO, landscape, Limits().feasible(MICRO), np.random.default_rng(0))
    assert [len(call) for call in landscape.calls] == [50] * 20
    assert len({s for call in landscape.calls for s in call}) == len(result.ranked) == 1000
    scores = [score for _, score in result.ranked]
    assert scores == sorted(scores, reverse=True)
    best = [generation.best[1] for generation in result.history]
    assert best == sorted(best)
    assert [g.number for g in result.history] == list(range(1, 21))
    assert best[-1] > best[0]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(45_000, 260_000))
def test_all_that_is_evaluated_is_legal_and_in_the_space(seed, max_params):
    feasible = Limits(max_params=max_params).feasible(MICRO)
    landscape = Landscape(seed)
    result = evolve(MICRO, landscape, feasible, np.random.default_rng(seed), EvolutionConfig(generations=4, population=12))
    evaluated = [s for call in landscape.calls for s in call]
    assert all(MICRO.holds(subnet) for subnet in evaluated)
    assert (count_costs_batch(MICRO, SubnetBatch.from_subnets(evaluated))[0] <= max_params).all()
    assert len(set(evaluated)) == len(evaluated) == len(result.ranked)


def test_the_seed_decides():
    def best(seed):
        return evolve(
            MICRO, Landscape(0), Limits().feasible(MICRO), np.random.default_rng(seed), EvolutionConfig(generations=3)
        ).ranked

    assert best(1) == best(1)
    assert best(1) != best(2)


@pytest.mark.parametrize("population", [7, 100])
def test_a_small_space_is_searched_to_its_last_subnet_and_ends(population):
    config = EvolutionConfig(generations=50, population=population)
    result = evolve(SMALL, Landscape(0, SMALL), ANY, np.random.default_rng(0), config)
    everything = set(every_subnet(SMALL))
    assert {subnet for subnet, _ in result.ranked} == everything
    assert len(result.history) <= -(-len(everything) // population) + 2


@pytest.mark.parametrize("predict", [False, True])
def test_the_first_generation_has_the_legal_ones_of_the_given_subnets(predict):
    landscape, rng = Landscape(0), np.random.default_rng(5)
    given_ones = [MICRO.largest, *sample_feasible(MICRO, 30, rng, Limits(max_params=100_000).feasible(MICRO))]
    feasible = Limits(max_params=100_000).feasible(MICRO)
    config = EvolutionConfig(generations=1, population=20)
    evolve(MICRO, landscape, feasible, np.random.default_rng(0), config, predict=predict, first=given_ones)
    (generation,) = landscape.calls
    assert len(generation) == 20
    assert generation[:10] == given_ones[1:11]
    assert feasible(SubnetBatch.from_subnets(generation)).all()
    without = Landscape(0)
    evolve(MICRO, without, feasible, np.random.default_rng(0), config, predict=predict)
    assert not set(without.calls[0]) & set(given_ones)


def test_a_single_legal_subnet_is_the_answer():
    limits = Limits(max_params=int(count_costs_batch(SMALL, SubnetBatch.from_subnets([SMALL.smallest]))[0][0]))
    result = evolve(SMALL, Landscape(0, SMALL), limits.feasible(SMALL), np.random.default_rng(0))
    assert [subnet for subnet, _ in result.ranked] == [SMALL.smallest]
    with pytest.raises(LimitError):
        evolve(SMALL, Landscape(0, SMALL), Limits(max_params=10).feasible(SMALL), np.random.default_rng(0))


def test_scores_may_be_tuples_and_ties_keep_their_order():
    result = evolve(SMALL, lambda subnets: [(0.5, -s.embed_dim) for s in subnets], ANY, np.random.default_rng(0))
    dims = [subnet.embed_dim for subnet, _ in result.ranked]
    assert dims == sorted(dims)


@pytest.mark.parametrize(
    ("field", "value"), [("generations", 0), ("population", -1), ("parents", 0), ("mutation_probability", 0.0), ("population", 1.5)]
)
def test_settings_are_checked(field, value):
    with pytest.raises(ConfigError, match=field):
        EvolutionConfig(**{field: value})
