"""The search and the profile as functions."""

from __future__ import annotations

import json

import pytest

from growtas import api
from growtas.errors import DeviceError, UnitError
from growtas.runs import Run
from growtas.search.evolution import GenerationResult
from growtas.search.scoring import Evaluated
from tests.progress_recorder import Recorder
from tests.search_helpers import fake_ms

QUICK = {"generations": 2, "population": 4, "limit_images": 20}


def test_a_search_returns_what_it_writes_and_reports_each_subnet(run):
    progress = Recorder()
    result = api.search(Run(run), devices={"a10": "5ms", "t4": 8.0}, max_params="200K", progress=progress, **QUICK)
    assert result.to_dict() == json.loads(result.files["result"].read_text())
    assert json.loads(result.files["subnet"].read_text())["accuracy"] == result.accuracy
    assert [(latency.device, latency.max_ms, latency.judged.kind) for latency in result.latencies] == [
        ("a10", 5.0, "modelled"), ("t4", 8.0, "modelled"),
    ]  # fmt: skip
    evaluated = [event for event in progress.events if isinstance(event, Evaluated)]
    generations = [event for event in progress.events if isinstance(event, GenerationResult)]
    assert (len(evaluated), progress.done, len(generations)) == (8, 8, 2)
    assert result.subnet in {event.subnet for event in evaluated}
    assert progress.stages == [("searching", 8)]
    assert progress.notes == [f"run: {run} (named)"]
    again = api.search(run, devices=["a10:5ms", "t4:8ms"], max_params=200_000, **QUICK)
    assert (again.subnet, again.report["reused"], again.report["evaluated"]) == (result.subnet, 8, 0)
    replayed = api.search(run, max_params="200K", replay=True)
    assert (replayed.subnet, replayed.report["evaluated"]) == (result.subnet, 0)


def test_this_machine_is_measured_in_a_stage_of_its_own(run, stopwatch):
    progress = Recorder()
    result = api.search(run, devices={"cpu": 1.2}, progress=progress, **QUICK)
    assert result.latencies[0].measured.ms == fake_ms(result.subnet)
    names = [name for name, _ in progress.stages]
    assert progress.stages[:2] == [("measuring subnets on this machine", 12), ("searching", 8)]
    assert names[-1] == f"measuring a finalist: {result.subnet}"


def test_wrong_arguments_are_refused_as_on_the_command_line(run):
    with pytest.raises(UnitError, match="has no unit"):
        api.search(run, devices={"a10": "5"})
    with pytest.raises(DeviceError, match="--max-latency needs --device"):
        api.search(run, max_latency=5.0)
    with pytest.raises(DeviceError, match="did you mean a10"):
        api.search(run, devices="a1O")
