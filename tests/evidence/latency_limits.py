"""``python -m tests.evidence.latency_limits RUN``: does the subnet of a search meet its limit when somebody measures it again?

Random limits between the smallest and the largest subnet's latency on this machine, and a search of the run under each. The chosen
subnet is then cut out of the trained supernet, exported as ``growtas export`` does, and timed from its file:
other weights, another file and another moment than what the search judged. Prints a Markdown table and writes
build/latency-limits.json. Exits with 0 only if every one is within its limit. Wants a quiet machine: on a busy one the search
refuses to judge, and a limit that could not be judged is no success.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from growtas.api.search_devices import local_target
from growtas.checkpoint import load_supernet
from growtas.data.evaluation import EvaluationSet, search_set
from growtas.errors import GrowtasError
from growtas.export.benchmark.timing import collect, summarise, warm_up
from growtas.export.graph.assemble import random_network
from growtas.export.graph.exporter import export_onnx
from growtas.export.runtimes.onnxruntime import OnnxRuntimeSession
from growtas.export.verification.images import noise
from growtas.nn.architecture import Architecture
from growtas.nn.extract import extract
from growtas.nn.supernet import Supernet
from growtas.nn.vit import VisionTransformer
from growtas.runs import Run
from growtas.search.devices import Device
from growtas.search.evaluation.evaluator import SubnetEvaluator
from growtas.search.evolution import EvolutionConfig
from growtas.search.journal import Journal
from growtas.search.limits import Limits
from growtas.search.scoring import Scorer
from growtas.search.search import Search
from growtas.subnet import Subnet


def measure_network(network: VisionTransformer, seconds: float = 1.0) -> float:
    """p50 in milliseconds of a network, exported and run from the file in ONNX Runtime."""
    with tempfile.TemporaryDirectory(prefix="growtas-") as folder:
        path = Path(folder) / "subnet.onnx"
        export_onnx(network, path)
        with OnnxRuntimeSession(path) as session:
            timer = session.timer(noise(1, session.image_shape))
            warm_up(timer)
            return summarise(collect(timer, seconds=seconds, min_runs=30), session.info, batch=1).p50_ms


def search(
    supernet: Supernet, images: EvaluationSet, limit_ms: float, config: EvolutionConfig, seed: int, folder: Path
) -> dict[str, Any]:
    """One search under a limit on this machine, as the command line's; what it chose, predicted and judged."""
    space = supernet.space
    # The timings are kept between the limits, as they are in a run's folder between searches.
    target = local_target(Device("cpu", limit_ms, "fp32"), space, Limits(), folder, predict=False)
    with SubnetEvaluator(supernet, images) as evaluate:
        scorer = Scorer(space, evaluate, Journal(folder / "journal.jsonl", "checkpoint", "images", {}))
        chosen = Search(space=space, limits=Limits(), targets=(target,)).run(scorer, config, seed).chosen
    latency = chosen.latencies[0]
    assert latency.predicted is not None
    assert latency.measured is not None
    return {
        "subnet": chosen.subnet.to_dict(),
        "accuracy": chosen.evaluation.accuracy,
        "predicted_ms": latency.predicted.ms,
        "measured_ms": latency.measured.ms,
        "margin": latency.measured.relative_uncertainty,
        "judged_ms": latency.judged_ms,
        "finalists": len(chosen.finalists),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--searches", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the limits")
    parser.add_argument("--generations", type=int, default=4)
    parser.add_argument("--population", type=int, default=15)
    parser.add_argument("--images", type=int, default=200, help="of the search split")
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring the chosen subnet again")
    parser.add_argument("--out", type=Path, default=Path("build/latency-limits.json"))
    options = parser.parse_args()
    run = Run(options.run)
    supernet, images = load_supernet(run.supernet_file), search_set(run).subset(options.images)
    space = supernet.space
    config = EvolutionConfig(generations=options.generations, population=options.population)
    ends = [measure_network(random_network(Architecture.of(space, subnet))) for subnet in (space.smallest, space.largest)]
    sys.stdout.write(f"smallest {ends[0]:.3f} ms, largest {ends[1]:.3f} ms (measured), {options.searches} limits between them\n\n")
    sys.stdout.write("| limit, ms | predicted | measured | judged | measured again | within | s |\n|" + " ---: |" * 7 + "\n")
    # What measures the smallest must leave it some room, or no subnet has any.
    limits = np.random.default_rng(options.seed).uniform(ends[0] * 1.05, ends[1], options.searches)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, limit_ms in enumerate(limits.tolist()):
            started = time.perf_counter()
            row: dict[str, Any] = {"limit_ms": limit_ms, "load_average": os.getloadavg()[0], "within": False}
            try:
                row |= search(supernet, images, limit_ms, config, number, Path(folder))
                row["again_ms"] = measure_network(extract(supernet, Subnet.from_dict(row["subnet"])), options.seconds)
                row["within"] = row["again_ms"] <= limit_ms
            except GrowtasError as error:
                row["error"] = str(error)
            row["seconds"] = time.perf_counter() - started
            rows.append(row)
            numbers = [f"{row[key]:.4f}" if key in row else "-" for key in ("predicted_ms", "measured_ms", "judged_ms", "again_ms")]
            cells = [f"{limit_ms:.4f}", *numbers, "yes" if row["within"] else row.get("error", "NO"), f"{row['seconds']:.0f}"]
            sys.stdout.write(f"| {' | '.join(cells)} |\n")
            sys.stdout.flush()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"ends_ms": ends, "kind": "measured", "rows": rows}, indent=2) + "\n")
    within = sum(row["within"] for row in rows)
    sys.stdout.write(f"\n{within} of {len(rows)} within their limits: {'holds' if within == len(rows) else 'FAILS'}\n")
    return 0 if within == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
