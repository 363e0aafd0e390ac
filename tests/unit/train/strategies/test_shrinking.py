import pytest

from growtas.errors import ConfigError
from growtas.train.recipe import Recipe
from growtas.train.strategies import make_strategy
from growtas.train.strategies.base import Pass


def _shrinking(space, epochs=100, **options):
    return make_strategy(Recipe(method="shrinking", epochs=epochs, warmup_epochs=0, method_options=options), space)


def _seen(strategy, epoch, draws=300):
    """The values of each dimension that are drawn at an epoch."""
    subnets = [strategy.draw(step, epoch)[0].subnet for step in range(draws)]
    return {
        "depth": {s.depth for s in subnets},
        "mlp_ratio": {r for s in subnets for r in s.mlp_ratio},
        "num_heads": {h for s in subnets for h in s.num_heads},
        "embed_dim": {s.embed_dim for s in subnets},
    }


def test_dimensions_open_in_turn(space):
    strategy = _shrinking(space)
    order = ("depth", "mlp_ratio", "num_heads", "embed_dim")
    # Defaults: 40 % for the largest, 15 % for each dimension.
    for stage, epoch in enumerate((0.0, 40.0, 55.0, 70.0, 85.0)):
        seen = _seen(strategy, epoch)
        for place, dimension in enumerate(order):
            choices = getattr(space, dimension)
            assert seen[dimension] == set(choices if place < stage else choices[-1:]), (epoch, dimension)
        assert strategy.stage(epoch) == stage
        assert strategy.stage(epoch - 0.01) == max(stage - 1, 0)
    assert _seen(strategy, 99.99) == {dimension: set(getattr(space, dimension)) for dimension in order}


def test_the_teacher_is_the_network_of_the_first_phase(space):
    strategy = _shrinking(space)
    assert [strategy.keeps_teacher(epoch) for epoch in (0, 39.99, 40, 99)] == [False, False, True, True]
    assert strategy.draw(5, 39.99) == (Pass(space.largest, labels=1.0, soft=0.0),)
    (chosen,) = strategy.draw(5, 40)
    assert (chosen.labels, chosen.soft, chosen.teacher) == (1.0, 1.0, "frozen")


def test_shares_are_relative_and_a_dimension_without_choice_has_no_phase(space):
    narrow = space.replace(num_heads=(3,))
    strategy = _shrinking(narrow, epochs=60, largest=3.0, depth=1.0, mlp_ratio=1.0, num_heads=50.0, embed_dim=1.0)
    assert strategy.starts == pytest.approx((0, 30, 40, 50))
    assert _seen(strategy, 45)["mlp_ratio"] == set(space.mlp_ratio)
    assert _seen(strategy, 45)["embed_dim"] == {16}
    assert _seen(strategy, 55)["embed_dim"] == set(space.embed_dim)


def test_the_supernet_bounds_stay(space):
    wide = space.replace(max_embed_dim=24)
    assert {phase.max_embed_dim for phase in _shrinking(wide).phases} == {24}
    assert {(phase.max_depth, phase.max_num_heads, phase.max_mlp_ratio) for phase in _shrinking(wide).phases} == {(3, 3, 2.0)}


def test_draws_are_a_function_of_seed_and_step(space):
    assert _shrinking(space).draw(9, 90.0) == _shrinking(space).draw(9, 90.0) != _shrinking(space).draw(10, 90.0)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_shares_are_above_zero(space, value):
    with pytest.raises(ConfigError, match="method_options: depth is .*; it must be a number above 0"):
        _shrinking(space, depth=value)
