from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growtas.batch import SubnetBatch
from growtas.costs import count_costs, count_costs_batch
from growtas.errors import ConfigError
from growtas.latency.estimate import Conditions
from growtas.latency.measured.fit import FittedLatency, fit_latency
from growtas.latency.measured.sampling_plan import choose_subnets
from growtas.sampling import sample_batch
from growtas.space import PRESETS
from tests.unit.latency.measured.test_sampling_plan import synthetic_ms

MICRO = PRESETS["micro"]
HERE = Conditions(device="cpu", percentile="p50", batch=1, precision="fp32", runtime="toy")


def _any(batch):
    return np.ones(len(batch), bool)


def _at_most(params):
    return lambda batch: count_costs_batch(MICRO, batch)[0] <= params


def sample_subnets(space, feasible, count=10):
    return choose_subnets(space, feasible, count, basis="coarse" if count < 15 else "stepped")


def _truth(subnet):
    return 0.1 + 0.05 * subnet.depth + count_costs(MICRO, subnet).macs / 40e6 + 0.004 * sum(subnet.num_heads)


def test_the_samples_begin_with_the_smallest_and_spread_over_the_legal_range():
    subnets = sample_subnets(MICRO, _any)
    macs = [count_costs(MICRO, s).macs for s in subnets]
    assert subnets[0] == MICRO.smallest
    assert len(set(subnets)) == 10
    assert macs == sorted(macs)
    assert macs[-1] > 5 * macs[0]
    assert subnets == sample_subnets(MICRO, _any)
    few = _at_most(80_000)
    assert few(SubnetBatch.from_subnets(sample_subnets(MICRO, few))).all()


def test_a_space_with_few_legal_subnets_has_few_samples():
    smallest = count_costs(MICRO, MICRO.smallest).params
    assert sample_subnets(MICRO, _at_most(smallest)) == [MICRO.smallest]


def test_predicts_subnets_that_were_not_measured():
    rng = np.random.default_rng(3)
    subnets = sample_subnets(MICRO, _any)
    model = fit_latency(MICRO, subnets, [_truth(s) * rng.normal(1, 0.01) for s in subnets], HERE)
    others = sample_batch(MICRO, 200, rng)
    errors = model.predict_ms(others) / np.array([_truth(s) for s in others]) - 1
    assert np.abs(errors).max() < 0.05
    assert 0 < model.relative_uncertainty < 0.1
    assert model.kind == "modelled"


def test_the_relative_uncertainty_is_that_of_leaving_each_sample_out():
    subnets = sample_subnets(MICRO, _any)
    ms = [_truth(s) for s in subnets]
    ms[4] *= 3
    model = fit_latency(MICRO, subnets, ms, HERE)
    rest = fit_latency(MICRO, subnets[:4] + subnets[5:], ms[:4] + ms[5:], HERE)
    missed = abs(rest.predict_ms(SubnetBatch.from_subnets([subnets[4]]))[0] / ms[4] - 1)
    # The two fits may differ in their last bits.
    assert model.relative_uncertainty > missed - 1e-9
    assert missed > 0.5


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_monotone_whatever_was_measured(seed):
    rng = np.random.default_rng(seed)
    subnets = sample_subnets(MICRO, _any)
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
    assert model.relative_uncertainty == 1.0
    low, high = model.interval_ms(SubnetBatch.from_subnets([MICRO.smallest]))
    assert (low[0], high[0]) == (0.0, np.inf)
    with pytest.raises(ConfigError, match="none"):
        fit_latency(MICRO, [], [], HERE)
    for wrong in ([1.0, 2.0], [0.0], [float("nan")]):
        with pytest.raises(ConfigError, match="one latency above zero for each"):
            fit_latency(MICRO, [MICRO.smallest], wrong, HERE)


def test_a_step_in_the_truth_is_found_from_enough_samples():
    def stepped(subnet):
        return _truth(subnet) * (1.3 if subnet.embed_dim >= 64 else 1.0)

    rng = np.random.default_rng(5)
    others = sample_batch(MICRO, 200, rng)
    errors = {}
    for count in (10, 40):
        subnets = sample_subnets(MICRO, _any, count)
        model = fit_latency(MICRO, subnets, [stepped(s) * rng.normal(1, 0.005) for s in subnets], HERE)
        errors[count] = np.abs(model.predict_ms(others) / np.array([stepped(s) for s in others]) - 1)
        assert model.basis == ("coarse" if count == 10 else "stepped")
    assert np.percentile(errors[40], 95) < 0.02 < np.percentile(errors[10], 95)


def test_the_simplest_terms_are_kept_where_more_gain_nothing():
    rng = np.random.default_rng(6)
    subnets = sample_subnets(MICRO, _any, 40)
    model = fit_latency(MICRO, subnets, [_truth(s) * rng.normal(1, 0.03) for s in subnets], HERE)
    assert model.basis == "coarse"


def test_intervals_cover_what_they_claim_and_no_more_than_they_need():
    covered, widths = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        drawn, others = list(sample_batch(MICRO, 40, rng)), sample_batch(MICRO, 100, rng)
        model = fit_latency(MICRO, drawn, [_truth(s) * rng.normal(1, 0.03) for s in drawn], HERE)
        low, high = model.interval_ms(others, 0.9)
        truth = np.array([_truth(s) for s in others]) * rng.normal(1, 0.03, 100)
        covered.append(np.mean((low <= truth) & (truth <= high)))
        widths.append(float(np.mean(high / low)) - 1)
    assert 0.87 < np.mean(covered) < 0.96
    # Normal noise of 3 % has 90 % within 1.64 x 3 % on either side.
    assert 0.09 < np.mean(widths) < 0.15


