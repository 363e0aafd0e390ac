from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growtas.costs import count_costs, count_costs_batch
from growtas.errors import ConfigError, LimitError
from growtas.growth import Subspace
from growtas.sampling import crossover, mutate, sample, sample_batch, sample_feasible
from growtas.space import PRESETS, SearchSpace

SMALL = SearchSpace(name="small", embed_dim=(8, 16), num_heads=(1, 2), mlp_ratio=(2.0, 3.0), depth=(1, 2))


def _under(space, max_params):
    return lambda batch: count_costs_batch(space, batch)[0] <= max_params


def test_every_dimension_is_uniform():
    batch = sample_batch(SMALL, 20_000, np.random.default_rng(0))
    assert np.mean(batch.embed_dim == 8) == pytest.approx(0.5, abs=0.02)
    assert np.mean(batch.depth == 1) == pytest.approx(0.5, abs=0.02)
    for block, share in ((0, 1.0), (1, 0.5)):
        present = batch.num_heads[:, block] > 0
        assert present.mean() == pytest.approx(share, abs=0.02)
        assert np.mean(batch.num_heads[present, block] == 1) == pytest.approx(0.5, abs=0.02)
        assert np.mean(batch.mlp_ratio[present, block] == 2.0) == pytest.approx(0.5, abs=0.02)


def test_the_generator_decides():
    def draws(seed):
        return list(sample_batch(PRESETS["micro"], 5, np.random.default_rng(seed)))

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)


@given(seed=st.integers(0, 2**32 - 1), cap=st.sampled_from([(192, 4.0), (216, 3.5), (240, 4.0)]))
def test_a_subspace_holds_its_samples(seed, cap):
    subspace = Subspace(*cap)
    subnet = sample(PRESETS["autoformer-t"], np.random.default_rng(seed), subspace)
    assert subspace.holds(subnet)
    assert PRESETS["autoformer-t"].holds(subnet)


def test_an_empty_subspace_is_refused():
    with pytest.raises(ConfigError, match="with embed_dim up to 100 is empty; embed_dim of autoformer-t is 192, 216 or 240"):
        sample(PRESETS["autoformer-t"], np.random.default_rng(0), Subspace(max_embed_dim=100))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), quantile=st.floats(0.0, 1.0), name=st.sampled_from(["micro", "autoformer-s"]))
def test_feasible_samples_meet_the_limit_however_tight(seed, quantile, name):
    space = PRESETS[name]
    low, high = (count_costs(space, s).params for s in (space.smallest, space.largest))
    limit = low + quantile * (high - low)
    batch = sample_feasible(space, 100, np.random.default_rng(seed), _under(space, limit))
    assert len(batch) == 100
    assert (count_costs_batch(space, batch)[0] <= limit).all()
    assert all(space.holds(subnet) for subnet in batch)


def test_feasible_samples_are_uniform_under_the_limit():
    limit = int(np.median([count_costs(SMALL, s).params for s in _enumerate(SMALL)]))
    drawn = Counter(sample_feasible(SMALL, 30_000, np.random.default_rng(0), _under(SMALL, limit)))
    legal = Counter(s for s in sample_batch(SMALL, 60_000, np.random.default_rng(1)) if count_costs(SMALL, s).params <= limit)
    assert set(drawn) == set(legal)
    for subnet, count in legal.items():
        assert drawn[subnet] / 30_000 == pytest.approx(count / legal.total(), rel=0.2)


def test_an_impossible_limit_is_an_error():
    with pytest.raises(LimitError, match="no subnet of small"):
        sample_feasible(SMALL, 1, np.random.default_rng(0), _under(SMALL, 10))


def _enumerate(space):
    for dim, depth in itertools.product(space.embed_dim, space.depth):
        for heads in itertools.product(space.num_heads, repeat=depth):
            for ratios in itertools.product(space.mlp_ratio, repeat=depth):
                from growtas.subnet import Subnet

                yield Subnet(dim, heads, ratios)


@given(seed=st.integers(0, 2**32 - 1), probability=st.sampled_from([0.0, 0.2, 1.0]))
def test_mutants_and_children_stay_in_the_space(seed, probability):
    space, rng = PRESETS["micro"], np.random.default_rng(seed)
    first, second = sample(space, rng), sample(space, rng)
    mutant, child = mutate(space, first, rng, probability), crossover(first, second, rng)
    assert space.holds(mutant)
    assert space.holds(child)
    if probability == 0.0:
        assert mutant == first
    assert child.embed_dim in (first.embed_dim, second.embed_dim)
    for block in range(child.depth):
        parents = [p for p in (first, second) if block < p.depth]
        assert child.num_heads[block] in {p.num_heads[block] for p in parents}
        assert child.mlp_ratio[block] in {p.mlp_ratio[block] for p in parents}


def test_mutation_rate_is_the_probability():
    space, rng = PRESETS["autoformer-s"], np.random.default_rng(0)
    parent = space.largest
    changed = [
        sum(a != b for a, b in zip(parent.num_heads, m.num_heads, strict=False)) / m.depth
        for m in (mutate(space, parent, rng, 0.2) for _ in range(2000))
    ]
    # A redraw keeps the old value once in three.
    assert np.mean(changed) == pytest.approx(0.2 * 2 / 3, abs=0.01)
