"""Trainings of several processes, started by torchrun on this machine, with gloo."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from growtas.checkpoint import load_supernet, load_tensors
from growtas.data.evaluation import test_set as open_test_set
from growtas.files import read_json_lines
from growtas.runs import Run
from growtas.subnet import Subnet
from tests.reference import count_correct

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the processes of a training from /proc")


@pytest.fixture
def space_file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "{name: tiny, embed_dim: [8, 16], num_heads: [1, 2], mlp_ratio: [1, 2], depth: [1, 2], head_dim: 8, image_size: 8, "
        "patch_size: 4, max_relative_position: 1}"
    )
    return path


def environment():
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("RANK", "WORLD", "LOCAL_", "TORCHELASTIC", "MASTER"))
    }
    return {**kept, "OMP_NUM_THREADS": "1"}


def train(folder, space, name, *options, processes=1, restarts=0, wait=True):
    """``growtas train``, by torchrun where there are several processes; a run is continued where ``space`` is None."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "growtas", "train", "--device", "cpu"]
    command += ["--resume", f"runs/{name}"] if space is None else ["--space", space, "--name", name, "--batch-size", "64", *options]
    process = subprocess.Popen(
        [str(part) for part in command], cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    if not wait:
        return process
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def weights(folder, name):
    return load_tensors(Run(folder / "runs" / name).supernet_file)[0]


def steady(line):
    return {key: value for key, value in line.items() if key not in ("time", "seconds", "images_per_s")}


OPTIONS = ["--epochs", "2", "--set", "mixup=0.8", "--set", "cutmix=1.0", "--set", "clip_grad=1.0", "--set", "lr=0.01"]


def test_two_processes_agree_with_one(tmp_path, space_file, growtas, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alone = ("train", "--device", "cpu", "--space", space_file, "--name", "one", "--batch-size", "64", *OPTIONS)
    code, _, err = growtas(*alone)
    assert code == 0, err
    out = train(tmp_path, space_file, "two", *OPTIONS, processes=2)
    assert out.count("accuracy on the 359 test images") == 1  # process 1 is silent
    one, two = weights(tmp_path, "one"), weights(tmp_path, "two")
    steps = read_json_lines(tmp_path / "runs" / "one" / "metrics.jsonl")[-1]["step"]
    assert steps >= 20
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-5, msg=name)
    assert any(tensor.abs().max() > 0.05 for tensor in one.values())
    lines = [read_json_lines(tmp_path / "runs" / name / "metrics.jsonl")[-1] for name in ("one", "two")]
    assert lines[0]["compute"] == lines[1]["compute"]
    assert lines[0]["loss"] == pytest.approx(lines[1]["loss"], abs=1e-5)


@pytest.mark.slow
def test_accumulated_parts_are_what_processes_would_do(tmp_path, space_file):
    options = [*OPTIONS, "--set", "drop_path=0.2"]
    train(tmp_path, space_file, "parts", *options, "--set", "accumulate=2")
    train(tmp_path, space_file, "processes", *options, processes=2)
    one, two = weights(tmp_path, "parts"), weights(tmp_path, "processes")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-6, msg=name)


METHODS = {
    "dynas": {},
    "greedynas": {"keep": 2, "candidates": 3, "images": 50, "turnover": 0},
    "shiftnas": {"every": 5, "images": 50},
    "vitas": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_processes_of_a_method_agree(tmp_path, space_file, method):
    options = ["--epochs", "1", "--method", method, "--set", "lr=0.01"]
    for option, value in METHODS[method].items():
        options += ["--set", f"method_options.{option}={value}"]
    train(tmp_path, space_file, "parts", *options, "--set", "accumulate=2")
    train(tmp_path, space_file, "processes", *options, processes=2)
    one, two = weights(tmp_path, "parts"), weights(tmp_path, "processes")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-6, msg=name)
    lines = [read_json_lines(tmp_path / "runs" / name / "metrics.jsonl")[-1]["compute"] for name in ("parts", "processes")]
    assert lines[0] == lines[1]


