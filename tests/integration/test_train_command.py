"""``growtas train`` as people and programs call it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from growtas.checkpoint import load_tensors
from growtas.cli import app
from growtas.errors import ConfigError, OutputError, UsageError
from growtas.files import read_json_lines
from growtas.runs import Run

TINY = {
    "name": "tiny", "embed_dim": [8, 16], "num_heads": [1, 2], "mlp_ratio": [1, 2], "depth": [1, 2], "head_dim": 8,
    "image_size": 8, "patch_size": 4, "num_classes": 10, "max_relative_position": 1,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with the file of a small space beside it."""
    (tmp_path / "tiny.yaml").write_text(json.dumps(TINY))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def invoke(*arguments, fails=False):
    result = CliRunner().invoke(app, ["train", *map(str, arguments)], catch_exceptions=fails)
    assert fails or result.exit_code == 0, result.output
    return result


def start(*arguments):
    command = [sys.executable, "-m", "growtas", "train", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def weights(run):
    return load_tensors(run.supernet)[0]


def test_json_is_one_document_on_stdout(folder):
    process = start("--space", "../tiny.yaml", "--epochs", 2, "--transitions", "1", "--name", "r", "--json", "--device", "cpu")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert (result["run"], result["state"], result["method"], result["space"]) == ("runs/r", "finished", "growtas", "tiny")
    assert set(result["test_accuracy"]) == {"smallest", "middle", "largest"}
    assert err == ""
    run = Run(folder / "runs" / "r")
    assert run.info["recipe"]["transitions"] == [1.0]
    assert len(read_json_lines(run.path / "metrics.jsonl")) == 2


def test_people_get_a_table_and_the_next_command(folder):
    result = invoke(
        "--space", "../tiny.yaml", "--epochs", 1, "--method", "uniform", "--out", "here", "--batch-size", 128, "--lr", 0.002
    )
    for text in ("smallest", "middle", "largest", "embed 8, depth 1", "accuracy", "growtas search", "359 test images"):
        assert text in result.stdout
    (run,) = (folder / "here").iterdir()
    assert str(run.relative_to(folder)) in result.stdout
    info = Run(run).info
    assert (info["method"], info["recipe"]["batch_size"], info["recipe"]["lr"]) == ("uniform", 128, 0.002)
    assert "training: tiny on digits (1,438 training, 359 test images, 10 classes), uniform, 1 epochs" in result.stderr


def test_ctrl_c_and_resume(folder):
    arguments = ("--space", "../tiny.yaml", "--epochs", 12, "--device", "cpu")
    process = start(*arguments, "--name", "stopped")
    metrics = folder / "runs" / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while (
        not list(metrics.parent.glob("checkpoints/epoch-*/state.json")) and process.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "growtas: interrupted; continue with: growtas train --resume runs/stopped" in err
    assert "Traceback" not in err
    run = Run(folder / "runs" / "stopped")
    assert run.info["state"] == "interrupted"
    assert run.checkpoints
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the process had: sums depend on the number of threads
    try:
        result = invoke("--resume")
        assert "continuing after epoch" in result.stderr
        invoke(*arguments, "--name", "whole")
    finally:
        torch.set_num_threads(threads)
    assert run.info["state"] == "finished"
    assert [line["epoch"] for line in read_json_lines(metrics)] == list(range(1, 13))
    whole = weights(Run(folder / "runs" / "whole"))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(run).items())


def test_an_unwritable_folder_is_found_before_torch_is_loaded(folder):
    (folder / "file").touch()
    code = (
        "import sys\n"
        "sys.argv = ['growtas', 'train', '--out', 'file/runs']\n"
        "from growtas.cli import main\n"
        "try:\n    main()\nfinally:\n    sys.stdout.write(str('torch' in sys.modules))\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stdout == "False"
    assert "file/runs: the output folder can't be written" in process.stderr


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--epochs", 0], ConfigError, "epochs is 0; it must be a whole number from 1"),
        (["--transitions", "1,x"], ConfigError, "--transitions '1,x' must be epochs divided by commas, as in 10,20"),
        (["--transitions", "3,2", "--stages", 3], ConfigError, "transitions must ascend"),
        (["--method", "grow"], ConfigError, "method is 'grow'; it must be growtas, growtas-plus, uniform"),
        (["--config", "no.yaml"], ConfigError, "no.yaml: the recipe can't be read"),
        (["runs/x"], UsageError, "a run's folder is only for --resume"),
        (["--resume"], UsageError, "no run in runs/; make one with `growtas train`"),
        (["runs/x", "--resume"], UsageError, "runs/x: no run here"),
        (["--out", "file/runs"], OutputError, "can't be written"),
    ],
)
def test_one_sentence_and_nothing_left(folder, arguments, error, message):
    (folder / "file").touch()
    result = invoke(*arguments, fails=True)
    assert isinstance(result.exception, error)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_config_file(folder):
    (folder / "recipe.yaml").write_text("space: ../tiny.yaml\nepochs: 1\nlr: 2e-3\nsubspaces: [[8, 1], [null, null]]\nstages: 2\n")
    invoke("--config", "recipe.yaml", "--name", "r", "--seed", 7)
    recipe = Run(folder / "runs" / "r").info["recipe"]
    assert (recipe["lr"], recipe["epochs"], recipe["seed"], recipe["subspaces"]) == (2e-3, 1, 7, [[8, 1], [None, None]])
