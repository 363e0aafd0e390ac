"""Measures a profile of a small space in the runtime ``torch``, and searches under a latency limit that uses it."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from tests.gpu.cases import Cases, Outcome, Skipped
from tests.gpu.hardware import Hardware
from tests.gpu.images import write_folder

_PRECISION = "fp32"


def cases(hardware: Hardware, folder: Path) -> Cases:
    work = folder / "limit"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    run, profile = work / "runs" / "micro", work / "profile.json"
    samples, held_out, repeats, seconds = hardware.size(("30", "15", "5", "0.02"), ("14", "4", "2", "0.005"))
    few = ["--samples", samples, "--held-out", held_out, "--repeats", repeats, "--seconds", seconds]

    def train() -> Outcome:
        images = write_folder(folder / "images", hardware.size(400, 200), 28)
        options = ["--space", "micro", "--epochs", "1", "--device", hardware.device, "--out", str(run.parent), "--name", run.name]
        _growtas("train", "--data", str(images), *options)
        return Outcome("trained")

    def measure() -> Outcome:
        target = ["--device", _device(hardware), "--new-device", "--runtime", "torch", "--precision", _PRECISION]
        _growtas("profile", *target, "--space", "micro", *few, "--out", str(profile))
        made = json.loads(profile.read_text())
        p95, samples = made["held_out"]["p95"], [sample["p50_ms"] for sample in made["samples"]]
        unsteady = ", unsteady" if made.get("unsteady") else ""
        text = f"{len(samples)} subnets, {min(samples):.3f} to {max(samples):.3f} ms; held-out error {p95:.1%} (p95){unsteady}"
        return Outcome(text, {"p95": p95, "samples": len(samples)})

    def search() -> Outcome:
        if not run.exists() or not profile.exists():
            raise Skipped("there is no run, or no profile")
        # A busy CPU may be slower during the search than before.
        slack = hardware.size(1.0, 3.0)
        limit = slack * statistics.median(sample["p50_ms"] for sample in json.loads(profile.read_text())["samples"])
        evolution = ["--generations", hardware.size("5", "1"), "--population", hardware.size("20", "4")]
        target = ["--device", _device(hardware), "--runtime", "torch", "--precision", _PRECISION]
        _growtas("search", str(run), *target, "--max-latency", f"{limit:.4f}ms", *evolution)
        subnet = json.loads((run / "search" / "subnet.json").read_text())
        latency, judged = subnet["latency"], subnet["latencies"][0]["judged"]
        where = f"in {latency['runtime']}, {latency['precision']}"
        text = f"limit {limit:.3f} ms; judged on {judged['ms']:.3f} ms, {judged['kind']} {where}"
        return Outcome(text, {"limit_ms": limit, **judged}, judged["kind"] == "measured" and judged["ms"] <= limit)

    yield "growtas train of micro", train
    yield "growtas profile of micro", measure
    yield "growtas search under a limit, measured", search


def _device(hardware: Hardware) -> str:
    """The name of the GPU for ``--device``."""
    if hardware.stand_in:
        return "cpu"
    from growtas.latency.at_hand import devices_at_hand

    return next(name for name in devices_at_hand() if name != "cpu")


def _growtas(*arguments: str) -> None:
    """Runs a command.

    Raises:
        Skipped: the command refused its input; the message is its sentence.
        RuntimeError: the command failed.
    """
    done = subprocess.run([sys.executable, "-m", "growtas", *arguments], capture_output=True, text=True)
    sys.stdout.write(f"growtas {' '.join(arguments)}\n{done.stdout}{done.stderr}\n")
    if done.returncode:
        message = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit code {done.returncode}")
        missing = message.partition("No module named '")[2].partition("'")[0]
        if missing or (message.startswith("growtas: ") and "unexpected" not in message):
            raise Skipped(f"{missing} is not installed" if missing else message.removeprefix("growtas: "))
        raise RuntimeError(f"growtas {arguments[0]}: {message}")
