"""Searches of several processes on this machine, over gloo: by torchrun, or started as it does where one of them is to fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from growtas.space import PRESETS
from tests.export_helpers import add_checkpoint, make_run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs torchrun and gloo")

SPACE = PRESETS["micro"].replace(in_chans=3, image_size=16, patch_size=4, max_relative_position=2)
QUICK = ("--generations", "3", "--population", "12", "--limit-images", "100", "--max-params", "110K")
LONG = ("--generations", "300", "--population", "24", "--limit-images", "150", "--exact")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    make_run(folder / "runs", space=SPACE)
    return folder


@pytest.fixture
def folder(tmp_path, template):
    shutil.copytree(template, tmp_path / "work")
    return tmp_path / "work"


def environment(**more):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RANK", "WORLD", "LOCAL_", "TORCHELASTIC", "MASTER"))}
    return {**clean, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def start(command, cwd, **more):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=cwd, env=environment(**more), **pipes)


def run(command, cwd):
    process = start(command, cwd)
    out, err = process.communicate(timeout=180)
    return process.returncode, out, err


class Processes(list):
    """Several processes of one command, as torchrun starts them."""

    def __init__(self, size, cwd, *arguments, folders=()):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        for rank in range(size):
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
            where = folders[rank] if folders else cwd
            self.append(start(("-m", "growtas", "search", *arguments), where, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **ranks))

    def ends(self, timeout):
        """(exit code, stdout, stderr) of each; none of them is left behind."""
        deadline = time.monotonic() + timeout
        try:
            outputs = [process.communicate(timeout=deadline - time.monotonic()) for process in self]
        finally:
            for process in self:
                process.kill()
        return [(process.returncode, *output) for process, output in zip(self, outputs, strict=True)]

    def until_evaluated(self, journal, count=20):
        """Wait until the journal has some evaluations, and say how many."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and all(process.poll() is None for process in self):
            if journal.is_file() and (lines := journal.read_text().count('"evaluation"')) >= count:
                return lines
            time.sleep(0.02)
        raise AssertionError(self.ends(1))


def documents(folder):
    """What a search wrote, apart from times."""
    result = json.loads((folder / "result.json").read_text())
    counts = result.pop("processes")
    for name in ("seconds", "time", "created"):
        del result[name]
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    found = {json.dumps(line.get("subnet")): line for line in lines}
    return counts, result, json.loads((folder / "subnet.json").read_text()), found


def test_two_processes_find_and_write_what_one_does(tmp_path, template, growtas, monkeypatch):
    for name in ("one", "two"):
        shutil.copytree(template, tmp_path / name)
    monkeypatch.chdir(tmp_path / "one")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as the processes have
    code, out, err = growtas("search", *QUICK)
    assert code == 0, err
    (code, both, err), silent = Processes(2, tmp_path / "two", *QUICK).ends(180)
    assert code == 0, err
    assert silent == (0, "", "")
    assert both.count("subnet found") == out.count("subnet found") == 1
    assert err.count("run: runs/tiny") == 1
    one, two = (documents(tmp_path / name / "runs" / "tiny" / "search") for name in ("one", "two"))
    assert (one[0], two[0]) == (1, 2)
    assert one[1:] == two[1:]
    assert len(one[3]) == 3 * 12 + 1
    files = [sorted(path.name for path in (tmp_path / name / "runs/tiny/search").iterdir()) for name in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--out", "file/search"), "file/search: the output folder can't be written"),
        (("--device", "a10:1us"), "no subnet"),
        (("--data", "nowhere"), "nowhere"),
    ],
)
def test_what_process_0_finds_wrong_is_said_once_and_ends_all(folder, arguments, said):
    (folder / "file").touch()
    first, *others = Processes(3, folder, *QUICK, *arguments).ends(60)
    assert first[0] == 2
    assert said in first[2].splitlines()[-1]
    assert [line.startswith("growtas: ") for line in first[2].splitlines()].count(True) == 1
    # They leave with 0: torchrun then names process 0 as the one that failed, and can't end it before it has spoken.
    assert others == [(0, "", "")] * 2


