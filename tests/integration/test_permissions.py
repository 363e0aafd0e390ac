"""Folders and files that this user may not read or write: one sentence, exit code 2, nothing half written."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

import pytest

from growtas import load_space
from growtas.runs import create_run
from tests.unit.export.serving.helpers import artifact

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="permissions and capabilities as Linux has them")
_CAPBSET_DROP, _DAC_OVERRIDE, _DAC_READ_SEARCH = 24, 1, 2  # linux/prctl.h, linux/capability.h


def as_any_user():
    """Of root: to be asked for permission, as other users are."""
    for capability in (_DAC_OVERRIDE, _DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(_CAPBSET_DROP, capability)


@pytest.fixture
def folder(tmp_path):
    yield tmp_path
    tmp_path.chmod(0o700)
    for place in tmp_path.rglob("*"):  # a folder is listed after it was opened
        place.chmod(0o700)


def run(folder, *arguments, **environment):
    command = [sys.executable, "-m", "growtas", *map(str, arguments)]
    env = {**os.environ, "HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, preexec_fn=as_any_user)


def fails(folder, *arguments, **environment):
    """The one sentence on stderr: growtas' own, or that of the command line's parser about an argument."""
    done = run(folder, *arguments, **environment)
    sentences = [line.strip("│ ") for line in done.stderr.splitlines() if line.startswith(("growtas: ", "│ Invalid value for"))]
    assert (done.returncode, len(sentences)) == (2, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr
    assert sentences[0].endswith(("(Permission denied)", "is not readable."))
    return sentences[0]


def make(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def runs(folder):
    for name in ("first", "second"):
        create_run(folder / "runs", name, {"space": load_space("micro").to_dict(), "recipe": {}, "state": "finished"})
    return folder / "runs"


def test_a_folder_of_runs_that_is_closed(folder, runs):
    runs.chmod(0)
    assert fails(folder, "show") == "growtas: runs: the folder can't be read (Permission denied)"
    runs.chmod(0o444)
    assert "runs" in fails(folder, "runs")


def test_a_run_that_is_closed_is_named_and_the_others_are_listed(folder, runs):
    runs.chmod(0o755)
    (runs / "first").chmod(0o755)
    (runs / "first" / "run.json").chmod(0o644)
    for mode in (0, 0o644):
        (runs / "second").chmod(mode)
        assert "runs/second" in fails(folder, "show", "runs/second")
        done = run(folder, "runs")
        assert (done.returncode, "first" in done.stdout) == (0, True), done.stderr
        assert "second: runs/second/run.json: the run file can't be read (Permission denied)" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("mine.yaml", ("cost", "subnet.json", "--space", "mine.yaml")),
        ("subnet.json", ("cost", "subnet.json", "--space", "micro")),
        ("recipe.yaml", ("train", "--config", "recipe.yaml")),
        ("net.onnx", ("inspect", "net.onnx")),
        ("net.onnx.json", ("inspect", "net.onnx")),
        ("profiles/a10.json", ("search", "--device", "a10", "--max-latency", "5ms")),
    ],
)
def test_a_file_that_is_closed(folder, name, arguments):
    subnet = make(folder / "subnet.json")
    space = load_space("micro")
    subnet.write_text(json.dumps(space.smallest.to_dict()))
    artifact(folder)
    path = folder / name
    make(path, path.read_text() if path.suffix == ".json" and path.exists() else "").chmod(0)
    assert path.name in fails(folder, *arguments, GROWTAS_PROFILES=str(folder / "profiles"))


def test_a_folder_of_profiles_that_is_closed(folder):
    (folder / "profiles").mkdir(mode=0)
    assert "profiles: the folder can't be read" in fails(folder, "devices", GROWTAS_PROFILES=str(folder / "profiles"))


def test_a_home_that_is_closed_is_as_an_empty_one(folder):
    (folder / "home").mkdir(mode=0)
    done = run(folder, "devices")
    assert done.returncode == 0, done.stderr
    assert "a10" in done.stdout


def test_images_that_are_closed(folder):
    (folder / "pets").mkdir(mode=0)
    assert "pets" in fails(folder, "train", "--data", "folder", "--data-dir", "pets", "--space", "micro", "--device", "cpu")
    assert not (folder / "runs").exists()


def test_an_output_folder_that_is_closed(folder):
    (folder / "runs").mkdir()
    (folder / "runs").chmod(0)
    assert "runs" in fails(folder, "train", "--recipe", "digits-demo", "--device", "cpu")
    assert "runs" in fails(folder, "train", "--recipe", "digits-demo", "--device", "cpu", "--name", "mine")


def test_pictures_to_predict_that_are_closed(folder):
    net = artifact(folder / "net")
    (folder / "photos").mkdir(mode=0)
    assert "photos: the folder can't be read (Permission denied)" in fails(folder, "predict", "photos", "--model", net)
