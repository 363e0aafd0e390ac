from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from growtas.checkpoint import load_supernet, save_supernet
from growtas.distributed import World
from growtas.errors import CheckpointError, ConfigError
from growtas.nn.experts import LAYERS
from growtas.nn.extract import extract
from growtas.nn.supernet import Supernet
from growtas.sampling import sample
from growtas.subnet import Subnet
from growtas.train.clock import Clock
from growtas.train.recipe import Recipe
from growtas.train.step import Stepper, Training
from growtas.train.strategies import make_strategy
from growtas.train.strategies.base import Pass

CPU = torch.device("cpu")


def _tas_lora(space, *, epochs=10, **options):
    return make_strategy(Recipe(method="tas-lora", init="RUN", epochs=epochs, method_options=options), space)


def _supernet(space, *, trained=True):
    """A supernet with experts that change something, as after a training."""
    torch.manual_seed(0)
    supernet = Supernet(space)
    for parameter in supernet.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    _tas_lora(space, rank=3).adapt(supernet)
    if trained:
        for parameter in supernet.experts.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return supernet.eval()


def test_new_experts_change_nothing(space):
    supernet = _supernet(space, trained=False)
    plain = copy.deepcopy(supernet)
    plain.experts = None
    images, rng = torch.randn(2, 1, 8, 8), np.random.default_rng(0)
    for subnet in (space.smallest, space.largest, sample(space, rng)):
        assert torch.equal(supernet(images, subnet), plain(images, subnet))


def test_a_groups_own_expert_has_nearly_all_of_its_share(space):
    """27 groups: the own logit is 3 and the others are near 0, so the own share is e^3 / (e^3 + 26)."""
    experts, subnet = _supernet(space, trained=False).experts, sample(space, np.random.default_rng(1))
    groups = list(itertools.product(space.num_heads, space.mlp_ratio, space.embed_dim))
    shares = experts.shares(subnet)
    assert shares.shape == (subnet.depth, 27)
    for row, heads, ratio in zip(shares.tolist(), subnet.num_heads, subnet.mlp_ratio, strict=True):
        own = groups.index((heads, ratio, subnet.embed_dim))
        assert row[own] == pytest.approx(math.exp(3) / (math.exp(3) + 26), rel=0.05)
        assert max(share for place, share in enumerate(row) if place != own) < 0.03


def test_the_change_of_a_weight_is_the_mixture_of_products(space):
    supernet, subnet = _supernet(space), sample(space, np.random.default_rng(2))
    shares, changes = supernet.experts.shares(subnet), supernet.experts.changes(subnet)
    torch.testing.assert_close(shares.sum(1), torch.ones(subnet.depth))
    assert set(changes) == {f"blocks.{block}.{layer}.weight" for block in range(subnet.depth) for layer in LAYERS}
    for block, layer in itertools.product(range(subnet.depth), LAYERS):
        key = f"{block}_{layer.replace('.', '_')}"
        down, up = supernet.experts.down[key].detach().numpy(), supernet.experts.up[key].detach().numpy()
        expected = sum(share * up[k] @ down[k] for k, share in enumerate(shares[block].tolist()))
        np.testing.assert_allclose(changes[f"blocks.{block}.{layer}.weight"].detach().numpy(), expected, atol=1e-5)


def test_a_subnet_between_the_choices_has_the_nearest_group(space):
    experts = _supernet(space, trained=False).experts
    between, nearest = Subnet(11, (2, 3), (1.2, 1.9)), Subnet(12, (2, 3), (1.0, 2.0))
    assert torch.equal(experts.shares(between).argmax(1), experts.shares(nearest).argmax(1))
    supernet, images = _supernet(space), torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(extract(supernet, between)(images), supernet(images, between), rtol=1e-4, atol=1e-5)


def test_the_shares_of_a_block_do_not_depend_on_later_blocks(space):
    experts = _supernet(space).experts
    long, short = space.largest, Subnet(16, (3, 3), (2.0, 2.0))
    torch.testing.assert_close(experts.shares(long)[:2], experts.shares(short))


