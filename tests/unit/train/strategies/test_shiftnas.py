from __future__ import annotations

import json

import numpy as np
import pytest

from growtas.costs import count_costs
from growtas.sampling import sample
from growtas.train.recipe import Recipe
from growtas.train.strategies import make_strategy


def _shiftnas(space, *, seed=0, epochs=10, **options):
    return make_strategy(Recipe(method="shiftnas", seed=seed, epochs=epochs, method_options=options), space)


def _interval(space, subnet, bins):
    low, high = (count_costs(space, end).macs for end in (space.smallest, space.largest))
    return min(int((count_costs(space, subnet).macs - low) / (high - low) * bins), bins - 1)


def test_uniform_until_the_start(space, tools):
    strategy = _shiftnas(space, start=0.5, every=10)
    for step in range(50):
        strategy.before_step(step, step / 10, tools)
        assert strategy.draw(step, step / 10)[0].subnet == sample(space, strategy.rng(step))
    assert tools.scored == []


def test_afterwards_all_sizes_are_drawn_equally_often_at_first(space):
    strategy = _shiftnas(space, bins=6)
    drawn = [strategy.draw(step, 5.0)[0].subnet for step in range(3000)]
    assert all(space.holds(subnet) for subnet in drawn)
    counts = np.bincount([_interval(space, subnet, 6) for subnet in drawn], minlength=6)
    uniform = np.bincount([_interval(space, sample(space, strategy.rng(step)), 6) for step in range(3000)], minlength=6)
    assert counts.min() > 3000 / 6 * 0.8
    assert uniform.min() < 3000 / 6 * 0.2, "uniform draws are mostly of medium size"


def test_a_gap_between_sizes_gives_the_nearest_subnets(space):
    """Two widths alone leave intervals of MACs without any subnet."""
    two = space.replace(embed_dim=(8, 16), num_heads=(2,), mlp_ratio=(2.0,), depth=(2,))
    strategy = _shiftnas(two, bins=6)
    widths = [strategy.subnet(number, np.random.default_rng(0)).embed_dim for number in range(6)]
    assert widths == sorted(widths)
    assert set(widths) == {8, 16}


def test_subnets_are_measured_before_and_after(space, tools):
    strategy = _shiftnas(space, every=10, bins=3, samples=2, images=44)
    for step in range(30):
        strategy.before_step(step, 1.0 + step / 10, tools)
    assert [(len(subnets), images) for subnets, images in tools.scored] == [(6, 44), (12, 44), (12, 44)]
    for (earlier, _), (later, _) in zip(tools.scored, tools.scored[1:], strict=False):
        assert later[:6] == earlier[-6:]
    assert [_interval(space, subnet, 3) for subnet in tools.scored[0][0]] == [0, 0, 1, 1, 2, 2]


def test_probabilities_shift_to_where_the_loss_falls(space, make_tools):
    """Only the loss of large subnets falls; their probability rises to its bound, and no other one falls below its own."""
    falls = {"by": 0.0}
    tools = make_tools(accuracies=lambda subnet: falls["by"] * (_interval(space, subnet, 3) == 2))
    strategy = _shiftnas(space, every=10, bins=3, lr=0.5, least=0.3)
    for lesson in range(1, 40):
        falls["by"] = 0.01 * lesson
        strategy.before_step(10 * lesson, 5.0, tools)
    np.testing.assert_allclose(strategy.probabilities(), [0.1, 0.1, 0.8], atol=1e-3)
    drawn = [_interval(space, strategy.draw(step, 5.0)[0].subnet, 3) for step in range(1000)]
    assert abs(drawn.count(2) / 1000 - 0.8) < 0.05


def test_a_lesson_moves_by_standard_deviations(space):
    strategy = _shiftnas(space, bins=3, samples=2, lr=0.2)
    strategy.learn(np.array([0.1, 0.3, 0.0, 0.0, np.nan, 0.2]))
    means = np.array([0.2, 0.0, 0.1])
    np.testing.assert_allclose(strategy.logits, 0.2 * (means - 0.1) / np.sqrt(np.mean((means - 0.1) ** 2)), atol=1e-12)
    before = strategy.logits.copy()
    strategy.learn(np.full(6, 0.4))
    np.testing.assert_array_equal(strategy.logits, before)


def test_equal_probabilities_without_a_lesson(space):
    np.testing.assert_allclose(_shiftnas(space, bins=4).probabilities(), np.full(4, 0.25))


def test_a_resumed_training_draws_the_same(space, make_tools):
    def strategy():
        return _shiftnas(space, every=10, bins=3, seed=4)

    tools = make_tools(accuracies=lambda subnet: 0.3 + subnet.embed_dim / 37 - sum(subnet.num_heads) / 101 + len(tools.scored) / 7)
    whole, first, second = strategy(), strategy(), strategy()
    for step in range(100):
        if step == 55:
            second.load_state(json.loads(json.dumps(first.state())))
        half = first if step < 55 else second
        for trained in (whole, half):
            count = len(tools.scored)
            trained.before_step(step, step / 10, tools)
            del tools.scored[count:]
        assert half.draw(step, step / 10) == whole.draw(step, step / 10)
    assert second.state() == whole.state()


@pytest.mark.parametrize("name", ["micro", "autoformer-t"])
def test_subnets_of_real_spaces_are_inside_their_interval(name):
    from growtas.space import PRESETS

    space = PRESETS[name]
    strategy = _shiftnas(space, bins=6)
    rng = np.random.default_rng(0)
    for number in range(6):
        for _ in range(20):
            macs = count_costs(space, strategy.subnet(number, rng)).macs
            assert strategy.edges[number] <= macs <= strategy.edges[number + 1]
