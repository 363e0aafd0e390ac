from __future__ import annotations

import json

import numpy as np
import pytest

from growtas.costs import count_costs
from growtas.errors import ConfigError
from growtas.sampling import sample
from growtas.train.recipe import Recipe
from growtas.train.strategies import make_strategy
from growtas.train.strategies.focusformer import Choice


def _focusformer(space, *, seed=0, epochs=10, **options):
    return make_strategy(Recipe(method="focusformer", seed=seed, epochs=epochs, method_options=options), space)


def _lessons(strategy, tools, count):
    for number in range(1, count + 1):
        strategy.before_step(number * strategy.options.every, 5.0, tools)


def _probability(strategy, budget, dimension, *where):
    logits = strategy.logits[dimension][(budget, *where)]
    return np.exp(logits) / np.exp(logits).sum()


def test_uniform_until_the_first_lesson(space, tools):
    strategy = _focusformer(space, start=0.5, every=10)
    for step in range(50):
        strategy.before_step(step, step / 10, tools)
        assert strategy.draw(step, step / 10)[0].subnet == sample(space, strategy.rng(step))
    assert (strategy.lessons, tools.asked) == (0, [])


def test_lessons_come_every_so_many_steps_after_the_start(space, tools):
    strategy = _focusformer(space, start=0.5, every=10, samples=3, images=77)
    taught = []
    for step in range(101):
        before = strategy.lessons
        strategy.before_step(step, step / 10, tools)
        if strategy.lessons > before:
            taught.append(step)
    assert taught == [50, 60, 70, 80, 90, 100]
    assert len(tools.asked) == 18
    assert {count for _, count in tools.asked} == {77}
    assert all(space.holds(subnet) for subnet, _ in tools.asked)


def test_a_lesson_has_draws_of_its_own(space, tools):
    """A step must not train just what its lesson has measured."""
    strategy, untaught = (_focusformer(space, every=10, samples=6, budgets=1) for _ in range(2))
    strategy.before_step(10, 5.0, tools)
    rng = untaught.rng(10)
    assert [subnet for subnet, _ in tools.asked] != [untaught.subnet(untaught.choose(0, rng)) for _ in range(6)]


def test_the_sampler_finds_what_is_accurate(space, make_tools):
    """Noisy accuracies that favour width 12 and few heads in the second block are learned, and then drawn."""
    noise = np.random.default_rng(0)

    def accuracy(subnet):
        second = subnet.num_heads[1] if subnet.depth > 1 else 3
        return 0.5 + 0.1 * (subnet.embed_dim == 12) - 0.03 * second + 0.02 * noise.standard_normal()

    strategy = _focusformer(space, every=10, budgets=1, penalty=0.0, epsilon=0.0)
    _lessons(strategy, make_tools(accuracies=accuracy), 100)
    assert _probability(strategy, 0, "embed_dim")[1] > 0.95
    assert _probability(strategy, 0, "num_heads", 1)[0] > 0.8
    # Nothing hangs on the first block's MLP ratio.
    assert _probability(strategy, 0, "mlp_ratio", 0).max() < 0.75
    widths = [strategy.draw(step, 5.0)[0].subnet.embed_dim for step in range(300)]
    assert widths.count(12) > 270


def test_the_penalty_leads_each_budget_to_its_size(space, tools):
    strategy = _focusformer(space, every=10, budgets=3, penalty=1.0)
    _lessons(strategy, tools, 200)
    rng = np.random.default_rng(0)
    means = [
        np.mean([count_costs(space, strategy.subnet(strategy.choose(budget, rng))).macs for _ in range(200)]) for budget in range(3)
    ]
    uniform = np.mean([count_costs(space, sample(space, rng)).macs for _ in range(500)])
    assert means == sorted(means)
    for mean, target in zip(means, strategy.targets, strict=True):
        assert abs(mean - target) < 0.6 * abs(uniform - target) + 0.1 * target


def test_targets_are_the_middles_of_equal_intervals(space):
    low, high = (count_costs(space, subnet).macs for subnet in (space.smallest, space.largest))
    np.testing.assert_allclose(_focusformer(space, budgets=2).targets, [low + 0.25 * (high - low), low + 0.75 * (high - low)])


