from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growtas.errors import ConfigError
from growtas.growth import Subspace
from growtas.train.recipe import Recipe
from growtas.train.strategies import make_strategy
from growtas.train.strategies.auto import AutoProgressive
from growtas.train.strategies.growtas import Progressive


def _auto(space, *, epochs=100, stages=2, warmup=0.0, **options):
    return make_strategy(
        Recipe(epochs=epochs, transitions="auto", stages=stages, lr=1.0, warmup_epochs=warmup, method_options=options), space
    )


def _line(loss=None, smallest=None, lr=1.0, **probes):
    return {
        "loss": loss,
        "accuracy": {"smallest": smallest, "largest": 0.1},
        "lr": lr,
        "probes": {name.replace("_", " "): value for name, value in probes.items()},
    }


def _curve(epoch, start, end, tau):
    """A learning curve that has covered all but exp(-t / tau) of its way."""
    return end + (start - end) * math.exp(-epoch / tau)


def _run(strategy, line, first=1, last=100):
    for epoch in range(first, last + 1):
        strategy.after_epoch(epoch, line(epoch))
    return strategy.transitions


def test_it_is_what_auto_makes(space):
    assert type(_auto(space)) is AutoProgressive
    assert type(make_strategy(Recipe(transitions=[10], epochs=30), space)) is Progressive
    with pytest.raises(ConfigError, match="the method growtas has no option 'share'"):
        make_strategy(Recipe(method_options={"share": 0.1}), space)


def test_a_converged_subspace_is_left_when_gains_fall_below_the_share(space):
    strategy = _auto(space, least=0.0, share=0.1, window=3)
    transitions = _run(strategy, lambda e: _line(_curve(e, 2.0, 1.0, 10), _curve(e, 0.0, 0.8, 10)))
    # Slopes over three epochs fall by exp(-1/10) an epoch from the first, at epoch 3: 10 ln 10 = 23.03 epochs later.
    assert transitions == [27]
    assert strategy.reasons == ["converged"]
    assert [strategy.stage(epoch) for epoch in (0, 26.99, 27, 99)] == [0, 0, 1, 1]
    assert strategy.subspace(26.9) == Subspace(max_embed_dim=8)
    assert {strategy.draw(step, 26.9)[0].subnet.embed_dim for step in range(50)} == {8}
    assert {strategy.draw(step, 27.0)[0].subnet.embed_dim for step in range(50)} == {8, 12, 16}


@pytest.mark.parametrize(("loss_tau", "accuracy_tau"), [(5, 10), (10, 5)])
def test_the_slower_series_decides(space, loss_tau, accuracy_tau):
    strategy = _auto(space, least=0.0, window=3)
    line = lambda e: _line(_curve(e, 2.0, 1.0, loss_tau), _curve(e, 0.0, 0.8, accuracy_tau))  # noqa: E731
    assert _run(strategy, line) == [27]


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
def test_without_an_accuracy_the_loss_decides(space, missing):
    strategy = _auto(space, least=0.0, window=3)
    assert _run(strategy, lambda e: _line(_curve(e, 2.0, 1.0, 10), missing)) == [27]


@pytest.mark.parametrize("line", [_line(), _line(float("nan"), float("nan")), {}, {"accuracy": None, "probes": None}])
def test_with_nothing_to_judge_stages_are_equal(space, line):
    strategy = _auto(space, stages=3, epochs=90)
    assert _run(strategy, lambda e: line, last=90) == [30, 60]
    assert strategy.reasons == ["unmeasured", "unmeasured"]


def test_the_lower_bound(space):
    strategy = _auto(space, least=0.7, window=3)
    assert _run(strategy, lambda e: _line(1.0, 0.5)) == [35]


def test_the_upper_bound(space):
    strategy = _auto(space, most=1.3, window=3)
    assert _run(strategy, lambda e: _line(10 - 0.05 * e, 0.005 * e)) == [65]
    assert strategy.reasons == ["bound"]


def test_a_falling_learning_rate_is_no_convergence(space):
    """Progress in proportion to the learning rate never converges, however small it gets; at a steady rate it would have."""

    def rate(epoch):
        return 0.5 * (1 + math.cos(math.pi * epoch / 100))

    def line(shown):
        places = np.cumsum([rate(e) for e in range(1, 101)])
        return lambda e: _line(3.0 - 0.02 * places[e - 1], 0.01 * places[e - 1], shown(e))

    falling, steady = (_auto(space, most=2.0, least=0.01, window=3) for _ in range(2))
    assert _run(falling, line(rate), last=98) == []
    assert 75 < _run(steady, line(lambda e: 1.0), last=98)[0] < 90


def test_epochs_of_the_warm_up_are_not_judged(space):
    """The jump at the end of a warm-up would make everything after it look converged."""

    def line(epoch):
        jump = 1.0 if epoch > 5 else 0.0
        return _line(5.0 - jump - 0.01 * epoch, 0.5 * jump + 0.001 * epoch)

    assert _run(_auto(space, least=0.1, most=1.5, window=3), line) == [8]
    assert _run(_auto(space, least=0.1, most=1.5, window=3, warmup=5.0), line) == [75]


def test_each_stage_is_judged_by_its_own_best(space):
    """The second stage learns fifty times slower than the first; it is left when its own gain has fallen, not at once."""

    def line(epoch):
        if epoch <= 27:
            return _line(_curve(epoch, 2.0, 1.0, 10), _curve(epoch, 0.0, 0.8, 10))
        return _line(_curve(epoch - 27, 1.02, 1.0, 5), _curve(epoch - 27, 0.80, 0.816, 5))

    strategy = _auto(space, stages=3, least=0.0, window=3)
    # 5 ln 10 = 11.5 epochs after the third one of the second stage.
    assert _run(strategy, line) == [27, 27 + 3 + 12]
    assert strategy.reasons == ["converged", "converged"]


