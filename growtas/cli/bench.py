"""``growtas bench``: artifacts measured against each other on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from growtas.cli.output import JsonOption, note, print_json

if TYPE_CHECKING:
    from growtas.export.artifact import Manifest


def bench(
    artifacts: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files (.safetensors, .pt2, .onnx, .xml, .plan), or timm:NAME; by default all in the newest run's export folder."
        ),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="What the others are compared with: one of the artifacts, a runtime, or any timm model.")
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            help="eager, compile, onnxruntime, openvino, tensorrt or tensorrt-rtx; several separated by commas. By default each "
            "artifact's own."
        ),
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,8",
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default all that this process may use.")] = None,
    rounds: Annotated[int, typer.Option(help="How often every artifact gets its turn; turns are interleaved.")] = 5,
    seconds: Annotated[float, typer.Option(help="Seconds for each artifact and batch, all rounds together.")] = 1.0,
    device: Annotated[str, typer.Option(help="cpu, or cuda for PyTorch and ONNX Runtime on a GPU.")] = "cpu",
    roofline: Annotated[
        bool, typer.Option("--roofline/--no-roofline", help="Measure this machine's peaks, and each artifact's share of them.")
    ] = True,
    out: Annotated[Path | None, typer.Option(help="JSON file for the report; by default RUN/bench/bench.json.")] = None,
    csv: Annotated[Path | None, typer.Option(help="CSV file, a line for each artifact and batch.")] = None,
    png: Annotated[Path | None, typer.Option(help="PNG file with latencies and throughput (needs matplotlib).")] = None,
    json_: JsonOption = False,
) -> None:
    """Measure latency, throughput, load time and memory of artifacts.

    ONNX files run in ONNX Runtime, safetensors and exported programs in eager PyTorch, OpenVINO IR in OpenVINO, plans in TensorRT
    where a GPU is at hand; elsewhere a plan is listed with its size and activation memory. Ctrl-C shows what was measured so far.

    Example: growtas bench --batch 1,8 --baseline deit_tiny_patch16_224

    Example: growtas bench a.onnx b.onnx --runtime onnxruntime,openvino --baseline a.onnx --png bench.png
    """
    from growtas.cli.bench_view import print_report, progress_bar
    from growtas.export.benchmark.run import BenchOptions, find_artifacts
    from growtas.export.benchmark.run import bench as run_bench
    from growtas.files import ensure_writable, write_json
    from growtas.runs import find_run

    options = BenchOptions(
        batches=_batches(batch),
        threads=threads,
        rounds=rounds,
        seconds=seconds,
        runtimes=tuple(dict.fromkeys(part.strip() for text in runtime or () for part in text.split(","))),
        baseline=baseline,
        device=device,
        roofline=roofline,
    )
    if artifacts:
        paths: list[str | Path] = [*artifacts]
        run_folder = next((run for name in artifacts if (run := _run_of(Path(name))) is not None), None)
    else:
        run_folder = find_run(None).path
        note(f"artifacts: all in {run_folder / 'export'} (the newest run)")
        paths = [*find_artifacts(run_folder / "export")]
    report_file = out or (run_folder / "bench" / "bench.json" if run_folder else None)
    for file in (report_file, csv, png):
        if file is not None:
            ensure_writable(file.parent)
    if png is not None:
        from growtas.export.benchmark.plot import require_matplotlib

        require_matplotlib()
    with progress_bar(hidden=json_) as step:
        report = run_bench(paths, options, note=note, step=step)
    report["run"] = str(run_folder) if run_folder else None
    for artifact in report["artifacts"]:
        artifact["limits"] = _limits(artifact)
    if report["interrupted"] and out is None and report_file is not None:
        note(f"{report_file}: left as it was, since not everything was measured; --out writes a part too")
        report_file = None
    if report_file is not None:
        write_json(report_file, report)
    if csv is not None:
        from growtas.export.benchmark.csv_table import write_csv

        write_csv(report, csv)
    if png is not None:
        from growtas.export.benchmark.plot import draw_png

        draw_png(report, png)
    if json_:
        print_json(report)
    else:
        print_report(report, [file for file in (report_file, csv, png) if file is not None])
    if report["interrupted"]:
        note("interrupted: this is what was measured so far")
        raise typer.Exit(130)


def _batches(text: str) -> tuple[int, ...]:
    from growtas.errors import ConfigError

    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ConfigError(f"--batch is {text!r}; it must be a list of numbers from 1 up, such as 1,8") from None


def _run_of(artifact: Path) -> Path | None:
    """The run folder that an artifact lies in, if it does."""
    folder = artifact.resolve().parent.parent
    return artifact.parent.parent if (folder / "run.json").is_file() else None


def _limits(artifact: dict[str, Any]) -> list[dict[str, Any]]:
    """The search's latency limits, one a device, each compared with what was measured on that device alone.

    A manifest knows the first device's; the others are in the subnet file that was exported, where it still lies in the run.
    """
    from growtas.export.artifact import read_manifest
    from growtas.export.benchmark.limits import check_limit

    if artifact["path"] is None:
        return []
    path = Path(artifact["path"])
    run = _run_of(path)
    manifest = read_manifest(path, verify=False)
    if manifest is None or manifest.search is None:
        return []
    search = manifest.search
    latencies = search.get("latencies") or (_subnet_file(run, manifest, search) if run else {}).get("latencies")
    if not latencies:
        return [artifact["limit"]] if artifact["limit"] else []
    asked = [
        {
            "limits": {"max_latency_ms": latency["max_latency_ms"]},
            "device": latency["device"],
            "latency": latency["measured"] or latency["predicted"],
        }
        for latency in latencies
    ]
    return [found for one in asked if (found := check_limit(one, artifact["results"])) is not None]


def _subnet_file(run: Path, manifest: Manifest, search: dict[str, Any]) -> dict[str, Any]:
    """The searched subnet that a manifest is of, as it was written; empty where another search took its place."""
    from growtas.errors import CheckpointError
    from growtas.files import read_json

    for path in sorted(run.glob("search*/subnet.json")):
        try:
            written = read_json(path, "subnet file")
        except CheckpointError:
            continue
        same = isinstance(written, dict) and all(written.get(key) == value for key, value in search.items())
        if same and all(written.get(key) == value for key, value in (manifest.subnet or {}).items()):
            return dict(written)
    return {}