def test_a_lesson_follows_the_gradient(space):
    """The change of the logits is that of finite differences of what REINFORCE and the entropy bonus ascend."""
    strategy = _focusformer(space, budgets=1, lr=0.5, entropy=0.2)
    rng = np.random.default_rng(3)
    for logits in strategy.logits.values():
        logits += rng.standard_normal(logits.shape)
    strategy.baseline[:], strategy.spread[:] = 0.4, 0.1
    draws = [Choice(2, 1, (0, 2), (1, 1)), Choice(0, 0, (1,), (2,))]
    rewards = [0.5, 0.35]

    def objective(logits):
        total = 0.0
        for choice, reward in zip(draws, rewards, strict=True):
            rows = [(logits["embed_dim"][0], choice.embed_dim), (logits["depth"][0], choice.depth)]
            rows += [(logits["num_heads"][0, i], v) for i, v in enumerate(choice.num_heads)]
            rows += [(logits["mlp_ratio"][0, i], v) for i, v in enumerate(choice.mlp_ratio)]
            for row, taken in rows:
                p = np.exp(row) / np.exp(row).sum()
                total += (reward - 0.4) / 0.1 * np.log(p[taken]) - 0.2 * (p * np.log(p)).sum()
        return total

    before = {name: logits.copy() for name, logits in strategy.logits.items()}
    strategy.learn([(0, choice, reward) for choice, reward in zip(draws, rewards, strict=True)])
    for name, old in before.items():
        for where in np.ndindex(old.shape):
            high, low = ({n: v.copy() for n, v in before.items()} for _ in range(2))
            high[name][where] += 1e-5
            low[name][where] -= 1e-5
            slope = (objective(high) - objective(low)) / 2e-5
            assert strategy.logits[name][where] - old[where] == pytest.approx(0.5 * slope, abs=1e-6), (name, where)
    assert strategy.baseline[0] == pytest.approx(0.9 * 0.4 + 0.1 * 0.425)
    assert strategy.spread[0] == pytest.approx(0.9 * 0.1 + 0.1 * 0.075)


def test_a_resumed_sampler_is_the_same_to_the_bit(space, make_tools):
    def accuracies(subnet):
        return 0.3 + subnet.embed_dim / 37 - sum(subnet.num_heads) / 101

    def strategy():
        return _focusformer(space, every=10, samples=5, budgets=2, seed=4)

    tools = make_tools(accuracies=accuracies)
    whole, first, second = strategy(), strategy(), strategy()
    for step in range(200):
        if step == 95:
            second.load_state(json.loads(json.dumps(first.state())))
        half = first if step < 95 else second
        for trained in (whole, half):
            trained.before_step(step, step / 10, tools)
        assert half.draw(step, step / 10) == whole.draw(step, step / 10)
    assert second.state() == whole.state()
    assert second.lessons == 19


def test_a_state_before_the_first_lesson_is_json(space):
    one, two = _focusformer(space), _focusformer(space)
    text = json.dumps(one.state(), allow_nan=False)
    two.load_state(json.loads(text))
    assert json.dumps(two.state(), allow_nan=False) == text
    assert np.isnan(two.baseline).all()


def test_epsilon_keeps_the_whole_space_in_training(space):
    strategy = _focusformer(space, epsilon=0.3, budgets=1)
    strategy.lessons = 1
    strategy.logits["embed_dim"][0] = [50.0, 0.0, 0.0]
    widths = [strategy.draw(step, 5.0)[0].subnet.embed_dim for step in range(1000)]
    # Two of three uniform draws have another width.
    assert 150 < sum(width != 8 for width in widths) < 250


def test_an_accuracy_that_is_not_a_number_teaches_nothing(space, make_tools):
    strategy = _focusformer(space, every=10)
    _lessons(strategy, make_tools(accuracies=lambda subnet: float("nan")), 3)
    assert not any(logits.any() for logits in strategy.logits.values())


def test_every_budget_is_taught_in_turn(space, make_tools):
    strategy = _focusformer(space, every=10, budgets=5, samples=2)
    _lessons(strategy, make_tools(accuracies=lambda subnet: subnet.embed_dim / 20), 3)
    # 6 samples over budgets 0 1 2 3 4 0.
    assert not np.isnan(strategy.baseline).any()


@pytest.mark.parametrize(
    "options", [{"budgets": 0}, {"every": 0}, {"samples": 0}, {"images": 0}, {"lr": 0.0}, {"epsilon": 1.5}, {"start": float("nan")}]
)
def test_wrong_options(space, options):
    with pytest.raises(ConfigError, match=f"method_options: {next(iter(options))} is"):
        _focusformer(space, **options)
