"""``growtas search``: the best subnet under limits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from growtas.cli.output import JsonOption, console, note, print_json


def search(
    run: Annotated[Path | None, typer.Argument(help="Run folder; by default the newest in ./runs that holds a supernet.")] = None,
    space: Annotated[
        str | None, typer.Option(help="Choices to search: a preset or YAML file; without RUN, the newest run of this space.")
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="Whose latency: cpu (measured here) or a profile, with a limit as in a10:5ms; again for more devices."),
    ] = None,
    max_params: Annotated[str | None, typer.Option(help="Limit on parameters, with a unit: 6M.")] = None,
    max_macs: Annotated[str | None, typer.Option(help="Limit on multiply-accumulates for one image, with a unit: 1.3G.")] = None,
    max_latency: Annotated[
        str | None, typer.Option(help="Limit on the median latency, with a unit: 5ms; of each --device without its own.")
    ] = None,
    max_activation_memory: Annotated[
        str | None, typer.Option(help="Limit on the modelled peak of a plan's activations at --batch, with a unit: 20MB.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(help="Limit on the bytes of the weights at --precision, with a unit: 12MB.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images at once that latency and activation memory are meant for.")] = 1,
    precision: Annotated[
        str | None, typer.Option(help="Precision of latency, memory and size: fp32, tf32, fp16 or int8; by default the device's.")
    ] = None,
    objective: Annotated[
        str, typer.Option(help="accuracy (the paper's evolution), or pareto (NSGA-II, a whole front).")
    ] = "accuracy",
    front: Annotated[
        str | None, typer.Option(help="Axes of the front: accuracy and latency, params or macs, separated by commas.")
    ] = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="Choose among what the journal holds, under these limits; nothing is evaluated.")
    ] = False,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Evaluate every subnet on all images, even those that can't become parents any more."),
    ] = False,
    generations: Annotated[int, typer.Option(help="Generations of the evolution.")] = 20,
    population: Annotated[int, typer.Option(help="New subnets a generation.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of all random choices.")] = 0,
    limit_images: Annotated[int | None, typer.Option(help="Evaluate on so many images of the search split only.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Data set, where the run records none: a name as `growtas train` takes it.")
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder of the data set.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for journal and results; by default RUN/search.")] = None,
    json_: JsonOption = False,
) -> None:
    """Search a trained supernet for the best subnet under limits.

    The paper's evolution: accuracy on images set aside from the training set, never the test set. Limits are hard, and one subnet
    meets them all. Every evaluation is journalled: a search that was stopped goes on when the same command runs again.

    Example: growtas search --device a10 --max-latency 5ms
    """
    from growtas.cli.search_job import Job, Request
    from growtas.cli.search_plan import find_supernet, parse_devices, searched_space, widest
    from growtas.cli.search_view import show_found
    from growtas.errors import ConfigError, choices
    from growtas.search.evolution import EvolutionConfig
    from growtas.search.limits import Limits
    from growtas.search.memory import parse_bytes
    from growtas.search.objective import OBJECTIVES, parse_axes
    from growtas.units import parse_count

    for option, value, lowest in (("--batch", batch, 1), ("--limit-images", limit_images, 1), ("--seed", seed, 0)):
        if value is not None and value < lowest:
            raise ConfigError(f"{option} is {value}; it must be {lowest} or more")
    if objective not in OBJECTIVES:
        raise ConfigError(f"--objective is {objective!r}; legal are {choices(OBJECTIVES)}")
    if front is not None and objective != "pareto":
        raise ConfigError("--front needs --objective pareto")
    sizes = max_size is not None or max_activation_memory is not None
    devices = parse_devices(device or [], max_latency, precision, sizes=sizes)
    limits = Limits(
        max_params=parse_count(max_params, "--max-params", "6M") if max_params is not None else None,
        max_macs=parse_count(max_macs, "--max-macs", "1.3G") if max_macs is not None else None,
        max_activation_bytes=parse_bytes(max_activation_memory, "--max-activation-memory") if max_activation_memory else None,
        max_size_bytes=parse_bytes(max_size, "--max-size", "12MB") if max_size else None,
        batch=batch,
        precision=widest(devices, precision),
    )
    config = EvolutionConfig(generations=generations, population=population)
    chosen, said = find_supernet(run, space)
    note(f"run: {chosen.path} ({said})")
    state = chosen.info.get("state")
    if state not in ("finished", "imported"):
        note(f"the training of this run is not finished ({state}); searching its newest checkpoint")
    searched = searched_space(chosen, space)
    limits.check(searched)
    request = Request(
        run=chosen,
        said=said,
        space=searched,
        limits=limits,
        devices=devices,
        axes=parse_axes(front, bool(devices)) if objective == "pareto" else (),
        exact=exact,
        config=config,
        seed=seed,
        limit_images=limit_images,
        data=data,
        data_dir=data_dir,
        out=out or chosen.path / "search",
        hidden=json_,
    )
    job = Job(request)
    found, report = job.replay() if replay else job.search()
    if json_:
        print_json(report)
        return
    show_found(searched, found, limits, report)
    named = f" {chosen.path}" if run is not None or space is not None else ""
    console().print(f"next: growtas export{named} --format trt", soft_wrap=True)
