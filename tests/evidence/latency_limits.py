"""``python -m tests.evidence.latency_limits RUN``: does the subnet of a search meet its limit when somebody measures it again?

Random limits between the smallest and the largest subnet's latency on this machine, and a search of the run under each. The chosen
subnet is then cut out of the trained supernet, exported as ``growtas export`` does, and timed from its file:
other weights, another file and another moment than what the search judged. Prints a Markdown table and writes
build/latency-limits.json. Exits with 0 only if every one is within its limit. Wants a quiet machine.

With ``--load`` two endless loops and a matrix multiplication keep all cores busy while the searches run, each with timings of its
own; nothing is timed again then. Only the ends are measured before, on the quiet machine. ``--verify`` times the chosen subnets of
that afterwards, once it is quiet again: all searches must have finished, and 19 of 20 subnets hold their limits. Both go on where
they were stopped, from build/latency-limits-load/.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from growtas.api.search_devices import local_target
from growtas.checkpoint import load_supernet
from growtas.data.evaluation import EvaluationSet, search_set
from growtas.errors import GrowtasError, UsageError
from growtas.export.benchmark.timing import collect, summarise, warm_up
from growtas.export.graph import assemble
from growtas.export.graph.exporter import export_onnx
from growtas.export.runtimes.onnxruntime import OnnxRuntimeSession
from growtas.export.verification.images import noise
from growtas.files import write_json
from growtas.nn.architecture import Architecture
from growtas.nn.extract import extract
from growtas.nn.supernet import Supernet
from growtas.nn.vit import VisionTransformer, random_network
from growtas.runs import Run
from growtas.search.devices import parse_devices
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


# They end with the process that started them, however that ends.
_LOOP = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(10**6))"
_MATRICES = "import numpy, os\nparent, a = os.getppid(), numpy.random.rand(1500, 1500)\nwhile os.getppid() == parent: a @ a"
_LOADS = (_LOOP, _LOOP, _MATRICES)
HOLD = 0.95
"""Share of the subnets chosen under load that must hold their limit on the quiet machine."""


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """Other programs take all cores until the end of the block."""
    running = [subprocess.Popen([sys.executable, "-c", load]) for load in _LOADS]
    try:
        time.sleep(3)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def search(
    supernet: Supernet, images: EvaluationSet, limit_ms: float, config: EvolutionConfig, seed: int, folder: Path
) -> dict[str, Any]:
    """One search under a limit on this machine, as the command line's; what it chose, predicted and judged."""
    space = supernet.space
    (device,) = parse_devices({"cpu": limit_ms}, None, None, sizes=False)
    target = local_target(device, space, Limits(), folder, predict=False, profile_of=space.name)
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
        "unsteady": latency.unsteady,
        "undecided": latency.undecided,
        "finalists": len(chosen.finalists),
    }


def measured_ends(supernet: Supernet) -> list[float]:
    """Milliseconds of the smallest and the largest subnet, each the least of three measurements."""
    space = supernet.space
    networks = [random_network(Architecture.of(space, subnet)) for subnet in (space.smallest, space.largest)]
    return [min(measure_network(network) for _ in range(3)) for network in networks]


def search_all(
    supernet: Supernet,
    images: EvaluationSet,
    record: dict[str, Any],
    config: EvolutionConfig,
    folder: Path,
    *,
    shared: bool,
    out: Path,
) -> Iterator[dict[str, Any]]:
    """The rows of the searches, those in the record as they are; each new one is written to ``out`` at once.

    Args:
        shared: keep the timings between the limits, as they are in a run's folder between searches.
    """
    yield from record["rows"]
    for number in range(len(record["rows"]), len(record["limits_ms"])):
        started, limit_ms = time.perf_counter(), record["limits_ms"][number]
        row: dict[str, Any] = {"limit_ms": limit_ms, "load_average": os.getloadavg()[0]}
        try:
            row |= search(supernet, images, limit_ms, config, number, folder if shared else folder / f"search-{number:02}")
        except GrowtasError as error:
            row["error"] = str(error)
        row["seconds"] = time.perf_counter() - started
        record["rows"].append(row)
        write_json(out, record)
        yield row


