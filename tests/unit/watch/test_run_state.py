"""Where runs stand, and whether a training's process lives."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from growtas.errors import UsageError
from growtas.processes import CLOCK_SLACK_S, process_alive, this_process
from growtas.runs import Run, create_run, list_runs, run_state
from growtas.space import PRESETS

HERE = socket.gethostname()


@pytest.fixture
def other():
    """Another process of this machine that waits until its input is closed."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
    yield process
    process.stdin.close()
    process.wait()


def _training(**process):
    return {"state": "training", "process": process}


def test_a_process_is_alive_until_it_has_ended(other):
    process = {"pid": other.pid, "host": HERE}
    assert process_alive(process) is True
    assert run_state({"state": "training", "process": process}).process == "alive"
    other.stdin.close()
    other.wait()
    assert process_alive(process) is False
    state = run_state({"state": "training", "process": process})
    assert (str(state), state.process) == ("stopped", None)


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs Linux' /proc")
def test_a_dead_child_that_nobody_waited_for_is_not_alive():
    child = subprocess.Popen([sys.executable, "-c", ""])
    # waitid with WNOWAIT sees the end and leaves the zombie, which os.kill(pid, 0) still finds.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    os.kill(child.pid, 0)
    assert process_alive({"pid": child.pid, "host": HERE}) is False
    child.wait()


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs Linux' /proc")
def test_a_number_that_was_used_again_is_another_process(other):
    process = {"pid": other.pid, "host": HERE}
    assert process_alive(process, time.time()) is True
    assert process_alive(process, time.time() - CLOCK_SLACK_S / 2) is True
    assert process_alive(process, time.time() - CLOCK_SLACK_S - 30) is False


def test_no_number_means_a_group_of_processes():
    assert process_alive({"pid": 0, "host": HERE}) is False
    assert process_alive({"pid": -1, "host": HERE}) is False
    assert process_alive({"pid": 2**70, "host": HERE}) is False


def test_another_machine_is_not_asked():
    state = run_state(_training(pid=os.getpid(), host="elsewhere.example"))
    assert (state.process, str(state)) == ("elsewhere", "training (on elsewhere.example)")
    assert process_alive({"pid": os.getpid(), "host": "elsewhere.example"}) is None


@pytest.mark.parametrize("process", [None, {}, {"pid": 1}, {"host": HERE}, {"pid": "1", "host": HERE}, 7])
def test_what_is_not_recorded_is_not_guessed(process):
    state = run_state({"state": "training", "process": process})
    assert (state.name, state.process, str(state)) == ("training", "unknown", "training (unchecked)")


def test_this_process_is_alive():
    state = run_state({"state": "training", "process": this_process()})
    assert (state.process, str(state)) == ("alive", "training")


@pytest.mark.parametrize("name", ["finished", "imported", "interrupted", "failed"])
def test_other_states_have_no_process(name, monkeypatch):
    def alive(*_):
        raise AssertionError("asked for a process")

    monkeypatch.setattr("growtas.runs.process_alive", alive)
    state = run_state({"state": name, "process": {"pid": 1, "host": HERE}})
    assert (str(state), state.process) == (name, None)


@pytest.mark.parametrize(
    ("answer", "state"), [(None, ("training", "unknown")), (True, ("training", "alive")), (False, ("stopped", None))]
)
def test_a_check_that_has_no_answer_leaves_it_open(answer, state, monkeypatch):
    monkeypatch.setattr("growtas.runs.process_alive", lambda *_: answer)
    told = run_state(_training(pid=1, host=HERE))
    assert (told.name, told.process) == state
    assert str(run_state({})) == "unknown"


def test_a_run_knows_when_its_file_was_written(tmp_path, other):
    run = create_run(tmp_path, "a", {**_training(pid=other.pid, host=HERE), "space": PRESETS["micro"].to_dict()})
    assert run.state().process == "alive"
    if os.path.exists("/proc/self/stat"):
        old = time.time() - 3600
        os.utime(run.path / "run.json", (old, old))
        assert run.state().name == "stopped"


def test_runs_are_listed_newest_first_whatever_their_time_zone_and_health(tmp_path):
    for name, created in (
        ("a", "2026-01-01T12:00:00+00:00"),
        ("b", "2026-01-01T12:30:00+02:00"),
        ("c", "2026-01-02T00:00:00+00:00"),
    ):
        create_run(tmp_path, name, {"state": "finished"}).update(created=created)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    os.utime(tmp_path / "broken" / "run.json", (1_767_200_000, 1_767_200_000))  # 2025-12-31 16:53 UTC
    (tmp_path / "no-run").mkdir()
    assert [run.path.name for run in list_runs(tmp_path)] == ["c", "a", "b", "broken"]
    assert Run(tmp_path / "b").created.timestamp() == 1_767_263_400
    with pytest.raises(UsageError, match=r"nowhere: no folder of runs here; make a run with `growtas train`"):
        list_runs(tmp_path / "nowhere")