@pytest.mark.slow
def test_a_wrong_option_is_said_once_under_torchrun(folder):
    """Before a search begins the processes don't know of each other: all of them see what is wrong."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3")
    code, _, err = run((*launcher, "-m", "growtas", "search", "--max-params", "six"), folder)
    assert code == 1
    assert [line.startswith("growtas: ") for line in err.splitlines()].count(True) == 1


@pytest.mark.slow
def test_a_replay_is_for_process_0(folder):
    code, _, err = run(("-m", "growtas", "search", *QUICK), folder)
    assert code == 0, err
    first, second = Processes(2, folder, "--replay", "--max-params", "100K").ends(60)
    assert (first[0], "subnet found" in first[1]) == (0, True)
    assert second == (0, "", "")


@pytest.mark.slow
def test_a_killed_worker_ends_the_search_which_then_goes_on(folder):
    journal = folder / "runs" / "tiny" / "search" / "journal.jsonl"
    processes = Processes(3, folder, *LONG)
    count = processes.until_evaluated(journal)
    processes[1].kill()
    first, _, third = processes.ends(30)
    assert first[0] == 1
    assert "growtas: a process of this search has ended" in first[2]
    assert f"evaluations are kept in {journal.relative_to(folder)}; the same command goes on from there" in first[2]
    assert third == (1, "", "")
    kept = journal.read_text().count('"evaluation"')
    assert kept >= count
    more = ("--generations", "3", *LONG[2:], "--json")
    code, out, err = run(("-m", "growtas", "search", *more), folder)
    assert code == 0, err
    continued = json.loads(out)
    assert (continued["reused"], continued["evaluated"]) == (min(kept, 72), 72 - min(kept, 72))
    shutil.rmtree(journal.parent)
    calm = json.loads(run(("-m", "growtas", "search", *more), folder)[1])
    assert (calm["best"], calm["history"]) == (continued["best"], continued["history"])


@pytest.mark.slow
def test_the_others_end_when_process_0_is_killed(folder):
    processes = Processes(2, folder, *LONG)
    processes.until_evaluated(folder / "runs" / "tiny" / "search" / "journal.jsonl")
    processes[0].kill()
    assert processes.ends(30)[1] == (1, "", "")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "everyone"), [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, True)])
def test_it_is_stopped(folder, number, everyone):
    processes = Processes(2, folder, *LONG)
    processes.until_evaluated(folder / "runs" / "tiny" / "search" / "journal.jsonl")
    for process in processes if everyone else processes[:1]:
        process.send_signal(number)
    first, second = processes.ends(30)
    assert first[0] == 128 + number
    *_, kept, last = first[2].splitlines()
    assert kept.endswith("runs/tiny/search/journal.jsonl; the same command goes on from there")
    assert last == "growtas: interrupted"
    assert second == (-number if everyone else 1, "", "")


@pytest.mark.slow
def test_a_process_that_sees_another_checkpoint_is_named(tmp_path, template):
    shutil.copytree(template, tmp_path / "here")
    (tmp_path / "there").mkdir()
    add_checkpoint(make_run(tmp_path / "there" / "runs", space=SPACE), epoch=2, seed=5)
    shutil.copy(
        tmp_path / "there/runs/tiny/checkpoints/epoch-0002/supernet.safetensors",
        tmp_path / "there/runs/tiny/checkpoints/epoch-0001/supernet.safetensors",
    )
    first, second = Processes(2, None, *QUICK, folders=[tmp_path / "here", tmp_path / "there"]).ends(60)
    assert first[0] == 1
    assert "process 1 of 2 could not evaluate its subnets (CheckpointError: runs/tiny/checkpoints" in first[2]
    assert "differ from those of process 0" in first[2]
    assert second == (0, "", "")
