"""Every tensor of a network is on the network's device: checked on a GPU without numbers, and on the meta device."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from growtas.growth import Subspace
from growtas.nn.extract import extract
from growtas.nn.supernet import Supernet
from growtas.space import PRESETS
from growtas.train.freezing import FrozenEntries, used_regions
from growtas.train.optimizer import make_optimizer
from growtas.train.recipe import Recipe
from tests.fake_gpu import fake_gpu

SPACE = PRESETS["micro"]
TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def networks(training):
    """Functions of images and their modules: the supernet's largest subnet, and the static ViT of it."""
    supernet = Supernet(SPACE, drop_path_rate=0.2 if training else 0.0).train(training)
    static = extract(supernet, SPACE.largest).train(training)
    return {"supernet": (supernet, lambda images: supernet(images, SPACE.largest)), "static": (static, static)}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("name", ["supernet", "static"])
def test_a_forward_pass_stays_on_the_gpu(name, precision, training):
    module, network = networks(training)[name]
    reduced = TYPES[precision]
    with fake_gpu():
        module.to("cuda")
        images = torch.zeros(2, 3, SPACE.image_size, SPACE.image_size, device="cuda")
        with torch.autocast("cuda", reduced, enabled=reduced is not None), torch.set_grad_enabled(training):
            logits = network(images)
        assert logits.is_cuda
        assert logits.shape == (2, SPACE.num_classes)
        assert logits.dtype == (reduced or torch.float32)


def test_the_fake_gpu_notices_a_tensor_on_the_cpu():
    module, network = networks(training=False)["static"]
    with fake_gpu():
        module.to("cuda")
        with pytest.raises(RuntimeError, match="cuda:0.*cpu"):
            network(torch.zeros(2, 3, SPACE.image_size, SPACE.image_size))


@pytest.mark.parametrize("name", ["supernet", "static"])
def test_a_backward_pass_and_an_optimiser_step_stay_on_the_meta_device(name):
    module, network = networks(training=True)[name]
    module.to("meta")
    images = torch.zeros(2, 3, SPACE.image_size, SPACE.image_size, device="meta")
    optimizer = make_optimizer(module, Recipe(space="micro", optimizer="sgd"))
    F.cross_entropy(network(images), torch.zeros(2, dtype=torch.int64, device="meta")).backward()
    optimizer.step()
    assert all(parameter.grad.is_meta for parameter in module.parameters())
    moments = [value for state in optimizer.state.values() for value in state.values()]
    assert moments
    assert all(value.is_meta for value in moments)


def test_the_optimiser_and_the_frozen_entries_stay_on_the_gpu():
    supernet = Supernet(SPACE)
    recipe = Recipe(space="micro")
    with fake_gpu():
        supernet.to("cuda")
        frozen = FrozenEntries(supernet, used_regions(supernet, Subspace(max_embed_dim=SPACE.embed_dim[0])))
        optimizer = make_optimizer(supernet, recipe)
        for parameter in supernet.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        frozen.clear_gradients()
        optimizer.step()
        frozen.restore()
        moments = [value for state in optimizer.state.values() for value in state.values()]
        assert moments
        assert all(value.is_cuda for value in moments)
