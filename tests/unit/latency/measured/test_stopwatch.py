from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growtas.costs import count_costs
from growtas.errors import OutputError
from growtas.latency.measured.campaign import Bounds, Campaign, Sample, Setup, UnsteadyMachine
from growtas.latency.measured.machine import Timed
from growtas.latency.measured.paired import Block
from growtas.latency.measured.stopwatch import LEAST_MARGIN, LocalStopwatch, combine_visits, set_aside
from growtas.space import PRESETS
from tests.progress_recorder import Recorder

MICRO = PRESETS["micro"]
SETUP = Setup(batch=1, threads=2, runtime="toy", runtime_version="1.0", precision="fp32", machine="m", graph="g")


class Machine:
    """Times subnets in proportion to MACs; ``speeds`` are what each turn is multiplied by, the last one for ever."""

    def __init__(self, *speeds):
        self.speeds, self.turns = list(speeds) or [1.0], []

    def ms(self, subnet):
        return count_costs(MICRO, subnet).macs / 1e6

    def __call__(self, subnets):
        speed = self.speeds[min(len(self.turns), len(self.speeds) - 1)]
        self.turns.append(list(subnets))
        return [[Block.of_runs([self.ms(subnet) * speed])] * 5 for subnet in subnets]


def stopwatch(tmp_path, machine, repeatability=0.0, **more):
    return LocalStopwatch(Campaign(tmp_path / "t.jsonl", MICRO, SETUP, machine, **more), repeatability=repeatability)


def sample(ms, cv=0.0, reference_ms=1.0, visit=0):
    return Sample(subnet=MICRO.smallest, p50_ms=ms, cv=cv, reference_ms=reference_ms, visit=visit)


@pytest.mark.parametrize(
    ("samples", "usual", "repeat", "ms", "margin"),
    [
        ([sample(1.0), sample(1.0)], 1.0, 0.0, 1.0, 0.02),
        ([sample(1.0), sample(1.1)], 1.0, 0.0, 1.05, 0.1),
        ([sample(1.1), sample(1.0)], 1.0, 0.0, 1.05, 0.1),
        ([sample(1.0, cv=0.03), sample(1.0)], 1.0, 0.0, 1.0, 0.06),
        ([sample(1.0), sample(1.0)], 1.0, 0.04, 1.0, 0.06),
        # The machine was a tenth faster than usual: it may be as slow as usual when it is measured again.
        ([sample(2.0, reference_ms=1.0)] * 2, 1.1, 0.0, 2.0, 0.12),
        ([sample(2.0, reference_ms=1.2)] * 2, 1.1, 0.0, 2.0, 0.02),
        ([sample(2.0, reference_ms=1.2)] * 2, None, 0.0, 2.0, 0.02),
    ],
)
def test_margins_counted_by_hand(samples, usual, repeat, ms, margin):
    found = combine_visits(samples, reference_ms=usual, repeatability=repeat)
    assert (found.ms, found.margin) == (pytest.approx(ms), pytest.approx(margin))
    assert found.upper_ms == pytest.approx(ms * (1 + margin))


@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=2), st.floats(0, 0.05), st.floats(0.9, 1.1))
def test_the_upper_value_holds_every_visit_at_the_usual_speed(values, cv, reference_ms):
    found = combine_visits([sample(ms, cv, reference_ms) for ms in values], reference_ms=1.0, repeatability=0.01)
    # Both visits at the same speed, brought to the usual one where that is slower.
    assert found.upper_ms >= max(values) * (1 - 1e-9)
    assert found.upper_ms >= sum(values) / 2 / reference_ms * (1 - 1e-9)
    assert found.margin >= LEAST_MARGIN


def test_a_subnet_is_judged_on_two_visits_beside_the_reference_and_measured_once(tmp_path):
    machine = Machine()
    watch = stopwatch(tmp_path, machine, usual_ms=machine.ms(MICRO.middle()))
    assert watch.known(MICRO.smallest) is None
    found = watch.measure(MICRO.smallest)
    assert machine.turns == [[MICRO.smallest, MICRO.middle()]] * 2
    assert (found.ms, found.margin) == (machine.ms(MICRO.smallest), LEAST_MARGIN)
    assert watch.measure(MICRO.smallest) == watch.known(MICRO.smallest) == found
    assert len(machine.turns) == 2
    again = stopwatch(tmp_path, Machine(), usual_ms=machine.ms(MICRO.middle()))
    assert again.measure(MICRO.smallest) == found
    assert str(watch.conditions) == "p50, batch 1, fp32, toy on cpu"


