from __future__ import annotations

import itertools
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growtas.batch import SubnetBatch
from growtas.costs import count_costs, count_costs_batch
from growtas.errors import ConfigError, LimitError
from growtas.latency.measured.fit import FittedLatency
from growtas.latency.measured.stopwatch import MeasuredLatency
from growtas.latency.measured.terms import term_names
from growtas.latency.modelled.profile import load_profile
from growtas.latency.modelled.roofline import RooflineLatency
from growtas.sampling import sample_batch
from growtas.search.finalists import choose
from growtas.search.limits import Limits
from growtas.search.pareto import parse_axes
from growtas.search.scoring import Scorer
from growtas.search.search import Search
from growtas.search.targets import ROOM_LEVEL, Target, room
from growtas.space import PRESETS
from tests.unit.search.test_limits import TOY
from tests.unit.search.test_search import CONFIG, Evaluator, _run

MICRO = PRESETS["micro"]


def modelled(device, share):
    """A target whose limit lies between the smallest's and the largest's latency."""
    latency = RooflineLatency(profile=load_profile(device), space=MICRO)
    smallest, largest = latency.predict_ms(SubnetBatch.from_subnets([MICRO.smallest, MICRO.largest]))
    return Target(device=device, max_ms=float(smallest + share * (largest - smallest)), estimator=latency)


class Stopwatch:
    """A device at hand: a latency for each subnet by a function, and what was asked."""

    conditions = TOY

    def __init__(self, ms, margin=0.0):
        self.ms, self.margin, self.timed = ms, margin, {}

    def known(self, subnet):
        return self.timed.get(subnet)

    def measure(self, subnet, limit_ms=None):
        return self.timed.setdefault(subnet, MeasuredLatency(ms=self.ms(subnet), margin=self.margin))


@settings(max_examples=8, deadline=None)
@given(st.floats(0.1, 0.9), st.floats(0.1, 0.9))
def test_one_subnet_meets_every_device(tmp_path_factory, first, second):
    targets = (modelled("a10", first), modelled("orin", second))
    evaluate = Evaluator()
    found, result, _ = _run(tmp_path_factory.mktemp("t"), evaluate, Limits(max_params=150_000), *targets)
    batch = SubnetBatch.from_subnets(evaluate.seen)
    for target in targets:
        assert (target.estimator.predict_ms(batch) <= target.max_ms).all()
    assert [latency.device for latency in found.latencies] == ["a10", "orin"]
    assert all(latency.meets and latency.judged.kind == "modelled" for latency in found.latencies)
    assert found.subnet == result.ranked[0][0]
    assert found.to_dict()["latency"]["device"] == "a10"


def test_finalists_are_judged_on_what_was_measured_and_say_so():
    def slow(subnet):
        return 3.0 if subnet.depth > 4 else 1.0

    subnets = [MICRO.largest, MICRO.middle(), MICRO.smallest]
    ranked = [(subnet, (0.9 - 0.1 * i, 0.0, 0)) for i, subnet in enumerate(subnets)]
    watched = Target(device="toy", max_ms=2.0, estimator=modelled("a10", 1).estimator, stopwatch=Stopwatch(slow))
    remote = modelled("t4", 1.0)
    found = choose(MICRO, Limits(), (watched, remote), ranked, lambda subnets: [(0.7, 0.0, 0)] * len(subnets))
    assert found.subnet == MICRO.smallest
    assert [finalist.meets for finalist in found.finalists] == [False] * (len(found.finalists) - 1) + [True]
    first, second = found.latencies
    assert (first.judged.kind, first.judged.ms, first.predicted.kind) == ("measured", 1.0, "modelled")
    assert (second.judged.kind, second.measured) == ("modelled", None)
    assert [latency["judged_on"] for latency in found.to_dict()["latencies"]] == ["measured", "modelled"]


