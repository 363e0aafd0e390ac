"""A tiny space, and the tools of a training over a real supernet of it."""

from __future__ import annotations

import pytest
import torch

from growtas.nn.supernet import Supernet
from growtas.space import SearchSpace

SPACE = SearchSpace(
    name="tiny",
    embed_dim=(8, 12, 16), num_heads=(1, 2, 3), mlp_ratio=(1.0, 1.5, 2.0), depth=(1, 2, 3),
    head_dim=8, image_size=8, patch_size=4, in_chans=1, num_classes=5, max_relative_position=1,
)  # fmt: skip


class FakeTools:
    """Answers as a training does; ``accuracies`` is a function of the subnet, and every question is kept in ``asked``."""

    def __init__(self, space=SPACE, accuracies=lambda subnet: 0.5, num_parts=3):
        torch.manual_seed(0)
        self.supernet = Supernet(space, drop_path_rate=0.5)
        # A fresh supernet's biases are zero, which would hide how they are cut.
        with torch.no_grad():
            for parameter in self.supernet.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        self.device = torch.device("cpu")
        self.num_parts = num_parts
        self.accuracies, self.asked, self.macs, self.batches, self.scored = accuracies, [], 0.0, [], []

    def accuracy(self, subnet, count=None):
        self.asked.append((subnet, count))
        return self.accuracies(subnet)

    def losses(self, subnets, count=None):
        self.scored.append((list(subnets), count))
        return [1 - self.accuracies(subnet) for subnet in subnets]

    def sample_batch(self, index):
        self.batches.append(index)
        generator = torch.Generator().manual_seed(index)
        images = torch.randn(6, 1, 8, 8, generator=generator)
        return images, torch.randint(5, (6,), generator=generator)

    def count_macs(self, macs):
        self.macs += macs


@pytest.fixture
def space():
    return SPACE


@pytest.fixture
def tools():
    return FakeTools()


@pytest.fixture
def make_tools():
    return FakeTools
