from __future__ import annotations

import math

import pytest
import torch

from growtas.costs import count_costs
from growtas.nn.supernet import Supernet
from growtas.sampling import sample
from growtas.train.recipe import Recipe
from growtas.train.step import Training
from growtas.train.strategies import make_strategy
from growtas.train.strategies.base import Pass


def _dynas(space, *, lr=0.02, epochs=10, warmup_epochs=2.0, **options):
    return make_strategy(Recipe(method="dynas", lr=lr, epochs=epochs, warmup_epochs=warmup_epochs, method_options=options), space)


def test_draws_are_uniform(space):
    strategy = _dynas(space)
    assert all(strategy.draw(step, 3.0)[0].subnet == sample(space, strategy.rng(step)) for step in range(30))


def test_the_rates_are_the_papers(space):
    """lr (1 - t/T)^g with g = w ln C + tau; the largest subnet has g = 1/4, the smallest 4."""
    strategy = _dynas(space)
    low, high = (count_costs(space, subnet).params for subnet in (space.smallest, space.largest))
    w = -(4 - 0.25) / (math.log(high) - math.log(low))
    tau = 0.25 - w * math.log(high)
    for subnet in (space.smallest, space.middle(), space.largest):
        g = w * math.log(count_costs(space, subnet).params) + tau
        for epoch in (2.0, 3.7, 9.99):
            assert strategy.learning_rate(1e9, epoch, [Pass(subnet)]) == pytest.approx(0.02 * (1 - (epoch - 2) / 8) ** g)
    assert strategy.learning_rate(0.3, 6.0, [Pass(space.smallest)]) == pytest.approx(0.02 * 0.5**4)
    assert strategy.learning_rate(0.3, 6.0, [Pass(space.largest)]) == pytest.approx(0.02 * 0.5**0.25)
    assert strategy.learning_rate(0.3, 1.99, [Pass(space.largest)]) == 0.3, "the recipe's warm-up"


def test_equal_exponents_make_one_linear_schedule(space):
    strategy = _dynas(space, smallest=1.0, largest=1.0)
    rates = [strategy.learning_rate(0.3, 4.0, [Pass(subnet)]) for subnet in (space.smallest, space.middle(), space.largest)]
    assert rates == pytest.approx([0.02 * 0.75] * 3)


def test_a_space_of_one_size(space):
    one = space.replace(embed_dim=(8,), num_heads=(1,), mlp_ratio=(1.0,), depth=(2,))
    assert _dynas(one).learning_rate(0.3, 6.0, [Pass(one.largest)]) == pytest.approx(0.02 * 0.5**0.25)


@pytest.mark.parametrize("moments", ["width", "shared"])
def test_each_width_has_moments_of_its_own(space, moments):
    """AdamW with separate moments, against one optimiser for each set over a copy of the weights that are shared by hand."""
    strategy = _dynas(space, moments=moments)
    recipe, widths = strategy.recipe, space.embed_dim
    torch.manual_seed(0)
    supernet = Supernet(space)
    training = Training.of(supernet, recipe, torch.device("cpu"), strategy.moment_sets)
    references = [torch.optim.AdamW(supernet.parameters(), lr=1.0, weight_decay=0.0) for _ in range(strategy.moment_sets)]
    for group in training.optimizer.param_groups:
        group["weight_decay"] = 0.0
    images = torch.randn(4, 1, 8, 8)
    for step in range(12):
        subnet = strategy.draw(step, 3.0)[0].subnet
        chosen = strategy.moments([Pass(subnet)])
        assert chosen == (widths.index(subnet.embed_dim) if moments == "width" else 0)
        supernet.zero_grad(set_to_none=True)
        supernet(images, subnet).square().mean().backward()
        before = [parameter.detach().clone() for parameter in supernet.parameters()]
        training.prepare_step(0.01 / (step + 1), chosen)
        training.optimizer.step()
        after = [parameter.detach().clone() for parameter in supernet.parameters()]
        with torch.no_grad():
            for parameter, old in zip(supernet.parameters(), before, strict=True):
                parameter.copy_(old)
        for group in references[chosen].param_groups:
            group["lr"] = 0.01 / (step + 1)
        references[chosen].step()
        for parameter, expected in zip(after, supernet.parameters(), strict=True):
            torch.testing.assert_close(parameter, expected.detach(), rtol=1e-5, atol=1e-7)
