"""``make evidence-search``: trains micro on Fashion-MNIST, searches it, and compares the result with random subnets.

It writes build/search_gain.json, and takes about a quarter of an hour on two idle cores. The searched subnet and the random ones
meet the same limit on the number of parameters. The test images are used only for the comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from growtas import Subnet
from growtas.checkpoint import load_supernet
from growtas.costs import count_costs, count_costs_batch
from growtas.data.evaluation import test_set
from growtas.files import read_json
from growtas.runs import Run, find_run
from growtas.sampling import sample_feasible
from growtas.units import parse_count
from tests.reference import count_correct


def growtas(*arguments: str, cwd: Path, threads: int | None = None) -> float:
    """Runs a command like a user, on so many CPU threads; returns its duration in seconds."""
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "growtas", *arguments], cwd=cwd, check=True, env=environment)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-params", default="150K", help="Largest number of parameters (default: 150K).")
    parser.add_argument("--random", type=int, default=50, help="Number of random subnets to compare with (default: 50).")
    parser.add_argument("--search-images", default="1000", help="Number of images for evaluating candidates (default: 1000).")
    parser.add_argument("--run", type=Path, help="Trained run to use instead of training one.")
    parser.add_argument("--train", action="append", default=[], help="Further argument for growtas train; may be repeated.")
    options = parser.parse_args()
    folder = Path("build/search_gain")
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, object] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    if options.run is None:
        growtas("train", "--data", "fashion-mnist", *options.train, cwd=folder)
    run = find_run(options.run, folder / "runs")
    limits = ["--max-params", options.max_params, "--limit-images", options.search_images]
    report["train_seconds"] = run.info["seconds"]
    report["search_seconds"] = growtas("search", str(run.path.resolve()), *limits, cwd=folder)
    report.update(compare(run, options.max_params, options.random))
    Path("build/search_gain.json").write_text(json.dumps(report, indent=2) + "\n")
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


def compare(run: Run, max_params: str, count: int) -> dict[str, object]:
    """Measures the test accuracy of the searched subnet and of random ones under the same limit."""
    space, supernet, images = run.space, load_supernet(run.supernet_file), test_set(run)

    @torch.inference_mode()
    def accuracy(subnet: Subnet) -> float:
        return count_correct(lambda batch: supernet(batch, subnet), images) / len(images)

    limit = parse_count(max_params)
    drawn = sample_feasible(space, count, np.random.default_rng(12345), lambda b: count_costs_batch(space, b)[0] <= limit)
    searched = Subnet.load(run.path / "search" / "subnet.json")
    names = {"searched": searched, "smallest": space.smallest, "middle": space.middle(), "largest": space.largest}
    named = {name: accuracy(subnet) for name, subnet in names.items()}
    random = sorted(accuracy(subnet) for subnet in drawn)
    return {
        "run": str(run.path),
        "test_images": len(images),
        "max_params": max_params,
        "search_accuracy": read_json(run.path / "search" / "subnet.json")["accuracy"],
        "searched_subnet": searched.to_dict(),
        "searched_params": count_costs(space, searched).params,
        "test_accuracy": named,
        "random": {"count": count, "min": random[0], "median": float(np.median(random)), "max": random[-1]},
        "searched_beats_share": float(np.mean([value < named["searched"] for value in random])),
    }


if __name__ == "__main__":
    main()
