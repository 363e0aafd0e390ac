import numpy as np
import pytest

from growtas.errors import ConfigError
from growtas.space import PRESETS
from growtas.train.recipe import Recipe
from growtas.train.strategies import make_strategy

MICRO = PRESETS["micro"]


def test_growtas_opens_subspaces_in_turn():
    strategy = make_strategy(Recipe(epochs=30, stages=3, transitions=[10, 20]), MICRO)
    for epoch, stage, widths in ((0, 0, {32}), (9.99, 0, {32}), (10, 1, {32, 48}), (20, 2, {32, 48, 64}), (29.9, 2, {32, 48, 64})):
        drawn = [strategy.draw(step, epoch) for step in range(100)]
        assert all(len(passes) == 1 for passes in drawn)
        assert {chosen.subnet.embed_dim for (chosen,) in drawn} == widths
        assert strategy.stage(epoch) == stage
        assert all(strategy.subspace(epoch).holds(chosen.subnet) for (chosen,) in drawn)


def test_uniform_draws_every_width_from_the_first_step_on():
    strategy = make_strategy(Recipe(method="uniform"), MICRO)
    counts = np.bincount([strategy.draw(step, 0.0)[0].subnet.embed_dim for step in range(600)])
    assert all(150 < counts[width] < 250 for width in (32, 48, 64))
    assert strategy.stage(0) == strategy.stage(29) == 0


@pytest.mark.parametrize("method", ["growtas", "uniform"])
def test_a_draw_is_a_function_of_seed_and_step(method):
    one, same, other = (make_strategy(Recipe(method=method, seed=seed), MICRO) for seed in (1, 1, 2))
    draws = [[strategy.draw(step, 0.5) for step in (5, 3, 9)] for strategy in (one, same, other)]
    assert draws[0] == draws[1] != draws[2]
    assert one.draw(3, 0.5) == draws[0][1]


def test_stages_that_do_not_fit():
    with pytest.raises(ConfigError, match="stages is 4; micro has 3 choices of embed_dim"):
        make_strategy(Recipe(stages=4), MICRO)
