"""``growtas runs`` and ``growtas show`` as people and programs call them."""

from __future__ import annotations

import datetime
import json
import math
import os
import subprocess
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from growtas.cli.app import app
from growtas.cli.runs import ago
from growtas.errors import CheckpointError, UsageError
from growtas.files import read_json_lines
from growtas.processes import this_process
from growtas.runs import RUNS, Run, create_run
from growtas.space import PRESETS
from tests.unit.watch.conftest import line

TINY = {
    "name": "tiny", "embed_dim": [8, 16], "num_heads": [1, 2], "mlp_ratio": [1, 2], "depth": [1, 2], "head_dim": 8,
    "image_size": 8, "patch_size": 4, "num_classes": 10, "max_relative_position": 1,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments, fails=False):
    result = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=fails)
    assert fails or result.exit_code == 0, result.output
    return result


def make(name, created, state="finished", lines=(), **info):
    info = {"state": state, "space": PRESETS["micro"].to_dict(), "method": "growtas", "recipe": {"epochs": 4}, **info}
    run = create_run(RUNS, name, {"data": {"name": "digits"}, **info})
    run.update(created=created)
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return run


def test_a_training_is_listed_and_shown(folder):
    (folder / "tiny.yaml").write_text(json.dumps(TINY))
    invoke("train", "--space", "tiny.yaml", "--epochs", 2, "--transitions", 1, "--name", "r", "--device", "cpu", "--json")
    run = Run(folder / "runs" / "r")
    tested = run.info["test_accuracy"]
    table = invoke("runs").stdout
    for text in ("r ", "finished", "tiny", "digits", "growtas", "2/2", "just now", "on the test images"):
        assert text in table
    assert " / ".join(f"{100 * tested[name]:.1f}" for name in ("smallest", "middle", "largest")) in table
    shown = invoke("show", "--png", "curves.png").stdout
    lines = read_json_lines(run.path / "metrics.jsonl")
    for text in ("runs/r", "finished, 2 of 2 epochs", "stage 2", f"{lines[-1]['loss']:.3g}", "epoch-0002", "newest"):
        assert text in shown
    errors = {name: math.sqrt(share * (1 - share) / 359) for name, share in tested.items()}
    assert all(f"{name} {100 * tested[name]:.1f} ± {100 * errors[name]:.1f} %" in shown for name in tested)
    assert f"± {100 * max(errors.values()):.1f} " in table
    with Image.open(folder / "curves.png") as image:
        assert image.width > 800
    data = json.loads(invoke("show", "runs/r", "--json").stdout)
    assert data["metrics"] == lines
    assert data["accuracy"] == tested
    assert data["accuracy_standard_error"] == pytest.approx(errors)
    assert data["checkpoints"]


def test_states_and_what_can_not_be_read(folder):
    make("done", "2026-01-05T00:00:00+00:00", test_accuracy={"smallest": 0.5, "middle": 0.6, "largest": 0.7}, lines=[line(4)])
    make("here", "2026-01-04T00:00:00+00:00", "training", [line(1), line(2)], process=this_process())
    make("gone", "2026-01-03T00:00:00+00:00", "training", process={**this_process(), "pid": 2**70})
    make("there", "2026-01-02T00:00:00+00:00", "training", process={"pid": 1, "host": "gpu-17"})
    make("old", "2026-01-01T00:00:00+00:00", "training")
    (folder / "runs" / "broken").mkdir()
    (folder / "runs" / "broken" / "run.json").write_text("{")
    os.utime(folder / "runs" / "broken" / "run.json", (0, 0))
    rows = json.loads(invoke("runs", "--json").stdout)["runs"]
    assert [(row["name"], row["state"]) for row in rows] == [
        ("done", "finished"),
        ("here", "training"),
        ("gone", "stopped"),
        ("there", "training (on gpu-17)"),
        ("old", "training (unchecked)"),
        ("broken", "unreadable"),
    ]
    assert [row["accuracy_on"] for row in rows] == ["test", "search split", None, None, None, None]
    lines = invoke("runs").stdout.splitlines()
    assert [text.split()[0] for text in lines[1:7]] == ["done", "here", "gone", "there", "old", "broken"]
    assert "50.0 / 60.0 / 70.0 " in lines[1]
    assert "10.0 / 20.0 / 30.0*" in lines[2]
    assert "2/4" in lines[2]
    assert lines[7].startswith("broken: runs/broken/run.json: the run file is not JSON")
    assert "* after the last epoch, on the search split" in lines[8]


