from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from growtas.costs import count_costs
from growtas.errors import ConfigError, TrainingError
from growtas.sampling import sample, sample_batch
from growtas.subnet import Subnet
from growtas.train.recipe import Recipe
from growtas.train.strategies import make_strategy
from growtas.train.strategies.prenas import PreNasOptions, best_isomers, prefer
from growtas.train.strategies.sensitivity import Sensitivity
from tests.reference import plain_space

from .conftest import SPACE


def _prenas(space, **options):
    return make_strategy(Recipe(method="prenas", method_options=options), space)


def _mean_gradient(tools, subnet, batches):
    tools.supernet.eval()
    tools.supernet.zero_grad()
    for index in range(batches):
        images, labels = tools.sample_batch(index)
        (F.cross_entropy(tools.supernet(images, subnet), labels) / batches).backward()
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in tools.supernet.named_parameters()}
    tools.supernet.zero_grad()
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["relative", "qk_norm", "deeper"])
def test_a_subnets_sensitivity_is_the_sum_over_the_entries_that_it_uses(make_tools, kind, seed):
    space = SPACE if kind == "relative" else plain_space(SPACE, "qk_norm")
    if kind == "deeper":
        # Subnets run up to three of five blocks, and neither the first nor the third of them.
        space = space.replace(max_depth=5, block_order=(4, 1, 3, 0, 2))
    tools = make_tools(space)
    sensitivity = Sensitivity.measure(space, tools, 2)
    gradient = _mean_gradient(tools, space.largest, 2)
    subnet = sample(space, np.random.default_rng(seed))
    # Which entries a subnet uses is what its own gradient says, without any rule of slicing.
    used = _mean_gradient(tools, subnet, 2)
    weights = dict(tools.supernet.named_parameters())
    expected = sum(float((weights[n].detach() * g).abs()[used[n] != 0].sum()) for n, g in gradient.items())
    assert sensitivity.total(space, subnet) == pytest.approx(expected, rel=1e-4)


def test_normalised_sensitivities_do_not_see_a_layers_scale(space, tools):
    weights = {name: p.detach().abs().double() for name, p in tools.supernet.named_parameters()}
    grads = {name: torch.rand_like(weight) for name, weight in weights.items()}
    plain = Sensitivity.of_slices(space, weights, grads)
    scaled = {name: grad * (7.0 if name.startswith("blocks.1.") else 1.0) for name, grad in grads.items()}
    other = Sensitivity.of_slices(space, weights, scaled)
    np.testing.assert_allclose(other.normal_attention, plain.normal_attention)
    np.testing.assert_allclose(other.normal_mlp, plain.normal_mlp)
    np.testing.assert_allclose(other.attention[:, 1], 7 * plain.attention[:, 1])
    qkv = weights["blocks.2.attn.qkv.weight"], grads["blocks.2.attn.qkv.weight"]
    fc1, fc2 = ((weights[f"blocks.2.{n}.weight"], grads[f"blocks.2.{n}.weight"]) for n in ("fc1", "fc2"))
    # Width 12, 2 heads of 8, MLP ratio 1.5.
    assert plain.normal_attention[1, 2, 1] == pytest.approx(float((qkv[0] * qkv[1])[:48, :12].sum() / qkv[0].sum() / qkv[1].sum()))
    expected = (fc1[0] * fc1[1])[:18, :12].sum() / fc1[0].sum() / fc1[1].sum()
    expected += (fc2[0] * fc2[1])[:12, :18].sum() / fc2[0].sum() / fc2[1].sum()
    assert plain.normal_mlp[1, 2, 1] == pytest.approx(float(expected))


def test_a_gradient_of_zero_has_no_say(space, tools):
    weights = {name: p.detach().abs().double() for name, p in tools.supernet.named_parameters()}
    nothing = Sensitivity.of_slices(space, weights, {name: torch.zeros_like(weight) for name, weight in weights.items()})
    assert not nothing.normal_attention.any()
    assert not nothing.normal_mlp.any()


def _random_sensitivity(rng, space):
    d, b, h, r = len(space.embed_dim), space.max_depth, len(space.num_heads), len(space.mlp_ratio)
    return Sensitivity(*(rng.random(shape) for shape in ((d,), (d, b, h), (d, b, r), (d, b, h), (d, b, r))))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), ordered=st.booleans())
def test_best_isomers_are_those_that_trying_all_finds(seed, ordered):
    space = SPACE.replace(depth=(2, 3), embed_dim=(8, 12), num_heads=(1, 2, 4), max_num_heads=4, mlp_ratio=(1.0, 2.0))
    if ordered:
        space = plain_space(space, "mean").replace(max_depth=4, block_order=(3, 1, 0, 2))
    sensitivity = _random_sensitivity(np.random.default_rng(seed), space)
    best = defaultdict(list)
    for (d, dim), depth in itertools.product(enumerate(space.embed_dim), space.depth):
        for heads in itertools.product(space.num_heads, repeat=depth):
            for ratios in itertools.product(space.mlp_ratio, repeat=depth):
                blocks = {2: (1, 3), 3: (0, 1, 3)}[depth] if ordered else range(depth)
                attention, mlp = sensitivity.normal_attention[d], sensitivity.normal_mlp[d]
                score = sum(attention[i, space.num_heads.index(v)] for i, v in zip(blocks, heads, strict=True))
                score += sum(mlp[i, space.mlp_ratio.index(v)] for i, v in zip(blocks, ratios, strict=True))
                best[dim, depth, sum(heads), sum(ratios)].append((score, Subnet(dim, heads, ratios)))
    for group in best.values():
        assert len({count_costs(space, subnet) for _, subnet in group}) == 1
    expected = {max(group, key=lambda pair: pair[0])[1] for group in best.values()}
    found = best_isomers(space, sensitivity)
    assert set(found) == expected
    assert len(found) == len(expected)


