"""The benchmark's slow baseline must compute the same network, or the comparison means nothing."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.benchmarks import models


@torch.no_grad()
def test_the_naive_baseline_computes_the_same_network():
    static = models.static()
    naive = copy.deepcopy(static)
    for block in naive.blocks:
        block.attn = models.NaiveAttention(block.attn)
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(naive(images), static(images), rtol=1e-4, atol=1e-5)


def test_macs_of_the_compared_networks():
    assert pytest.approx(1.283e9, rel=1e-3) == models.PUBLISHED_MACS
    assert pytest.approx(1.254e9, rel=1e-3) == models.DEIT_MACS
