from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growtas.batch import SubnetBatch
from growtas.costs import count_costs
from growtas.errors import ConfigError, LimitError
from growtas.latency.estimate import Conditions
from growtas.latency.profile import load_profile
from growtas.latency.roofline import RooflineLatency
from growtas.sampling import sample_batch
from growtas.search.limits import Limits, ceil_count, ceil_ms
from growtas.space import PRESETS, SearchSpace
from growtas.subnet import Subnet
from growtas.units import parse_count, parse_latency_ms

MICRO = PRESETS["micro"]
SMALL = SearchSpace(name="small", embed_dim=(8, 16), num_heads=(1, 2), mlp_ratio=(2.0, 3.0), depth=(1, 2))


TOY = Conditions(device="toy", percentile="p50", batch=1, precision="fp32", runtime="none")


@dataclass
class PerBlock:
    """One millisecond a block."""

    kind: str = "modelled"
    conditions: Conditions = TOY
    relative_uncertainty: float | None = 0.5

    def predict_ms(self, batch):
        return batch.depth.astype(float)


def every_subnet(space):
    for dim, depth in itertools.product(space.embed_dim, space.depth):
        for heads in itertools.product(space.num_heads, repeat=depth):
            for ratios in itertools.product(space.mlp_ratio, repeat=depth):
                yield Subnet(dim, heads, ratios)


def test_the_predicate_is_what_the_single_costs_say():
    batch = sample_batch(MICRO, 300, np.random.default_rng(0))
    limits = Limits(max_params=150_000, max_macs=8_000_000, max_latency_ms=5)
    expected = [count_costs(MICRO, s).params <= 150_000 and count_costs(MICRO, s).macs <= 8_000_000 and s.depth <= 5 for s in batch]
    assert 20 < sum(expected) < 280
    assert limits.feasible(MICRO, PerBlock())(batch).tolist() == expected
    assert Limits().feasible(MICRO)(batch).all()


def test_limits_are_inclusive():
    costs = count_costs(MICRO, MICRO.smallest)
    exact = Limits(max_params=costs.params, max_macs=costs.macs, max_latency_ms=4.0)
    exact.check(MICRO, PerBlock())
    assert exact.feasible(MICRO, PerBlock())(SubnetBatch.from_subnets([MICRO.smallest])).all()


def test_an_infeasible_limit_names_the_nearest_feasible_value():
    with pytest.raises(LimitError) as caught:
        Limits(max_params=10_000).check(MICRO)
    smallest = count_costs(MICRO, MICRO.smallest).params
    assert str(caught.value) == f"no subnet of micro has at most 10K params; the smallest has {ceil_count(smallest)}"
    named = parse_count(str(caught.value).rsplit(" ", 1)[1])
    Limits(max_params=named).check(MICRO)
    assert named < smallest * 1.01
    with pytest.raises(LimitError, match=r"at most 10K params; .* and none has at most 1M MACs; the smallest has"):
        Limits(max_params=10_000, max_macs=1_000_000).check(MICRO)


def test_an_infeasible_latency_says_its_kind_and_conditions():
    latency = RooflineLatency(profile=load_profile("a10"), space=MICRO)
    with pytest.raises(LimitError) as caught:
        Limits(max_latency_ms=0.001).check(MICRO, latency)
    message = str(caught.value)
    assert "at most 0.001 ms modelled latency (p50, batch 1, fp16, tensorrt on a10)" in message
    Limits(max_latency_ms=parse_latency_ms(message.rsplit("has ", 1)[1].replace(" ", ""))).check(MICRO, latency)
    with pytest.raises(LimitError, match=r"measured latency .*; the smallest has 7\.26 ms"):
        Limits(max_latency_ms=5).check_latency(MICRO, 7.2512, "measured", PerBlock().conditions)


@settings(max_examples=40, deadline=None)
@given(st.integers(1_000, 12_000), st.integers(50_000, 900_000), st.integers(1, 3))
def test_check_agrees_with_looking_at_every_subnet(max_params, max_macs, max_depth):
    limits = Limits(max_params=max_params, max_macs=max_macs, max_latency_ms=float(max_depth))
    everything = SubnetBatch.from_subnets(list(every_subnet(SMALL)))
    possible = bool(limits.feasible(SMALL, PerBlock())(everything).any())
    if possible:
        limits.check(SMALL, PerBlock())
    else:
        with pytest.raises(LimitError):
            limits.check(SMALL, PerBlock())


def test_a_latency_limit_needs_an_estimator():
    with pytest.raises(ConfigError, match="device"):
        Limits(max_latency_ms=5).feasible(MICRO)


@given(st.integers(1, 10**12))
def test_a_rounded_up_count_is_a_legal_limit(value):
    text = ceil_count(value)
    if text[-1].isalpha():
        assert value <= parse_count(text) <= value * 1.011


@given(st.floats(1e-3, 1e5))
def test_a_rounded_up_latency_is_a_legal_limit(value):
    assert value <= parse_latency_ms(ceil_ms(value).replace(" ", "")) * (1 + 1e-6)
