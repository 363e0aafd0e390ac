"""What ``growtas search`` is asked for: the run, the devices with their limits, and who knows latencies there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from growtas.cli.output import note
from growtas.cli.search_here import measured_target as measured_target  # the other kind of target, from one place

if TYPE_CHECKING:
    from growtas.runs import Run
    from growtas.search.targets import Target
    from growtas.space import SearchSpace


@dataclass(frozen=True)
class Device:
    """A ``--device``.

    Attributes:
        name: ``cpu`` or a profile's.
        max_ms: its limit in milliseconds, or None.
        precision: that its latency is meant for.
        asked: the precision that ``--precision`` named, if it did.
    """

    name: str
    max_ms: float | None
    precision: str
    asked: str | None = None


def parse_devices(given: list[str], max_latency: str | None, precision: str | None, *, sizes: bool) -> tuple[Device, ...]:
    """``--device NAME`` or ``NAME:LIMIT``, as often as wanted; ``--max-latency`` is for those that name no limit.

    Args:
        sizes: whether a size or memory is limited, which a precision is for even without a device.

    Raises:
        DeviceError: an unknown device, one that is named twice, a precision that it does not have, or a limit without a device.
        UnitError: a limit without a unit.
    """
    from growtas.errors import DeviceError, choices
    from growtas.latency.catalogue import near_name
    from growtas.latency.modelled.profile import CPU, device_names, load_profile, measured_names, profile_names
    from growtas.units import parse_latency_ms

    shared = parse_latency_ms(max_latency, "--max-latency", "5ms") if max_latency is not None else None
    if not given and (shared is not None or (precision is not None and not sizes)):
        option = "--max-latency" if shared is not None else "--precision"
        raise DeviceError(f"{option} needs --device: cpu to measure on this machine, or {choices(device_names()[1:])}")
    devices: list[Device] = []
    for text in given:
        name, colon, limit = text.partition(":")
        max_ms = parse_latency_ms(limit, f"--device {text}: the limit", "a10:5ms") if colon else shared
        if any(device.name == name for device in devices):
            raise DeviceError(f"--device {name} is given twice; a device has one limit")
        if (near := near_name(name)) is not None:
            raise DeviceError(f"--device is {name!r}, no known device: did you mean {near}?")
        if name == CPU:
            if precision not in (None, "fp32") and len(given) == 1:
                raise DeviceError(f"cpu is measured in fp32, not {precision!r}; leave --precision out, or name a GPU with --device")
            devices.append(Device(CPU, max_ms, "fp32"))
        else:
            devices.append(Device(name, max_ms, precision or _default_precision(name), precision))
            if precision is not None and name in profile_names() and name not in measured_names():
                load_profile(name).peak_ops(precision)
    return tuple(devices)


def _default_precision(device: str) -> str:
    """Of the newest measurement, else of the modelled profile.

    Raises:
        DeviceError: the device is unknown.
    """
    from growtas.latency.catalogue import measured_profiles
    from growtas.latency.modelled.profile import load_profile, measured_names

    if device in measured_names():
        return measured_profiles(device)[0][1].precision
    return load_profile(device).precision


def widest(devices: tuple[Device, ...], precision: str | None) -> str:
    """The precision that sizes and memory are limited at: of several devices the one with the most bytes."""
    from growtas.latency.modelled.profile import BYTES

    return max((device.precision for device in devices), key=BYTES.__getitem__, default=precision or "fp32")


def find_supernet(run: Path | None, space: str | None) -> tuple[Run, str]:
    """The run to search, and how it was chosen: the newest one that holds a supernet, saying which newer ones do not.

    Raises:
        UsageError: there is none.
    """
    from growtas.errors import CheckpointError, UsageError
    from growtas.runs import RUNS, find_run, list_runs
    from growtas.space import load_space

    if run is not None:
        found = find_run(run)
        if found.info.get("method") == "finetune":
            raise UsageError(f"{found.path}: a fine-tuned run holds one subnet and nothing to search; go on with growtas export")
        return found, "named"
    name = load_space(space).name if space is not None else None
    for candidate in list_runs():
        try:
            info = candidate.info
        except CheckpointError:
            note(f"skipped {candidate.path}: its run.json can't be read")
            continue
        if name is not None and (info.get("space") or {}).get("name") != name:
            continue
        if info.get("method") == "finetune":
            note(f"skipped {candidate.path}: a fine-tuned run holds one subnet and nothing to search")
        elif not candidate.checkpoints:
            note(f"skipped {candidate.path}: it has no checkpoint yet")
        else:
            return candidate, f"the newest{f' of {name}' if name else ''} in {RUNS}/"
    if name is not None:
        raise UsageError(
            f"no run of the space {name} in {RUNS}/; make one with `growtas train --space {space}`, or name its folder"
        )
    raise UsageError(f"no run with a supernet in {RUNS}/; make one with `growtas train`, or name its folder")


def searched_space(run: Run, space: str | None) -> SearchSpace:
    """The run's space, with the choices of ``--space`` where it is given; the supernet's bounds and geometry stay.

    Raises:
        SpaceError: the choices go beyond the supernet.
    """
    from growtas.errors import SpaceError
    from growtas.space import load_space

    trained = run.space
    if space is None:
        return trained
    wanted = load_space(space)
    dimensions = ("embed_dim", "num_heads", "mlp_ratio", "depth")
    for field in dimensions:
        highest, bound = getattr(wanted, field)[-1], getattr(trained, f"max_{field}")
        if highest > bound:
            raise SpaceError(f"--space {space}: {field} goes up to {highest:g}, but the supernet of {run.path} only to {bound:g}")
    return trained.replace(name=wanted.name, **{field: getattr(wanted, field) for field in dimensions})


def modelled_target(device: Device, space: SearchSpace, batch: int) -> Target:
    """A device that is not at hand: a measured profile that fits, else the modelled one; infeasible limits raise here.

    Raises:
        DeviceError: no profile fits.
        LimitError: no subnet meets the limit.
    """
    from growtas.latency.catalogue import latency_estimator
    from growtas.search.targets import Target

    model = latency_estimator(device.name, space, batch=batch, precision=device.asked)
    target = Target(device=device.name, max_ms=device.max_ms, estimator=model)
    target.check(space)
    return target
