import math

import pytest
import torch
import torch.nn.functional as F

from growtas.nn.supernet import Supernet
from growtas.space import load_space
from growtas.train.optimizer import load_optimizer_tensors, make_optimizer, make_scheduler, optimizer_tensors, parameter_names
from growtas.train.recipe import Recipe


@pytest.fixture
def supernet(tiny):
    torch.manual_seed(0)
    return Supernet(load_space(tiny))


def step(supernet, optimizer, subnet, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(4, 3, 8, 8, generator=generator), torch.randint(0, 10, (4,), generator=generator)
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(supernet(images, subnet), labels).backward()
    optimizer.step()


def test_only_matrices_decay(supernet):
    optimizer = make_optimizer(supernet, Recipe(weight_decay=0.05))
    names = iter(parameter_names(supernet, optimizer))
    decay = {next(names): group["weight_decay"] for group in optimizer.param_groups for _ in group["params"]}
    assert set(decay) == dict(supernet.named_parameters()).keys()
    for name, value in decay.items():
        matrix = name.endswith("weight") and "norm" not in name
        assert value == (0.05 if matrix else 0.0), name


def test_the_rate_warms_up_and_falls_as_a_cosine(supernet):
    recipe = Recipe(epochs=10, lr=1e-2, min_lr=1e-4, warmup_epochs=2, warmup_lr=1e-3)
    optimizer = make_optimizer(supernet, recipe)
    scheduler = make_scheduler(optimizer, recipe, 50)

    def rate(at):
        scheduler.step_update(at)
        return optimizer.param_groups[-1]["lr"]

    assert rate(0) == pytest.approx(1e-3)
    assert rate(50) == pytest.approx((1e-3 + 1e-2) / 2)
    for at in (100, 250, 499):
        assert rate(at) == pytest.approx(1e-4 + (1e-2 - 1e-4) * (1 + math.cos(math.pi * at / 500)) / 2)
    assert rate(30) == pytest.approx(1e-3 + 9e-3 * 30 / 100)  # a function of the step, not of the calls before


def test_a_skipped_block_is_not_moved(supernet):
    space = supernet.space
    optimizer = make_optimizer(supernet, Recipe(lr=1e-2, weight_decay=0.5))
    step(supernet, optimizer, space.largest)
    before = {name: parameter.clone() for name, parameter in supernet.named_parameters()}
    step(supernet, optimizer, space.smallest)
    for name, parameter in supernet.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("blocks.1."), name


@pytest.mark.parametrize("damage", ["an entry is missing", "another entry", "another shape"])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_damaged_state_is_refused(supernet, kind, damage):
    recipe = Recipe(optimizer=kind)
    optimizer = make_optimizer(supernet, recipe)
    step(supernet, optimizer, supernet.space.largest)
    tensors = optimizer_tensors(supernet, optimizer)
    load_optimizer_tensors(supernet, make_optimizer(supernet, recipe), dict(tensors))
    key = next(name for name in tensors if not name.endswith("/step"))
    value = tensors.pop(key)
    if damage == "another entry":
        tensors[f"{key}x"] = value
    elif damage == "another shape":
        tensors[key] = value[..., :1, None]
    elif kind == "sgd":
        tensors[f"{key.rpartition('/')[0]}/step"] = torch.tensor(1.0)
    with pytest.raises(ValueError, match="the entries of the parameter"):
        load_optimizer_tensors(supernet, make_optimizer(supernet, recipe), tensors)
