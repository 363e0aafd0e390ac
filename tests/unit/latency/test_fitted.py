from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growtas.batch import SubnetBatch
from growtas.costs import count_costs, count_costs_batch
from growtas.errors import ConfigError
from growtas.latency.estimate import Conditions
from growtas.latency.fitted import SAMPLES, fit_latency, sample_subnets
from growtas.sampling import sample_batch
from growtas.search.limits import Limits
from growtas.space import PRESETS

MICRO = PRESETS["micro"]
HERE = Conditions(device="cpu", percentile="p50", batch=1, precision="fp32", runtime="toy")
ANY = Limits().feasible(MICRO)


def _truth(subnet):
    return 0.1 + 0.05 * subnet.depth + count_costs(MICRO, subnet).macs / 40e6 + 0.004 * sum(subnet.num_heads)


def test_the_samples_begin_with_the_smallest_and_spread_over_the_legal_range():
    subnets = sample_subnets(MICRO, ANY)
    macs = [count_costs(MICRO, s).macs for s in subnets]
    assert subnets[0] == MICRO.smallest
    assert len(set(subnets)) == SAMPLES
    assert macs == sorted(macs)
    assert macs[-1] > 5 * macs[0]
    assert subnets == sample_subnets(MICRO, ANY)
    limits = Limits(max_params=80_000)
    assert limits.feasible(MICRO)(SubnetBatch.from_subnets(sample_subnets(MICRO, limits.feasible(MICRO)))).all()


def test_a_space_with_few_legal_subnets_has_few_samples():
    smallest = count_costs(MICRO, MICRO.smallest).params
    assert sample_subnets(MICRO, Limits(max_params=smallest).feasible(MICRO)) == [MICRO.smallest]


def test_predicts_subnets_that_were_not_measured():
    rng = np.random.default_rng(3)
    subnets = sample_subnets(MICRO, ANY)
    model = fit_latency(MICRO, subnets, [_truth(s) * rng.normal(1, 0.01) for s in subnets], HERE)
    others = sample_batch(MICRO, 200, rng)
    errors = model.predict_ms(others) / np.array([_truth(s) for s in others]) - 1
    assert np.abs(errors).max() < 0.05
    assert 0 < model.held_out_error < 0.1
    assert (model.kind, model.relative_uncertainty) == ("modelled", model.held_out_error)


def test_the_held_out_error_is_that_of_leaving_each_sample_out():
    subnets = sample_subnets(MICRO, ANY)
    ms = [_truth(s) for s in subnets]
    ms[4] *= 3
    model = fit_latency(MICRO, subnets, ms, HERE)
    rest = fit_latency(MICRO, subnets[:4] + subnets[5:], ms[:4] + ms[5:], HERE)
    missed = abs(rest.predict_ms(SubnetBatch.from_subnets([subnets[4]]))[0] / ms[4] - 1)
    assert model.held_out_error >= missed > 0.5


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_monotone_whatever_was_measured(seed):
    rng = np.random.default_rng(seed)
    subnets = sample_subnets(MICRO, ANY)
    model = fit_latency(MICRO, subnets, rng.uniform(0.1, 10, len(subnets)).tolist(), HERE)
    assert (model.coefficients >= 0).all()
    draws = sample_batch(MICRO, 50, rng)
    bounds = model.predict_ms(SubnetBatch.from_subnets([MICRO.smallest, MICRO.largest]))
    assert ((bounds[0] <= model.predict_ms(draws)) & (model.predict_ms(draws) <= bounds[1] * (1 + 1e-12))).all()
    grown = SubnetBatch(draws.embed_dim, np.where(draws.num_heads > 0, 4, 0), draws.mlp_ratio)
    assert (model.predict_ms(grown) >= model.predict_ms(draws)).all()
    assert (count_costs_batch(MICRO, grown)[0] >= count_costs_batch(MICRO, draws)[0]).all()


def test_one_sample_gives_a_model_that_claims_nothing():
    model = fit_latency(MICRO, [MICRO.smallest], [2.0], HERE)
    assert model.predict_ms(SubnetBatch.from_subnets([MICRO.smallest]))[0] == pytest.approx(2.0)
    assert model.held_out_error == 1.0
    with pytest.raises(ConfigError, match="none"):
        fit_latency(MICRO, [], [], HERE)