def test_the_second_device_s_measurement_counts_too():
    fine, slow = Stopwatch(lambda subnet: 1.0), Stopwatch(lambda subnet: 9.0 if subnet == MICRO.largest else 1.0)
    targets = tuple(Target(device=name, max_ms=2.0, stopwatch=watch) for name, watch in (("a", fine), ("b", slow)))
    ranked = [(MICRO.largest, (0.9, 0.0, 0)), (MICRO.middle(), (0.8, 0.0, 0))]
    found = choose(MICRO, Limits(), targets, ranked, lambda subnets: [])
    assert (found.subnet, len(found.finalists)) == (MICRO.middle(), 2)


def test_where_even_the_smallest_misses_as_measured_nothing_is_chosen():
    target = Target(device="toy", max_ms=2.0, stopwatch=Stopwatch(lambda subnet: 9.0))
    with pytest.raises(LimitError, match=r"measured latency .* the smallest has 9 ms"):
        choose(MICRO, Limits(), (target,), [(MICRO.smallest, (0.9, 0.0, 0))], lambda subnets: [(0.9, 0.0, 0)])


@pytest.mark.parametrize(("margin", "meets"), [(0.03, True), (0.06, False)])
def test_a_limit_is_judged_on_the_measurement_with_its_margin(margin, meets):
    watch = Stopwatch(lambda subnet: 1.9 if subnet == MICRO.largest else 1.0, margin)
    target = Target(device="toy", max_ms=2.0, stopwatch=watch)
    ranked = [(MICRO.largest, (0.9, 0.0, 0)), (MICRO.middle(), (0.8, 0.0, 0))]
    found = choose(MICRO, Limits(), (target,), ranked, lambda subnets: [])
    assert (found.subnet == MICRO.largest) == meets
    first = found.finalists[0].to_dict()["latencies"][0]
    assert first["judged"] == {"ms": pytest.approx(1.9 * (1 + margin)), "kind": "measured"}
    assert (first["measured"]["ms"], first["measured"]["relative_uncertainty"]) == (1.9, margin)
    assert first["measured"]["interval_ms"][1] == pytest.approx(1.9 * (1 + margin))


def test_a_bare_prediction_is_judged_without_a_margin():
    target = modelled("a10", 0.5)
    found = choose(MICRO, Limits(), (target,), [(MICRO.smallest, (0.9, 0.0, 0))], lambda subnets: [])
    judged = found.latencies[0].to_dict()["judged"]
    assert judged == {"ms": found.latencies[0].predicted.ms, "kind": "modelled"}
    assert Target(device="a10", estimator=target.estimator).latency(MICRO.largest, measure=False).to_dict()["judged"] is None


def fitted(residuals, factor=1.0):
    """Predicts MACs in millions, times a factor, with these residuals."""
    names = term_names(MICRO, "coarse")
    coefficients = np.array([1e-6 * factor if name == "macs" else 0.0 for name in names])
    return FittedLatency(MICRO, TOY, coefficients, relative_uncertainty=0.3, residuals=tuple(residuals))


@given(st.lists(st.floats(-0.2, 0.2), min_size=10, max_size=40))
def test_a_room_holds_the_share_of_measurements_that_it_promises(residuals):
    held = room(fitted(residuals))
    assert held >= 0
    assert np.mean(np.array(residuals) <= held) >= ROOM_LEVEL
    # Not more than needed: whatever is below the second next residual is too little.
    assert held == 0 or np.mean(np.array(residuals) < held) <= ROOM_LEVEL + 1 / len(residuals)


def test_without_residuals_the_room_is_the_uncertainty():
    assert room(fitted(())) == 0.3
    assert room(modelled("a10", 1).estimator) == 0.5


def test_predictions_leave_room_for_their_error_and_for_the_margin():
    draws = sample_batch(MICRO, 400, np.random.default_rng(0))
    macs = count_costs_batch(MICRO, draws)[1] / 1e6
    model, limit = fitted([0.05] * 20), float(np.median(macs))
    bare = Target(device="t4", max_ms=limit, estimator=model).feasible(MICRO)(draws)
    target = Target(device="toy", max_ms=limit, estimator=model, stopwatch=Stopwatch(None), margin=0.04)
    kept = target.feasible(MICRO)(draws)
    assert (bare == (macs <= limit)).all()
    assert (kept == (macs * 1.05 * 1.04 <= limit)).all()
    assert 0 < kept.sum() < bare.sum()
    # The smallest subnet was measured, whatever is predicted for it.
    tight = Target(device="toy", max_ms=1e-3, estimator=model, stopwatch=Stopwatch(None)).feasible(MICRO)
    assert tight(SubnetBatch.from_subnets([MICRO.smallest, MICRO.largest])).tolist() == [True, False]


