"""``growtas devices``: lists the devices that ``--device`` accepts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from growtas.cli import options
from growtas.cli.output import new_table, print_json, print_line, print_table, print_text

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable
    from pathlib import Path

    from rich.table import Table

    from growtas.latency.measured.profile import MeasuredProfile
    from growtas.latency.modelled.profile import DeviceProfile


def devices(json_: options.Json = False) -> None:
    """List the devices whose latency a search can limit, and what this machine can measure.

    The first table lists this machine's devices with their runtimes and precisions, whether their latency can be measured, and
    which measured profiles apply to them.

    The second table lists all profiles. A modelled profile is a roofline from the datasheet: nothing was timed on that device. A
    measured profile was made by `growtas profile`; it predicts the latency of subnets that were not timed. A measured profile of
    cpu applies only to the machine that it was made on.

    Example: growtas devices
    """
    from growtas.export.benchmark.targets import targets_here
    from growtas.latency.at_hand import CPU, devices_at_hand
    from growtas.latency.catalogue import measured_profiles, modelled_profiles
    from growtas.latency.modelled.profile import user_folder

    modelled, measured = modelled_profiles(), measured_profiles()
    names, profiles = devices_at_hand(), _profiles_here(profile for _, profile in measured)
    here = [
        {
            **asdict(target),
            "description": names.get(target.device or ""),
            "profiles": profiles.get((target.device, target.runtime, target.precision), []),
        }
        for target in targets_here()
    ]
    if json_:
        cpu = {"name": CPU, "kind": "measured", "precision": "fp32", "runtime": "onnxruntime", "description": "this machine"}
        entries = [{**profile.to_dict(), "origin": origin} for origin, profile in modelled]
        print_json({"devices": [cpu, *entries, *(_entry(*item) for item in measured)], "here": here, "folder": str(user_folder())})
        return
    for device, name in names.items():
        print_text(f"{device} is this machine's {name}")
    print_table(_here(here))
    print_line()
    table = new_table("device", "what it is", "kind", "space", "target", "precision", "runtime", "batch", "date", "error", "from")
    table.add_row(CPU, "this machine", "measured", "any", "-", "fp32", "onnxruntime", "any", "when searched", "-", "-")
    for row in sorted([*(_measured(*item) for item in measured), *(_modelled(*item) for item in modelled)]):
        table.add_row(*row)
    print_table(table)
    for text in (
        "error: for a measured profile the 95th percentile on held-out subnets; for a modelled one an uncertainty, judged from its "
        "error on public ViT-B/16 latencies (fp16, batch 1 to 32)",
        "a target is written as in cpu:openvino:int8; only the devices of this machine are measured",
        "a measured profile applies to a device of this machine if its full name, threads and runtime are the same and the "
        "reference subnet takes the same time",
        f"your own profiles, in {user_folder()}, have priority over the shipped ones; `growtas profile` measures a profile",
    ):
        print_text(text)


def _profiles_here(profiles: Iterable[MeasuredProfile]) -> dict[tuple[str | None, str, str], list[str]]:
    """Returns the spaces with a measured profile that applies to this machine, by device, runtime and precision."""
    from growtas.latency.at_hand import CPU, devices_at_hand
    from growtas.latency.measured.machine import local_setup, why_not_here

    names, spaces = devices_at_hand(), defaultdict[tuple[str | None, str, str], list[str]](list)
    for profile in profiles:
        # The runtime is imported, for its version, only if the device is the same.
        if profile.description == names.get(profile.name):
            here = local_setup(runtime=profile.runtime, hardware="cpu" if profile.name == CPU else "cuda")
            if not why_not_here(profile, here):
                spaces[profile.name, profile.runtime, profile.precision].append(profile.space.name)
    return {target: list(dict.fromkeys(names)) for target, names in spaces.items()}


def _here(targets: Iterable[Mapping[str, Any]]) -> Table:
    """Returns the table of this machine's targets; runtimes and precisions with the same answer share a row."""
    precisions = defaultdict[tuple[str, str, str], list[str]](list)
    for target in targets:
        profiled = f"; profiles of {', '.join(target['profiles'])}" if target["profiles"] else ""
        answer = f"no ({target['why_not']})" if target["why_not"] else f"yes{profiled}"
        precisions[target["device"] or "a GPU", target["runtime"], answer].append(target["precision"])
    runtimes = defaultdict[tuple[str, str, str], list[str]](list)
    for (device, runtime, answer), names in precisions.items():
        runtimes[device, ", ".join(names), answer].append(runtime)
    table = new_table("device", "runtime", "precision", "measured here", fold="measured here")
    for (device, precision, answer), names in runtimes.items():
        table.add_row(device, ", ".join(names), precision, answer)
    return table


def _entry(path: Path | Traversable, profile: MeasuredProfile) -> dict[str, Any]:
    """Returns a measured profile for JSON, without its samples."""
    from growtas.latency.catalogue import origin

    data = {key: value for key, value in profile.to_dict().items() if key not in ("samples", "coefficients", "space")}
    return {**data, "space": profile.space.name, "samples": len(profile.samples), "origin": origin(path)}


def _measured(path: Path | Traversable, profile: MeasuredProfile) -> tuple[str, ...]:
    from growtas.latency.catalogue import SHIPPED, origin

    what = f"{profile.description}, {profile.threads} threads" if profile.threads else profile.description
    source = path.name if origin(path) != SHIPPED else SHIPPED
    error = f"{profile.held_out.p95:.1%}{', unsteady' if profile.unsteady else ''}"
    return _row(profile, what, profile.space.name, "-", str(profile.batch), error, source)


def _modelled(origin: str, profile: DeviceProfile) -> tuple[str, ...]:
    error = f"+-{profile.relative_uncertainty:.0%}"
    return _row(profile, profile.description, "any", profile.compute_capability, "any", error, origin)


def _row(
    profile: MeasuredProfile | DeviceProfile, what: str, space: str, target: str, batch: str, error: str, source: str
) -> tuple[str, ...]:
    conditions = (target, profile.precision, profile.runtime, batch)
    return profile.name, what, profile.kind, space, *conditions, profile.date, error, source
