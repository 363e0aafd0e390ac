"""``growtas profile`` of a small space in the runtime ``torch``, and a search under a latency limit that is judged on it."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from tests.gpu.hardware import Hardware
from tests.gpu.images import write_folder
from tests.gpu.cases import Cases, Outcome, Skipped

_PRECISION = "fp32"


def cases(hardware: Hardware, folder: Path) -> Cases:
    work = folder / "limit"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    run, profile = work / "runs" / "micro", work / "profile.json"
    # A CPU is measured in ONNX Runtime.
    runtime = hardware.size(["--runtime", "torch"], [])
    few = hardware.size(["--samples", "30", "--held-out", "15"], ["--samples", "14", "--held-out", "4", "--repeats", "2"])

    def train() -> Outcome:
        images = write_folder(folder / "images", hardware.size(400, 200), 28)
        options = ["--space", "micro", "--epochs", "1", "--device", hardware.device, "--out", str(run.parent), "--name", run.name]
        _growtas("train", "--data", str(images), *options)
        return Outcome("trained")

    def measure() -> Outcome:
        _growtas(
            "profile", "--device", _device(hardware), "--new-device", *runtime, "--space", "micro", "--precision", _PRECISION, *few,
            "--seconds", hardware.size("0.05", "0.005"), "--out", str(profile),
        )  # fmt: skip
        made = json.loads(profile.read_text())
        p95, samples = made["held_out"]["p95"], [sample["ms"] for sample in made["samples"]]
        unsteady = ", unsteady" if made.get("unsteady") else ""
        text = f"{len(samples)} subnets, {min(samples):.3f} to {max(samples):.3f} ms; error on held-out ones {p95:.1%} (p95){unsteady}"
        return Outcome(text, {"p95": p95, "samples": len(samples)})

    def search() -> Outcome:
        if not run.exists() or not profile.exists():
            raise Skipped("there is no run, or no profile")
        limit = statistics.median(sample["ms"] for sample in json.loads(profile.read_text())["samples"])
        evolution = ["--generations", hardware.size("5", "1"), "--population", hardware.size("20", "4")]
        target = ["--device", _device(hardware), *runtime, "--precision", _PRECISION, "--max-latency", f"{limit:.4f}ms"]
        _growtas("search", str(run), *target, *evolution)
        latency = json.loads((run / "search" / "subnet.json").read_text())["latency"]
        text = f"limit {limit:.3f} ms; found {latency['ms']:.3f} ms, {latency['kind']} in {latency['runtime']} {latency['precision']}"
        numbers = {"limit_ms": limit, "ms": latency["ms"], "kind": latency["kind"]}
        return Outcome(text, numbers, latency["kind"] == "measured" and latency["ms"] <= limit)

    yield "growtas train of micro", train
    yield "growtas profile of micro", measure
    yield "growtas search under a limit, measured", search


def _device(hardware: Hardware) -> str:
    """What ``--device`` calls the GPU."""
    if hardware.stand_in:
        return "cpu"
    from growtas.latency.at_hand import devices_at_hand

    return next(name for name in devices_at_hand() if name != "cpu")


def _growtas(*arguments: str) -> None:
    """Runs a command.

    Raises:
        Skipped: the command refused, with its sentence.
        RuntimeError: it failed.
    """
    done = subprocess.run([sys.executable, "-m", "growtas", *arguments], capture_output=True, text=True)
    sys.stdout.write(f"growtas {' '.join(arguments)}\n{done.stdout}{done.stderr}\n")
    if done.returncode:
        message = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit code {done.returncode}")
        missing = message.partition("No module named '")[2].partition("'")[0]
        if missing or "unexpected" not in message and message.startswith("growtas: "):
            raise Skipped(f"{missing} is not installed" if missing else message.removeprefix("growtas: "))
        raise RuntimeError(f"growtas {arguments[0]}: {message}")
