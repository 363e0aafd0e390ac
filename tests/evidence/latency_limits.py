"""``python -m tests.evidence.latency_limits RUN``: does the chosen subnet of a search meet its latency limit when measured again?

It draws random limits between the latencies of the smallest and the largest subnet on this machine, and searches the run under each
limit. Then it exports the chosen subnet by ``growtas export``, and times the file with the plain runtime in a new process without
growtas. So the weights, the file and the time differ from those in the search. ``--device`` sets runtime and precision, as in
``growtas search --device``. It prints a Markdown table and writes build/latency-limits.json. The exit code is 0 only if every
subnet meets its limit. The machine should be idle.

With ``--load``, two endless loops and a matrix multiplication keep all cores busy during the searches. Each search has its own
timings, and no subnet is timed again; only the smallest and the largest subnet are measured before, on the idle machine. Later, on
the idle machine again, ``--verify`` times the chosen subnets: all searches must have finished, and 19 of 20 subnets must meet their
limits. Both continue where they were stopped, from build/latency-limits-load/.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from growtas.api.exporting import export
from growtas.api.search_devices import local_target
from growtas.checkpoint import load_supernet
from growtas.data.evaluation import EvaluationSet, search_set
from growtas.errors import GrowtasError, UsageError
from growtas.export.graph import assemble
from growtas.files import write_json
from growtas.nn.supernet import Supernet
from growtas.resources import available_threads
from growtas.runs import Run
from growtas.search.devices import Device, parse_devices
from growtas.search.evaluation.evaluator import SubnetEvaluator
from growtas.search.evolution import EvolutionConfig
from growtas.search.journal import Journal
from growtas.search.limits import Limits
from growtas.search.scoring import Scorer
from growtas.search.search import Search
from growtas.subnet import Subnet

# Runs the file without growtas, in a process that does nothing else.
_PLAIN = """
import statistics, sys, time
import numpy
path, runtime, threads, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
if runtime == "onnxruntime":
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    run = lambda: session.run(None, {session.get_inputs()[0].name: images})
else:
    import openvino
    # By default OpenVINO computes in bf16 if the CPU can, and uses no threads that share a core.
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    hints |= {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_HYPER_THREADING": True, "ENABLE_CPU_PINNING": False}
    model = openvino.Core().compile_model(path, "CPU", hints)
    shape = [1, *(side.get_length() for side in list(model.input(0).partial_shape)[1:])]
    request = model.create_infer_request()
    run = request.infer
images = numpy.random.default_rng(0).standard_normal([1, *shape[1:]], dtype=numpy.float32)
if runtime == "openvino":
    # As its own benchmark_app does; to hand an array to every call takes 0.1 ms more, whatever the network is.
    request.set_input_tensor(openvino.Tensor(images))
times, start = [], time.perf_counter()
while (now := time.perf_counter()) < start + seconds or len(times) < 60:
    run()
    times.append(time.perf_counter() - now)
# The first runs are the warm-up.
print(1000 * statistics.median(times[len(times) // 5 :]))
"""


def measure_subnet(run: Run, subnet: Subnet, device: Device, seconds: float = 1.0) -> float:
    """Measures the median latency in milliseconds of a subnet of a run, from its exported file, in a new process."""
    with tempfile.TemporaryDirectory(prefix="growtas-") as folder:
        form = "openvino" if device.runtime == "openvino" else "onnx"
        file = export(run, subnet, formats=(form,), precision=device.precision, out=folder)[-1].path
        arguments = [str(file), str(device.runtime), str(available_threads()), str(seconds)]
        result = subprocess.run([sys.executable, "-c", _PLAIN, *arguments], capture_output=True, text=True, check=True)
        return float(result.stdout)


# The loads end when the process that started them ends in any way.
_LOOP = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(10**6))"
_MATRICES = "import numpy, os\nparent, a = os.getppid(), numpy.random.rand(1500, 1500)\nwhile os.getppid() == parent: a @ a"
_LOADS = (_LOOP, _LOOP, _MATRICES)
HOLD = 0.95
"""Share of the subnets chosen under load that must meet their limit on the idle machine."""


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """Keeps all cores busy with other programs until the end of the block."""
    running = [subprocess.Popen([sys.executable, "-c", load]) for load in _LOADS]
    try:
        time.sleep(3)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def search(
    supernet: Supernet,
    images: EvaluationSet,
    device: Device,
    limit_ms: float,
    config: EvolutionConfig,
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    """Runs one search under a limit on this machine, like the command; returns its choice and its latencies."""
    space, device = supernet.space, replace(device, max_ms=limit_ms)
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


def measured_ends(run: Run, device: Device) -> list[float]:
    """Measures the milliseconds of the smallest and the largest subnet, each the minimum of three measurements.

    For the smallest subnet the upper bound of a search's measurement is returned if it is larger, because under a lower limit a
    search correctly finds nothing.
    """
    space = run.space
    lowest, highest = (min(measure_subnet(run, subnet, device) for _ in range(3)) for subnet in (space.smallest, space.largest))
    with tempfile.TemporaryDirectory(prefix="growtas-") as folder:
        target = local_target(device, space, Limits(), Path(folder), predict=True, profile_of=space.name)
        assert target.stopwatch is not None
        return [max(lowest, target.stopwatch.measure(space.smallest).upper_ms), highest]


def search_all(
    supernet: Supernet,
    images: EvaluationSet,
    device: Device,
    record: dict[str, Any],
    config: EvolutionConfig,
    folder: Path,
    *,
    shared: bool,
    out: Path,
) -> Iterator[dict[str, Any]]:
    """Yields the rows of the searches, first those in the record. Each new row is written to ``out`` at once.

    Args:
        shared: whether the searches share their timings, like searches of the same run.
    """
    yield from record["rows"]
    for number in range(len(record["rows"]), len(record["limits_ms"])):
        started, limit_ms = time.perf_counter(), record["limits_ms"][number]
        row: dict[str, Any] = {"limit_ms": limit_ms, "load_average": os.getloadavg()[0]}
        try:
            timings = folder if shared else folder / f"search-{number:02}"
            row |= search(supernet, images, device, limit_ms, config, number, timings)
        except GrowtasError as error:
            row["error"] = str(error)
        row["seconds"] = time.perf_counter() - started
        record["rows"].append(row)
        write_json(out, record)
        yield row


def time_again(run: Run, device: Device, row: dict[str, Any], seconds: float) -> None:
    """Times a row's subnet from its exported file, unless this was done before, and records whether it meets the limit."""
    if "subnet" in row and "again_ms" not in row:
        row["again_ms"] = measure_subnet(run, Subnet.from_dict(row["subnet"]), device, seconds)
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
    parser.add_argument("run", type=Path, help="Folder of a trained run.")
    parser.add_argument("--device", default="cpu", help="Target of the searches, such as cpu:openvino:int8 (default: cpu).")
    parser.add_argument("--load", action="store_true", help="Search while other programs use all cores, and time nothing again.")
    parser.add_argument("--verify", action="store_true", help="Time the subnets that --load chose, on an idle machine.")
    parser.add_argument("--searches", type=int, default=20, help="Number of searches (default: 20).")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the random limits (default: 0).")
    parser.add_argument("--generations", type=int, default=4, help="Generations of a search (default: 4).")
    parser.add_argument("--population", type=int, default=15, help="Subnets of a generation (default: 15).")
    parser.add_argument("--images", type=int, default=200, help="Number of images of the search split (default: 200).")
    parser.add_argument("--seconds", type=float, default=2.0, help="Seconds for timing a chosen subnet again (default: 2).")
    parser.add_argument(
        "--out", type=Path, help="Output file (default: build/latency-limits.json, under load build/latency-limits-load/rows.json)."
    )
    options = parser.parse_args()
    loaded = options.load or options.verify
    out = options.out or Path("build") / ("latency-limits-load/rows.json" if loaded else "latency-limits.json")
    run = Run(options.run)
    (device,) = parse_devices([options.device], None, None, sizes=False)
    supernet, images = load_supernet(run.supernet_file), search_set(run).subset(options.images)
    config = EvolutionConfig(generations=options.generations, population=options.population)
    if loaded and out.is_file():
        record = json.loads(out.read_text())
    elif options.verify:
        raise UsageError(f"{out}: nothing to verify; run with --load first")
    else:
        ends = measured_ends(run, device)
        # Limits are at least 5 % above the smallest latency, because measurements vary.
        limits = np.random.default_rng(options.seed).uniform(ends[0] * 1.05, ends[1], options.searches).tolist()
        record = {"device": options.device, "ends_ms": ends, "kind": "measured", "limits_ms": limits, "rows": []}
        write_json(out, record)
    smallest_ms, largest_ms = record["ends_ms"]
    searches = len(record["limits_ms"])
    sys.stdout.write(f"smallest {smallest_ms:.3f} ms, largest {largest_ms:.3f} ms (measured), {searches} limits between them\n\n")
    # All searches need the same graphs of blocks. Exporting them once saves minutes under load and does not change the timings.
    assemble.export_graph = functools.cache(assemble.export_graph)
    headings = ("limit, ms", "predicted", "measured", "judged", "measured again", "margin", "timings", "within", "s")
    sys.stdout.write(f"| {' | '.join(headings)} |\n|" + " ---: |" * len(headings) + "\n")
    with contextlib.ExitStack() as stack:
        if options.load and len(record["rows"]) < searches:
            stack.enter_context(busy_cores())
        folder = out.parent if loaded else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rows = record["rows"] if options.verify else search_all(
            supernet, images, device, record, config, folder, shared=not loaded, out=out
        )  # fmt: skip
        for row in rows:
            if not options.load:
                time_again(run, device, row, options.seconds)
                write_json(out, record)
            sys.stdout.write(table_line(row))
            sys.stdout.flush()
    finished = sum("subnet" in row for row in record["rows"])
    if options.load:
        sys.stdout.write(f"\n{finished} of {searches} searches finished; --verify times the chosen subnets, on the idle machine\n")
        return 0 if finished == searches else 1
    within, needed = sum(row["within"] for row in record["rows"]), searches * (HOLD if options.verify else 1)
    holds = finished == searches and within >= needed
    sys.stdout.write(f"\n{finished} of {searches} finished, {within} within their limits: {'holds' if holds else 'FAILS'}\n")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
