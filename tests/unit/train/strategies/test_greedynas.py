from __future__ import annotations

import json

import numpy as np
import pytest

from growtas.costs import count_costs
from growtas.sampling import sample
from growtas.subnet import Subnet
from growtas.train.recipe import Recipe
from growtas.train.strategies import make_strategy


def _greedynas(space, *, seed=0, epochs=10, **options):
    return make_strategy(Recipe(method="greedynas", seed=seed, epochs=epochs, method_options=options), space)


def _interval(strategy, subnet):
    """Counts the edges below a subnet's parameters."""
    params = count_costs(strategy.space, subnet).params
    return sum(params > edge for edge in strategy.edges)


def _loss(subnet):
    """A loss that prefers wide subnets with few heads; noise-free."""
    return 2 - 0.01 * subnet.embed_dim + 0.1 * sum(subnet.num_heads) / subnet.depth


def test_before_the_first_round_draws_are_uniform(space):
    strategy = _greedynas(space)
    assert strategy.draw(7, 0.3)[0].subnet == sample(space, strategy.rng(7))


def test_uniform_draws_fall_equally_often_into_the_intervals(space):
    strategy = _greedynas(space, bins=4)
    rng = np.random.default_rng(1)
    counts = np.bincount([_interval(strategy, sample(space, rng)) for _ in range(2000)])
    assert len(counts) == 4
    assert counts.min() > 2000 / 4 * 0.7


def test_a_round_trains_the_best_candidates_of_one_interval(space, make_tools):
    tools = make_tools(accuracies=lambda subnet: 1 - _loss(subnet))
    strategy = _greedynas(space, candidates=8, keep=3, images=55)
    drawn = set()
    for step in range(60):
        strategy.before_step(step, 0.0, tools)
        ((scored, images),) = tools.scored[-1:]
        assert images == 55
        assert len(tools.scored) == step // 3 + 1, "a round has three steps"
        assert len({_interval(strategy, subnet) for subnet in scored}) == 1
        drawn.add(_interval(strategy, scored[0]))
        best = sorted(scored, key=_loss)[:3]
        assert _loss(strategy.draw(step, 0.0)[0].subnet) == _loss(best[step % 3])
    assert drawn == set(range(5))


def test_the_pool_keeps_the_smallest_losses_of_each_interval(space, make_tools):
    tools = make_tools(accuracies=lambda subnet: 1 - _loss(subnet))
    strategy = _greedynas(space, pool=20, start=1.0)
    trained = [set() for _ in range(5)]
    for step in range(200):
        strategy.before_step(step, 0.0, tools)
        subnet = strategy.draw(step, 0.0)[0].subnet
        trained[_interval(strategy, subnet)].add(subnet)
    for part, seen in zip(strategy.pool, trained, strict=True):
        assert [loss for loss, _ in part.values()] == sorted(map(_loss, seen))[:4]
        assert all(loss == _loss(subnet) for subnet, (loss, _) in part.items())


def test_candidates_come_from_the_pool_more_and_more(space, make_tools):
    """The share rises linearly from zero after the start to epsilon at the end."""
    tools = make_tools(accuracies=lambda subnet: 1 - _loss(subnet))
    strategy = _greedynas(space, pool=5, candidates=10, keep=1, start=0.2, epsilon=0.8)
    outsider = Subnet(16, (3, 3, 3), (2.0, 2.0, 2.0))  # the largest subnet, which a uniform draw hardly finds
    shares = {}
    for epoch in (1.0, 2.0, 6.0, 9.99):
        rounds = []
        for step in range(400):
            strategy.pool = [{outsider: (0.0, 0)} for _ in strategy.pool]
            strategy.before_step(step, epoch, tools)
            rounds.append(outsider in tools.scored[-1][0])
        shares[epoch] = np.mean(rounds)
    assert shares[1.0] < 0.05
    assert shares[2.0] < 0.05
    # At least one of ten candidates is from the pool.
    for epoch in (6.0, 9.99):
        probability = 0.8 * (epoch - 2) / 8
        assert abs(shares[epoch] - (1 - (1 - probability) ** 10)) < 0.05


