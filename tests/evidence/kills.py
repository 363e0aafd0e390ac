"""``python -m tests.evidence.kills FOLDER --kills 20``: kills a training with SIGKILL at random moments and continues it each time.

The final weights, optimiser state, metrics and test accuracies must be equal, bit by bit, to those of an undisturbed training. The
trainings run in forked children of this process, which imports everything once but never computes. A new interpreter for each
training would spend most of its time on imports.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from growtas.checkpoint import load_tensors
from growtas.files import read_json, read_json_lines
from growtas.runs import Run
from growtas.train.resolve_recipe import resolve_recipe
from growtas.train.session import resume_session, start_session

UNSTEADY = ("time", "seconds", "images_per_s")


def in_child(work: Any) -> int:
    """Runs a function in a forked child; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.use_deterministic_algorithms(True)
        work()
        code = 0
    finally:
        os._exit(code)


def outcome(run: Run) -> tuple[dict[str, torch.Tensor], Any]:
    """All results of a training except times."""
    folder = run.checkpoints[-1]
    tensors = {
        f"{file.name}/{name}": value for file in folder.glob("*.safetensors") for name, value in load_tensors(file)[0].items()
    }
    assert run.best is not None
    tensors |= {f"best/{name}": value for name, value in load_tensors(run.best / "supernet.safetensors")[0].items()}
    lines = [{k: v for k, v in line.items() if k not in UNSTEADY} for line in read_json_lines(run.path / "metrics.jsonl")]
    state = read_json(folder / "state.json")
    return tensors, (lines, state, run.info["test_accuracy"], read_json(run.best / "best.json"))


def disturb(folder: Path, space: str, kills: int, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """Trains undisturbed, then with kills; returns the number of kills and the differences."""
    # With a checkpoint every 0.1 s, kills happen before, during and after the writing of one.
    common = {"space": space, "batch_size": 64, "epochs": 3, "save_minutes": 0.1 / 60, "warmup_epochs": 0.5, **options}
    recipe = resolve_recipe(None, common)
    start = time.perf_counter()
    os.waitpid(in_child(lambda: start_session(recipe, out=folder, name="calm", device="cpu").train()), 0)
    duration, rng, killed, places = time.perf_counter() - start, random.Random(seed), 0, set()
    run = Run(folder / "killed")

    def work() -> None:
        if (run.path / "run.json").exists():
            resume_session(run, device="cpu").train()
        else:
            start_session(recipe, out=folder, name="killed", device="cpu").train()

    while killed < kills or not finished(run):
        if finished(run):  # it finished before all kills: start again
            for path in sorted(run.path.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            run.path.rmdir()
        pid = in_child(work)
        if killed < kills:
            time.sleep(rng.uniform(0, duration))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            killed += 1
            places.add(run.checkpoints[-1].name if run.path.exists() and run.checkpoints else "before the first checkpoint")
        elif status:
            raise SystemExit("the training failed")
    calm, disturbed = outcome(Run(folder / "calm")), outcome(run)
    different = [name for name, value in calm[0].items() if name not in disturbed[0] or not torch.equal(value, disturbed[0][name])]
    return {
        "kills": killed,
        "places": sorted(places),
        "tensors": len(calm[0]),
        "different": different + sorted(disturbed[0].keys() - calm[0].keys()),
        "same_records": calm[1] == disturbed[1],
    }


def finished(run: Run) -> bool:
    """Whether the run's training is finished."""
    return (run.path / "run.json").exists() and run.info["state"] == "finished"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="Folder for the trainings.")
    parser.add_argument("--space", default="micro", help="Search space (default: micro).")
    parser.add_argument("--kills", type=int, default=20, help="Number of kills (default: 20).")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the random moments (default: 0).")
    parser.add_argument("--options", default="{}", help="Recipe fields as JSON.")
    options = parser.parse_args()
    report = disturb(options.folder, options.space, options.kills, options.seed, json.loads(options.options))
    sys.stdout.write(json.dumps(report) + "\n")
    sys.exit(bool(report["different"]) or not report["same_records"])


if __name__ == "__main__":
    main()
