from __future__ import annotations

import numpy as np
import pytest
import torch

from growtas import Architecture, SearchSpace, VisionTransformer
from growtas.export.graph.inference_vit import deployable
from growtas.sampling import sample
from tests.reference import PLAIN, plain_space

SPACE = SearchSpace(
    name="tiny", embed_dim=(24, 32), num_heads=(1, 2, 3), mlp_ratio=(2.0, 3.0), depth=(1, 2, 3), head_dim=16, image_size=24,
    patch_size=4, num_classes=5, max_relative_position=3,
)  # fmt: skip


@pytest.mark.parametrize("space", [SPACE, *(plain_space(SPACE, kind) for kind in PLAIN)], ids=lambda space: space.name)
@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_computes_what_the_vit_computes(seed, space):
    architecture = Architecture.of(space, sample(space, np.random.default_rng(seed)))
    torch.manual_seed(seed)
    vit = VisionTransformer(architecture).double().eval()
    for parameter in vit.parameters():  # Every bias and table must matter.
        parameter.normal_(std=0.4)
    deployed = deployable(vit)
    for batch in (1, 3):
        images = torch.randn(batch, 3, 24, 24, dtype=torch.float64)
        torch.testing.assert_close(deployed.double()(images), vit(images), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_has_weights_of_its_own():
    vit = VisionTransformer(Architecture.of(SPACE, SPACE.smallest)).eval()
    deployed, images = deployable(vit), torch.randn(1, 3, 24, 24)
    before = deployed(images)
    for parameter in vit.parameters():
        parameter.zero_()
    torch.testing.assert_close(deployed(images), before)
