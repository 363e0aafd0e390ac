"""``growtas doctor``: what it says agrees with other sources, and nothing that is broken makes it fail."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from growtas.api import diagnosis as module
from growtas.files import write_json
from growtas.locks import exclusive
from growtas.processes import this_process
from tests.export_helpers import Cli, make_run

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    return Cli(monkeypatch, capsys)


def diagnose(cli, *arguments):
    code, out, err = cli("doctor", *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def ability(document, start):
    (found,) = [entry for entry in document["abilities"] if entry["what"].startswith(start)]
    return found


def program(folder, name, text):
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path.parent)


def test_it_agrees_with_other_sources(cli):
    document = diagnose(cli)
    assert document["system"]["python"] == platform.python_version()
    assert document["cpu"]["usable_cpus"] <= len(os.sched_getaffinity(0)) <= document["cpu"]["machine_cpus"]
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    assert ("avx2" in document["cpu"]["instructions"]) == ("avx2" in flags)
    assert ("avx512f" in document["cpu"]["instructions"]) == ("avx512f" in flags)
    assert 0 < document["memory"]["usable_bytes"] <= document["memory"]["machine_bytes"]
    assert document["unanswered"] == []
    optional = [name for extra, names in PROJECT["optional-dependencies"].items() if extra not in ("dev", "docs") for name in names]
    listed = {entry["name"]: entry for entry in document["packages"]}
    assert {name.partition(">")[0] for name in [*PROJECT["dependencies"], *optional]} == set(listed)
    for name, entry in listed.items():
        try:
            assert entry["version"] == importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            assert entry["install"].startswith("pip install 'growtas")
    from growtas.nn.evaluation.kernels import instructions

    assert document["kernels"] == instructions()


def test_runtimes_are_those_of_growtas_devices(cli):
    here = json.loads(cli("devices", "--json")[1])["here"]
    answers = {entry["what"]: entry["works"] for entry in diagnose(cli)["abilities"]}
    for target in here:
        if target["device"] == "cpu" and target["why_not"] is None:
            assert answers[f"bench --runtime {target['runtime']} on the CPU"] is True


def test_the_text_has_what_the_document_has(cli):
    document = diagnose(cli)
    code, out, err = cli("doctor")
    assert (code, err) == (0, "")
    for entry in document["abilities"]:
        (line,) = [line for line in out.splitlines() if line.startswith(f"{entry['what']}  ")]
        assert {True: " yes ", False: " no ", None: " unknown "}[entry["works"]] in line
        assert entry["because"] in line
    assert all(folder["path"] in out for folder in document["folders"])


def test_gpus_that_nvidia_smi_lists(cli, tmp_path, monkeypatch):
    lines = "echo 'NVIDIA H200, 570.1, 9.0, 143771'; echo 'NVIDIA A10, 570.1, 8.6, 23028'"
    monkeypatch.setenv("PATH", program(tmp_path, "nvidia-smi", lines), prepend=os.pathsep)
    gpus = diagnose(cli)["gpu"]["nvidia_smi"]
    assert [(gpu["name"], gpu["driver_version"], gpu["compute_cap"]) for gpu in gpus] == [
        ("NVIDIA H200", "570.1", "9.0"),
        ("NVIDIA A10", "570.1", "8.6"),
    ]
    out = cli("doctor")[1]
    assert "name NVIDIA A10, driver_version 570.1" in out


def test_programs_that_hang(cli, tmp_path, monkeypatch):
    """Their children keep their output open, too."""
    marker = tmp_path / "pids"
    folder = program(tmp_path, "nvidia-smi", f"sleep 1000 & echo $! $$ > {marker}\nwait")
    program(tmp_path, "python", f"sleep 1000 & echo $! $$ >> {marker}\nwait")
    monkeypatch.setenv("PATH", folder, prepend=os.pathsep)
    monkeypatch.setattr(sys, "executable", f"{folder}/python")
    monkeypatch.setattr(module, "PATIENCE_S", 1.0)
    document = diagnose(cli)
    assert document["gpu"]["nvidia_smi"] == []
    assert {name.partition(" (")[0] for name in document["unanswered"]} == set(module.QUESTIONS)
    assert "no answer within 1 s" in document["unanswered"][0]
    assert ability(document, "bench")["works"] is None
    for pid in marker.read_text().split():
        status = Path(f"/proc/{pid}/stat")
        assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_a_package_that_crashes_costs_no_other_answer(cli, tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    document = diagnose(cli)
    assert document["unanswered"] == ["targets (it ended with exit code 3)"]
    assert ability(document, "bench")["works"] is None
    assert document["kernels"] is not None
    (tmp_path / "onnxruntime.py").write_text("raise RuntimeError('no such instruction')\n")
    (problem,) = diagnose(cli)["unanswered"]
    assert problem.startswith("targets (RuntimeError: no such instruction")


def test_missing_packages(cli, monkeypatch):
    version = importlib.metadata.version

    def without(name):
        if name in ("openvino", "fastapi", "timm"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    document = diagnose(cli)
    for what, extra in (("export --format openvino", "[openvino]"), ("serve", "[serve]"), ("train, finetune", "")):
        entry = ability(document, what)
        assert entry["works"] is False
        assert entry["remedy"].replace("'", "") == f"pip install growtas{extra}"
    assert "timm is not installed" in ability(document, "train, finetune")["because"]


def test_folders_and_trainings(cli, tmp_path):
    alive, gone = make_run(tmp_path / "runs", name="alive"), make_run(tmp_path / "runs", name="gone")
    ended = subprocess.Popen(["true"])
    ended.wait()
    for run, pid in ((alive, os.getpid()), (gone, ended.pid)):
        write_json(run.path / "run.json", {**run.info, "state": "training", "process": {**this_process(), "pid": pid}})
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    document = diagnose(cli)
    assert [(entry["run"], entry["pid"]) for entry in document["trainings"]] == [("runs/alive", os.getpid())]
    folders = {folder["what"]: folder for folder in document["folders"]}
    assert folders["runs"]["path"] == str(tmp_path / "runs")
    assert folders["runs"]["writable"] is True
    (tmp_path / "file").write_text("")
    folders = {folder["what"]: folder for folder in diagnose(cli, "file/runs")["folders"]}
    assert (folders["runs"]["exists"], folders["runs"]["writable"]) == (False, False)


def test_locks(cli, tmp_path):
    run = make_run(tmp_path / "runs", name="r")
    ended = subprocess.Popen(["true"])
    ended.wait()
    (run.path / "search").mkdir(exist_ok=True)
    (run.path / "search" / ".lock").write_text(f"{ended.pid}\n{this_process()['host']}\n")
    with exclusive(run.path, "at work"):
        locks = {entry["lock"]: (entry["pid"], entry["alive"]) for entry in diagnose(cli)["locks"]}
        assert locks == {"runs/r/.lock": (os.getpid(), True), "runs/r/search/.lock": (ended.pid, False)}
        assert "has ended, so the lock is free" in cli("doctor")[1]