def time_again(supernet: Supernet, row: dict[str, Any], seconds: float) -> None:
    """Times a row's subnet from an export of the trained supernet, unless it was, and says whether it is within the limit."""
    if "subnet" in row and "again_ms" not in row:
        row["again_ms"] = measure_network(extract(supernet, Subnet.from_dict(row["subnet"])), seconds)
    row["within"] = "again_ms" in row and row["again_ms"] <= row["limit_ms"]


def table_line(row: dict[str, Any]) -> str:
    numbers = [f"{row[key]:.4f}" if key in row else "-" for key in ("predicted_ms", "measured_ms", "judged_ms", "again_ms")]
    margin = f"{row['margin']:.1%}" if "margin" in row else "-"
    state = "unsteady" if row.get("unsteady") else "steady"
    within = {True: "yes", False: "NO", None: "not yet"}[row.get("within")]
    cells = [f"{row['limit_ms']:.4f}", *numbers, margin, state, row.get("error", within), f"{row['seconds']:.0f}"]
    return f"| {' | '.join(cells)} |\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--load", action="store_true", help="search while other programs take all cores; time nothing again")
    parser.add_argument("--verify", action="store_true", help="time what --load chose; on a quiet machine")
    parser.add_argument("--searches", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the limits")
    parser.add_argument("--generations", type=int, default=4)
    parser.add_argument("--population", type=int, default=15)
    parser.add_argument("--images", type=int, default=200, help="of the search split")
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring the chosen subnet again")
    parser.add_argument(
        "--out", type=Path, help="by default build/latency-limits.json, and latency-limits-load/rows.json under load"
    )
    options = parser.parse_args()
    loaded = options.load or options.verify
    out = options.out or Path("build") / ("latency-limits-load/rows.json" if loaded else "latency-limits.json")
    run = Run(options.run)
    supernet, images = load_supernet(run.supernet_file), search_set(run).subset(options.images)
    config = EvolutionConfig(generations=options.generations, population=options.population)
    if loaded and out.is_file():
        record = json.loads(out.read_text())
    elif options.verify:
        raise UsageError(f"{out}: nothing to verify; run with --load first")
    else:
        ends = measured_ends(supernet)
        # What measures the smallest must leave it some room, or no subnet has any.
        limits = np.random.default_rng(options.seed).uniform(ends[0] * 1.05, ends[1], options.searches).tolist()
        record = {"ends_ms": ends, "kind": "measured", "limits_ms": limits, "rows": []}
        write_json(out, record)
    smallest_ms, largest_ms = record["ends_ms"]
    searches = len(record["limits_ms"])
    sys.stdout.write(f"smallest {smallest_ms:.3f} ms, largest {largest_ms:.3f} ms (measured), {searches} limits between them\n\n")
    # The blocks' graphs are the same for all searches. To export them once saves minutes under load, and changes no timing.
    assemble.export_graph = functools.cache(assemble.export_graph)
    headings = ("limit, ms", "predicted", "measured", "judged", "measured again", "margin", "timings", "within", "s")
    sys.stdout.write(f"| {' | '.join(headings)} |\n|" + " ---: |" * len(headings) + "\n")
    with contextlib.ExitStack() as stack:
        if options.load and len(record["rows"]) < searches:
            stack.enter_context(busy_cores())
        folder = out.parent if loaded else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rows = record["rows"] if options.verify else search_all(
            supernet, images, record, config, folder, shared=not loaded, out=out
        )  # fmt: skip
        for row in rows:
            if not options.load:
                time_again(supernet, row, options.seconds)
                write_json(out, record)
            sys.stdout.write(table_line(row))
            sys.stdout.flush()
    finished = sum("subnet" in row for row in record["rows"])
    if options.load:
        sys.stdout.write(f"\n{finished} of {searches} searches finished; --verify on the quiet machine times what they chose\n")
        return 0 if finished == searches else 1
    within, needed = sum(row["within"] for row in record["rows"]), searches * (HOLD if options.verify else 1)
    holds = finished == searches and within >= needed
    sys.stdout.write(f"\n{finished} of {searches} finished, {within} within their limits: {'holds' if holds else 'FAILS'}\n")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
