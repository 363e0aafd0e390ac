import copy

import pytest
import torch
import torch.nn.functional as F

from growtas.costs import count_costs
from growtas.distributed import World
from growtas.errors import TrainingError
from growtas.nn.extract import extract
from growtas.nn.supernet import Supernet
from growtas.space import load_space
from growtas.train.clock import Clock
from growtas.train.recipe import Recipe
from growtas.train.step import Stepper, Training, soft_cross_entropy
from growtas.train.strategies.base import Pass
from growtas.train.teacher import Teacher

CPU = torch.device("cpu")


@pytest.fixture
def supernet(tiny):
    torch.manual_seed(0)
    supernet = Supernet(load_space(tiny))
    for parameter in supernet.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return supernet


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(8, 3, 8, 8, generator=generator), torch.randint(0, 10, (8,), generator=generator)


def stepper(supernet, external=None, **options):
    recipe = Recipe(**{"label_smoothing": 0.0, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr": 0.5, **options})
    return Stepper(Training.of(supernet, recipe, CPU), recipe, World(), CPU, teacher=external)


def moved(supernet, before):
    """What plain gradient descent with rate 0.5 took as the gradient."""
    old = before.state_dict()
    return {name: (old[name] - value) / 0.5 for name, value in supernet.state_dict().items()}


def gradient(supernet, loss_of):
    reference = copy.deepcopy(supernet)
    loss = loss_of(reference)
    loss.backward()
    return loss.item(), {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in reference.named_parameters()}


def assert_gradient(supernet, before, expected):
    for name, value in moved(supernet, before).items():
        torch.testing.assert_close(value, expected[name], atol=2e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_a_step_is_the_gradient_of_the_mean_loss(supernet, batch, accumulate):
    images, labels = batch
    before, subnet = copy.deepcopy(supernet), supernet.space.largest
    loss, expected = gradient(supernet, lambda net: F.cross_entropy(net(images, subnet), labels))
    result = stepper(supernet, accumulate=accumulate)(0, batch, [Pass(subnet)], Clock(CPU), lambda: (True, False))
    assert result.losses == pytest.approx([loss], rel=1e-5)
    assert result.requests == [1.0, 0.0]
    assert result.macs == 3 * 8 * count_costs(supernet.space, subnet).macs
    assert_gradient(supernet, before, expected)


def test_passes_add_up_and_learn_from_the_first(supernet, batch):
    images, labels = batch
    space, before = supernet.space, copy.deepcopy(supernet)

    def loss_of(net):
        largest = net(images, space.largest)
        target = F.softmax(largest.detach(), -1)
        soft = -(target * F.log_softmax(net(images, space.smallest), -1)).sum(-1).mean()
        return F.cross_entropy(largest, labels) + 0.7 * soft

    _, expected = gradient(supernet, loss_of)
    result = stepper(supernet)(0, batch, [Pass(space.largest), Pass(space.smallest, labels=0, soft=0.7)], Clock(CPU))
    assert len(result.losses) == 2
    assert_gradient(supernet, before, expected)


def test_the_frozen_teacher_does_not_move(supernet, batch):
    images, labels = batch
    space, before = supernet.space, copy.deepcopy(supernet)
    teacher = extract(supernet, space.largest).requires_grad_(False)
    run = stepper(supernet, temperature=2.0)
    run.training.teacher = teacher
    target = F.softmax(teacher(images) / 2, -1)

    def loss_of(net):
        logits = net(images, space.smallest)
        return F.cross_entropy(logits, labels) + 4 * F.cross_entropy(logits / 2, target)

    _, expected = gradient(supernet, loss_of)
    result = run(0, batch, [Pass(space.smallest, soft=1.0, teacher="frozen")], Clock(CPU))
    assert result.extra_macs == 8 * count_costs(space, space.largest).macs
    assert_gradient(supernet, before, expected)


def test_an_external_teacher_shares_the_loss_with_the_labels(supernet, batch):
    images, labels = batch
    subnet, before = supernet.space.largest, copy.deepcopy(supernet)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
    # The training divides by 0.5 after taking off 0.5, the teacher by 0.25 after taking off 0.375: 2 x + 0.5.
    here = {"in_chans": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"input_size": (3, 8, 8), "mean": (0.375,) * 3, "std": (0.25,) * 3, "interpolation": "bicubic"}
    teacher = Teacher(model, config, here)

    def loss_of(net):
        logits = net(images, subnet)
        return 0.75 * F.cross_entropy(logits, labels) + 0.25 * F.cross_entropy(logits, F.softmax(model(2 * images + 0.5), -1))

    _, expected = gradient(supernet, loss_of)
    stepper(supernet, teacher, teacher="any", teacher_weight=0.25)(0, batch, [Pass(subnet)], Clock(CPU))
    assert_gradient(supernet, before, expected)


def test_soft_cross_entropy_by_hand():
    logits, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    target = torch.tensor([1.0, torch.e]) / (1 + torch.e)
    expected = -(target * torch.log(torch.tensor([torch.e**0.5, 1.0]) / (torch.e**0.5 + 1))).sum() * 4
    assert soft_cross_entropy(logits, teacher, 2.0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_clipping(supernet, batch):
    before = copy.deepcopy(supernet)
    stepper(supernet, clip_grad=0.01)(0, batch, [Pass(supernet.space.largest)], Clock(CPU))
    norm = torch.stack([value.norm() for value in moved(supernet, before).values()]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_reduced_precision_takes_about_the_same_step(supernet, batch, amp):
    images, labels = batch
    before, subnet = copy.deepcopy(supernet), supernet.space.largest
    _, expected = gradient(supernet, lambda net: F.cross_entropy(net(images, subnet), labels))
    run = stepper(supernet, amp=amp)
    run(0, batch, [Pass(subnet)], Clock(CPU))
    assert bool(run.training.scaler.state_dict()) == (amp == "fp16")
    got = torch.cat([value.flatten() for value in moved(supernet, before).values()])
    want = torch.cat([expected[name].flatten() for name in supernet.state_dict()])
    assert F.cosine_similarity(got, want, dim=0) > 0.999
    assert not torch.allclose(got, want, atol=1e-7)  # it was not float32 after all


def test_a_loss_that_is_not_finite_names_its_subnet_and_changes_nothing(supernet, batch):
    space = supernet.space
    supernet.blocks[1].fc1.weight.data[0, 0] = float("nan")  # only subnets of two blocks see it
    before = copy.deepcopy(supernet)
    passes = [Pass(space.smallest), Pass(space.largest)]
    with pytest.raises(TrainingError, match="^step 5: the loss is nan for the subnet") as caught:
        stepper(supernet)(4, batch, passes, Clock(CPU))
    assert str(space.largest) in str(caught.value)
    for name, value in supernet.state_dict().items():
        assert torch.equal(value.nan_to_num(7), before.state_dict()[name].nan_to_num(7)), name
