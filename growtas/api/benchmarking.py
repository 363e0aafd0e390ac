"""``bench``: measures artifacts side by side on this machine and writes the report."""

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

    An artifact that can't run on this machine (a plan without a GPU) is reported with its size and the activation memory of its
    manifest. An artifact that can't be loaded or fails in its first run is reported with its error. The other artifacts are
    measured. A ``KeyboardInterrupt`` ends the measurement; the report then covers the results so far and has ``interrupted`` set.

    Args:
        artifacts: artifacts, their files, folders of them, run folders, or ``timm:NAME``; by default all artifacts in the newest
            run's export folder.
        baseline: baseline of the comparison: one of the artifacts, a runtime, or a timm model, which is then measured too.
        runtimes: ``eager``, ``compile``, ``onnxruntime``, ``openvino``, ``tensorrt`` or ``tensorrt-rtx``; by default the usual one
            of each artifact.
        batches: batch sizes.
        threads: CPU threads; by default all that this process may use.
        rounds: number of rounds. Each round measures every artifact once, so that a slow minute affects all of them.
        seconds: seconds of measurement for each artifact and batch size, summed over all rounds.
        device: device of PyTorch and ONNX Runtime: ``cpu`` or ``cuda``.
        roofline: measure this machine's peak speed, and each artifact's share of it.
        out: JSON file for the report; by default ``bench/bench.json`` in the artifacts' run, if they lie in one. An interrupted
            report never replaces the default file.
        csv: CSV file to write, with a row for each artifact and batch size.
        png: PNG file to write, with latency and throughput (needs matplotlib).
        progress: counts the measurements; a :class:`growtas.export.benchmark.run.TurnBegun` event names the artifact.

    Returns:
        The report; its ``files`` are the written files.

    Raises:
        CheckpointError: An artifact is missing, or differs from its manifest.
        ConfigError: A number is out of range.
        DeviceError: This machine doesn't have the device.
        MissingExtra: matplotlib, or the runtime of the only artifact, is not installed.
        OutputError: A file can't be written.
        UsageError: A file is not an artifact, an artifact is given twice, a runtime accepts none of the artifacts, or the timm
            model is unknown.
        GrowtasError: No artifact can be measured; this is the error of the first one.
        KeyboardInterrupt: The measurement was stopped before its first result.
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
        progress.note(f"artifacts: all files in {run / 'export'} (the newest run)")
        names = [str(path) for path in artifacts_in(run)]
    report_file = Path(out) if out is not None else run / "bench" / "bench.json" if run is not None else None
    csv_file, png_file = (check_output_file(file) if file is not None else None for file in (csv, png))
    if report_file is not None:
        named = check_output_file(report_file)
        report_file = report_file if out is None else named
    if png_file is not None:
        require_matplotlib()
    report = measure(names, options, progress=progress)
    report.run = run
    if report.interrupted and out is None and report_file is not None:
        progress.note(f"{report_file}: not replaced, because the measurement is incomplete; --out writes incomplete reports too")
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
