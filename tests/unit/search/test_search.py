from __future__ import annotations

import numpy as np
import pytest

from growtas.batch import SubnetBatch
from growtas.costs import count_costs
from growtas.errors import LimitError
from growtas.latency.measured.campaign import Campaign, Setup
from growtas.latency.measured.fit import fit_latency
from growtas.latency.measured.paired import Block
from growtas.latency.measured.sampling_plan import choose_subnets
from growtas.latency.measured.stopwatch import LEAST_MARGIN, LocalStopwatch
from growtas.latency.modelled.profile import load_profile
from growtas.latency.modelled.roofline import RooflineLatency
from growtas.search.evolution import EvolutionConfig
from growtas.search.finalists import MAX_FINALISTS
from growtas.search.journal import Evaluation, Journal
from growtas.search.limits import Limits
from growtas.search.scoring import Scorer
from growtas.search.search import Search
from growtas.search.targets import Target
from growtas.space import PRESETS
from growtas.subnet import Subnet

MICRO = PRESETS["micro"]
CONFIG = EvolutionConfig(generations=4, population=10)
SETUP = Setup(batch=1, threads=1, runtime="toy", runtime_version="1", precision="fp32", machine="m")


class Killed(Exception):
    pass


class Evaluator:
    """Larger is better; may be killed after some evaluations."""

    def __init__(self, die_after=None):
        self.seen, self.die_after = [], die_after

    def __call__(self, subnets):
        for subnet in subnets:
            if len(self.seen) == self.die_after:
                raise Killed
            self.seen.append(subnet)
            yield subnet, Evaluation(count_costs(MICRO, subnet).macs / 2e7, 1.0)


class Machine:
    """Times subnets: proportional to MACs, but half as much again for an odd number of heads in the first block."""

    def __init__(self, surprise=1.5):
        self.timed, self.surprise = [], surprise

    def ms(self, subnet):
        return count_costs(MICRO, subnet).macs / 1e6 * (self.surprise if subnet.num_heads[0] == 3 else 1.0)

    def __call__(self, subnets):
        *subnets_, reference = subnets
        assert reference == MICRO.middle()
        self.timed += [subnet for subnet in subnets_ if subnet not in self.timed]
        return [[Block.of_runs([ms])] * 5 for ms in [*(self.ms(subnet) for subnet in subnets_), 1.0]]


def _run(tmp_path, evaluate, limits=None, *targets, seed=0, **more):
    scorer = Scorer(MICRO, evaluate, Journal(tmp_path / "journal.jsonl", "c", "d", {}))
    outcome = Search(space=MICRO, limits=limits or Limits(), targets=targets, **more).run(scorer, CONFIG, seed)
    return outcome.chosen, outcome.result, scorer


@pytest.mark.parametrize("more", [{}, {"front": ("accuracy", "params"), "predictor": True}], ids=("accuracy", "predicted front"))
def test_a_killed_search_goes_on_and_evaluates_nothing_twice(tmp_path, more):
    undisturbed, everything, _ = _run(tmp_path / "a", Evaluator(), **more)
    first, second, third = Evaluator(die_after=17), Evaluator(), Evaluator()
    with pytest.raises(Killed):
        _run(tmp_path / "b", first, **more)
    found, same, scorer = _run(tmp_path / "b", second, **more)
    assert (found, same) == (undisturbed, everything)
    assert (len(first.seen), len(second.seen)) == (17, 23)
    assert len(set(first.seen) | set(second.seen)) == 40
    assert (scorer.evaluated, scorer.reused) == (23, 17)
    found, _, _ = _run(tmp_path / "b", third, **more)
    assert (found, third.seen) == (undisturbed, [])


def test_other_limits_reuse_what_is_known(tmp_path):
    _run(tmp_path, Evaluator())
    again = Evaluator()
    _run(tmp_path, again, Limits(max_params=10**9))
    assert again.seen == []


def test_equal_accuracy_is_decided_by_the_loss_then_by_params(tmp_path):
    small, large = MICRO.smallest, MICRO.largest
    journal = Journal(tmp_path / "j", "c", "d", {})
    scorer = Scorer(MICRO, lambda subnets: ((s, Evaluation(0.5, 1.0)) for s in subnets), journal)
    assert scorer([small])[0] > scorer([large])[0]
    for subnet, loss in ((small, 2.0), (large, 1.0)):
        journal.record(subnet, Evaluation(0.5, loss))
    assert scorer([small])[0] < scorer([large])[0]


def test_a_modelled_latency_limits_and_stays_modelled(tmp_path):
    latency = RooflineLatency(profile=load_profile("a10"), space=MICRO)
    smallest, largest = latency.predict_ms(SubnetBatch.from_subnets([MICRO.smallest, MICRO.largest]))
    limit = float((smallest + largest) / 2)
    evaluate = Evaluator()
    found, _, _ = _run(tmp_path, evaluate, None, Target(device="a10", max_ms=limit, estimator=latency))
    assert (latency.predict_ms(SubnetBatch.from_subnets(evaluate.seen)) <= limit).all()
    data = found.to_dict()["latency"]
    assert (data["kind"], data["device"], data["percentile"], data["batch"]) == ("modelled", "a10", "p50", 1)
    assert (data["precision"], data["runtime"], data["relative_uncertainty"]) == ("fp16", "tensorrt", 0.5)
    assert data["interval_ms"] == pytest.approx([data["ms"] / 2, data["ms"] * 1.5])
    assert "(modelled)" in str(found.latency)


