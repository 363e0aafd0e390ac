"""A search on a GPU: every tensor of its evaluation is where it should be, checked on a GPU without numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from growtas.nn.supernet import Supernet
from growtas.search.evaluation.evaluator import SubnetEvaluator
from growtas.search.evaluation.racing import Racing
from growtas.search.evolution import EvolutionConfig
from growtas.search.journal import Journal
from growtas.search.limits import Limits
from growtas.search.scoring import Scorer
from growtas.search.search import Search
from growtas.space import PRESETS
from tests.fake_gpu import fake_gpu

SPACE = PRESETS["micro"].replace(depth=(1,), num_classes=5)
IMAGES = 300
"""More than a batch of a GPU's evaluation."""


class Images:
    """Images and labels in the CPU's memory, as a split of files has them."""

    labels = torch.arange(IMAGES) % 5

    def __len__(self):
        return IMAGES

    def images(self, start, stop):
        return self.take(np.arange(start, stop))

    def take(self, indices):
        return torch.zeros(len(indices), SPACE.in_chans, SPACE.image_size, SPACE.image_size)


@pytest.mark.parametrize(("raced", "activation_bytes"), [(True, 0), (False, 1 << 30)])
def test_a_search_keeps_its_tensors_on_the_gpu(tmp_path, raced, activation_bytes):
    """What comes back is zeros: no answer is right. What is looked at is that operations agree on a device."""
    supernet = Supernet(SPACE).eval()
    with fake_gpu(), SubnetEvaluator(supernet, Images(), device="cuda", activation_bytes=activation_bytes) as evaluate:
        scorer = Scorer(SPACE, evaluate, Journal(tmp_path / "j", "c", "d", {}), Racing(3, IMAGES) if raced else None)
        config = EvolutionConfig(generations=2, population=4, parents=3)
        outcome = Search(space=SPACE, limits=Limits()).run(scorer, config, 0)
    assert len(outcome.result.ranked) == 8
    assert {score[0] for _, score in outcome.result.ranked} == {0.0}
    assert all(parameter.is_cuda for parameter in supernet.parameters())
