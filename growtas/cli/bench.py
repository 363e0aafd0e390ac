"""``growtas bench``: artifacts measured against each other on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from growtas.cli import options
from growtas.cli.output import note, print_json


def bench(
    artifacts: Annotated[
        list[str] | None,
        Argument(
            help="Files (.safetensors, .pt2, .onnx, .xml, .plan), folders of them, run folders, or timm:NAME; by default the "
            "newest run."
        ),
    ] = None,
    baseline: Annotated[
        str | None, Option(help="What the others are compared with: one of the artifacts, a runtime, or any timm model.")
    ] = None,
    runtime: Annotated[
        list[str] | None,
        Option(
            help="eager, compile, onnxruntime, openvino, tensorrt or tensorrt-rtx; several separated by commas. By default each "
            "artifact's own."
        ),
    ] = None,
    batch: Annotated[str, Option(help="Batch sizes, separated by commas.")] = "1,8",
    threads: options.Threads = None,
    rounds: Annotated[int, Option(help="How often every artifact gets its turn; turns are interleaved.")] = 5,
    seconds: Annotated[float, Option(help="Seconds for each artifact and batch, all rounds together.")] = 1.0,
    device: Annotated[str, Option(help="cpu, or cuda for PyTorch and ONNX Runtime on a GPU.")] = "cpu",
    roofline: Annotated[
        bool, Option("--roofline/--no-roofline", help="Measure this machine's peaks, and each artifact's share of them.")
    ] = True,
    out: Annotated[Path | None, Option(help="JSON file for the report; by default RUN/bench/bench.json.")] = None,
    csv: Annotated[Path | None, Option(help="CSV file, a line for each artifact and batch.")] = None,
    png: Annotated[Path | None, Option(help="PNG file with latencies and throughput (needs matplotlib).")] = None,
    json_: options.Json = False,
) -> None:
    """Measure latency, throughput, load time and memory of artifacts.

    ONNX files run in ONNX Runtime, safetensors and exported programs in eager PyTorch, OpenVINO IR in OpenVINO, plans in TensorRT
    where a GPU is at hand; elsewhere a plan is listed with its size and activation memory. Ctrl-C shows what was measured so far.

    Example: growtas bench --batch 1,8 --baseline deit_tiny_patch16_224

    Example: growtas bench a.onnx b.onnx --runtime onnxruntime,openvino --baseline a.onnx --png bench.png
    """
    from growtas.api.benchmarking import bench as run_bench
    from growtas.cli.bench_view import TurnBar, print_report

    with TurnBar(hidden=json_) as progress:
        report = run_bench(
            artifacts,
            baseline=baseline,
            runtimes=[part.strip() for text in runtime or () for part in text.split(",")],
            batches=_batches(batch),
            threads=threads,
            rounds=rounds,
            seconds=seconds,
            device=device,
            roofline=roofline,
            out=out,
            csv=csv,
            png=png,
            progress=progress,
        )
    if json_:
        print_json(report.to_dict())
    else:
        print_report(report)
    if report.interrupted:
        note("interrupted: this is what was measured so far")
        raise typer.Exit(130)


def _batches(text: str) -> tuple[int, ...]:
    from growtas.errors import ConfigError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--batch is {text!r}; it must be a list of numbers from 1 up, such as 1,8") from None
