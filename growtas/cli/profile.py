"""``growtas profile``: measures a space's latencies on this machine and fits a latency model to them."""

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
    device: Annotated[str, Option(help="Name of this machine's device: cpu, or a name for its GPU, such as a10.")],
    new_device: Annotated[
        bool, Option("--new-device", help="Accept a --device name that looks like a misspelt known one.")
    ] = False,
    space: Annotated[
        str, Option(help="Search space: the name of a preset, a YAML file, or the folder of a run that was trained on it.")
    ] = "autoformer-t",
    runtime: Annotated[
        str | None,
        Option(
            help="Runtime that executes the network: onnxruntime, openvino, tensorrt, tensorrt-rtx, torch, torch.compile or "
            "torch.cudagraphs. Default: tensorrt for a GPU, onnxruntime for the CPU."
        ),
    ] = None,
    precision: Annotated[
        str | None, Option(help="Precision of the measured artifacts. Default: fp16 for a GPU, fp32 for the CPU.")
    ] = None,
    batch: Annotated[int, Option(help="Batch size.")] = 1,
    threads: options.Threads = None,
    samples: Annotated[
        int, Option(help="Number of subnets that the model is fitted to. Below 30, another target's profile is adapted if better.")
    ] = 60,
    held_out: Annotated[int, Option(help="Number of random subnets that the model is tested on.")] = 40,
    repeats: Annotated[int, Option(help="Number of subnets measured again at the end, to test the repeatability.")] = 10,
    seconds: Annotated[
        float, Option(help="Seconds per block of measurements; every subnet gets nine blocks, spread over time.")
    ] = 0.1,
    max_cv: Annotated[float, Option(help="Largest coefficient of variation of a subnet's blocks that counts as steady.")] = 0.05,
    max_drift: Annotated[
        float, Option(help="Largest relative change of the reference subnet's latency that counts as steady.")
    ] = 0.04,
    strict: Annotated[
        bool, Option("--strict", help="Fail after four unsteady tries, instead of marking the samples as unsteady.")
    ] = False,
    out: Annotated[
        Path | None, Option(help="Profile file to write. Default: a file in the folder that `growtas devices` names.")
    ] = None,
    json_: options.Json = False,
) -> None:
    """Measure latencies of a space on this machine, and fit the latency model that a search uses.

    The command builds and times the subnets that determine the model's terms best, and random subnets to test the model. On a busy
    or throttled machine it measures ratios to a reference subnet, and marks these samples as unsteady. Every sample is recorded
    in a journal beside the profile: after a stop, the same command continues.

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
        "repeatability": (
            f"median {repeated.median:.2%}, max {repeated.max:.2%} on {repeated.count} subnets" if repeated.count else "not tested"
        ),
        "variation of blocks": f"at most {highest_cv:.2%}; {profile.remeasured} measured again",
        "duration": f"{result.seconds:.0f} s",
    }
    if profile.unsteady:
        facts["unsteady"] = (
            f"{profile.unsteady} of {len(times)} samples: other work was running; with --strict the command fails then"
        )
    print_facts(facts.items())
    print_line(f"written to {result.file}")