def test_probes_of_the_open_subspace_count_and_those_of_later_ones_do_not(space):
    """The open subspace's largest subnet still learns when the smallest has stopped; what isn't open yet can't hold it up."""

    def line(epoch):
        return _line(1.0, 0.5, A1_largest=_curve(epoch, 0.0, 0.8, 10), A2_largest=0.01 * epoch)

    assert _run(_auto(space, stages=3, least=0.0, window=3), line, last=33) == [27]


def test_a_subspace_without_probes_of_its_own_is_judged_by_the_smallest_subnet(space):
    assert _run(_auto(space, least=0.0, window=3), lambda e: _line(1.0, _curve(e, 0.0, 0.8, 10))) == [27]


def test_accuracies_that_are_measured_now_and_then_count_until_the_next(space):
    """Loss converges at once, accuracy is measured every fifth epoch: its verdict holds in between, and three make a line."""
    strategy = make_strategy(
        Recipe(epochs=100, transitions="auto", lr=1.0, warmup_epochs=0, probe_epochs=5, method_options={"least": 0.0, "window": 8}),
        space,
    )

    def line(epoch):
        return _line(1.0, _curve(epoch, 0.0, 0.8, 10), A1_largest=0.3) if epoch % 5 == 0 else {"loss": 1.0, "lr": 1.0}

    # The loss alone ends the stage when its window is full, where no accuracy is to be expected.
    assert _run(_auto(space, least=0.0, window=8), lambda e: {"loss": 1.0, "lr": 1.0}) == [8]
    # Lines through three measurements, the first at epoch 15: 10 ln 10 = 23.03 epochs later, at the next measurement.
    assert _run(strategy, line) == [40]


def test_accuracies_are_not_waited_for_beyond_an_equal_share(space):
    strategy = make_strategy(
        Recipe(epochs=100, transitions="auto", lr=1.0, warmup_epochs=0, probe_epochs=20, method_options={"least": 0.0}), space
    )
    assert _run(strategy, lambda e: _line(1.0, 0.01 * e) if e % 20 == 0 else {"loss": 1.0, "lr": 1.0}) == [50]
    assert strategy.reasons == ["converged"]


def test_the_window_grows_with_the_training(space):
    assert [_auto(space, epochs=epochs).window for epochs in (10, 60, 100, 500)] == [3, 3, 5, 25]
    assert _auto(space, epochs=500, window=7).window == 7


def test_slopes_are_those_of_least_squares(space):
    rng = np.random.default_rng(0)
    losses, rates = rng.random(6), 0.1 + rng.random(6)
    strategy = _auto(space, window=4, least=1.0)
    for epoch, (loss, rate) in enumerate(zip(losses, rates, strict=True), 1):
        strategy.after_epoch(epoch, _line(float(loss), lr=float(rate)))
    place = np.cumsum(rates)
    expected = [-np.polyfit(place[i : i + 4], losses[i : i + 4], 1)[0] for i in range(3)]
    np.testing.assert_allclose(strategy.gains()["loss"], expected)


@settings(max_examples=60, deadline=None)
@given(
    epochs=st.integers(3, 60),
    stages=st.integers(1, 3),
    least=st.floats(0.0, 1.0),
    most=st.floats(1.0, 5.0),
    seed=st.integers(0, 1000),
)
def test_every_stage_keeps_its_bounds_whatever_is_measured(epochs, stages, least, most, seed):
    from .conftest import SPACE

    rng = np.random.default_rng(seed)
    strategy = _auto(SPACE, epochs=epochs, stages=stages, least=least, most=most)
    for epoch in range(1, epochs + 1):
        strategy.after_epoch(epoch, _line(float(rng.random()), float(rng.random())))
    ends = [0, *strategy.transitions, epochs]
    lengths = np.diff(ends)
    assert len(lengths) == stages
    assert (lengths >= 1).all()
    equal = epochs / stages
    assert (lengths[:-1] <= max(1, most * equal + 1e-6)).all()
    # Whole epochs: a stage is short of its least by less than one.
    assert (lengths > least * equal - 1).all()


def test_a_resumed_training_chooses_the_same(space):
    def line(epoch):
        return _line(_curve(epoch, 2.0, 1.0, 10), _curve(epoch, 0.0, 0.8, 10), 1.0 - epoch / 200, A1_largest=0.9 - 1 / epoch)

    whole = _auto(space, stages=3)
    _run(whole, line)
    for cut in (1, 20, whole.transitions[0], 40, 70):
        first, second = _auto(space, stages=3), _auto(space, stages=3)
        _run(first, line, last=cut)
        second.load_state(json.loads(json.dumps(first.state(), allow_nan=False)))
        second.after_epoch(cut, line(cut))  # again, which must change nothing
        assert second.state() == first.state()
        _run(second, line, first=cut + 1)
        assert second.transitions == whole.transitions
        assert second.reasons == whole.reasons


def test_one_stage_has_no_transition(space):
    strategy = _auto(space, stages=1)
    assert _run(strategy, lambda e: _line(1.0, 0.5)) == []


def test_more_stages_than_epochs(space):
    with pytest.raises(ConfigError, match="needs at least one epoch per stage; there are 3 stages and epochs is 2"):
        _auto(space, epochs=2, stages=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, "share is 1.5"),
        ({"least": -0.1}, "least is -0.1"),
        ({"most": 0.5}, "most is 0.5; it must be a number from 1 to 100"),
        ({"window": 1}, "window is 1; it must be 2"),
        ({"window": -1}, "window is -1"),
    ],
)
def test_wrong_options(space, options, message):
    with pytest.raises(ConfigError, match=f"method_options: {message}"):
        _auto(space, **options)