def test_an_extracted_subnet_computes_the_same(space):
    supernet, images = _supernet(space), torch.randn(3, 1, 8, 8)
    plain = copy.deepcopy(supernet)
    plain.experts = None
    for seed in range(5):
        subnet = sample(space, np.random.default_rng(seed))
        with torch.no_grad():
            logits, merged = supernet(images, subnet), extract(supernet, subnet)(images)
            torch.testing.assert_close(merged, logits, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(extract(plain, subnet)(images), logits, atol=1e-2)


def test_a_step_trains_the_experts_and_nothing_else(space):
    """Against AdamW and plain gradient descent on a copy."""
    strategy = _tas_lora(space, start=0.2, router_lr=0.3)
    supernet, reference = (_supernet(space) for _ in range(2))
    recipe = Recipe(method="tas-lora", init="RUN", epochs=10, weight_decay=0.0, label_smoothing=0.0)
    training = Training.of(supernet, recipe, CPU)
    stepper = Stepper(training, recipe, World(), CPU)
    images, labels = torch.randn(4, 1, 8, 8), torch.randint(0, 5, (4,))
    before = {name: parameter.detach().clone() for name, parameter in supernet.named_parameters()}
    adam = torch.optim.AdamW([*reference.experts.down.parameters(), *reference.experts.up.parameters()], weight_decay=0.0)
    of_router = [*reference.experts.reader.parameters(), *reference.experts.logits.parameters(), reference.experts.own]
    router = torch.optim.SGD(of_router)
    rng = np.random.default_rng(3)
    for step, epoch in enumerate((0.0, 1.9, 2.0, 6.0)):
        subnet = sample(space, rng)
        rate = strategy.router_rate(epoch)
        assert rate == pytest.approx(0.0 if epoch < 2 else 0.3 * (1 + math.cos(math.pi * (epoch - 2) / 8)) / 2)
        training.prepare_step(0.01, 0, rate)
        stepper(step, (images, labels), [Pass(subnet)], Clock(CPU))
        F.cross_entropy(reference(images, subnet), labels).backward()
        adam.param_groups[0]["lr"], router.param_groups[0]["lr"] = 0.01, rate
        adam.step()
        router.step()
        reference.zero_grad(set_to_none=True)
        if not rate:
            assert torch.equal(supernet.experts.own, before["experts.own"])
    for name, parameter in supernet.named_parameters():
        if name.startswith("experts."):
            torch.testing.assert_close(parameter, reference.get_parameter(name), rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(parameter, before[name]), name
    assert not torch.equal(supernet.experts.own, before["experts.own"])


def test_a_file_keeps_the_experts(space, tmp_path):
    supernet, path = _supernet(space), tmp_path / "supernet.safetensors"
    save_supernet(path, supernet)
    loaded, images = load_supernet(path), torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded(images, space.largest), supernet(images, space.largest))
    plain = copy.deepcopy(supernet)
    plain.experts = None
    save_supernet(path, plain)
    assert load_supernet(path).experts is None


@pytest.mark.parametrize("experts", [3, {}, {"rank": "8"}, {"rank": 0}, {"rank": 10**9}])
def test_a_file_with_wrong_experts(space, tmp_path, experts):
    from growtas.checkpoint import save_tensors

    supernet, path = _supernet(space), tmp_path / "supernet.safetensors"
    save_tensors(path, supernet.state_dict(), {"kind": "supernet", "space": space.to_dict(), "experts": experts})
    with pytest.raises(CheckpointError, match="experts is .* it must be an object with a rank from 1 to 1024"):
        load_supernet(path)


def test_it_needs_a_trained_supernet():
    with pytest.raises(ConfigError, match=r"tas-lora continues from a trained supernet; name its run with init \(--init RUN\)"):
        Recipe(method="tas-lora")
