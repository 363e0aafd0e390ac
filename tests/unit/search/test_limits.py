from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growtas.batch import SubnetBatch
from growtas.costs import count_costs, macs_with_relative_position
from growtas.errors import LimitError
from growtas.latency.estimate import Conditions
from growtas.latency.modelled.profile import load_profile
from growtas.latency.modelled.roofline import RooflineLatency
from growtas.sampling import sample_batch
from growtas.search.limits import Limits, check_latency
from growtas.search.memory import activation_bytes, weight_bytes
from growtas.search.search import Search
from growtas.search.targets import Target
from growtas.space import PRESETS, SearchSpace
from growtas.subnet import Subnet
from growtas.units import parse_bytes, parse_count, parse_latency_ms

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


def per_block(max_ms):
    return Target(device="toy", max_ms=float(max_ms), estimator=PerBlock())


def every_subnet(space):
    for dim, depth in itertools.product(space.embed_dim, space.depth):
        for heads in itertools.product(space.num_heads, repeat=depth):
            for ratios in itertools.product(space.mlp_ratio, repeat=depth):
                yield Subnet(dim, heads, ratios)


def test_the_predicate_is_what_the_single_costs_say():
    batch = sample_batch(MICRO, 300, np.random.default_rng(0))
    limits = Limits(max_params=150_000, max_macs=8_000_000)
    expected = [count_costs(MICRO, s).params <= 150_000 and count_costs(MICRO, s).macs <= 8_000_000 for s in batch]
    assert 20 < sum(expected) < 280
    assert limits.feasible(MICRO)(batch).tolist() == expected
    assert per_block(5).feasible(MICRO)(batch).tolist() == [s.depth <= 5 for s in batch]
    assert Limits().feasible(MICRO)(batch).all()


def test_limits_are_inclusive():
    costs = count_costs(MICRO, MICRO.smallest)
    smallest = SubnetBatch.from_subnets([MICRO.smallest])
    size, memory = int(weight_bytes(MICRO, smallest)[0]), int(activation_bytes(MICRO, smallest)[0])
    with_position = int(macs_with_relative_position(MICRO, smallest)[0])
    exact = Limits(
        max_params=costs.params, max_macs=costs.macs, max_macs_with_relative_position=with_position, max_size_bytes=size,
        max_activation_bytes=memory,
    )  # fmt: skip
    exact.check(MICRO)
    per_block(4).check(MICRO)
    assert exact.feasible(MICRO)(smallest).all()
    assert per_block(4).feasible(MICRO)(smallest).all()
    for field in ("max_params", "max_macs", "max_macs_with_relative_position", "max_size_bytes", "max_activation_bytes"):
        below = replace(exact, **{field: getattr(exact, field) - 1})
        assert not below.feasible(MICRO)(smallest).any()
        with pytest.raises(LimitError, match="the smallest has"):
            below.check(MICRO)


def test_an_infeasible_limit_names_the_nearest_feasible_value():
    with pytest.raises(LimitError) as caught:
        Limits(max_params=10_000).check(MICRO)
    assert str(caught.value) == "no subnet of micro has at most 10K params; the smallest has 41.4K"
    named = parse_count(str(caught.value).rsplit(" ", 1)[1])
    Limits(max_params=named).check(MICRO)
    assert named < count_costs(MICRO, MICRO.smallest).params * 1.01
    with pytest.raises(LimitError, match=r"at most 10K params; .* and none has at most 1M MACs; the smallest has"):
        Limits(max_params=10_000, max_macs=1_000_000).check(MICRO)


def test_an_infeasible_latency_says_its_kind_and_conditions():
    latency = RooflineLatency(profile=load_profile("a10"), space=MICRO)
    with pytest.raises(LimitError) as caught:
        Target(device="a10", max_ms=0.001, estimator=latency).check(MICRO)
    message = str(caught.value)
    assert "at most 0.001 ms modelled latency (p50, batch 1, fp16, tensorrt on a10)" in message
    named = parse_latency_ms(message.rsplit("has ", 1)[1].replace(" ", ""))
    Target(device="a10", max_ms=named, estimator=latency).check(MICRO)
    with pytest.raises(LimitError, match=r"measured latency .*; the smallest has 7\.26 ms"):
        check_latency(MICRO, 5, 7.2512, "measured", PerBlock().conditions)


@pytest.mark.parametrize("text", ["2.0004ms", "2000us", "2000\u00b5s", "2000\u03bcs", "0.002s"])
def test_a_latency_limit_is_named_as_it_was_typed(text):
    with pytest.raises(LimitError, match=f"at most {text} measured latency"):
        check_latency(MICRO, parse_latency_ms(text), 7.2512, "measured", PerBlock().conditions)


@pytest.mark.parametrize("text", ["5432", "5.432K", "0.005432m"])
def test_a_limit_on_params_is_named_as_it_was_typed(text):
    with pytest.raises(LimitError, match=f"at most {text} params; the smallest has "):
        Limits(max_params=parse_count(text)).check(MICRO)


def test_a_limit_that_is_a_number_is_named_with_all_its_digits():
    with pytest.raises(LimitError, match=r"at most 5\.432K params"):
        Limits(max_params=5432).check(MICRO)
    with pytest.raises(LimitError, match=r"at most 5\.0004 ms measured"):
        check_latency(MICRO, 5.0004, 7.2512, "measured", PerBlock().conditions)


@settings(max_examples=40, deadline=None)
@given(st.integers(1_000, 12_000), st.integers(50_000, 900_000), st.integers(1, 3))
def test_check_agrees_with_looking_at_every_subnet(max_params, max_macs, max_depth):
    search = Search(space=SMALL, limits=Limits(max_params=max_params, max_macs=max_macs), targets=(per_block(max_depth),))
    everything = SubnetBatch.from_subnets(list(every_subnet(SMALL)))
    possible = bool(search.feasible()(everything).any())
    if possible:
        search.limits.check(SMALL)
    else:
        with pytest.raises(LimitError):
            search.limits.check(SMALL)


def test_limits_on_memory_and_size_say_the_nearest_value_that_is_legal():
    for field, what in (("max_size_bytes", "of weights in fp16"), ("max_activation_bytes", "modelled, batch 8, fp16")):
        with pytest.raises(LimitError, match=what) as caught:
            Limits(**{field: 10}, batch=8, precision="fp16").check(MICRO)
        named = parse_bytes(str(caught.value).rsplit("has ", 1)[1])
        Limits(**{field: named}, batch=8, precision="fp16").check(MICRO)
        with pytest.raises(LimitError):
            Limits(**{field: int(named * 0.98)}, batch=8, precision="fp16").check(MICRO)


@given(st.floats(1e-3, 1e5))
def test_a_rounded_up_latency_is_a_legal_limit(value):
    with pytest.raises(LimitError) as caught:
        check_latency(MICRO, value / 2, value, "modelled", Conditions(device="a10", batch=1, precision="fp16", runtime="tensorrt"))
    named = parse_latency_ms(str(caught.value).rsplit("has ", 1)[1].replace(" ", ""))
    assert value <= named * (1 + 1e-6)
