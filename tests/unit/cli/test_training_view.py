"""The lines of a training."""

from __future__ import annotations

import pytest

from growtas.cli.training_view import epoch_line
from tests.unit.watch.conftest import line


@pytest.mark.parametrize("accuracies", [(0.1, 0.2, 0.3), (0.1, 0.1, 0.3), (0.1, 0.1, 0.1)])
def test_an_epoch_has_three_labelled_accuracies_even_where_they_are_equal(accuracies):
    metrics = line(2, accuracy=dict(zip(("smallest", "middle", "largest"), accuracies, strict=True)))
    low, middle, high = (f"{100 * value:.1f}" for value in accuracies)
    assert f"accuracy smallest {low} / middle {middle} / largest {high} %" in epoch_line(metrics, 20, 80)
