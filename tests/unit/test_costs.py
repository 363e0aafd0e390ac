from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from growtas.batch import SubnetBatch
from growtas.costs import count_costs, count_costs_batch, macs_with_relative_position
from growtas.sampling import sample_batch
from growtas.space import PRESETS as AUTOFORMER
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from tests.reference import PLAIN, naive_relative_attention, plain_space

PRESETS = {**AUTOFORMER, **{kind: plain_space(AUTOFORMER["micro"], kind) for kind in PLAIN}}


@given(name=st.sampled_from(sorted(PRESETS)), seed=st.integers(0, 2**32 - 1))
def test_batch_equals_one_by_one(name, seed):
    space = PRESETS[name]
    batch = sample_batch(space, 5, np.random.default_rng(seed))
    params, macs = count_costs_batch(space, batch)
    single = [count_costs(space, subnet) for subnet in batch]
    assert params.tolist() == [costs.params for costs in single]
    assert macs.tolist() == [costs.macs for costs in single]


@given(name=st.sampled_from(sorted(PRESETS)), seed=st.integers(0, 2**32 - 1))
def test_every_dimension_costs_something(name, seed):
    space = PRESETS[name]
    subnet = sample_batch(space, 1, np.random.default_rng(seed)).subnet(0)
    costs = count_costs(space, subnet)
    wider = Subnet(subnet.embed_dim + 8, subnet.num_heads, subnet.mlp_ratio)
    headed = Subnet(subnet.embed_dim, (subnet.num_heads[0] + 1, *subnet.num_heads[1:]), subnet.mlp_ratio)
    fatter = Subnet(subnet.embed_dim, subnet.num_heads, (*subnet.mlp_ratio[:-1], subnet.mlp_ratio[-1] + 0.5))
    deeper = Subnet(subnet.embed_dim, (*subnet.num_heads, 2), (*subnet.mlp_ratio, 2.0))
    for larger in (wider, headed, fatter, deeper):
        grown = count_costs(space, larger)
        assert grown.params > costs.params
        assert grown.macs > costs.macs


@pytest.mark.parametrize(("name", "embed_dim", "heads"), [("deit_tiny_patch16_224", 192, 3), ("deit_small_patch16_224", 384, 6)])
def test_params_equal_timms_deit_but_for_the_tables(name, embed_dim, heads):
    space = SearchSpace(name="deit", embed_dim=(embed_dim,), num_heads=(heads,), mlp_ratio=(4.0,), depth=(12,))
    deit = sum(p.numel() for p in timm.create_model(name).parameters())
    tables = 12 * 4 * (2 * space.max_relative_position + 2) * space.head_dim
    assert count_costs(space, space.largest).params - tables == deit
    # In a plain ViT the position of the class token is part of the token.
    plain = space.replace(max_relative_position=None, global_pool="token")
    assert count_costs(plain, plain.largest).params + embed_dim == deit


def test_batches_of_different_depths_stack():
    a, b = (SubnetBatch.from_subnets([Subnet(8, (1,) * n, (2.0,) * n)]) for n in (1, 3))
    assert list(SubnetBatch.concatenate([a, b])) == [Subnet(8, (1,), (2.0,)), Subnet(8, (1,) * 3, (2.0,) * 3)]


@pytest.mark.parametrize("kind", PLAIN)
def test_without_a_relative_position_both_counts_of_macs_are_the_same(kind):
    batch = sample_batch(PRESETS[kind], 5, np.random.default_rng(0))
    assert macs_with_relative_position(PRESETS[kind], batch).tolist() == count_costs_batch(PRESETS[kind], batch)[1].tolist()


@pytest.mark.parametrize("name", ["micro", "autoformer-t"])
def test_the_relative_position_adds_what_its_formula_multiplies(name):
    space = PRESETS[name]
    subnet = Subnet(space.embed_dim[0], (2, 4, 3), (2.0, 2.0, 2.0))
    macs = 0
    for heads in subnet.num_heads:
        q, k, v = torch.randn(3, 1, heads, space.num_tokens, space.head_dim).unbind()
        tables = torch.randn(4, 2 * space.max_relative_position + 2, space.head_dim).unbind()
        with FlopCounterMode(display=False) as counter:
            naive_relative_attention(q, k, v, tables[:2], tables[2:], space.grid_size, space.grid_size, 1.0)
        with FlopCounterMode(display=False) as plain:
            (q @ k.transpose(-1, -2)) @ v
        macs += (counter.get_total_flops() - plain.get_total_flops()) // 2
    counted = macs_with_relative_position(space, SubnetBatch.from_subnets([subnet]))
    assert counted.tolist() == [count_costs(space, subnet).macs + macs]
