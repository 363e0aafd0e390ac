from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from growtas.errors import ConfigError, OutputError
from growtas.latency.measured.campaign import Bounds, Campaign, Setup, UnsteadyMachine, spread
from growtas.latency.measured.paired import Block
from growtas.progress import SILENT
from growtas.sampling import sample_batch
from growtas.space import PRESETS
from tests.progress_recorder import Recorder

MICRO = PRESETS["micro"]
SETUP = Setup(batch=1, threads=2, runtime="toy", runtime_version="1.0", precision="fp32", machine="m")
BOUNDS = Bounds(group=4, tries=3, strict=True)
SUBNETS = list(dict.fromkeys(sample_batch(MICRO, 10, np.random.default_rng(0))))


def true_ms(subnet):
    return subnet.depth * subnet.embed_dim / 100


class Machine:
    """Takes ``true_ms``; ``speeds`` are factors of the calls to come, ``noisy`` says whose blocks scatter in which call."""

    def __init__(self, speeds=(), noisy=()):
        self.calls, self.speeds, self.noisy = [], list(speeds), dict(noisy)

    def __call__(self, subnets):
        call = len(self.calls)
        self.calls.append(list(subnets))
        factor = self.speeds[call] if call < len(self.speeds) else 1.0
        scatter = np.array([1.0, 1.3, 0.8, 1.2, 0.7])
        rows = [true_ms(s) * factor * (scatter if s in self.noisy.get(call, ()) else np.ones(5)) for s in subnets]
        return [[Block.of_runs([ms]) for ms in row] for row in rows]


def _campaign(tmp_path, machine, bounds=BOUNDS, setup=SETUP, space=MICRO, progress=SILENT):
    return Campaign(tmp_path / "j.jsonl", space, setup, machine, bounds=bounds, progress=progress)


def test_every_group_has_the_reference_and_no_subnet_is_measured_twice(tmp_path):
    machine, progress = Machine(), Recorder()
    samples = _campaign(tmp_path, machine, progress=progress).measure([*SUBNETS, SUBNETS[0]])
    assert [s.subnet for s in samples] == SUBNETS
    assert [s.p50_ms for s in samples] == [true_ms(s) for s in SUBNETS]
    assert [len(call) for call in machine.calls] == [5, 5, len(SUBNETS) - 8 + 1]
    assert all(call[-1] == MICRO.middle() for call in machine.calls)
    assert (progress.done, progress.events) == (len(SUBNETS), samples)


def test_goes_on_from_the_journal_also_after_a_torn_line(tmp_path):
    machine = Machine()
    machine_that_dies = Machine()

    def dies(subnets):
        if len(machine_that_dies.calls) == 1:
            raise KeyboardInterrupt
        return machine_that_dies(subnets)

    with pytest.raises(KeyboardInterrupt):
        Campaign(tmp_path / "j.jsonl", MICRO, SETUP, dies, bounds=BOUNDS).measure(SUBNETS)
    with (tmp_path / "j.jsonl").open("a") as file:
        file.write('{"setup": {"ba')
    campaign = _campaign(tmp_path, machine)
    assert campaign.known(SUBNETS[0]).p50_ms == true_ms(SUBNETS[0])
    assert [s.subnet for s in campaign.measure(SUBNETS)] == SUBNETS
    assert [s for call in machine.calls for s in call[:-1]] == SUBNETS[4:]
    again = Machine()
    assert len(_campaign(tmp_path, again).measure(SUBNETS)) == len(SUBNETS)
    assert again.calls == []


@pytest.mark.parametrize("change", [{"batch": 2}, {"threads": 1}, {"precision": "fp16"}, {"machine": "other"}])
def test_other_setups_and_other_geometries_share_nothing(tmp_path, change):
    _campaign(tmp_path, Machine()).measure(SUBNETS[:2])
    assert _campaign(tmp_path, Machine(), setup=dataclasses.replace(SETUP, **change)).known(SUBNETS[0]) is None
    assert _campaign(tmp_path, Machine(), space=MICRO.replace(num_classes=11)).known(SUBNETS[0]) is None