def test_a_level_needs_enough_residuals():
    model = FittedLatency(MICRO, HERE, np.array([1.0, 0, 0, 0, 0]), 0.1, residuals=(0.01, -0.05, 0.03, 0.02))
    assert model.relative_width(0.6) == 0.03
    assert model.relative_width(0.8) == 0.05
    assert model.relative_width(0.81) == np.inf
    low, high = model.interval_ms(SubnetBatch.from_subnets([MICRO.largest]), 0.6)
    assert (low[0], high[0]) == pytest.approx((0.97, 1.03))
    for level in (0.0, 1.0, 1.5):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            model.relative_width(level)


def _measured(latency_ms, count, others=(), noise=0.003, seed=11):
    rng, subnets = np.random.default_rng(seed), sample_subnets(MICRO, _any, count)
    ms = latency_ms(MICRO, SubnetBatch.from_subnets(subnets)) * rng.normal(1, noise, len(subnets))
    return fit_latency(MICRO, subnets, ms.tolist(), HERE, others)


def _median_error(model, latency_ms):
    draws = sample_batch(MICRO, 300, np.random.default_rng(12))
    return float(np.median(np.abs(model.predict_ms(draws) / latency_ms(MICRO, draws) - 1)))


def _other_target_ms(space, batch):
    """Another machine: three times as fast at products, with the same cost of starting each block."""
    return 0.05 + 0.02 * batch.depth + (synthetic_ms(space, batch) - 0.1 - 0.02 * batch.depth) / 3


def test_five_samples_adapt_another_targets_model_better_than_a_factor_or_a_model_of_their_own():
    other = _measured(synthetic_ms, 60)
    adapted, alone = _measured(_other_target_ms, 5, [other]), _measured(_other_target_ms, 5)
    assert adapted.adapted is other
    assert alone.adapted is None
    draws = sample_batch(MICRO, 300, np.random.default_rng(12))
    ratios = _other_target_ms(MICRO, draws) / other.predict_ms(draws)
    # No factor can be better than the best one for the very subnets that are tested.
    scaled = min(np.median(np.abs(factor / ratios - 1)) for factor in ratios)
    error = _median_error(adapted, _other_target_ms)
    assert error < scaled / 2
    assert error < _median_error(alone, _other_target_ms)


def _kinds(subnet):
    return len(set(zip(subnet.num_heads, subnet.mlp_ratio, strict=True)))


def test_subnets_of_unlike_blocks_that_take_longer_are_predicted_so():
    extra = {1: 1.0, 2: 1.08}

    def latency_ms(space, batch):
        return np.array([_truth(s) * extra.get(_kinds(s), 1.16) for s in batch])

    draws = sample_batch(MICRO, 300, np.random.default_rng(12))
    two_kinds = [s for s in sample_batch(MICRO, 6000, np.random.default_rng(14)) if _kinds(s) == 2][:20]
    subnets = [*sample_subnets(MICRO, _any, 60), *two_kinds]
    model = fit_latency(MICRO, subnets, latency_ms(MICRO, SubnetBatch.from_subnets(subnets)).tolist(), HERE)
    mixed = SubnetBatch.from_subnets([s for s in draws if _kinds(s) > 2])
    assert np.abs(model.predict_ms(mixed) / latency_ms(MICRO, mixed) - 1).max() < 0.01
    # A subnet of like blocks is predicted like the others.
    smallest = SubnetBatch.from_subnets([MICRO.smallest])
    assert 1.10 < float(model.predict_ms(smallest)[0] / latency_ms(MICRO, smallest)[0]) < 1.20


def test_a_target_that_is_only_faster_needs_three_samples():
    other = _measured(synthetic_ms, 60)
    model = _measured(lambda space, batch: synthetic_ms(space, batch) / 7, 3, [other], noise=0)
    assert _median_error(model, lambda space, batch: synthetic_ms(space, batch) / 7) <= _median_error(other, synthetic_ms) * 1.1


def test_a_model_that_does_not_transfer_is_not_adapted_and_enough_samples_need_none():
    rng = np.random.default_rng(13)
    subnets = list(sample_batch(MICRO, 60, rng))
    nonsense = fit_latency(MICRO, subnets, rng.uniform(0.1, 10, 60).tolist(), HERE)
    for count in (10, 20):
        model = _measured(lambda space, batch: np.array([_truth(s) for s in batch]), count, [nonsense])
        assert model.adapted is None
    other = _measured(synthetic_ms, 60)
    assert _measured(_other_target_ms, 40, [other]).coefficients.tolist() == _measured(_other_target_ms, 40).coefficients.tolist()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_an_adapted_model_is_monotone_whatever_was_measured(seed):
    rng = np.random.default_rng(seed)
    subnets = sample_subnets(MICRO, _any)
    model = fit_latency(MICRO, subnets, rng.uniform(0.1, 10, len(subnets)).tolist(), HERE, [_measured(synthetic_ms, 30)])
    draws = sample_batch(MICRO, 50, rng)
    grown = SubnetBatch(draws.embed_dim, np.where(draws.num_heads > 0, 4, 0), draws.mlp_ratio)
    assert (model.predict_ms(grown) >= model.predict_ms(draws)).all()
