"""``growtas bench``: measures artifacts side by side on this machine."""

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
            help="Files (.safetensors, .pt2, .onnx, .xml, .plan), folders of them, run folders, or timm:NAME. Default: the newest "
            "run in ./runs."
        ),
    ] = None,
    baseline: Annotated[
        str | None, Option(help="Baseline of the comparison: one of the artifacts, a runtime, or the name of a timm model.")
    ] = None,
    runtime: Annotated[
        list[str] | None,
        Option(
            help="Runtimes, separated by commas: eager, compile, onnxruntime, openvino, tensorrt and tensorrt-rtx. Default: the "
            "usual one of each artifact."
        ),
    ] = None,
    batch: Annotated[str, Option(help="Batch sizes, separated by commas.")] = "1,8",
    threads: options.Threads = None,
    rounds: Annotated[int, Option(help="Number of rounds; every artifact is measured once per round.")] = 5,
    seconds: Annotated[
        float, Option(help="Seconds of measurement for each artifact and batch size, summed over all rounds.")
    ] = 1.0,
    device: Annotated[str, Option(help="Device of PyTorch and ONNX Runtime: cpu or cuda.")] = "cpu",
    roofline: Annotated[
        bool, Option("--roofline/--no-roofline", help="Measure this machine's peak speed, and each artifact's share of it.")
    ] = True,
    out: Annotated[Path | None, Option(help="JSON file for the report. Default: RUN/bench/bench.json.")] = None,
    csv: Annotated[Path | None, Option(help="CSV file to write, with a row for each artifact and batch size.")] = None,
    png: Annotated[Path | None, Option(help="PNG file to write, with latency and throughput (needs growtas\\[watch]).")] = None,
    json_: options.Json = False,
) -> None:
    """Measure latency, throughput, load time and memory of artifacts.

    By default, ONNX files run in ONNX Runtime, safetensors and exported programs in eager PyTorch, OpenVINO IR in OpenVINO, and
    plans in TensorRT. Without a GPU, a plan is listed with its size and activation memory only. Ctrl-C ends the measurement and
    shows what was measured so far.

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
        note("interrupted: the report covers what was measured so far")
        raise typer.Exit(130)


def _batches(text: str) -> tuple[int, ...]:
    from growtas.errors import ConfigError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--batch is {text!r}; it must be whole numbers of at least 1, separated by commas, as in 1,8") from None
