"""``bench``: measures artifacts against each other on this machine, and writes the report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from growtas.export.benchmark.csv_table import write_csv
from growtas.export.benchmark.plot import draw_png, require_matplotlib
from growtas.export.benchmark.report import BenchReport
from growtas.export.benchmark.run import BenchOptions
from growtas.export.benchmark.run import bench as measure
from growtas.export.formats import artifacts_in
from growtas.files import check_output_file, write_json
from growtas.progress import SILENT, Progress
from growtas.runs import find_run, run_of


def bench(
    artifacts: Sequence[str | os.PathLike[str]] | None = None,
    *,
    baseline: str | None = None,
    runtimes: Sequence[str] = (),
    batches: Sequence[int] = (1, 8),
    threads: int | None = None,
    rounds: int = 5,
    seconds: float = 1.0,
    device: str = "cpu",
    roofline: bool = True,
    out: str | Path | None = None,
    csv: str | Path | None = None,
    png: str | Path | None = None,
    progress: Progress = SILENT,
) -> BenchReport:
    """Measures latency, throughput, load time and memory of artifacts on this machine.

    An artifact that can't run here (a plan without a GPU) is reported with its size and the activation memory from its manifest,
    one that can't be loaded or fails in its first run with its error; the others are measured. A ``KeyboardInterrupt`` ends the
    measuring; what was measured until then is reported, with ``interrupted`` set.

    Args:
        artifacts: artifacts, their files, folders of them, run folders, or ``timm:NAME``; by default all in the newest run's export
            folder.
        baseline: what the others are compared with: one of the artifacts, a runtime, or a timm model that is measured beside.
        runtimes: ``eager``, ``compile``, ``onnxruntime``, ``openvino``, ``tensorrt`` or ``tensorrt-rtx``; by default each
            artifact's own.
        batches: images a run.
        threads: CPU threads; by default all that this process may use.
        rounds: how often every artifact gets its turn; turns are interleaved, so that a slow minute hits all.
        seconds: time for each artifact and batch, all rounds together.
        device: ``cpu``, or ``cuda`` for PyTorch and ONNX Runtime on a GPU.
        roofline: measure this machine's peaks, and each artifact's share of them.
        out: JSON file for the report; by default ``bench/bench.json`` in the run that the artifacts lie in, if they lie in one. An
            interrupted report does not replace that one.
        csv: CSV file, a line for each artifact and batch.
        png: picture of latencies and throughput (needs matplotlib).
        progress: each of its units is a turn; a :class:`growtas.export.benchmark.run.TurnBegun` says whose.

    Returns:
        The report; its ``files`` are what was written.

    Raises:
        CheckpointError: an artifact is absent, or is not what its manifest says.
        ConfigError: a number out of range.
        DeviceError: a device that isn't at hand.
        MissingExtra: matplotlib, or the runtime of the only artifact, is not installed.
        OutputError: a file can't be written.
        UsageError: a file that is no artifact, the same twice, a runtime that takes none of them, or an unknown timm model.
        GrowtasError: none of the artifacts can be measured; the first one's error.
        KeyboardInterrupt: before anything was measured.
    """
    options = BenchOptions(
        batches=tuple(dict.fromkeys(batches)),
        threads=threads,
        rounds=rounds,
        seconds=seconds,
        runtimes=tuple(dict.fromkeys(runtimes)),
        baseline=baseline,
        device=device,
        roofline=roofline,
    )
    if artifacts:
        names = [str(file) for artifact in artifacts for file in artifacts_in(artifact)]
        run = next((folder for name in names if (folder := run_of(Path(name))) is not None), None)
    else:
        run = find_run(None).path
        progress.note(f"artifacts: all in {run / 'export'} (the newest run)")
        names = [str(path) for path in artifacts_in(run)]
    report_file = Path(out) if out is not None else run / "bench" / "bench.json" if run is not None else None
    csv_file, png_file = (Path(file) if file is not None else None for file in (csv, png))
    for file in (report_file, csv_file, png_file):
        if file is not None:
            check_output_file(file)
    if png_file is not None:
        require_matplotlib()
    report = measure(names, options, progress=progress)
    report.run = run
    if report.interrupted and out is None and report_file is not None:
        progress.note(f"{report_file}: left as it was, since not everything was measured; --out writes a part too")
        report_file = None
    record = report.to_dict()
    if report_file is not None:
        write_json(report_file, record)
    if csv_file is not None:
        write_csv(record, csv_file)
    if png_file is not None:
        draw_png(record, png_file)
    report.files = tuple(file for file in (report_file, csv_file, png_file) if file is not None)
    return report