def test_only_what_scatters_is_measured_again(tmp_path, pauses):
    machine = Machine(noisy={0: (SUBNETS[1],)})
    campaign = _campaign(tmp_path, machine)
    samples = campaign.measure(SUBNETS[:4])
    assert [call[:-1] for call in machine.calls] == [SUBNETS[:4], [SUBNETS[1]]]
    assert [s.p50_ms for s in samples] == [true_ms(s) for s in SUBNETS[:4]]
    assert (campaign.remeasured, pauses) == (1, [2.0])


def test_a_drifting_reference_spoils_its_whole_group_which_is_measured_again(tmp_path):
    machine = Machine(speeds=[1.0, 1.06])
    samples = _campaign(tmp_path, machine).measure(SUBNETS[:8])
    assert [call[:-1] for call in machine.calls] == [SUBNETS[:4], SUBNETS[4:8], SUBNETS[4:8]]
    assert [s.p50_ms for s in samples] == [true_ms(s) for s in SUBNETS[:8]]


def test_drift_within_the_bound_is_kept(tmp_path):
    machine = Machine(speeds=[1.0, 1.03])
    samples = _campaign(tmp_path, machine).measure(SUBNETS[:8])
    assert len(machine.calls) == 2
    assert samples[-1].p50_ms == pytest.approx(1.03 * true_ms(SUBNETS[7]))
    assert samples[-1].reference_ms == pytest.approx(1.03 * true_ms(MICRO.middle()))


def test_a_machine_that_stays_slow_stops_the_campaign_with_what_is_good_kept(tmp_path):
    machine = Machine(speeds=[1.0, 1.5, 1.5, 1.5])
    with pytest.raises(
        UnsteadyMachine, match=r"reference subnet's latency changed by \+50.0% .* 3 times; the 4 good samples"
    ) as caught:
        _campaign(tmp_path, machine).measure(SUBNETS[:8])
    assert caught.value.exit_code == 1
    assert len(machine.calls) == 4
    again = Machine()
    assert len(_campaign(tmp_path, again).measure(SUBNETS[:8])) == 8
    assert [s for call in again.calls for s in call[:-1]] == SUBNETS[4:8]


def test_a_noisy_reference_spoils_its_group_from_the_first_on(tmp_path):
    machine = Machine(noisy={call: (MICRO.middle(),) for call in range(9)})
    with pytest.raises(UnsteadyMachine, match="reference subnet's timings vary"):
        _campaign(tmp_path, machine).measure(SUBNETS[:1])
    assert (tmp_path / "j.jsonl").exists() is False


def test_a_repetition_is_another_sample(tmp_path):
    machine = Machine(speeds=[1.0, 1.02])
    campaign = _campaign(tmp_path, machine)
    first, second = campaign.measure(SUBNETS[:2]), campaign.measure(SUBNETS[:2], visit=1)
    assert [b.p50_ms / a.p50_ms for a, b in zip(first, second, strict=True)] == pytest.approx([1.02, 1.02])
    assert _campaign(tmp_path, Machine()).known(SUBNETS[0], 1).p50_ms == second[0].p50_ms


def test_the_spread_is_the_deviation_of_normal_noise_and_blind_to_one_spoiled_block():
    blocks = np.random.default_rng(0).normal(10, 0.3, 20_000)
    assert spread(blocks) == pytest.approx(0.03, rel=0.05)
    assert spread([10, 10, 10, 90, 10]) == 0


@pytest.mark.parametrize(("field", "value"), [("cv", 0), ("drift", 1.5), ("tries", 0), ("group", 0)])
def test_wrong_bounds_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"{field} is {value}"):
        Bounds(**{field: value})


def test_a_journal_that_cannot_be_written_is_named(tmp_path):
    campaign = _campaign(tmp_path, Machine())
    (tmp_path / "j.jsonl").mkdir()
    with pytest.raises(OutputError, match="j.jsonl"):
        campaign.measure(SUBNETS[:1])


def test_a_graph_is_part_of_what_a_timing_depends_on_where_it_is_known():
    assert "graph" not in SETUP.to_dict()
    first, second = (dataclasses.replace(SETUP, graph=graph).to_dict() for graph in ("a", "b"))
    assert first["kind"] == "measured"
    assert {name for name in first if first[name] != second[name]} == {"graph"}
