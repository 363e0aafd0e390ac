"""``growtas devices``: what ``--device`` can name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from growtas.cli import options
from growtas.cli.output import new_table, print_json, print_table, print_text

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable
    from pathlib import Path

    from growtas.latency.measured.profile import MeasuredProfile
    from growtas.latency.modelled.profile import DeviceProfile


def devices(json_: options.Json = False) -> None:
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
    table = new_table("device", "what it is", "kind", "space", "target", "precision", "runtime", "batch", "date", "error", "from")
    table.add_row(CPU, "this machine", "measured", "any", "-", "fp32", "onnxruntime", "any", "when searched", "-", "-")
    for row in sorted([*(_measured(*item) for item in measured), *(_modelled(*item) for item in modelled)]):
        table.add_row(*row)
    print_table(table)
    for text in (
        "error of a measured profile: 95th percentile on held-out subnets; of a modelled one: its uncertainty, a judgement, after "
        "how far it misses public ViT-B/16 latencies (fp16, batch 1 to 32)",
        "a measured profile of cpu counts where CPU, threads and runtime are the same and its reference subnet takes as long",
        f"your own profiles go before the shipped ones; they lie in {user_folder()}, and `growtas profile` measures one",
    ):
        print_text(text)


def _entry(path: Path | Traversable, profile: MeasuredProfile) -> dict[str, Any]:
    """A measured profile in JSON, without its samples."""
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
