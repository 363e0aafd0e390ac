"""``growtas search``: the best subnet under limits."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from growtas.cli import options
from growtas.cli.output import print_json, print_line


def search(
    run: Annotated[Path | None, Argument(help="Run folder; by default the newest in ./runs that holds a supernet.")] = None,
    space: Annotated[
        str | None, Option(help="Choices to search: a preset or YAML file; without RUN, the newest run of this space.")
    ] = None,
    device: Annotated[
        list[str] | None,
        Option(help="Whose latency: cpu (measured here) or a profile, with a limit as in a10:5ms; again for more devices."),
    ] = None,
    max_params: Annotated[str | None, Option(help="Limit on parameters, with a unit: 6M.")] = None,
    max_macs: Annotated[
        str | None,
        Option(help="Limit on multiply-accumulates for one image, with a unit: 1.3G; as in papers, without the relative position."),
    ] = None,
    max_macs_with_relative_position: Annotated[
        str | None, Option(help="The same limit, with the multiply-accumulates of the relative position counted too.")
    ] = None,
    max_latency: Annotated[
        str | None, Option(help="Limit on the median latency, with a unit: 5ms; of each --device without its own.")
    ] = None,
    max_activation_memory: Annotated[
        str | None, Option(help="Limit on the modelled peak of a plan's activations at --batch, with a unit: 20MB.")
    ] = None,
    max_size: Annotated[str | None, Option(help="Limit on the bytes of the weights at --precision, with a unit: 12MB.")] = None,
    batch: Annotated[int, Option(help="Images at once that latency and activation memory are meant for.")] = 1,
    precision: Annotated[
        str | None, Option(help="Precision of latency, memory and size: fp32, tf32, fp16 or int8; by default the device's.")
    ] = None,
    objective: Annotated[str, Option(help="accuracy (the paper's evolution), or pareto (NSGA-II, a whole front).")] = "accuracy",
    front: Annotated[
        str | None, Option(help="Axes of the front: accuracy and latency, params or macs, separated by commas.")
    ] = None,
    replay: Annotated[
        bool, Option("--replay", help="Choose among what the journal holds, under these limits; nothing is evaluated.")
    ] = False,
    exact: Annotated[
        bool, Option("--exact", help="Evaluate every subnet on all images, even those that can't become parents any more.")
    ] = False,
    generations: Annotated[int, Option(help="Generations of the evolution.")] = 20,
    population: Annotated[int, Option(help="New subnets a generation.")] = 50,
    seed: Annotated[int, Option(help="Seed of all random choices.")] = 0,
    limit_images: Annotated[int | None, Option(help="Evaluate on so many images of the search split only.")] = None,
    data: Annotated[str | None, Option(help="Data set, where the run records none: a name as `growtas train` takes it.")] = None,
    data_dir: Annotated[str | None, Option(help="Folder of the data set.")] = None,
    out: Annotated[Path | None, Option(help="Folder for journal and results; by default RUN/search.")] = None,
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

    with SearchDisplay(generations, hidden=json_) as display:
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
            objective=objective,
            front=front,
            replay=replay,
            exact=exact,
            generations=generations,
            population=population,
            seed=seed,
            limit_images=limit_images,
            data=data,
            data_dir=data_dir,
            out=out,
            command=shlex.join(["growtas", *sys.argv[1:]]),
            progress=display,
        )
    if json_:
        print_json(result.to_dict())
        return
    show_result(result)
    named = f" {result.run.path}" if run is not None or space is not None else ""
    print_line(f"next: growtas export{named} --format trt")