def test_each_budget_keeps_its_most_sensitive():
    sensitivity = _random_sensitivity(np.random.default_rng(0), SPACE)
    subnets = list(dict.fromkeys(sample_batch(SPACE, 200, np.random.default_rng(1))))
    low, high = (count_costs(SPACE, s).params for s in (SPACE.smallest, SPACE.largest))
    chosen = prefer(SPACE, subnets, sensitivity, PreNasOptions(budgets=4, per_budget=3))
    sizes = [count_costs(SPACE, subnet).params for subnet in chosen]
    assert sizes == sorted(sizes)
    for budget in range(4):
        above, upto = (low + (high - low) * (budget + i) / 4 for i in (0, 1))
        inside = [s for s in subnets if above < count_costs(SPACE, s).params <= upto]
        ranked = sorted(inside, key=lambda s: -sensitivity.total(SPACE, s))
        assert {s for s in chosen if above < count_costs(SPACE, s).params <= upto} == set(ranked[:3])


def test_preparing_leaves_the_supernet_as_it_was(space, tools):
    tools.supernet.train()
    for parameter in tools.supernet.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: p.detach().clone() for name, p in tools.supernet.named_parameters()}
    torch.manual_seed(5)
    expected_next = torch.rand(1)
    torch.manual_seed(5)
    with torch.no_grad():
        _prenas(space, batches=2).prepare(tools)
    assert torch.rand(1) == expected_next
    assert tools.supernet.training
    for name, parameter in tools.supernet.named_parameters():
        assert torch.equal(parameter, before[name])
        assert torch.equal(parameter.grad, torch.ones_like(parameter))
    # Two batches of 6 images, forward and backward.
    assert tools.macs == 2 * 6 * 3 * count_costs(space, space.largest).macs


def test_a_large_batch_is_taken_in_pieces(space, make_tools, monkeypatch):
    whole = Sensitivity.measure(space, make_tools(), 2)
    sizes = []
    tools = make_tools()
    tools.supernet.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    monkeypatch.setattr("growtas.train.strategies.sensitivity._IMAGES", 4)
    pieces = Sensitivity.measure(space, tools, 2)
    assert sizes == [4, 2, 4, 2]
    for one, other in zip(vars(whole).values(), vars(pieces).values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_no_batch_is_asked_for_twice(space, make_tools):
    tools = make_tools(num_parts=3)
    _prenas(space, batches=50).prepare(tools)
    assert tools.batches == [0, 1, 2]


def test_only_preferred_subnets_are_trained_and_uniformly(space, tools):
    strategy = _prenas(space, budgets=3, per_budget=2)
    strategy.prepare(tools)
    assert len(strategy.preferred) == 6
    drawn = [strategy.draw(step, 0.0) for step in range(1200)]
    assert all(len(passes) == 1 and passes[0].soft == 0 for passes in drawn)
    counts = [sum(passes[0].subnet == subnet for passes in drawn) for subnet in strategy.preferred]
    assert sum(counts) == 1200
    assert all(150 < count < 250 for count in counts)


def test_a_resumed_training_has_the_same_subnets(space, tools):
    one, two = _prenas(space), _prenas(space)
    one.prepare(tools)
    two.load_state(json.loads(json.dumps(one.state())))
    assert two.preferred == one.preferred
    assert [two.draw(step, 0.0) for step in range(20)] == [one.draw(step, 0.0) for step in range(20)]


def test_groups_are_drawn_equally_often(space):
    strategy = _prenas(space, draw="groups")
    strategy.preferred = tuple(Subnet(dim, (1,) * depth, (1.0,) * depth) for dim, depth in ((8, 1), (8, 2), (16, 2)))
    strategy.preferred += (Subnet(8, (2,), (1.0,)), Subnet(8, (3,), (1.0,)))
    counts = Counter(strategy.draw(step, 0.0)[0].subnet for step in range(3000))
    shares = [counts[subnet] / 3000 for subnet in strategy.preferred]
    np.testing.assert_allclose(shares, [1 / 9, 1 / 3, 1 / 3, 1 / 9, 1 / 9], atol=0.03)


def test_drawing_before_preparing(space):
    with pytest.raises(TrainingError, match="no preferred subnets"):
        _prenas(space).draw(0, 0.0)


@pytest.mark.parametrize("options", [{"budgets": 0}, {"per_budget": 0}, {"batches": 0}])
def test_wrong_options(space, options):
    with pytest.raises(ConfigError, match="is 0; it must be a whole number from 1"):
        _prenas(space, **options)
