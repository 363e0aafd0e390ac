"""The benchmark's slow baseline must compute the same network, or the comparison means nothing."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks import models


@pytest.mark.parametrize("attention", [models.OracleAttention, models.PublicOrderAttention])
@torch.no_grad()
def test_the_slow_baselines_compute_the_same_network(attention):
    static, naive = models.static(), models.naive(attention)
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(naive(images), static(images), rtol=1e-4, atol=1e-5)


def test_macs_of_the_compared_networks():
    assert pytest.approx(1.283e9, rel=1e-3) == models.PUBLISHED_MACS
    assert pytest.approx(1.254e9, rel=1e-3) == models.DEIT_MACS
