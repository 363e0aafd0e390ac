"""``growtas profile``: this machine's latencies of a space, measured, fitted and tested."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from growtas.cli import options
from growtas.cli.output import ProgressBar, print_facts, print_json, print_line
from growtas.units import format_ms

if TYPE_CHECKING:
    from growtas.api import ProfileResult


def profile(
    device: Annotated[str, Option(help="What this machine is to be called: cpu, or a name for its GPU, such as a10.")],
    new_device: Annotated[
        bool, Option("--new-device", help="The name is meant, though it looks like a slip of a known one.")
    ] = False,
    space: Annotated[
        str, Option(help="Search space: a preset's name, a YAML file, or the folder of a run that was trained on it.")
    ] = "autoformer-t",
    runtime: Annotated[
        str | None,
        Option(
            help="What executes: onnxruntime, openvino, tensorrt, tensorrt-rtx, torch, torch.compile or torch.cudagraphs; by "
            "default tensorrt for a GPU, else onnxruntime."
        ),
    ] = None,
    precision: Annotated[str | None, Option(help="Precision of the artifacts; by default fp16 for a GPU, else fp32.")] = None,
    batch: Annotated[int, Option(help="Images at once.")] = 1,
    threads: options.Threads = None,
    samples: Annotated[
        int, Option(help="Subnets that the model is fitted to; below 30 another target's profile is adapted, if that is better.")
    ] = 60,
    held_out: Annotated[int, Option(help="Random subnets that the model is tested on.")] = 40,
    repeats: Annotated[int, Option(help="Subnets measured again at the end, to see how well measurements repeat.")] = 10,
    seconds: Annotated[float, Option(help="Seconds of a block; every subnet gets nine, spread over time.")] = 0.1,
    max_cv: Annotated[float, Option(help="Largest coefficient of variation of a steady subnet's blocks.")] = 0.05,
    max_drift: Annotated[float, Option(help="Largest change of the reference subnet between steady groups.")] = 0.04,
    strict: Annotated[
        bool, Option("--strict", help="Refuse what is not steady, after four tries, instead of marking it as unsteady.")
    ] = False,
    out: Annotated[Path | None, Option(help="Profile to write; by default in the folder that `growtas devices` names.")] = None,
    json_: options.Json = False,
) -> None:
    """Measure this machine's latencies of a space, and fit the model that a search prunes with.

    Subnets that tell the model's terms best apart are built and timed, and others, drawn at random, to test it. On a busy or
    throttled machine a sample is a ratio to a reference subnet, and marked as unsteady. All are journalled beside the profile:
    the same command goes on where it was stopped.

    Example: growtas profile --device cpu --space micro
    """
    from growtas import api

    with ProgressBar(hidden=json_) as progress:
        result = api.profile(
            device,
            new_device=new_device,
            space=space,
            runtime=runtime,
            precision=precision,
            batch=batch,
            threads=threads,
            samples=samples,
            held_out=held_out,
            repeats=repeats,
            seconds=seconds,
            max_cv=max_cv,
            max_drift=max_drift,
            strict=strict,
            out=out,
            progress=progress,
        )
    if json_:
        print_json(result.to_dict())
    else:
        _print(result)


def _print(result: ProfileResult) -> None:
    profile = result.profile
    held_out, repeated = profile.held_out, profile.repeatability
    times, highest_cv = [sample.p50_ms for _, sample in profile.samples], max(sample.cv for _, sample in profile.samples)
    adapted = f", adapted from the {profile.adapted_from}" if profile.adapted_from else ""
    facts = {
        "measured": f"{profile.conditions}, {profile.space.name}",
        "machine": f"{profile.description}, {profile.threads} threads" if profile.threads else profile.description,
        "latencies": f"{format_ms(min(times))} to {format_ms(max(times))} (measured)",
        "model": f"{profile.basis}, fitted to {len(profile.of_role('fit'))} subnets{adapted}",
        f"error on {held_out.count} held-out": f"median {held_out.median:.2%}, p95 {held_out.p95:.2%}, max {held_out.max:.2%}",
        "hit rates": f"{held_out.within_5:.0%} within +-5 %, {held_out.within_10:.0%} within +-10 %",
        "rank correlation": f"{held_out.spearman:.4f} (Spearman)",
        "measurements repeat": (
            f"median {repeated.median:.2%}, max {repeated.max:.2%} on {repeated.count} subnets" if repeated.count else "not tried"
        ),
        "variation of blocks": f"at most {highest_cv:.2%}; {profile.remeasured} measured again",
        "took": f"{result.seconds:.0f} s",
    }
    if profile.unsteady:
        facts["unsteady"] = f"{profile.unsteady} of {len(times)} samples: other work was running; --strict refuses such samples"
    print_facts(facts.items())
    print_line(f"written to {result.file}")
