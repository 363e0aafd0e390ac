from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growtas.batch import SubnetBatch
from growtas.costs import count_costs
from growtas.errors import ConfigError
from growtas.sampling import sample
from growtas.search.memory import _peak, activation_bytes, weight_bytes
from growtas.space import PRESETS, SearchSpace
from growtas.subnet import Subnet
from tests.reference import plain_space

MICRO = PRESETS["micro"]


def memory(subnet, images=1, precision="fp32", space=MICRO):
    return float(activation_bytes(space, SubnetBatch.from_subnets([subnet]), images, precision)[0])


@pytest.mark.parametrize(
    ("space", "subnet", "images", "reported"),
    [
        # What TensorRT-RTX 1.7 gave as a plan's activation memory (fp32, sm86).
        ("micro", Subnet(32, (2,) * 4, (2.0,) * 4), 1, 8_269_824),
        ("micro", Subnet(32, (2,) * 4, (2.0,) * 4), 8, 9_040_384),
        ("micro", Subnet(64, (4,) * 6, (4.0,) * 6), 1, 8_358_912),
        ("micro", Subnet(64, (4,) * 6, (4.0,) * 6), 8, 9_977_856),
        ("micro", Subnet(48, (4, 2, 3, 2, 4), (2.0, 4.0, 3.0, 2.0, 3.0)), 8, 10_013_184),
        ("autoformer-t", Subnet(192, (3,) * 12, (3.5,) * 12), 1, 10_082_816),
        ("autoformer-t", Subnet(192, (3,) * 12, (3.5,) * 12), 8, 25_415_680),
        ("class token", Subnet(64, (4,) * 3, (4.0,) * 3), 1, 8_347_648),
        ("class token", Subnet(64, (4,) * 3, (4.0,) * 3), 8, 9_433_600),
        ("mean", Subnet(64, (4,) * 3, (4.0,) * 3), 8, 9_197_568),
        ("registers", Subnet(64, (4,) * 3, (4.0,) * 3), 8, 9_279_488),
        ("qk_norm", Subnet(64, (4,) * 3, (4.0,) * 3), 8, 9_560_576),
        ("registers", Subnet(32, (2,) * 2, (2.0,) * 2), 8, 8_701_952),
    ],
)
def test_close_to_what_plans_report(space, subnet, images, reported):
    network = PRESETS[space] if space in PRESETS else plain_space(MICRO, space)
    assert memory(subnet, images, space=network) == pytest.approx(reported, rel=0.1)


def test_the_peak_of_a_program_is_the_largest_sum_of_what_is_alive():
    # x (1) -> a (10), x and a -> b (2), b -> c (5): a and b are alive together with x, then b and c.
    steps = (("a", ("x",)), ("b", ("x", "a")), ("c", ("b",)))
    assert _peak(steps, {"x": 1, "a": 10, "b": 2, "c": 5}, "c") == 13
    assert _peak(steps, {"x": 1, "a": 1, "b": 20, "c": 5}, "c") == 25


@settings(deadline=None)
@given(
    st.sampled_from([MICRO, plain_space(MICRO, "qk_norm")]),
    st.integers(0, 10_000),
    st.sampled_from(["fp32", "fp16", "int8"]),
    st.integers(1, 16),
)
def test_a_larger_subnet_or_batch_never_takes_less(space, seed, precision, images):
    subnet = sample(MICRO, np.random.default_rng(seed))
    deeper = Subnet(subnet.embed_dim, (*subnet.num_heads, 2)[:6], (*subnet.mlp_ratio, 2.0)[:6])
    larger = [
        Subnet(MICRO.max_embed_dim, subnet.num_heads, subnet.mlp_ratio),
        Subnet(subnet.embed_dim, (4, *subnet.num_heads[1:]), subnet.mlp_ratio),
        Subnet(subnet.embed_dim, subnet.num_heads, (4.0, *subnet.mlp_ratio[1:])),
        deeper,
    ]
    for other in larger:
        assert memory(other, images, precision, space) >= memory(subnet, images, precision, space)
    assert memory(subnet, images + 1, precision, space) > memory(subnet, images, precision, space)
    assert memory(subnet, images, "fp16", space) < memory(subnet, images, "fp32", space)


def test_weights_take_params_times_bytes():
    batch = SubnetBatch.from_subnets([MICRO.smallest, MICRO.largest])
    for precision, size in (("fp32", 4), ("tf32", 4), ("fp16", 2), ("int8", 1)):
        expected = [size * count_costs(MICRO, subnet).params for subnet in batch]
        assert weight_bytes(MICRO, batch, precision).tolist() == expected


def test_what_is_wrong_is_said():
    batch = SubnetBatch.from_subnets([MICRO.smallest])
    with pytest.raises(ConfigError, match="legal are fp32"):
        weight_bytes(MICRO, batch, "fp4")
    with pytest.raises(ConfigError, match="must be 1 or more"):
        activation_bytes(MICRO, batch, 0)


def test_attention_weights_are_the_peak_where_tokens_are_many():
    space = SearchSpace(
        name="s", embed_dim=(8,), num_heads=(2,), mlp_ratio=(2.0,), depth=(1,), head_dim=4, image_size=56, patch_size=4, in_chans=1
    )
    tokens, heads, width = 14 * 14 + 1, 2, 2 * 4
    # The residual, the values, the logits and the weights that come of them.
    peak = tokens * (8 + width) + 2 * heads * tokens * tokens
    fixed = memory(space.smallest, 1, space=space) - 2 * 4 * peak
    assert fixed == 8_150_000
    assert memory(space.smallest, 3, space=space) == fixed + 3 * 2 * 4 * peak
    assert memory(space.smallest, 3, "fp16", space=space) == fixed + 3 * 2 * 2 * peak
    # Without a relative position the values are computed after the weights, from normalised tokens as wide as the residual.
    plain, more = plain_space(space, "registers"), tokens + 3
    peak = more * (8 + 8) + 2 * heads * more * more
    assert memory(plain.smallest, 1, space=plain) == fixed + 2 * 4 * peak
