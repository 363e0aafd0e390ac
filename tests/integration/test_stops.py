"""Ctrl-C and SIGTERM at every stage of every command: one sentence, the exit code of the signal, and nothing left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.export_helpers import add_search, make_run
from tests.unit.export.serving.helpers import SIZE, artifact

STOPPED = """
import os, signal, sys
class Trigger:
    def find_spec(self, name, path=None, target=None):
        if name == MODULE: os.kill(os.getpid(), NUMBER)
sys.meta_path.insert(0, Trigger())
from growtas.cli import main
main()
"""
"""Runs a command that gets a signal when it imports a module."""

TRAIN = ("train", "--epochs", "1", "--space", "micro")
SEARCH = ("search", "runs/tiny", "--max-params", "1M")
BENCH = ("bench", "made/net.onnx", "--seconds", "0.05", "--rounds", "1")
COMMANDS = [
    (TRAIN, "torch"),
    (TRAIN, "growtas.data.sources"),
    (TRAIN, "growtas.train.trainer"),
    (("finetune", "runs/tiny", "--data", "digits", "--epochs", "1"), "growtas.train.finetune"),
    (("recipes", "growtas-t"), "growtas.train.recipe_file"),
    (("runs",), "growtas.watch.report"),
    (("show", "runs/tiny"), "growtas.watch.terminal"),
    (("report", "runs/tiny"), "jinja2"),
    (SEARCH, "growtas.search.search"),
    (SEARCH, "sklearn"),
    (("export", "runs/tiny", "--format", "onnx"), "torch.onnx"),
    (("export", "runs/tiny", "--format", "onnx"), "onnxruntime"),
    (("export", "runs/tiny", "--format", "trt", "--target", "sm86"), "growtas.export.tensorrt.builder"),
    (("verify", "made/net.onnx"), "growtas.export.verification.run"),
    (("inspect", "made/net.onnx"), "onnx"),
    (BENCH, "growtas.export.benchmark.run"),
    (BENCH, "onnxruntime"),
    (("predict", "images", "--model", "made/net.onnx"), "onnxruntime"),
    (("serve", "made/net.onnx", "--port", "0"), "uvicorn"),
    (("cost", "runs/tiny/search/subnet.json"), "growtas.costs"),
    (("devices",), "growtas.latency.catalogue"),
    (("profile", "--device", "cpu", "--space", "micro"), "growtas.latency.measured.campaign"),
    (("import", "autoformer", "missing.pth", "--space", "micro"), "growtas.autoformer"),
]
FAST = {"runs", "inspect"}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    add_search(make_run(folder / "runs"))
    artifact(folder / "made")
    (folder / "images").mkdir()
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(folder / "images" / "0.png")
    return folder


@pytest.fixture
def folder(tmp_path, template):
    shutil.copytree(template, tmp_path / "work")
    return tmp_path / "work"


def files(folder):
    return {path for path in folder.rglob("*") if path.suffix == ".tmp" or path.name.startswith(".")}


@pytest.mark.parametrize(
    ("command", "module", "number"),
    [
        pytest.param(command, module, number, marks=[] if command[0] in FAST else [pytest.mark.slow])
        for row, (command, module) in enumerate(COMMANDS)
        for number in ((signal.SIGINT, signal.SIGTERM) if command[0] in FAST else ((signal.SIGINT, signal.SIGTERM)[row % 2],))
    ],
)
def test_a_stop_is_said_and_leaves_nothing(folder, command, module, number):
    program = f"MODULE, NUMBER = {module!r}, {int(number)}\n{STOPPED}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (128 + number, ""), done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("growtas: ")]
    assert len(said) == 1, done.stderr
    assert "interrupted" in said[0]
    assert "Traceback" not in done.stderr
    assert not files(folder)


def children(pid):
    """The process numbers of the children of a process that run Python."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and "growtas.export" in (status.parent / "cmdline").read_text():
                found.append(int(status.parent.name))
        except OSError:
            continue
    return found


def wait(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (answer := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return answer


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_process_that_measures_memory_ends_with_the_benchmark(folder, number):
    command = [sys.executable, "-m", "growtas", *BENCH]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        (child,) = wait(lambda: children(process.pid)) or [None]
        assert child is not None
        assert wait(lambda: "onnxruntime" in Path(f"/proc/{child}/maps").read_text())
        os.kill(child, signal.SIGSTOP)  # so that it can't end by itself
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "Traceback" not in out + err
    assert ("interrupted" in err) == (number != signal.SIGKILL)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert wait(lambda: not Path(f"/proc/{child}").exists(), 20)