def test_what_several_misses_have_in_common_is_asked_of_the_others():
    """A machine that takes a quarter longer than predicted: two misses are chance, three are a rule."""
    watch = Stopwatch(lambda subnet: 1.25 * count_costs(MICRO, subnet).macs / 1e6)
    missed = [MICRO.largest, MICRO.middle(), *sample_batch(MICRO, 1, np.random.default_rng(0))]
    for subnet in missed:
        watch.measure(subnet)
    draws = sample_batch(MICRO, 400, np.random.default_rng(1))
    macs = count_costs_batch(MICRO, draws)[1] / 1e6
    limit = float(np.median(macs))
    target = Target(device="toy", max_ms=limit, estimator=fitted([0.0] * 20), stopwatch=watch, margin=0.0)
    assert (target.meets(MICRO, list(draws), missed[:2]) == (macs <= limit)).all()
    assert (target.meets(MICRO, list(draws), missed) == (macs * 1.25 <= limit)).all()


def front_of(tmp_path, names, *targets, **limits):
    from growtas.search.journal import Journal

    evaluate = Evaluator()
    search = Search(space=MICRO, limits=Limits(**limits), targets=targets, front=names)
    outcome = search.run(Scorer(MICRO, evaluate, Journal(tmp_path / "j", "c", "d", {})), CONFIG, 0)
    return search, outcome, search.front_report(outcome.result), evaluate


def test_a_front_holds_what_nothing_evaluated_beats(tmp_path):
    target = modelled("a10", 0.8)
    _, outcome, report, evaluate = front_of(tmp_path, ("accuracy", "latency", "params"), target, max_params=200_000)
    points = {
        subnet: (
            -score[0],
            float(target.estimator.predict_ms(SubnetBatch.from_subnets([subnet]))[0]),
            count_costs(MICRO, subnet).params,
        )
        for subnet, score in outcome.result.ranked
    }
    beaten = {
        a for a, b in itertools.permutations(points, 2)
        if all(y <= x for x, y in zip(points[a], points[b], strict=True)) and points[a] != points[b]
    }  # fmt: skip
    from growtas.subnet import Subnet

    assert {Subnet.from_dict(row["subnet"]) for row in report["subnets"]} == set(points) - beaten
    assert outcome.chosen.subnet == outcome.result.ranked[0][0]
    assert outcome.chosen.subnet in {Subnet.from_dict(row["subnet"]) for row in report["subnets"]}
    assert 0 < report["hypervolume"] < 1
    assert [axis["name"] for axis in report["axes"]] == ["accuracy", "latency a10", "params"]
    assert report["axes"][1]["kind"] == "modelled"
    assert all(row["latencies"][0]["predicted"]["kind"] == "modelled" for row in report["subnets"])
    assert report["evaluated"] == len(evaluate.seen) == 40


def test_the_time_of_a_search_is_split(tmp_path):
    _, outcome, _, _ = front_of(tmp_path, ("accuracy", "params"))
    spent = asdict(outcome.spent)
    assert set(spent) == {"evaluation", "sampling", "measuring"}
    assert all(seconds >= 0 for seconds in spent.values())
    assert np.isfinite(sum(spent.values()))


def test_axes():
    assert parse_axes(None, True) == ("accuracy", "latency")
    assert parse_axes(None, False) == ("accuracy", "params")
    assert parse_axes("accuracy, macs,macs", False) == ("accuracy", "macs")
    for text, said in (
        ("accuracy", "at least one of"),
        ("params", "accuracy and"),
        ("accuracy,speed", "not an axis"),
        ("accuracy,latency", "--device"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse_axes(text, False)
