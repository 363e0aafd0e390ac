from __future__ import annotations

import dataclasses
import platform
from importlib import metadata

import pytest

from growtas.batch import SubnetBatch
from growtas.latency.at_hand import cpu_name
from growtas.latency.catalogue import measured_profiles
from growtas.latency.measured.campaign import Setup, UnsteadyMachine
from growtas.latency.measured.machine import check_profile, local_setup, recorded_ms, time_together, why_not_here
from growtas.latency.measured.paired import Block
from growtas.space import PRESETS
from tests.unit.latency.measured.test_profile import MICRO, SETUP, build
from tests.unit.latency.measured.test_sampling_plan import synthetic_ms


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    made = build(tmp_path_factory.mktemp("p"), "cpu", noise=0.0)
    return dataclasses.replace(made, description="A box")


class Machine:
    """As the profile's, but every turn is multiplied by a factor, and by another for the largest and the smallest."""

    def __init__(self, *factors, smallest=1.0, largest=1.0, restless=0.0):
        self.factors, self.turns = list(factors), []
        self.odd = {MICRO.smallest: smallest, MICRO.largest: largest}
        self.restless = restless

    def __call__(self, subnets):
        factor = self.factors[min(len(self.turns), len(self.factors) - 1)]
        self.turns.append(list(subnets))
        times = synthetic_ms(MICRO, SubnetBatch.from_subnets(list(subnets)))
        return [
            [Block.of_runs([ms * factor * self.odd.get(subnet, 1.0) * (1 + self.restless * i)]) for i in range(5)]
            for subnet, ms in zip(subnets, times, strict=True)
        ]


def test_the_machine_itself():
    here = local_setup(batch=3)
    assert here.machine == cpu_name() != ""
    assert (here.batch, here.precision, here.runtime_version) == (3, "fp32", metadata.version("onnxruntime"))
    assert here.threads >= 1
    if platform.system() == "Linux":
        assert local_setup(runtime="no-such-package").runtime_version == ""


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"machine": "Another"}, "measured on A box, but this machine has Another"),
        ({"threads": 4}, "with 2 threads, not 4"),
        ({"runtime_version": "1.1"}, "in onnxruntime 1.0, not onnxruntime 1.1"),
        ({"runtime": "openvino"}, "not openvino 1.0"),
    ],
)
def test_a_profile_is_of_the_machine_that_calls_itself_the_same(profile, change, why):
    here: Setup = dataclasses.replace(SETUP, machine="A box")
    said = why_not_here(profile, dataclasses.replace(here, **change))
    assert why in said
    assert bool(said) == bool(change)


def test_a_reference_that_takes_as_long_as_recorded_is_all_that_is_timed(profile):
    for factor in (0.97, 1.0, 1.035):
        machine = Machine(factor)
        check = check_profile(profile, machine)
        assert (check.factor, check.message, machine.turns) == (1.0, "", [[MICRO.middle()]])
        assert check.reference_ms == pytest.approx(recorded_ms(profile) * factor)


def test_a_common_factor_scales_the_profile(profile):
    machine = Machine(1.3)
    check = check_profile(profile, machine)
    assert check.factor == pytest.approx(1.3)
    assert "takes 1.30 times as long as in the profile" in check.message
    assert {MICRO.smallest, MICRO.largest, MICRO.middle()} == set(machine.turns[1])
    assert check_profile(profile, Machine(0.8)).factor == pytest.approx(0.8)


@pytest.mark.parametrize("odd", [{"smallest": 1.2}, {"largest": 0.9}])
def test_factors_that_differ_are_another_machine(profile, odd):
    check = check_profile(profile, Machine(1.3, **odd))
    assert check.factor is None
    assert "its fastest subnet" in check.message


@pytest.mark.parametrize("factor", [2.1, 0.4])
def test_a_factor_that_is_too_large_is_not_believed(profile, factor):
    assert check_profile(profile, Machine(factor)).factor is None


def test_a_busy_moment_that_has_gone_is_forgotten(profile):
    assert check_profile(profile, Machine(1.2, 1.01)).factor == 1.0


def test_restless_timings_are_waited_for_and_then_refused(pauses):
    machine = Machine(1.0, restless=0.2)
    with pytest.raises(UnsteadyMachine, match="4 times; earlier results are kept"):
        time_together([MICRO.middle()], machine, 2, strict=True)
    assert pauses == [2.0, 4.0, 6.0]
    assert len(machine.turns) == 4


def test_what_ships_was_measured_on_two_machines_and_tells_its_reference():
    shipped = [profile for _, profile in measured_profiles("cpu")]
    assert {profile.space.name for profile in shipped} == {"micro", "autoformer-t"}
    assert {profile.space for profile in shipped} == {PRESETS["micro"], PRESETS["autoformer-t"]}
    for profile in shipped:
        assert profile.description in ("AMD EPYC", "Intel(R) Xeon(R) Processor")
        assert (profile.threads, profile.batch) == (2, 1)
        references = [sample.reference_ms for _, sample in profile.samples]
        assert min(references) <= recorded_ms(profile) <= max(references)
        assert max(references) / min(references) < 1.04