def test_a_narrow_terminal_gets_a_few_lines_a_run(folder):
    make("a-rather-long-name-of-a-run", "2026-01-05T00:00:00+00:00", "training", [line(1)], process={"pid": 1, "host": "gpu-17"})
    code = "import sys; sys.argv = ['growtas', 'runs']\nfrom growtas.cli import main\nmain()"
    environment = {**os.environ, "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "COLUMNS": "80", "TERM": "xterm"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True).stdout
    assert "a-rather-long-name-of-a-run" in out
    assert "state: training (on gpu-17)   space: micro   data: digits   method: growtas" in out
    assert "epochs: 1/4   accuracy %: 10.0 / 20.0 / 30.0*   when: 2026-01-05" in out
    piped = invoke("runs").stdout
    assert "a-rather-long-name-of-a-run" in piped.splitlines()[1]
    assert "what is in it" in piped.splitlines()[0]


def test_the_newest_run_that_can_be_read_is_shown(folder):
    make("older", "2026-01-01T00:00:00+00:00", lines=[line(1)])
    make("newer", "2026-01-02T00:00:00+00:00", "interrupted")
    assert "no epoch is complete yet" in invoke("show").stdout
    (folder / "runs" / "newer" / "run.json").write_text("[]")
    result = invoke("show")
    assert result.stdout.startswith("runs/older\n")
    assert "skipped: runs/newer/run.json: not a growtas run" in result.stderr
    assert json.loads(invoke("show", "--json").stdout)["run"] == "runs/older"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["runs"], UsageError, "runs: no folder of runs here; make a run with `growtas train`"),
        (["runs", "x"], UsageError, "x: no folder of runs here"),
        (["show"], UsageError, "no run in runs/; make one with `growtas train`"),
        (["show", "x"], UsageError, "x: no run here"),
        (["show", "broken"], CheckpointError, "run.json: the run file is not JSON"),
    ],
)
def test_one_sentence(folder, arguments, error, message):
    (folder / "broken").mkdir()
    (folder / "broken" / "run.json").write_text("{")
    result = invoke(*arguments, fails=True)
    assert isinstance(result.exception, error)
    assert message in str(result.exception)


def test_an_empty_folder_is_no_error(folder):
    (folder / "runs").mkdir()
    result = invoke("runs")
    assert (result.stdout, result.stderr) == ("", "no run in runs/; make one with `growtas train`\n")
    assert json.loads(invoke("runs", "--json").stdout)["runs"] == []


@pytest.mark.parametrize("command", ["runs", "show"])
def test_help_and_use_import_nothing_heavy(folder, command):
    make("a", "2026-01-01T00:00:00+00:00", lines=[line(1), line(2)])
    code = (
        "import sys\nfrom growtas.cli.app import app\n"
        f"for arguments in (['{command}', '--help'], ['{command}']):\n"
        "    try: app(arguments)\n    except SystemExit: pass\n"
        "heavy = [name for name in ('torch', 'timm', 'matplotlib', 'tensorboard', 'sklearn') if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Example:" in done.stdout
    assert "growtas" in done.stdout


def test_how_long_ago():
    now = datetime.datetime(2026, 3, 31, 12, tzinfo=datetime.UTC)
    for seconds, text in (
        (-30, "just now"), (59, "just now"), (60, "1 min ago"), (3599, "59 min ago"), (7200, "2 h ago"), (86400, "1 d ago"),
        (29 * 86400, "29 d ago"), (30 * 86400, "2026-03-01"), (-3600, "2026-03-31"),
    ):  # fmt: skip
        assert ago(now - datetime.timedelta(seconds=seconds), now) == text