def workers(torchrun):
    """Process ids of torchrun's workers, by rank."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
            with open(f"/proc/{entry}/environ") as file:
                values = dict(item.partition("=")[::2] for item in file.read().split("\0"))
        except (OSError, ValueError):
            continue
        if parent == torchrun and "RANK" in values:
            found[int(values["RANK"])] = int(entry)
    return found


@pytest.mark.slow
def test_killed_workers_are_replaced(tmp_path, space_file):
    options = [*OPTIONS[2:], "--epochs", "6", "--set", "save_minutes=0.005"]
    train(tmp_path, space_file, "calm", *options, processes=2)
    torchrun = train(tmp_path, space_file, "killed", *options, processes=2, restarts=2, wait=False)
    run, deadline, last = Run(tmp_path / "runs" / "killed"), time.monotonic() + 240, ""
    try:
        for victim in (1, 0):
            while time.monotonic() < deadline and torchrun.poll() is None:
                if run.checkpoints and run.checkpoints[-1].name != last:  # it has got on since the last one died
                    break
                time.sleep(0.02)
            last = run.checkpoints[-1].name
            os.kill(workers(torchrun.pid)[victim], signal.SIGKILL)
            while torchrun.poll() is None and len(workers(torchrun.pid)) > 1:
                time.sleep(0.02)
        _, err = torchrun.communicate(timeout=240)
    finally:
        torchrun.terminate()
    assert torchrun.returncode == 0, err
    assert run.info["state"] == "finished"
    calm, killed = weights(tmp_path, "calm"), weights(tmp_path, "killed")
    assert all(torch.equal(tensor, killed[name]) for name, tensor in calm.items())
    lines = [read_json_lines(tmp_path / "runs" / name / "metrics.jsonl") for name in ("calm", "killed")]
    assert [steady(line) for line in lines[0]] == [steady(line) for line in lines[1]]


@pytest.mark.slow
def test_two_machines_meet(tmp_path, space_file):
    """Two agents on this machine, each with a process, as two machines would be."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=1"]
    command = [sys.executable, *launcher, f"--rdzv-endpoint=localhost:{port}", "-m", "growtas", "train", "--space", str(space_file)]
    command += ["--name", "machines", "--batch-size", "64", "--device", "cpu", *OPTIONS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    agents = [subprocess.Popen(command, cwd=tmp_path, env=environment(), **pipes) for _ in range(2)]
    outputs = [agent.communicate(timeout=300) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert sum(out.count("accuracy on the 359 test images") for out, _ in outputs) == 1
    train(tmp_path, space_file, "one", *OPTIONS)
    one, machines = weights(tmp_path, "one"), weights(tmp_path, "machines")
    for name, tensor in one.items():
        torch.testing.assert_close(machines[name], tensor, rtol=0, atol=1e-5, msg=name)


def test_restarts_need_a_name(tmp_path, space_file, growtas, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    code, _, err = growtas("train", "--space", space_file)
    assert code == 2
    assert "torchrun --max-restarts needs --name" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared(tmp_path, space_file):
    process = train(tmp_path, space_file, "odd", "--batch-size", "66", processes=2, wait=False)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "batch_size is 66, which can't be cut into 2 parts" in err
    assert "legal is a multiple of 4, such as 64 or 68" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "number"), [("torchrun", signal.SIGTERM), ("torchrun", signal.SIGINT), (0, signal.SIGTERM), (1, signal.SIGTERM)]
)
def test_stopped_under_torchrun(tmp_path, space_file, target, number):
    """One step an epoch. torchrun passes on what it gets, and ends the other process with SIGTERM when one has ended."""
    options = ["--epochs", "40", "--batch-size", "1024", "--set", "search_images=38"]
    train(tmp_path, space_file, "calm", *options, processes=2)
    torchrun = train(tmp_path, space_file, "stopped", *options, processes=2, wait=False)
    run, deadline = Run(tmp_path / "runs" / "stopped"), time.monotonic() + 240
    try:
        while not run.checkpoints and time.monotonic() < deadline and torchrun.poll() is None:
            time.sleep(0.01)
        asked = time.monotonic()
        os.kill(torchrun.pid if target == "torchrun" else workers(torchrun.pid)[target], number)
        _, err = torchrun.communicate(timeout=60)
        seconds = time.monotonic() - asked
    finally:
        torchrun.terminate()
    command = "torchrun --standalone --nproc-per-node 2 -m growtas train --resume runs/stopped --device cpu"
    assert torchrun.returncode != 0
    assert f"growtas: interrupted; continue with: {command}" in err
    assert "unexpected" not in err
    assert f"exitcode  : {128 + number}" in err or target == "torchrun", err
    assert run.info["state"] == "interrupted"
    assert seconds < 25, "torchrun would soon have killed the workers"
    resumed = train(tmp_path, None, "stopped", processes=2)
    assert "accuracy on the 359 test images" in resumed
    calm, stopped = weights(tmp_path, "calm"), weights(tmp_path, "stopped")
    assert all(torch.equal(tensor, stopped[name]) for name, tensor in calm.items())
    lines = [read_json_lines(tmp_path / "runs" / name / "metrics.jsonl") for name in ("calm", "stopped")]
    assert [steady(line) for line in lines[0]] == [steady(line) for line in lines[1]]


FINETUNE = """
import os, time
import torch
from growtas import api, runs
from growtas.checkpoint import save_model
from growtas.nn.extract import extract
from growtas.nn.supernet import Supernet
from growtas.space import load_space

rank, update = os.environ["RANK"], runs.Run.update
if rank == "0":
    # Process 0 is slow to write: the others must not read the run before it has.
    runs.Run.update = lambda run, **values: time.sleep(1 if "finetune" in values else 0) or update(run, **values)
torch.manual_seed(0)
space = load_space("tiny.yaml")
if not os.path.exists("model.safetensors") and rank == "0":
    save_model("model.safetensors", extract(Supernet(space), space.largest))
    open("saved", "w").close()
while not os.path.exists("saved"):
    time.sleep(0.05)
run = api.finetune("model.safetensors", data="digits", epochs=1, batch_size=256, name="tuned", device="cpu")
print("accuracy", rank, run.info["finetune"]["test_accuracy"])
"""


@pytest.mark.slow
def test_every_process_of_a_finetuning_returns_its_accuracy(tmp_path, space_file):
    (tmp_path / "tune.py").write_text(FINETUNE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "tune.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "runs" / "tuned")
    wanted = run.info["finetune"]["test_accuracy"]
    # Two processes write at once: their lines may stand on one line.
    said = set(re.findall(r"accuracy (\d) ([0-9.]+)", done.stdout))
    assert said == {("0", str(wanted)), ("1", str(wanted))}
    # One process measures the same on its own.
    images = open_test_set(run)
    subnet = Subnet.from_dict(run.info["finetune"]["subnet"])
    supernet = load_supernet(run.supernet_file)
    assert count_correct(lambda batch: supernet(batch, subnet), images) / len(images) == pytest.approx(wanted, abs=1 / len(images))