def test_one_visit_is_no_judgement(tmp_path):
    machine = Machine()
    watch = stopwatch(tmp_path, machine)
    values = [sample.p50_ms for sample in watch.campaign.measure([MICRO.largest, MICRO.smallest])]
    assert values == [machine.ms(MICRO.largest), machine.ms(MICRO.smallest)]
    assert watch.known(MICRO.largest) is None
    watch.measure(MICRO.largest)
    assert machine.turns[1:] == [[MICRO.largest, MICRO.middle()]]


def test_another_graph_s_timings_are_not_reused(tmp_path):
    stopwatch(tmp_path, Machine()).measure(MICRO.smallest)
    setup = dataclasses.replace(SETUP, graph="another")
    assert LocalStopwatch(Campaign(tmp_path / "t.jsonl", MICRO, setup, Machine())).known(MICRO.smallest) is None


def test_a_room_for_predictions_grows_with_the_distance_from_the_usual(tmp_path):
    watch = stopwatch(tmp_path, Machine(), usual_ms=2.0, repeatability=0.02)
    margins = [watch.expected_margin(Timed(ms=(ms,), unsteady=False)) for ms in (2.0, 2.04, 1.96)]
    assert margins == pytest.approx([0.03, 0.05, 0.05])
    # Of runs of two kinds a measurement is not going to know more than now.
    assert watch.expected_margin(Timed(ms=(2.04,), unsteady=True, mixture=0.2)) == pytest.approx(0.23)


def test_a_busy_moment_is_waited_for(tmp_path, pauses):
    # Every block of a turn is slowed alike: their variation shows nothing.
    machine, progress = Machine(1.0, 1.2, 1.2, 1.01), Recorder()
    usual = machine.ms(MICRO.middle())
    watch = stopwatch(tmp_path, machine, bounds=Bounds(strict=True), usual_ms=usual, progress=progress)
    found = watch.measure(MICRO.smallest)
    assert found.ms == pytest.approx(machine.ms(MICRO.smallest) * 1.005)
    assert found.margin == pytest.approx(LEAST_MARGIN)
    assert (len(machine.turns), len(progress.notes), pauses) == (4, 2, [2.0, 4.0])
    assert "latency changed by +20.0% (the limit is 4.0%)" in progress.notes[0]


@pytest.mark.parametrize("speed", [1.1, 0.9])
def test_a_machine_that_stays_another_is_refused_and_nothing_is_lost(tmp_path, speed, pauses):
    machine = Machine(1.0, 1.0, speed)
    usual = machine.ms(MICRO.middle())
    watch = stopwatch(tmp_path, machine, bounds=Bounds(tries=3, strict=True), usual_ms=usual)
    known = watch.measure(MICRO.smallest)
    with pytest.raises(UnsteadyMachine, match="too busy.*3 times; the . good sample"):
        watch.measure(MICRO.largest)
    assert watch.known(MICRO.smallest) == known
    assert len(machine.turns) == 5


def test_a_journal_of_another_speed_is_set_aside(tmp_path):
    path = tmp_path / "t.jsonl"
    assert set_aside(path, SETUP, 1.0, 0.04) is None
    machine = Machine()
    usual = machine.ms(MICRO.middle())
    stopwatch(tmp_path, machine).measure(MICRO.smallest)
    kept = path.read_text()
    assert set_aside(path, SETUP, usual * 1.03, 0.04) == pytest.approx(usual)
    assert set_aside(path, dataclasses.replace(SETUP, threads=1), usual * 3, 0.04) is None
    assert path.exists()
    assert set_aside(path, SETUP, usual * 1.05, 0.04) is None
    assert not path.exists()
    assert (tmp_path / "t.old.jsonl").read_text() == kept


def test_lines_are_whole_and_a_torn_one_is_measured_again(tmp_path):
    watch = stopwatch(tmp_path, Machine())
    watch.measure(MICRO.smallest)
    path = watch.campaign.path
    assert [json.loads(line)["visit"] for line in path.read_text().splitlines()] == [0, 1]
    path.write_bytes(path.read_bytes()[:-30])
    machine = Machine()
    stopwatch(tmp_path, machine).measure(MICRO.smallest)
    assert len(machine.turns) == 1


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "t.jsonl").mkdir()
    with pytest.raises((OutputError, OSError)):
        stopwatch(tmp_path, Machine()).measure(MICRO.smallest)
