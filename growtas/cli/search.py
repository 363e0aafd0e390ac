"""``growtas search``: the best subnet under limits."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from growtas.cli import options
from growtas.cli.output import command_line, print_json, print_line

if TYPE_CHECKING:
    from growtas.api import SearchResult

_FORMATS = {"tensorrt": "trt", "tensorrt-rtx": "trt", "openvino": "openvino", "torch": "torch"}
"""The export that each runtime executes, and all ways of torch; of others it is an ONNX file."""


def search(
    run: Annotated[Path | None, Argument(help="Run folder; by default the newest in ./runs that holds a supernet.")] = None,
    space: Annotated[
        str | None, Option(help="Choices to search: a preset or YAML file; without RUN, the newest run of this space.")
    ] = None,
    device: Annotated[
        list[str] | None,
        Option(
            help="Whose latency: cpu, or a GPU by its name; with a limit as in a10:5ms, or all of a target as in "
            "cpu:openvino:int8:10ms; again for more. What this machine has is measured."
        ),
    ] = None,
    max_params: Annotated[str | None, Option(help="Limit on parameters: 6M, or a plain number.")] = None,
    max_macs: Annotated[
        str | None,
        Option(
            help="Limit on multiply-accumulates for one image, 1.3G or a plain number; as in papers, without the relative position."
        ),
    ] = None,
    max_macs_with_relative_position: Annotated[
        str | None, Option(help="The same limit, with the multiply-accumulates of the relative position counted too.")
    ] = None,
    max_latency: Annotated[
        str | None, Option(help="Limit on the median latency, with a unit: 5ms; of each --device without its own.")
    ] = None,
    max_activation_memory: Annotated[
        str | None, Option(help="Limit on the modelled peak of a plan's activations at --batch: 20MB, or plain bytes.")
    ] = None,
    max_size: Annotated[str | None, Option(help="Limit on the bytes of the weights at --precision: 12MB, or plain bytes.")] = None,
    batch: Annotated[int, Option(help="Images at once that latency and activation memory are meant for.")] = 1,
    precision: Annotated[
        str | None,
        Option(
            help="Precision of latency, memory and size: fp32, tf32, fp16, bf16, int8 or fp8; by default the device's. Finalists "
            "for int8 and fp8 are converted, and chosen by their accuracy then. Several with commas are points of a front."
        ),
    ] = None,
    runtime: Annotated[
        str | None,
        Option(
            help="What executes the network: onnxruntime, openvino, tensorrt, tensorrt-rtx, torch, torch.compile or "
            "torch.cudagraphs; by default the device's. `growtas devices` lists what can be measured here."
        ),
    ] = None,
    objective: Annotated[str, Option(help="accuracy (the paper's evolution), or pareto (NSGA-II, a whole front).")] = "accuracy",
    front: Annotated[
        str | None, Option(help="Axes of the front: accuracy and latency, params or macs, separated by commas.")
    ] = None,
    replay: Annotated[
        bool,
        Option(
            "--replay",
            help="Choose among what the journal holds, under these limits. Nothing is evaluated, and the result goes into replay/.",
        ),
    ] = False,
    exact: Annotated[
        bool, Option("--exact", help="Evaluate every subnet on all images, even those that can't become parents any more.")
    ] = False,
    predictor: Annotated[
        bool,
        Option(
            help="For a front, and where a latency limit is measured: evaluate the subnets whose accuracy is predicted to be best."
        ),
    ] = True,
    strict: Annotated[
        bool,
        Option("--strict", help="Refuse to judge a latency limit on a machine that is not steady, instead of marking the result."),
    ] = False,
    generations: Annotated[
        int | None, Option(help="Generations of the evolution; by default 20, or 10 where the predictor chooses.")
    ] = None,
    population: Annotated[int, Option(help="New subnets a generation.")] = 50,
    seed: Annotated[int, Option(help="Seed of all random choices.")] = 0,
    limit_images: Annotated[int | None, Option(help="Evaluate on so many images of the search split only.")] = None,
    threads: options.Threads = None,
    data: Annotated[str | None, Option(help="Data set, where the run records none: a name as `growtas train` takes it.")] = None,
    data_dir: Annotated[str | None, Option(help="Folder of the data set.")] = None,
    out: Annotated[
        Path | None, Option(help="Folder for journal and results (in it replay/, with --replay); by default RUN/search.")
    ] = None,
    json_: options.Json = False,
) -> None:
    """Search a trained supernet for the best subnet under limits.

    The paper's evolution: accuracy on images set aside from the training set, never the test set. Limits are hard, and one subnet
    meets them all. Every evaluation is journalled: a search that was stopped goes on when the same command runs again.

    Example: growtas search --device a10 --max-latency 5ms
    """
    from growtas import api
    from growtas.cli.search_live import SearchDisplay
    from growtas.cli.search_view import show_result

    with SearchDisplay(population, hidden=json_) as display:
        result = api.search(
            run,
            space=space,
            devices=device or (),
            max_params=max_params,
            max_macs=max_macs,
            max_macs_with_relative_position=max_macs_with_relative_position,
            max_latency=max_latency,
            max_activation_memory=max_activation_memory,
            max_size=max_size,
            batch=batch,
            precision=precision,
            runtime=runtime,
            objective=objective,
            front=front,
            replay=replay,
            exact=exact,
            predictor=predictor,
            strict=strict,
            generations=generations,
            population=population,
            seed=seed,
            limit_images=limit_images,
            threads=threads,
            data=data,
            data_dir=data_dir,
            out=out,
            command=shlex.join(["growtas", *sys.argv[1:]]),
            progress=display,
        )
    following = _next_commands(result, data=data, data_dir=data_dir)
    if json_:
        print_json({**result.to_dict(), "next": following})
        return
    show_result(result)
    for command in following:
        print_line(f"next: {command}")


def _next_commands(result: SearchResult, *, data: str | None, data_dir: str | None) -> list[str]:
    """The exports of the subnet that was found: one for each device, of the kind that its latency is of."""
    from growtas.export.formats import file_stem

    exported = {"data": data, "data_dir": data_dir}
    if result.files["subnet"] != result.run.path / "search" / "subnet.json":  # where export looks
        exported["subnet"] = str(result.files["subnet"])
    commands: dict[str, str] = {}
    for latency in result.latencies:
        if latency.judged is not None:
            meant = latency.judged.conditions
            options = _export_options(meant.runtime, meant.precision, meant.batch)
            if commands:  # the first device is the one that a plan is for by default
                options |= {"device": meant.device} if options["format"] == "trt" else {}
                options["name"] = f"{file_stem(result.run.space.name)}-{latency.device.replace(':', '-')}"
            commands[latency.device] = command_line("export", result.run.path, **exported, **options)
    # Without a device a limit on bytes is for files of a precision.
    options = _export_options("onnxruntime", result.limits.precision, result.limits.batch)
    return list(commands.values()) or [command_line("export", result.run.path, **exported, **options)]


def _export_options(runtime: str, precision: str, batch: int) -> dict[str, str | int]:
    """Options of ``growtas export`` for what a runtime executes in a precision."""
    options: dict[str, str | int] = {"format": _FORMATS.get(runtime.partition(".")[0], "onnx")}
    if options["format"] == "torch":  # the weights, which PyTorch casts when it loads them
        return options
    if options["format"] != "trt":
        # A GPU computes in tf32 from an fp32 file.
        return options if precision in ("fp32", "tf32") else {**options, "precision": precision}
    # A plan's precision is the search's by default. It is tuned for one batch, and takes no larger one than it was built for.
    return options if batch == 1 else {**options, "opt_batch": batch, "max_batch": max(batch, 8)}
