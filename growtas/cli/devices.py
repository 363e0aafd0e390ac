"""``growtas devices``: what ``--device`` can name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from growtas.cli.output import JsonOption, console, print_json, print_table

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable
    from pathlib import Path

    from growtas.latency.measured.profile import MeasuredProfile
    from growtas.latency.modelled.profile import DeviceProfile


def devices(json_: JsonOption = False) -> None:
    """List the devices whose latency a search can limit.

    A modelled profile is a roofline from the datasheet: nothing was timed on that device. A measured one was made by
    `growtas profile`; of subnets that it did not time, it predicts the latency. One of cpu counts on the machine that
    it was made on.

    Example: growtas devices
    """
    from growtas.latency.catalogue import measured_profiles, modelled_profiles
    from growtas.latency.modelled.profile import CPU, user_folder

    modelled, measured = modelled_profiles(), measured_profiles()
    if json_:
        cpu = {"name": CPU, "kind": "measured", "precision": "fp32", "runtime": "onnxruntime", "description": "this machine"}
        entries = [{**profile.to_dict(), "origin": origin} for origin, profile in modelled]
        print_json({"devices": [cpu, *entries, *(_entry(*item) for item in measured)], "folder": str(user_folder())})
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("device", "what it is", "kind", "space", "target", "precision", "runtime", "batch", "date", "error", "from"):
        table.add_column(heading, no_wrap=True)
    table.add_row(CPU, "this machine", "measured", "any", "-", "fp32", "onnxruntime", "any", "when searched", "-", "-")
    for row in sorted([*(_measured(*item) for item in measured), *(_modelled(*item) for item in modelled)]):
        table.add_row(*row)
    print_table(table)
    console().print(
        "error of a measured profile: 95th percentile on held-out subnets; of a modelled one: its uncertainty, a judgement, after "
        "how far it misses public ViT-B/16 latencies (fp16, batch 1 to 32)\n"
        "a measured profile of cpu counts where CPU, threads and runtime are the same and its reference subnet takes as long\n"
        f"your own profiles go before the shipped ones; they lie in {user_folder()}, and `growtas profile` measures one",
        soft_wrap=True,
    )


def _entry(path: Path | Traversable, profile: MeasuredProfile) -> dict[str, Any]:
    """A measured profile in JSON, without its samples."""
    from growtas.latency.catalogue import origin

    data = {key: value for key, value in profile.to_dict().items() if key not in ("samples", "coefficients", "space")}
    return {**data, "space": profile.space.name, "samples": len(profile.samples), "origin": origin(path)}


def _measured(path: Path | Traversable, profile: MeasuredProfile) -> tuple[str, ...]:
    from growtas.latency.catalogue import SHIPPED, origin

    return (
        profile.name,
        f"{profile.description}, {profile.threads} threads" if profile.threads else profile.description,
        profile.kind,
        profile.space.name,
        "-",
        profile.precision,
        profile.runtime,
        str(profile.batch),
        profile.date,
        f"{profile.held_out.p95:.1%}",
        path.name if origin(path) != SHIPPED else SHIPPED,
    )


def _modelled(origin: str, profile: DeviceProfile) -> tuple[str, ...]:
    return (
        profile.name,
        profile.description,
        profile.kind,
        "any",
        profile.compute_capability,
        profile.precision,
        profile.runtime,
        "any",
        profile.date,
        f"+-{profile.relative_uncertainty:.0%}",
        origin,
    )
