"""``python -m tests.evidence.methods``: every training method on micro and Fashion-MNIST with equally many steps, as a table.

Writes build/methods.json, and prints the table of docs/EVIDENCE.md. A method's run is kept in build/methods/runs and its accuracies
in build/methods: neither is made again, and a training that was stopped goes on. GrowTAS+ is GrowTAS with an epoch less, and that
epoch then spent on what its A_1 leaves out, so that its steps are as many. Accuracies are on the 10,000 test images; those between
the smallest and the largest subnet are means over ten (``--each``) random subnets, the same for every method, whose parameters lie
nearest to 25, 50 and 75 % of the way. The test images choose nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from growtas import Subnet
from growtas.checkpoint import load_supernet
from growtas.costs import count_costs, count_costs_batch
from growtas.data import test_set
from growtas.files import read_json_lines
from growtas.runs import Run
from growtas.sampling import sample_batch
from growtas.space import SearchSpace
from growtas.train.probes import subnet_accuracies

FOLDER = Path("build/methods")
METHODS = ("growtas", "growtas-plus", "uniform", "sandwich", "shrinking", "prenas", "focusformer")
ALSO = {
    "growtas-auto": ["--method", "growtas", "--transitions", "auto"],
    "sandwich-sum": ["--method", "sandwich", "--set", "method_options.students=3"],
}
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
PLACES = ("25 %", "50 %", "75 %")


def train(name: str, epochs: int, arguments: list[str]) -> None:
    """Train a run of this name to its end, wherever it stands."""
    run = Run(FOLDER / "runs" / name)
    if run.path.exists() and run.info["state"] == "finished":
        return
    start = ["--data", "fashion-mnist", "--name", name, "--epochs", str(epochs), *arguments]
    command = ["--resume", f"runs/{name}"] if run.path.exists() else start
    subprocess.run([sys.executable, "-m", "growtas", "train", "--json", *command], cwd=FOLDER, env=ONE_THREAD, check=True)


def train_method(method: str, epochs: int) -> None:
    """One row of the table."""
    if method == "growtas-plus":
        train("growtas-shorter", epochs - 1, ["--method", "growtas"])
        # The rates that the paper gives for it, against the 1e-3 of its first training.
        rates = ["--set", "lr=1.5e-4", "--set", "min_lr=3e-5", "--set", "warmup_epochs=0"]
        train(method, 1, ["--method", method, "--init", "runs/growtas-shorter", *rates])
    else:
        train(method, epochs, ALSO.get(method, ["--method", method]))


def probes(space: SearchSpace, each: int) -> dict[str, list[Subnet]]:
    """The subnets of each column."""
    batch = sample_batch(space, 20_000, np.random.default_rng(2024))
    params = count_costs_batch(space, batch)[0]
    low, high = (count_costs(space, subnet).params for subnet in (space.smallest, space.largest))
    columns = {"smallest": [space.smallest]}
    for place, share in zip(PLACES, (0.25, 0.5, 0.75), strict=True):
        nearest = np.argsort(np.abs(params - (low + share * (high - low))), kind="stable")[:each]
        columns[place] = [batch.subnet(int(row)) for row in nearest]
    return {**columns, "largest": [space.largest]}


def row(method: str, epochs: int, each: int) -> dict[str, Any]:
    """Train a method, measure it in a process of its own, and return its row."""
    train_method(method, epochs)
    path = FOLDER / f"{method}-{each}.json"
    if not path.exists():
        command = [sys.executable, "-m", "tests.evidence.methods", "--measure", method, "--each", str(each)]
        subprocess.run(command, env=ONE_THREAD, check=True)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def measure(name: str, each: int) -> dict[str, Any]:
    """A method's accuracies, and what its training cost."""
    run = Run(FOLDER / "runs" / name)
    space, images = run.space, test_set(run)
    columns = probes(space, each)
    named = {f"{column} {i}": subnet for column, subnets in columns.items() for i, subnet in enumerate(subnets)}
    found = subnet_accuracies(load_supernet(run.supernet), images, torch.device("cpu"), named)
    accuracy = {column: float(np.mean([found[f"{column} {i}"] for i in range(len(columns[column]))])) for column in columns}
    shorter = [FOLDER / "runs" / "growtas-shorter"] if name == "growtas-plus" else []
    lines = [line for folder in (*shorter, run.path) for line in read_json_lines(folder / "metrics.jsonl")]
    macs = sum(line["compute"]["macs"] + line["compute"]["extra_macs"] for line in lines)
    last = [read_json_lines(folder / "metrics.jsonl")[-1]["step"] for folder in (*shorter, run.path)]
    return {"method": name, "steps": sum(last), "macs": macs, "accuracy": accuracy, "seed": run.info["seed"]}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, compute relative to uniform's."""
    base = next((row["macs"] for row in rows if row["method"] == "uniform"), rows[0]["macs"])
    columns = list(rows[0]["accuracy"])
    lines = [f"| method | {' | '.join(columns)} | compute |", f"| --- |{' ---: |' * (len(columns) + 1)}"]
    for row in rows:
        cells = " | ".join(f"{100 * row['accuracy'][column]:.2f}" for column in columns)
        lines.append(f"| {row['method']} | {cells} | {row['macs'] / base:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trainings at a time, with one thread each")
    parser.add_argument("--methods", default=",".join((*METHODS, *ALSO)))
    parser.add_argument("--each", type=int, default=10, help="subnets of each column between the smallest and the largest")
    parser.add_argument("--measure", metavar="METHOD", help="only measure a trained method, into build/methods/METHOD-EACH.json")
    options = parser.parse_args()
    if options.measure is not None:
        found = measure(options.measure, options.each)
        (FOLDER / f"{options.measure}-{options.each}.json").write_text(json.dumps(found, indent=2) + "\n")
        return
    methods = options.methods.split(",")
    FOLDER.mkdir(parents=True, exist_ok=True)
    longest_first = sorted(methods, key=lambda method: ("sandwich" not in method, method != "growtas-plus"))
    with ThreadPoolExecutor(options.jobs) as pool:
        done = list(pool.map(lambda method: row(method, options.epochs, options.each), longest_first))
    rows = sorted(done, key=lambda found: methods.index(found["method"]))
    Path("build/methods.json").write_text(
        json.dumps({"epochs": options.epochs, "each": options.each, "rows": rows}, indent=2) + "\n"
    )
    sys.stdout.write(table(rows) + "\n")


if __name__ == "__main__":
    main()
