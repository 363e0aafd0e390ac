"""What a search prints after ``next:`` is run as it stands: it exports the subnet that was found."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path

import pytest

from growtas.costs import count_costs
from growtas.subnet import Subnet
from tests.export_helpers import TINY, add_search, make_run, needs_rtx

CHEAP = ("--generations", "2", "--population", "4", "--limit-images", "20")
LARGEST = Subnet(24, (2, 2), (3.0, 3.0))
"""No search under a limit finds it."""


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
        pytest.param(("--max-params", "5K"), "tiny", "runs/tiny/search", [(".onnx", "fp32", None)], id="newest run is fine-tuned"),
        pytest.param(("--max-params", "5K", "--out", "o"), "tiny", "o", [(".onnx", "fp32", None)], id="out"),
        pytest.param(("--max-params", "5K", "--out", "my results"), "tiny", "my results", [(".onnx", "fp32", None)], id="out with space"),
        pytest.param(("runs/old", "--max-params", "5K"), "old", "runs/old/search", [(".onnx", "fp32", None)], id="older run by path"),
        pytest.param(("--space", "tiny.yaml", "--max-params", "5K"), "tiny", "runs/tiny/search", [(".onnx", "fp32", None)], id="space"),
        pytest.param(
            ("--max-size", "20kB", "--precision", "fp16"), "tiny", "runs/tiny/search", [(".onnx", "fp16", None)], id="size in fp16"
        ),
        pytest.param(
            ("--objective", "pareto", "--max-params", "5K"), "tiny", "runs/tiny/search", [(".onnx", "fp32", None)], id="pareto"
        ),
        pytest.param(("--device", "cpu:9ms"), "tiny", "runs/tiny/search", [(".onnx", "fp32", None)], id="cpu"),
        pytest.param(
            ("--device", "a10:5ms", "--max-params", "5K"), "tiny", "runs/tiny/search", [(".plan", "fp16", "sm86")], id="a10", marks=needs_rtx
        ),
        pytest.param(
            ("--device", "a100:5ms", "--precision", "tf32", "--batch", "16"), "tiny", "runs/tiny/search", [(".plan", "fp32", "sm80")],
            id="a100 in tf32", marks=needs_rtx,
        ),
        pytest.param(
            ("--device", "cpu:9ms", "--device", "a10:5ms", "--device", "t4:5ms", "--out", "o"), "tiny", "o",
            [(".onnx", "fp32", None), (".plan", "fp16", "sm86"), (".plan", "fp16", "sm75")], id="several devices", marks=needs_rtx,
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
