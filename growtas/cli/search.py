"""``growtas search``: finds the best subnet under limits."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from growtas.cli import options
from growtas.cli.output import ProgressBar, command_line, print_json, print_line
from growtas.errors import UsageError

if TYPE_CHECKING:
    from growtas.api import SearchResult

_FORMATS = {"tensorrt": "trt", "tensorrt-rtx": "trt", "openvino": "openvino", "torch": "torch"}
"""Export format that a runtime executes, by the part of its name before the dot; other runtimes execute ONNX files."""


def search(
    run: Annotated[Path | None, Argument(help="Run folder. Default: the newest in ./runs that holds a supernet.")] = None,
    space: Annotated[
        str | None, Option(help="Search space: a preset or a YAML file. Without RUN, the newest run of this space is searched.")
    ] = None,
    device: Annotated[
        list[str] | None,
        Option(
            help="Device whose latency counts: cpu or a GPU's name, as `growtas devices` lists them. A limit may follow (a10:5ms), "
            "also with runtime and precision (cpu:openvino:int8:10ms). Repeatable. This machine's own devices are measured."
        ),
    ] = None,
    max_params: Annotated[str | None, Option(help="Limit on the number of parameters, as in 6M.")] = None,
    max_macs: Annotated[
        str | None,
        Option(
            help="Limit on the multiply-accumulates for one image, as in 1.3G; counted without the relative position, as in papers."
        ),
    ] = None,
    max_macs_with_relative_position: Annotated[
        str | None, Option(help="Limit on the multiply-accumulates for one image, counted with the relative position.")
    ] = None,
    max_latency: Annotated[
        str | None, Option(help="Limit on the median latency, as in 5ms, for each --device without a limit of its own.")
    ] = None,
    max_activation_memory: Annotated[
        str | None, Option(help="Limit on the modelled peak of activation memory at --batch, as in 20MB.")
    ] = None,
    max_size: Annotated[str | None, Option(help="Limit on the size of the weights at --precision, as in 12MB.")] = None,
    batch: Annotated[int, Option(help="Batch size that latency and activation memory refer to.")] = 1,
    precision: Annotated[
        str | None,
        Option(
            help="Precision of latency, memory and size: fp32, tf32, fp16, bf16, int8 or fp8. Default: the device's. For int8 and "
            "fp8, the finalists are converted and judged by their accuracy after that. A pareto front may have several (fp32,int8)."
        ),
    ] = None,
    runtime: Annotated[
        str | None,
        Option(
            help="Runtime that executes the network: onnxruntime, openvino, tensorrt, tensorrt-rtx, torch, torch.compile or "
            "torch.cudagraphs. Default: the device's. `growtas devices` lists those that can be measured on this machine."
        ),
    ] = None,
    objective: Annotated[
        str, Option(help="accuracy (the paper's evolution: one subnet) or pareto (NSGA-II: a whole front).")
    ] = "accuracy",
    front: Annotated[
        str | None,
        Option(help="Axes of the front, comma-separated: accuracy and latency, params or macs. Default: by --device."),
    ] = None,
    replay: Annotated[
        bool,
        Option(
            "--replay",
            help="Choose again among the evaluations in the journal, under new limits. Evaluates nothing and writes to replay/.",
        ),
    ] = False,
    exact: Annotated[
        bool, Option("--exact", help="Evaluate every subnet on all images, even one that can no longer become a parent.")
    ] = False,
    predictor: Annotated[
        bool,
        Option(
            help="Evaluate the subnets with the best predicted accuracy; used for a front and when a limited latency is measured."
        ),
    ] = True,
    proxy: Annotated[
        str | None,
        Option(
            help="Score without training: az-nas. With RUN, it chooses subnets of the first generation. With --space alone, the "
            "whole search uses it and needs no supernet."
        ),
    ] = None,
    strict: Annotated[
        bool,
        Option("--strict", help="Fail if the machine is too unsteady to judge a latency limit, instead of marking the result."),
    ] = False,
    generations: Annotated[int | None, Option(help="Number of generations. Default: 20, or 10 when the predictor is used.")] = None,
    population: Annotated[int, Option(help="New subnets per generation.")] = 50,
    seed: Annotated[int, Option(help="Seed of all random choices.")] = 0,
    limit_images: Annotated[int | None, Option(help="Number of images of the search split to evaluate on. Default: all.")] = None,
    threads: options.Threads = None,
    data: Annotated[str | None, Option(help="Data set, named as for `growtas train`. Default: the run's data set.")] = None,
    data_dir: Annotated[str | None, Option(help="Folder of the data set. Default: the one recorded in the run.")] = None,
    out: Annotated[Path | None, Option(help="Folder for the journal and the results. Default: RUN/search.")] = None,
    json_: options.Json = False,
) -> None:
    """Search a trained supernet for the best subnet under limits.

    The evolution of the GrowTAS paper judges accuracy on images held out from the training set, never on the test set. The result
    meets all limits. Every evaluation is recorded in a journal: after a stop, the same command continues the search.

    Example: growtas search --device a10 --max-latency 5ms
    """
    from growtas import api
    from growtas.cli.search_live import SearchDisplay
    from growtas.cli.search_view import show_proxy_result, show_result

    limits: dict[str, Any] = {
        "max_params": max_params,
        "max_macs": max_macs,
        "max_macs_with_relative_position": max_macs_with_relative_position,
        "max_activation_memory": max_activation_memory,
        "max_size": max_size,
        "batch": batch,
    }
    if proxy is not None and run is None:
        unused = {
            "--device": device, "--max-latency": max_latency, "--runtime": runtime, "--front": front, "--replay": replay,
            "--exact": exact, "--no-predictor": not predictor, "--strict": strict, "--limit-images": limit_images, "--data": data,
            "--data-dir": data_dir, "--threads": threads, "--objective": objective != "accuracy",
        }  # fmt: skip
        if space is None:
            raise UsageError("--proxy needs the folder of a run, or --space for a search without a supernet")
        if (option := next((option for option, given in unused.items() if given), None)) is not None:
            raise UsageError(f"{option} has no effect with --proxy and no run; leave it out, or name the folder of a run")
        settings: dict[str, Any] = {
            "precision": precision or "fp32",
            "generations": generations,
            "population": population,
            "seed": seed,
        }
        with ProgressBar(hidden=json_) as bar:
            found = api.search_by_proxy(space, proxy=proxy, **limits, **settings, out=out or "proxy-search", progress=bar)
        after = command_line("train", method="single", space=space, set=f"method_options.subnet={found.file}")
        if json_:
            print_json({**found.to_dict(), "next": [after]})
        else:
            show_proxy_result(found)
            print_line(f"next: {after}")
        return
    with SearchDisplay(population, hidden=json_) as display:
        result = api.search(
            run,
            space=space,
            devices=device or (),
            **limits,
            max_latency=max_latency,
            precision=precision,
            runtime=runtime,
            objective=objective,
            front=front,
            replay=replay,
            exact=exact,
            predictor=predictor,
            proxy=proxy,
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
    """Returns the commands that export the chosen subnet: one per device, in the format and precision of its latency."""
    from growtas.export.formats import file_stem

    exported = {"data": data, "data_dir": data_dir}
    if result.files["subnet"] != result.run.path / "search" / "subnet.json":  # the default of export
        exported["subnet"] = str(result.files["subnet"])
    commands: dict[str, str] = {}
    for latency in result.latencies:
        if latency.judged is not None:
            conditions = latency.judged.conditions
            options = _export_options(conditions.runtime, conditions.precision, conditions.batch)
            if commands:  # by default a plan is built for the first device
                options |= {"device": conditions.device} if options["format"] == "trt" else {}
                options["name"] = f"{file_stem(result.run.space.name)}-{latency.device.replace(':', '-')}"
            commands[latency.device] = command_line("export", result.run.path, **exported, **options)
    # Without a device, the precision is the one that a limit on bytes refers to.
    options = _export_options("onnxruntime", result.limits.precision, result.limits.batch)
    return list(commands.values()) or [command_line("export", result.run.path, **exported, **options)]


def _export_options(runtime: str, precision: str, batch: int) -> dict[str, str | int]:
    """Returns the options of ``growtas export`` for a runtime, a precision and a batch size."""
    options: dict[str, str | int] = {"format": _FORMATS.get(runtime.partition(".")[0], "onnx")}
    if options["format"] == "torch":  # PyTorch casts the weights when it loads them
        return options
    if options["format"] != "trt":
        # A GPU computes in tf32 with an fp32 file.
        return options if precision in ("fp32", "tf32") else {**options, "precision": precision}
    # By default a plan has the search's precision. It is tuned for one batch size, and it limits the largest one.
    return options if batch == 1 else {**options, "opt_batch": batch, "max_batch": max(batch, 8)}
