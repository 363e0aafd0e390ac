"""What a search prints after ``next:`` is run as it stands: it exports the subnet that was found."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
from pathlib import Path

import pytest

from growtas.cli.training_view import TrainingView
from growtas.costs import count_costs
from growtas.subnet import Subnet
from growtas.train.events import StepDone
from tests.export_helpers import TINY, add_search, make_run, needs_rtx

CHEAP = ("--generations", "2", "--population", "4", "--limit-images", "20")
LARGEST = Subnet(24, (2, 2), (3.0, 3.0))
"""No search under a limit finds it."""
FP32, FP16 = (".onnx", "fp32", None), (".onnx", "fp16", None)
A10, A100, T4 = (".plan", "fp16", "sm86"), (".plan", "fp32", "sm80"), (".plan", "fp16", "sm75")
"""Suffix, precision and target of an export."""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """An older and a newer run, and a fine-tuned one that is the newest of all."""
    folder = tmp_path_factory.mktemp("template")
    for day, name in enumerate(("old", "tiny", "tuned"), 1):
        run = make_run(folder / "runs", name=name, seed=day)
        run.update(created=f"2026-01-0{day}T00:00:00+00:00", method="finetune" if name == "tuned" else "growtas")
    add_search(run, LARGEST)
    return folder


@pytest.fixture
def project(tmp_path, template, monkeypatch):
    shutil.copytree(template, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    (tmp_path / "my photos").mkdir()
    return tmp_path / "project"


def next_commands(out):
    return [line.partition("next: ")[2] for line in out.splitlines() if "next: " in line]


def export(growtas, command):
    """Runs a printed command in a way; the last artifact, which is the one that was asked for, and the run that it is of."""
    program, *arguments = shlex.split(command)
    assert program == "growtas"
    code, out, err = growtas(*arguments, "--images", "20", "--json")
    assert code == 0, err
    report = json.loads(out)
    return report["artifacts"][-1], Path(report["run"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "run", "results", "made"),
    [
        pytest.param(("--max-params", "5K"), "tiny", "runs/tiny/search", [FP32], id="newest run is fine-tuned"),
        pytest.param(("--max-params", "5K", "--out", "o"), "tiny", "o", [FP32], id="out"),
        pytest.param(("--max-params", "5K", "--out", "my results"), "tiny", "my results", [FP32], id="out with space"),
        pytest.param(("runs/old", "--max-params", "5K"), "old", "runs/old/search", [FP32], id="older run by path"),
        pytest.param(("--space", "tiny.yaml", "--max-params", "5K"), "tiny", "runs/tiny/search", [FP32], id="space"),
        pytest.param(
            ("--max-size", "20kB", "--precision", "fp16"), "tiny", "runs/tiny/search", [FP16], id="size in fp16"
        ),
        pytest.param(("--max-size", "20kB", "--precision", "tf32"), "tiny", "runs/tiny/search", [FP32], id="size in tf32"),
        pytest.param(
            ("--objective", "pareto", "--max-params", "5K"), "tiny", "runs/tiny/search", [FP32], id="pareto"
        ),
        pytest.param(("--device", "cpu:9ms"), "tiny", "runs/tiny/search", [FP32], id="cpu"),
        pytest.param(
            ("--device", "a10:5ms", "--max-params", "5K"), "tiny", "runs/tiny/search", [A10], id="a10", marks=needs_rtx
        ),
        pytest.param(
            ("--device", "a100:5ms", "--precision", "tf32", "--batch", "16"), "tiny", "runs/tiny/search", [A100],
            id="a100 in tf32", marks=needs_rtx,
        ),
        pytest.param(
            ("--device", "cpu:9ms", "--device", "a10:5ms", "--device", "t4:5ms", "--out", "o"), "tiny", "o",
            [FP32, A10, T4], id="several devices", marks=needs_rtx,
        ),
    ],
)  # fmt: skip
def test_it_exports_what_was_found(project, growtas, monkeypatch, stopwatch, arguments, run, results, made):
    monkeypatch.setattr("tests.integration.conftest.fake_ms", lambda subnet: count_costs(TINY, subnet).macs / 1e6)
    (project / "tiny.yaml").write_text(json.dumps(TINY.to_dict()))
    code, out, err = growtas("search", *arguments, *CHEAP)
    assert code == 0, err
    found = json.loads((project / results / "subnet.json").read_text())
    commands, paths = next_commands(out), set()
    assert len(commands) == len(made)
    for command, (suffix, precision, target) in zip(commands, made, strict=True):
        artifact, exported = export(growtas, command)
        assert Subnet.from_dict(artifact["subnet"]) == Subnet.from_dict(found)
        assert (exported, Path(artifact["path"]).suffix, artifact["precision"]) == (Path("runs") / run, suffix, precision)
        assert (artifact.get("plan") or {"targets": [None]})["targets"] == [target]
        paths.add(artifact["path"])
    assert len(paths) == len(made), "one replaced another"


@pytest.mark.slow
def test_from_another_folder_with_spaces_and_with_data_that_has_moved(project, growtas, monkeypatch):
    moved = project.rename(project.with_name("my project"))
    monkeypatch.chdir(moved.with_name("my photos"))
    relative = Path(os.path.relpath(moved / "runs" / "tiny"))
    code, out, err = growtas("search", relative, "--max-params", "5K", "--data", "digits", *CHEAP)
    assert code == 0, err
    (command,) = next_commands(out)
    assert command == f"growtas export '{relative}' --data digits --format onnx"
    artifact, exported = export(growtas, command)
    assert exported == relative
    assert artifact["subnet"] == {
        key: value for key, value in json.loads((relative / "search/subnet.json").read_text()).items() if key in artifact["subnet"]
    }


@pytest.mark.slow
def test_an_imported_run_needs_its_data_again(project, growtas):
    make_run(project / "runs", data=False, name="imported", seed=9)
    code, out, err = growtas("search", "runs/imported", "--max-params", "5K", "--data", "digits", *CHEAP)
    assert code == 0, err
    artifact, _ = export(growtas, next_commands(out)[0])
    assert artifact["verification"]["images"] == "20 of 359 test images of digits"


def test_a_replay_is_a_question(project, growtas):
    code, _, err = growtas("search", "--max-params", "6K", *CHEAP)
    assert code == 0, err
    chosen = {path: path.read_bytes() for path in (project / "runs/tiny/search").iterdir()}
    smallest = min(
        (json.loads(line) for line in (project / "runs/tiny/search/journal.jsonl").read_text().splitlines()[1:]),
        key=lambda line: line["params"],
    )
    limit = f"{smallest['params'] / 1000}K"
    code, out, err = growtas("search", "--replay", "--max-params", limit)
    assert code == 0, err
    assert {path: path.read_bytes() for path in chosen} == chosen
    answer = json.loads((project / "runs/tiny/search/replay/subnet.json").read_text())
    assert Subnet.from_dict(answer) == Subnet.from_dict(smallest["subnet"])
    assert next_commands(out) == ["growtas export runs/tiny --subnet runs/tiny/search/replay/subnet.json --format onnx"]
    code, out, err = growtas("search", "--replay", "--max-params", limit, "--json")
    (command,) = json.loads(out)["next"]
    artifact, _ = export(growtas, command)
    assert Subnet.from_dict(artifact["subnet"]) == Subnet.from_dict(smallest["subnet"])


def test_a_stopped_training_says_how_to_go_on_and_what_comes_next(tmp_path, growtas, monkeypatch):
    (tmp_path / "my runs").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(json.dumps({**TINY.to_dict(), "image_size": 8}))
    event = TrainingView.event

    def signalled(view, what):
        event(view, what)
        if isinstance(what, StepDone) and what.step == 2:
            signal.raise_signal(signal.SIGTERM)

    options = ("--space", "tiny.yaml", "--epochs", "1", "--batch-size", "128", "--device", "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(TrainingView, "event", signalled)
        code, out, err = growtas("train", *options, "--out", "my runs", "--name", "first try", "--json")
    assert (code, out) == (143, "")
    first, last = err.splitlines()[-2:]
    command = "growtas train --resume 'my runs/first try' --device cpu"
    assert first == f"growtas: stopping after this step; continue the run with: {command}"
    assert last == f"growtas: interrupted; continue with: {command}"
    code, out, err = growtas(*shlex.split(command)[1:])
    assert code == 0, err
    assert "continuing after epoch 0000 batch 000002" in err
    (command,) = next_commands(out)
    assert command == "growtas search 'my runs/first try'"
    code, _, err = growtas(*shlex.split(command)[1:], *CHEAP)
    assert code == 0, err
    assert "run: my runs/first try (named)" in err
