import itertools

import pytest
import torch
import torch.nn.functional as F

from growtas.distributed import World
from growtas.growth import Subspace
from growtas.nn.supernet import Supernet
from growtas.sampling import sample
from growtas.space import load_space
from growtas.subnet import Subnet
from growtas.train.clock import Clock
from growtas.train.freezing import FrozenEntries, used_regions
from growtas.train.recipe import Recipe
from growtas.train.step import Stepper, Training
from growtas.train.strategies.base import Pass
from tests.reference import plain_space

CPU = torch.device("cpu")


def every_subnet(space):
    for dim, depth in itertools.product(space.embed_dim, space.depth):
        for heads in itertools.product(space.num_heads, repeat=depth):
            for ratios in itertools.product(space.mlp_ratio, repeat=depth):
                yield Subnet(dim, heads, ratios)


def touched(supernet, subnets):
    """Entries with a gradient in some subnet, found by running every one of them."""
    masks = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in supernet.named_parameters()}
    for seed, subnet in enumerate(subnets):
        supernet.zero_grad(set_to_none=True)
        images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        F.cross_entropy(supernet(images, subnet), torch.arange(8)).backward()
        for name, parameter in supernet.named_parameters():
            if parameter.grad is not None:
                masks[name] |= parameter.grad != 0
    return masks


@pytest.mark.parametrize("subspace", [Subspace(max_embed_dim=8), Subspace(max_mlp_ratio=1), Subspace(8, 1)])
@pytest.mark.parametrize("kind", ["relative", "qk_norm", "ordered"])
def test_regions_are_what_the_subnets_touch(tiny, subspace, kind):
    torch.manual_seed(0)
    space = load_space(tiny)
    if kind == "qk_norm":
        space = plain_space(space, kind)
    if kind == "ordered":
        # Of three blocks no subnet runs the second one.
        space = plain_space(space, "mean").replace(max_depth=3, block_order=(2, 0, 1))
    supernet = Supernet(space)
    for parameter in supernet.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # zero biases would hide what hangs on them
    masks = touched(supernet, [subnet for subnet in every_subnet(supernet.space) if subspace.holds(subnet)])
    regions = used_regions(supernet, subspace)
    for name, mask in masks.items():
        expected = torch.zeros_like(mask)
        if name in regions:
            expected[regions[name]] = True
        # Keys' biases and unused distances have no gradient, though subnets use them.
        assert not (mask & ~expected).any(), name
        # One head norm's bias of the keys has none either: it adds the same to all logits of a query.
        if not any(part in name for part in ("qkv.bias", "relative", "k_norm.bias")):
            assert torch.equal(mask, expected), name


OPTIMIZERS = [
    {"optimizer": "adamw", "weight_decay": 0.3},
    {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.3},
    {"optimizer": "adamw", "clip_grad": 0.01},
    {"optimizer": "adamw", "amp": "bf16"},
    {"optimizer": "adamw", "ema_decay": 0.9, "weight_decay": 0.3},
    {"optimizer": "sgd", "ema_decay": 0.5},
]


@pytest.mark.parametrize("options", [*OPTIMIZERS, {"optimizer": "adamw", "kind": "block order"}], ids=str)
def test_frozen_entries_and_logits_stay_to_the_bit(tiny, options):
    torch.manual_seed(0)
    space, subspace = load_space(tiny), Subspace(max_embed_dim=8)
    if "kind" in options:
        options = dict(options)
        space = plain_space(space, options.pop("kind"))
    supernet = Supernet(space)
    supernet.head.bias.data[0] = -0.0
    small = [subnet for subnet in every_subnet(space) if subspace.holds(subnet)]
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        logits = [supernet(images, subnet) for subnet in small]
    before = {name: parameter.detach().clone() for name, parameter in supernet.named_parameters()}

    recipe = Recipe(method="growtas-plus", init="x", lr=0.05, **options)
    frozen = FrozenEntries(supernet, used_regions(supernet, subspace))
    training = Training.of(supernet, recipe, CPU)
    average = training.average
    stepper = Stepper(training, recipe, World(), CPU, frozen=frozen)
    for step in range(6):
        batch = (torch.randn(8, 3, 8, 8), torch.randint(0, 10, (8,)))
        stepper(step, batch, [Pass(space.largest if step % 2 else Subnet(16, (1,), (2,)))], Clock(CPU))

    for module in [supernet, *([average.module] if average else [])]:
        moved = 0
        for name, parameter in module.named_parameters():
            mask = torch.zeros_like(parameter, dtype=torch.bool)
            region = used_regions(supernet, subspace).get(name)
            if region is not None:
                mask[region] = True
            kept, was = (tensor.detach()[mask].view(torch.int32) for tensor in (parameter, before[name]))
            assert torch.equal(kept, was), name
            moved += int((parameter.detach()[~mask] != before[name][~mask]).sum())
        assert moved > 100
        with torch.no_grad():
            for subnet, was in zip(small, logits, strict=True):
                assert torch.equal(module.eval()(images, subnet), was)


def test_growtas_plus_draws_outside_of_a1(tiny):
    from growtas.train.strategies import make_strategy

    space = load_space(tiny)
    strategy = make_strategy(Recipe(method="growtas-plus", init="x"), space)
    drawn = [strategy.draw(step, 0.0)[0].subnet for step in range(200)]
    assert {subnet.embed_dim for subnet in drawn} == {16}
    assert len(set(drawn)) > 15
    everything = {sample(space, strategy.rng(step)) for step in range(400)}
    assert set(drawn) <= {subnet for subnet in everything if not Subspace(8).holds(subnet)}
