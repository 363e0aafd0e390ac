"""``python -m tests.evidence.racing RUN``: how much time does racing save in a search, and does it change the result?

For every seed the same evolution runs without and with racing, on the run's search images and with separate journals. It prints a
Markdown table and writes build/racing.json. The two take turns, so their ratio is reliable on a busy machine, but the seconds are
not. Racing must evaluate twice as many subnets per second, and its winner must be within 0.2 points.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.checkpoint import load_supernet
from growtas.data.evaluation import EvaluationSet, search_set
from growtas.nn.supernet import Supernet
from growtas.runs import Run
from growtas.search.evaluation.evaluator import SubnetEvaluator
from growtas.search.evaluation.racing import Racing
from growtas.search.evolution import EvolutionConfig, evolve
from growtas.search.journal import Journal
from growtas.search.scoring import Scorer
from tests.progress_recorder import Recorder

FASTER, POINTS = 2.0, 0.2


def every(batch: SubnetBatch) -> NDArray[np.bool_]:
    """Accepts every subnet, because there are no limits."""
    return np.ones(len(batch), bool)


def search(supernet: Supernet, images: EvaluationSet, config: EvolutionConfig, seed: int, *, exact: bool) -> dict[str, Any]:
    """Runs one search with an empty journal; returns its winner, the winner's accuracy on all images, and its costs."""
    with tempfile.TemporaryDirectory() as folder, SubnetEvaluator(supernet, images) as evaluate:
        journal = Journal(Path(folder) / "journal.jsonl", "checkpoint", "images", {})
        racing = None if exact else Racing(config.parents, len(images))
        recorder = Recorder()
        scorer = Scorer(supernet.space, evaluate, journal, racing, recorder)
        wall, cpu = time.perf_counter(), time.process_time()
        result = evolve(supernet.space, scorer, every, np.random.default_rng(seed), config)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    evaluations = [event.evaluation for event in recorder.events]
    seen = [len(images) if evaluation.seen is None else evaluation.seen for evaluation in evaluations]
    winner, score = result.ranked[0]
    parents = [subnet.to_dict() for subnet, _ in result.ranked[: config.parents]]
    return {
        "winner": winner.to_dict(),
        "accuracy": score[0],
        "parents": parents,
        "subnets": len(seen),
        "dropped": scorer.dropped,
        "images_seen": statistics.mean(seen) / len(images),
        "seconds": wall,
        "cpu_seconds": cpu,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="Folder of a trained run.")
    parser.add_argument("--seeds", type=int, default=10, help="Number of seeds (default: 10).")
    parser.add_argument("--generations", type=int, default=20, help="Generations of a search (default: 20).")
    parser.add_argument("--population", type=int, default=50, help="Subnets of a generation (default: 50).")
    parser.add_argument("--images", type=int, help="Number of images of the search split (default: all).")
    parser.add_argument("--out", type=Path, default=Path("build/racing.json"), help="Output file (default: build/racing.json).")
    options = parser.parse_args()
    run = Run(options.run)
    supernet, images = load_supernet(run.supernet_file), search_set(run)
    if options.images is not None:
        images = images.subset(options.images)
    config = EvolutionConfig(generations=options.generations, population=options.population)
    sys.stdout.write(f"{len(images)} images, {config.generations} generations of {config.population}\n\n")
    columns = "seed | winner exact | racing | same winner | same parents | dropped | images seen | times faster | by CPU time"
    sys.stdout.write(f"| {columns} |\n|{' ---: |' * 9}\n")
    rows = []
    for seed in range(options.seeds):
        exact, raced = (search(supernet, images, config, seed, exact=way) for way in (True, False))
        faster, by_cpu = (exact[key] / raced[key] * raced["subnets"] / exact["subnets"] for key in ("seconds", "cpu_seconds"))
        same = exact["winner"] == raced["winner"], exact["parents"] == raced["parents"]
        rows.append({"seed": seed, "exact": exact, "racing": raced, "faster": faster, "faster_by_cpu": by_cpu})
        cells = [str(seed), f"{exact['accuracy']:.2%}", f"{raced['accuracy']:.2%}", *("yes" if equal else "NO" for equal in same)]
        cells += [f"{raced['dropped']} of {raced['subnets']}", f"{raced['images_seen']:.0%}", f"{faster:.2f}", f"{by_cpu:.2f}"]
        sys.stdout.write(f"| {' | '.join(cells)} |\n")
        sys.stdout.flush()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"images": len(images), "rows": rows}, indent=2) + "\n")
    median = statistics.median(row["faster"] for row in rows)
    off = max(100 * abs(row["exact"]["accuracy"] - row["racing"]["accuracy"]) for row in rows)
    holds = median >= FASTER and off <= POINTS
    sys.stdout.write(
        f"\nmedian {median:.2f} times as fast, winners at most {off:.2f} points apart: {'holds' if holds else 'FAILS'}\n"
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
