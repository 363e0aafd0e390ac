from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growtas.batch import SubnetBatch
from growtas.costs import count_costs
from growtas.errors import ConfigError, DeviceError
from growtas.latency.modelled.profile import load_profile, shipped_names
from growtas.latency.modelled.roofline import RooflineLatency
from growtas.sampling import sample
from growtas.space import PRESETS
from growtas.subnet import Subnet
from tests.evidence.roofline_calibration import REFERENCE_MS, calibrate, modelled_ms
from tests.reference import plain_space

TINY = PRESETS["autoformer-t"]
SPACES = {**PRESETS, "registers": plain_space(TINY, "registers"), "qk_norm": plain_space(PRESETS["micro"], "qk_norm")}


def _ms(subnet, space=TINY, device="a10", **options):
    return float(
        RooflineLatency(profile=load_profile(device), space=space, **options).predict_ms(SubnetBatch.from_subnets([subnet]))[0]
    )


@pytest.mark.parametrize("device", REFERENCE_MS)
def test_the_model_reproduces_the_public_latencies(device):
    profile = load_profile(device)
    modelled = modelled_ms(profile, profile.efficiency)
    assert modelled == pytest.approx(REFERENCE_MS[device], rel=0.05)
    assert modelled == pytest.approx(profile.calibration.modelled_ms, rel=0.005)
    assert profile.calibration.max_error == pytest.approx(np.max(np.abs(np.array(modelled) / REFERENCE_MS[device] - 1)), abs=0.002)


def test_the_shipped_efficiencies_are_what_the_fit_gives():
    shipped = {name: load_profile(name) for name in shipped_names()}
    assert calibrate(shipped) == shipped


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(SPACES)), st.sampled_from(["t4", "h100", "orin"]), st.sampled_from([1, 7, 64]),
    st.sampled_from(["fp32", "fp16", "int8"]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_monotone_in_every_dimension(space_name, device, batch, precision, seed):
    space, rng = SPACES[space_name], np.random.default_rng(seed)
    small = sample(space, rng)

    def above(values, value):
        return max(values[int(rng.integers(len(values)))], value)

    heads = [above(space.num_heads, h) for h in small.num_heads]
    ratios = [above(space.mlp_ratio, r) for r in small.mlp_ratio]
    depth = above(space.depth, small.depth)
    heads += [space.num_heads[0]] * (depth - small.depth)
    ratios += [space.mlp_ratio[0]] * (depth - small.depth)
    large = Subnet(above(space.embed_dim, small.embed_dim), tuple(heads), tuple(ratios))
    model = RooflineLatency(profile=load_profile(device), space=space, batch=batch, precision=precision)
    low, high = model.predict_ms(SubnetBatch.from_subnets([small, large]))
    assert 0 < low <= high


def test_a_batch_gives_what_each_subnet_gives_alone():
    rng = np.random.default_rng(0)
    subnets = [sample(TINY, rng) for _ in range(20)]
    model = RooflineLatency(profile=load_profile("l4"), space=TINY, batch=4)
    together = model.predict_ms(SubnetBatch.from_subnets(subnets))
    assert together == pytest.approx([_ms(s, device="l4", batch=4) for s in subnets])
    assert len(set(together)) == len(set(subnets))


def test_more_images_less_precision_and_relative_positions_cost_what_they_should():
    subnet = TINY.largest
    assert _ms(subnet, batch=1) < _ms(subnet, batch=8) < 8 * _ms(subnet, batch=1)
    assert (
        _ms(subnet, batch=32, precision="int8") < _ms(subnet, batch=32, precision="fp16") < _ms(subnet, batch=32, precision="fp32")
    )
    plain = TINY.replace(max_relative_position=None)
    assert _ms(subnet, space=plain) < _ms(subnet)
    assert _ms(subnet, space=plain) < _ms(subnet, space=plain.replace(prefix_tokens=9))
    assert _ms(subnet, space=plain) < _ms(subnet, space=plain.replace(qk_norm=True))


@pytest.mark.parametrize("device", shipped_names())
def test_never_faster_than_the_datasheet_allows(device):
    profile, subnet, batch = load_profile(device), TINY.largest, 64
    costs = count_costs(TINY, subnet)
    floor_ms = 1e3 * max(2 * costs.macs * batch / profile.peak_ops("fp16"), 2 * costs.params / (profile.peaks.memory_gb_s * 1e9))
    assert _ms(subnet, device=device, batch=batch) > floor_ms


def test_weights_are_read_at_batch_one():
    # With memory a thousand times slower, nothing but traffic is left, and fp16 weights are two bytes each.
    profile = load_profile("a100")
    slow = dataclasses.replace(profile, peaks=dataclasses.replace(profile.peaks, memory_gb_s=1.0))
    subnet = PRESETS["autoformer-b"].largest
    ms = RooflineLatency(profile=slow, space=PRESETS["autoformer-b"]).predict_ms(SubnetBatch.from_subnets([subnet]))[0]
    assert ms > 1e3 * 2 * 0.98 * count_costs(PRESETS["autoformer-b"], subnet).params / (1e9 * profile.efficiency.memory)


def test_conditions_carry_the_kind():
    model = RooflineLatency(profile=load_profile("a10"), space=TINY, batch=2)
    assert (model.kind, model.relative_uncertainty) == ("modelled", 0.5)
    assert str(model.conditions) == "p50, batch 2, fp16, tensorrt on a10"


def test_what_is_refused():
    with pytest.raises(ConfigError, match="batch is 0"):
        RooflineLatency(profile=load_profile("a10"), space=TINY, batch=0)
    with pytest.raises(DeviceError, match="tf32"):
        RooflineLatency(profile=load_profile("t4"), space=TINY, precision="tf32")
