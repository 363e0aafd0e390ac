import math

import pytest
import torch
import torch.nn.functional as F

from growtas.errors import CheckpointError
from growtas.files import read_json, write_json
from growtas.nn.supernet import Supernet
from growtas.runs import create_run
from growtas.space import load_space
from growtas.train.checkpoints import all_finite, load_checkpoint, save_checkpoint
from growtas.train.optimizer import make_optimizer, make_scheduler, parameter_names
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


def test_a_checkpoint_continues_bit_for_bit(supernet, tmp_path):
    space, recipe = supernet.space, Recipe(lr=1e-2)
    run = create_run(tmp_path / "runs", "r", {"space": space.to_dict()})
    optimizer = make_optimizer(supernet, recipe)
    step(supernet, optimizer, space.smallest)  # the second block has no optimiser state yet
    save_checkpoint(run, supernet, optimizer, 1, 1)
    other = Supernet(space)
    other_optimizer = make_optimizer(other, recipe)
    state = load_checkpoint(run.checkpoints[-1], other, other_optimizer)
    assert (state["epoch"], state["step"]) == (1, 1)
    for seed, subnet in enumerate((space.largest, space.smallest, space.largest)):
        step(supernet, optimizer, subnet, seed)
        step(other, other_optimizer, subnet, seed)
    for name, tensor in supernet.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_the_last_two_checkpoints_are_kept(supernet, tmp_path):
    run = create_run(tmp_path / "runs", "r", {"space": supernet.space.to_dict()})
    for epoch in range(1, 5):
        folder = save_checkpoint(run, supernet, make_optimizer(supernet, Recipe()), epoch, 10 * epoch)
        assert sorted(path.name for path in folder.iterdir()) == ["state.json", "supernet.safetensors", "trainer.safetensors"]
    assert [path.name for path in run.checkpoints] == ["epoch-0003", "epoch-0004"]
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["epoch-0003", "epoch-0004"]


def test_a_broken_checkpoint(supernet, tmp_path):
    run = create_run(tmp_path / "runs", "r", {"space": supernet.space.to_dict()})
    optimizer = make_optimizer(supernet, Recipe())
    step(supernet, optimizer, supernet.space.smallest)
    folder = save_checkpoint(run, supernet, optimizer, 1, 1)
    write_json(folder / "state.json", {**read_json(folder / "state.json"), "format": "growtas-checkpoint/9"})
    with pytest.raises(CheckpointError, match="not a training checkpoint of format growtas-checkpoint/1"):
        load_checkpoint(folder, supernet, optimizer)
    folder = save_checkpoint(run, supernet, optimizer, 2, 2)
    (folder / "trainer.safetensors").write_bytes((folder / "trainer.safetensors").read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="the optimiser state is truncated"):
        load_checkpoint(folder, supernet, optimizer)


def test_all_finite(supernet):
    assert all_finite(supernet)
    supernet.head.bias.data[3] = float("inf")
    assert not all_finite(supernet)
