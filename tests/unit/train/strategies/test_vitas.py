from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from growtas.costs import count_costs
from growtas.distributed import World
from growtas.nn.supernet import Supernet, trailing_first
from growtas.space import PRESETS, SearchSpace
from growtas.subnet import Subnet
from growtas.train.clock import Clock
from growtas.train.recipe import Recipe
from growtas.train.step import Stepper, Training
from growtas.train.strategies import make_strategy
from growtas.train.strategies.base import Pass
from growtas.train.strategies.vitas import depth_shares

PLAIN = SearchSpace(
    name="plain",
    embed_dim=(8, 12, 16), num_heads=(1, 2, 3), mlp_ratio=(1.0, 1.5, 2.0), depth=(1, 2, 3),
    head_dim=8, image_size=8, patch_size=4, in_chans=1, num_classes=5, max_relative_position=None, prefix_tokens=2, qk_norm=True,
)  # fmt: skip


def _supernet(space):
    torch.manual_seed(0)
    supernet = Supernet(space)
    for parameter in supernet.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return supernet.eval()


def _trailing(supernet, images, subnet):
    return torch.func.functional_call(supernet, trailing_first(supernet), (images, subnet))


def test_each_step_runs_both_ends_of_one_subnet(space):
    strategy = make_strategy(Recipe(method="vitas"), space)
    for step in range(20):
        (chosen,) = strategy.draw(step, 0.0)
        assert space.holds(chosen.subnet)
        assert chosen.both_ends
        assert chosen.runs == 2
        assert strategy.draw(step, 0.0) == (chosen,)


@pytest.mark.parametrize("name", ["autoformer-t", "autoformer-b", "micro"])
def test_the_depths_lead_to_the_middle_of_the_macs(name):
    """The mean over all subnets, each with the probability with which it is drawn, is the middle of smallest and largest."""
    space = PRESETS[name]
    shares = depth_shares(space)
    mean = 0.0
    for depth, share in zip(space.depth, shares, strict=True):
        blocks = list(product(space.num_heads, space.mlp_ratio))
        # All blocks of a subnet have the same expectation, so subnets with equal blocks have the mean of all.
        macs = [count_costs(space, Subnet(dim, (h,) * depth, (r,) * depth)).macs for dim in space.embed_dim for h, r in blocks]
        mean += share * np.mean(macs)
    low, high = (count_costs(space, subnet).macs for subnet in (space.smallest, space.largest))
    if name == "micro":  # even the largest depth is below the middle
        assert mean < (low + high) / 2
        assert shares[-1] > 0.95
    else:
        assert mean == pytest.approx((low + high) / 2, rel=1e-3)


def test_the_depths_are_binomial():
    """Depths of autoformer-t: each of the 14 blocks is kept with one probability, given that 12 to 14 are left."""
    space = PRESETS["autoformer-t"]
    shares = depth_shares(space)
    kept = 1 / (1 + shares[1] / shares[2] / 14)
    expected = np.array([math.comb(14, d) * kept**d * (1 - kept) ** (14 - d) for d in space.depth])
    np.testing.assert_allclose(shares, expected / expected.sum(), rtol=1e-9)


@pytest.mark.parametrize("family", ["autoformer", "plain"])
def test_reversed_weights_compute_the_same_for_the_largest_subnet(space, family):
    space = space if family == "autoformer" else PLAIN
    supernet, images = _supernet(space), torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(_trailing(supernet, images, space.largest), supernet(images, space.largest), rtol=1e-4, atol=1e-5)
    small = _trailing(supernet, images, space.smallest)
    assert not torch.allclose(small, supernet(images, space.smallest), atol=1e-2)


def test_a_trailing_slice_uses_the_last_channels_and_heads():
    """What a trailing subnet does not use has no gradient; in a plain space all of it is sliced."""
    supernet, subnet = _supernet(PLAIN), Subnet(12, (2,), (1.5,))
    _trailing(supernet, torch.randn(3, 1, 8, 8), subnet).sum().backward()
    grads = {name: None if p.grad is None else p.grad.abs() > 0 for name, p in supernet.named_parameters()}
    hidden = 18
    for name, used in {
        "patch_embed.weight": (12, None),
        "blocks.0.attn.qkv.weight": (48, 12),
        "blocks.0.attn.proj.weight": (12, 16),
        "blocks.0.fc1.weight": (hidden, 12),
        "blocks.0.fc2.weight": (12, hidden),
        "head.weight": (None, 12),
    }.items():
        touched = grads[name].flatten(1)
        rows, columns = touched.any(1), touched.any(0)
        for lines, count in ((rows, used[0]), (columns, used[1])):
            expected = torch.arange(len(lines)) >= len(lines) - (len(lines) if count is None else count)
            assert torch.equal(lines, expected), name
    assert grads["blocks.1.fc1.weight"] is None or not grads["blocks.1.fc1.weight"].any()


def test_a_step_learns_from_the_sum_of_both(space):
    device = torch.device("cpu")
    supernet = _supernet(space)
    recipe = Recipe(method="vitas", optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=0.5, label_smoothing=0.0)
    subnet = Subnet(12, (2, 1), (1.5, 1.0))
    images, labels = torch.randn(4, 1, 8, 8), torch.randint(0, 5, (4,))
    loss = F.cross_entropy(supernet(images, subnet) + _trailing(supernet, images, subnet), labels)
    grads = torch.autograd.grad(loss, list(supernet.parameters()), allow_unused=True, materialize_grads=True)
    before = [parameter.detach().clone() for parameter in supernet.parameters()]
    stepper = Stepper(Training.of(supernet, recipe, device), recipe, World(), device)
    result = stepper(0, (images, labels), [Pass(subnet, both_ends=True)], Clock(device))
    assert result.losses == pytest.approx([loss.item()], rel=1e-4)
    assert result.macs == 2 * 3 * 4 * count_costs(space, subnet).macs
    for old, grad, parameter in zip(before, grads, supernet.parameters(), strict=True):
        torch.testing.assert_close((old - parameter.detach()) / 0.5, grad, rtol=1e-3, atol=2e-5)