def _measured(tmp_path, machine, limit, **more):
    watch = LocalStopwatch(Campaign(tmp_path / "timings.jsonl", MICRO, SETUP, machine))
    subnets = choose_subnets(MICRO, Limits().feasible(MICRO), 10, basis="coarse")
    values = [sample.p50_ms for sample in watch.campaign.measure(subnets)]
    model = fit_latency(MICRO, subnets, values, watch.conditions)
    fitted_to = dict(zip(subnets, values, strict=True))
    target = Target(device="cpu", max_ms=limit, estimator=model, stopwatch=watch, fitted_to=fitted_to)
    return _run(tmp_path, Evaluator(), None, target, **more)


def test_the_chosen_subnet_was_measured_and_truly_meets_the_limit(tmp_path):
    for seed in range(4):
        machine = Machine()
        found, result, _ = _measured(tmp_path / str(seed), machine, 7.0, seed=seed)
        data = found.to_dict()["latency"]
        assert (data["kind"], data["device"], data["ms"]) == ("measured", "cpu", machine.ms(found.subnet))
        # With the margin of its measurement it is within the limit still.
        assert data["relative_uncertainty"] == LEAST_MARGIN
        assert machine.ms(found.subnet) * (1 + LEAST_MARGIN) <= 7.0
        assert found.latencies[0].to_dict()["judged"] == {"ms": pytest.approx(1.02 * data["ms"]), "kind": "measured"}
        *missed, last = found.finalists
        assert (last.subnet, last.meets) == (found.subnet, True)
        assert all(finalist.latencies[0].measured.ms * 1.02 > 7.0 and not finalist.meets for finalist in missed)
        # Nothing that was measured to meet the limit was better.
        better = [s for s, score in result.ranked if score[0] > found.evaluation.accuracy]
        assert not [s for s in better if s in machine.timed and machine.ms(s) * 1.02 <= 7.0]


def test_a_predictor_chooses_for_fronts_and_measured_limits_only(tmp_path):
    latency = RooflineLatency(profile=load_profile("a10"), space=MICRO)
    modelled = Target(device="a10", max_ms=5.0, estimator=latency)
    for name, targets, limit, front, chooses in (
        ("counted", (), 150_000, (), False),
        ("modelled", (modelled,), None, (), False),
        ("front", (modelled,), None, ("accuracy", "latency"), True),
    ):
        without, chosen = (
            _run(tmp_path / name / str(on), Evaluator(), Limits(max_params=limit), *targets, front=front, predictor=on)[1]
            for on in (False, True)
        )
        assert (without.ranked != chosen.ranked) is chooses, name
    without, chosen = (_measured(tmp_path / str(on), Machine(), 7.0, predictor=on) for on in (False, True))
    assert without[1].ranked != chosen[1].ranked
    assert chosen[0].finalists[-1].meets
    # The limit is all that keeps the accuracy of this evaluator from growing.
    assert chosen[0].evaluation.accuracy > 0.99 * without[0].evaluation.accuracy


def test_measuring_again_measures_nothing(tmp_path):
    found, _, _ = _measured(tmp_path, Machine(), 7.0)
    machine = Machine()
    again, _, scorer = _measured(tmp_path, machine, 7.0)
    assert (machine.timed, scorer.evaluated) == ([], 0)
    assert again == found


def test_when_all_finalists_miss_the_smallest_is_the_answer(tmp_path):
    class Liar(Machine):
        def ms(self, subnet):
            return super().ms(subnet) if subnet in self.sampled else 1000.0

    machine = Liar()
    machine.sampled = choose_subnets(MICRO, Limits().feasible(MICRO), 10, basis="coarse")
    limit = machine.ms(MICRO.smallest)
    found, _, _ = _measured(tmp_path, machine, limit * 1.2)
    assert found.subnet == MICRO.smallest
    assert found.latency.ms == limit
    assert len(found.finalists) <= MAX_FINALISTS + 1
    exact, _, _ = _measured(tmp_path / "exact", machine, limit * (1 + LEAST_MARGIN))
    assert exact.subnet == MICRO.smallest
    with pytest.raises(LimitError, match="the smallest has"):
        _measured(tmp_path / "within the margin", machine, limit * 1.01)


def test_without_a_limit_the_best_alone_is_measured(tmp_path):
    machine = Machine()
    watch = LocalStopwatch(Campaign(tmp_path / "timings.jsonl", MICRO, SETUP, machine))
    found, result, _ = _run(tmp_path, Evaluator(), None, Target(device="cpu", stopwatch=watch))
    assert machine.timed == [found.subnet] == [result.ranked[0][0]]
    assert found.latency.kind == "measured"


def test_a_found_subnet_reads_back(tmp_path):
    found, _, _ = _run(tmp_path, Evaluator())
    data = found.to_dict()
    assert Subnet.from_dict(data) == found.subnet
    assert (data["params"], data["macs"]) == (count_costs(MICRO, found.subnet).params, count_costs(MICRO, found.subnet).macs)
    assert data["latency"] is None


def test_everything_evaluated_meets_all_limits_at_once(tmp_path):
    latency = RooflineLatency(profile=load_profile("t4"), space=MICRO)
    limits, target = Limits(max_params=150_000, max_macs=9_000_000), Target(device="t4", max_ms=0.75, estimator=latency)
    for seed in range(3):
        evaluate = Evaluator()
        _run(tmp_path / str(seed), evaluate, limits, target, seed=seed)
        batch = SubnetBatch.from_subnets(evaluate.seen)
        assert (limits.feasible(MICRO)(batch) & (latency.predict_ms(batch) <= 0.75)).all()
        assert np.ptp(latency.predict_ms(batch)) > 0
