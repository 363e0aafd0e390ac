from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from growtas.batch import SubnetBatch
from growtas.costs import count_costs, count_costs_batch
from growtas.errors import ConfigError
from growtas.latency.estimate import Conditions
from growtas.latency.measured.fit import fit_latency
from growtas.latency.measured.sampling_plan import _SEED, POOL, _candidates, _d_optimal, choose_subnets
from growtas.latency.measured.terms import terms
from growtas.sampling import sample_batch
from growtas.space import PRESETS
from growtas.subnet import Subnet

MICRO, TINY = PRESETS["micro"], PRESETS["autoformer-t"]
HERE = Conditions(device="cpu", percentile="p50", batch=1, precision="fp32", runtime="toy")


def anything(batch):
    return np.ones(len(batch), bool)


def synthetic_ms(space, batch):
    """A latency that no mixture of terms gives: padded tiles, products that are slow when short, heads on two threads."""
    tokens, width, heads = space.num_tokens, batch.embed_dim[:, None].astype(float), batch.num_heads

    def product_ms(n, k):
        return 6 * np.ceil(tokens / 6) * 16 * np.ceil(n / 16) * (k + 40) / 50e6 + n * k * 4 / 8e6

    inner, hidden = heads * space.head_dim, np.floor(width * batch.mlp_ratio)
    block = 0.02 + product_ms(3 * inner, width) + product_ms(width, inner) + product_ms(hidden, width) + product_ms(width, hidden)
    block = block + 2 * np.ceil(heads / 2) * tokens**2 * (space.head_dim / 20e6 + 2e-6) + tokens * (width / 2e6 + hidden / 0.8e6)
    return 0.1 + 0.001 * batch.embed_dim + np.where(heads > 0, block, 0.0).sum(axis=1)


def corners(space):
    """Subnets whose blocks are all alike: what uniform draws never come near."""
    return SubnetBatch.from_subnets(
        [Subnet(c, (h,) * d, (r,) * d) for c, h, r, d in product(space.embed_dim, space.num_heads, space.mlp_ratio, space.depth)]
    )


@pytest.mark.parametrize("space", [MICRO, TINY], ids=["micro", "autoformer-t"])
def test_chosen_subnets_predict_as_well_as_random_ones_and_far_better_at_the_corners(space):
    inside, edges = sample_batch(space, 200, np.random.default_rng(100)), corners(space)
    errors = {"chosen": [], "random": []}
    for seed in range(6):
        rng = np.random.default_rng(seed)
        for how, subnets in (("chosen", choose_subnets(space, anything, 30)), ("random", list(sample_batch(space, 30, rng)))):
            ms = synthetic_ms(space, SubnetBatch.from_subnets(subnets)) * rng.normal(1, 0.01, len(subnets))
            model = fit_latency(space, subnets, ms.tolist(), HERE)
            missed = [np.abs(model.predict_ms(batch) / synthetic_ms(space, batch) - 1) for batch in (inside, edges)]
            errors[how].append((np.median(missed[0]), np.percentile(missed[1], 95)))
    chosen, random = (np.mean(errors[how], axis=0) for how in ("chosen", "random"))
    assert chosen[0] < 0.01
    assert chosen[0] < 1.5 * random[0]
    assert chosen[1] < 0.6 * random[1]


def test_the_smallest_and_the_largest_legal_subnets_are_measured():
    chosen = choose_subnets(TINY, anything, 12)
    assert (chosen[0], chosen[-1]) == (TINY.smallest, TINY.largest)
    assert len(set(chosen)) == 12
    assert choose_subnets(TINY, anything, 2) == [TINY.smallest, TINY.largest]
    assert chosen == choose_subnets(TINY, anything, 12)
    macs = [count_costs(TINY, subnet).macs for subnet in chosen]
    assert macs == sorted(macs)


def test_limits_hold_and_what_is_near_them_is_measured():
    def few(batch):
        return count_costs_batch(TINY, batch)[1] <= 1_200_000_000

    pool = _candidates(TINY, few, POOL, np.random.default_rng(_SEED))
    assert choose_subnets(TINY, few, 2)[-1] == max(pool, key=lambda subnet: count_costs(TINY, subnet).macs)
    chosen = choose_subnets(TINY, few, 20)
    assert few(SubnetBatch.from_subnets(chosen)).all()
    assert count_costs(TINY, chosen[-1]).macs > 1_195_000_000


def test_fewer_come_back_where_there_are_fewer_and_one_is_refused():
    def only(batch):
        return count_costs_batch(MICRO, batch)[0] <= count_costs(MICRO, MICRO.smallest).params

    assert choose_subnets(MICRO, only, 9) == [MICRO.smallest]
    with pytest.raises(ConfigError, match="at least 2"):
        choose_subnets(MICRO, anything, 1)


def test_each_step_takes_the_row_that_raises_the_determinant_most():
    table = np.random.default_rng(4).normal(size=(40, 3))
    picks = _d_optimal(table, [5], 6)
    assert (picks[0], len(set(picks))) == (5, 6)
    for step in range(1, 6):
        information = table[picks[:step]].T @ table[picks[:step]] + 1e-6 * np.eye(3)
        grown = [
            np.linalg.slogdet(information + np.outer(row, row))[1] if i not in picks[:step] else -np.inf
            for i, row in enumerate(table)
        ]
        assert picks[step] == int(np.argmax(grown))


def test_chosen_subnets_tell_all_terms_apart():
    # With two choices a step is a sum of other terms: what 3,000 subnets span is all that there is to span.
    every = terms(TINY, "stepped", SubnetBatch.concatenate([corners(TINY), sample_batch(TINY, 3000, np.random.default_rng(0))]))
    chosen = terms(TINY, "stepped", SubnetBatch.from_subnets(choose_subnets(TINY, anything, 20)))
    scale = every.max(axis=0)
    rank = np.linalg.matrix_rank(every / scale, tol=1e-8)
    assert np.linalg.matrix_rank(chosen / scale, tol=1e-8) == rank
    assert rank < 20


@pytest.mark.parametrize("space", [MICRO, TINY], ids=["micro", "autoformer-t"])
@pytest.mark.parametrize("count", [12, 60])
def test_a_third_of_the_subnets_is_as_unlike_in_its_blocks_as_those_of_a_search(space, count):
    kinds = [len(set(zip(s.num_heads, s.mlp_ratio, strict=True))) for s in choose_subnets(space, anything, count)]
    assert len(kinds) == count
    assert sum(kind > 2 for kind in kinds) >= 0.9 * count / 3
    assert sum(kind <= 2 for kind in kinds) >= count / 3