def _end_epochs(strategy, tools, epochs, steps, first=0):
    """Runs whole epochs; returns after how many of them the training has converged, or None."""
    for epoch in range(epochs):
        for step in range(steps):
            strategy.before_step(first + epoch * steps + step, 0.0, tools)
        strategy.after_epoch(epoch + 1, {})
        if strategy.converged(epoch + 1):
            return epoch + 1
    return None


@pytest.mark.parametrize("steps", [10, 40, 200])
def test_it_converges_when_few_subnets_are_new(space, make_tools, steps):
    """Losses that stay: the pool fills up with the best subnets. Losses that fall: each scored subnet is better than the pool."""
    tools = make_tools(accuracies=lambda subnet: 1 - _loss(subnet))
    converged = _end_epochs(_greedynas(space, pool=30, bins=1, turnover=0.1), tools, 3000 // steps, steps)
    assert converged is not None
    assert converged * steps >= 60, "the pool must be full and then be compared again"
    number = iter(range(10**9))
    falling = make_tools(accuracies=lambda subnet: 1e-6 * next(number))
    space = space.replace(mlp_ratio=tuple(1 + step / 16 for step in range(16)))  # so many subnets that none is drawn twice
    assert _end_epochs(_greedynas(space, pool=30, bins=1, turnover=0.1), falling, 600 // steps, steps) is None
    assert _end_epochs(_greedynas(space, pool=30, bins=1, turnover=0.0), tools, 3000 // steps, steps) is None


def test_a_state_in_the_middle_of_an_epoch_has_not_converged(space, make_tools):
    tools = make_tools(accuracies=lambda subnet: 1 - _loss(subnet))
    strategy = _greedynas(space, pool=10, bins=1)
    for step in range(500):
        strategy.before_step(step, 0.5, tools)
        resumed = _greedynas(space, pool=10, bins=1)
        resumed.load_state(json.loads(json.dumps(strategy.state())))
        assert not resumed.converged(0)


def test_a_round_is_not_scored_twice(space, make_tools):
    """A training that is stopped between the scoring and the step repeats the call with the saved state."""
    tools = make_tools(accuracies=lambda subnet: 1 - _loss(subnet))
    strategy = _greedynas(space)
    for step in range(0, 50, 5):
        strategy.before_step(step, 5.0, tools)
        state = json.loads(json.dumps(strategy.state()))
        again = _greedynas(space)
        again.load_state(state)
        again.before_step(step, 5.0, tools)
        assert again.state() == state


def test_a_loss_that_is_not_finite_is_last_and_does_not_enter_the_pool(space, make_tools):
    tools = make_tools(accuracies=lambda subnet: float("nan") if subnet.embed_dim == 16 else 1 - _loss(subnet))
    strategy = _greedynas(space, bins=1, candidates=20, keep=3)
    for step in range(0, 60, 3):
        strategy.before_step(step, 0.0, tools)
        assert all(subnet.embed_dim < 16 for subnet in strategy.queue)
    assert all(subnet.embed_dim < 16 for subnet in strategy.pool[0])


def test_a_resumed_training_draws_the_same(space, make_tools):
    def strategy():
        return _greedynas(space, seed=4, candidates=6, keep=4, pool=15)

    tools = make_tools(accuracies=lambda subnet: 1 - _loss(subnet))
    whole, first, second = strategy(), strategy(), strategy()
    for step in range(200):
        if step == 94:  # within a round
            second.load_state(json.loads(json.dumps(first.state())))
        half = first if step < 94 else second
        for trained in (whole, half):
            trained.before_step(step, step / 20, tools)
        assert half.draw(step, step / 20) == whole.draw(step, step / 20)
    assert second.state() == whole.state()


def test_a_space_of_one_subnet(space, tools):
    one = space.replace(embed_dim=(8,), num_heads=(1,), mlp_ratio=(1.0,), depth=(2,))
    strategy = _greedynas(one)
    for step in range(10):
        strategy.before_step(step, 9.0, tools)
        assert strategy.draw(step, 9.0)[0].subnet == one.largest
