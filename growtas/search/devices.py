"""The devices that a search is asked for: names, limits and precisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from growtas.errors import DeviceError, choices
from growtas.latency.at_hand import CPU, devices_at_hand
from growtas.latency.catalogue import measured_profiles, near_name, usual_target
from growtas.latency.estimate import RUNTIMES
from growtas.latency.modelled.profile import BYTES, device_names, load_profile, measured_names, profile_names
from growtas.units import parse_latency_ms

Devices = Mapping[str, str | float | None] | Sequence[str]
"""Names of devices with their limits (``"5ms"``, milliseconds, or None), or texts ``NAME`` and ``NAME:LIMIT``; in both a name may
be followed by a runtime and a precision, as in ``cpu:openvino:int8``."""
_CPU_RUNTIMES = tuple(runtime for runtime, on in RUNTIMES.items() if "cpu" in on)


@dataclass(frozen=True)
class Device:
    """A target whose latency is limited or measured: a device, what executes the network there, and in which precision.

    Attributes:
        name: ``cpu``, or the name of a profile.
        max_ms: its limit in milliseconds, or None.
        precision: that its latency is meant for.
        requested: the precision that the user asked for; None for the device's default.
        runtime: what executes the network; None for whatever the device's profile is of, and where a GPU is at hand for
            :func:`growtas.latency.catalogue.usual_target`.
        label: what tables and results call it: the name, or as typed where a search has several targets on one device.
    """

    name: str
    max_ms: float | None
    precision: str
    requested: str | None
    runtime: str | None
    label: str


def parse_devices(
    devices: Devices, max_latency: str | float | None, precision: str | None, runtime: str | None = None, *, sizes: bool
) -> tuple[Device, ...]:
    """Checks the targets of a search.

    Args:
        devices: names, each with the runtime, the precision and the limit that are meant, where they are not those of all:
            ``cpu:openvino:int8:10ms``.
        max_latency: limit of the targets that have none, ``"5ms"`` or milliseconds.
        precision, runtime: of the targets that name none; None for their defaults.
        sizes: whether a size or memory is limited, which a precision is for even without a device.

    Raises:
        DeviceError: an unknown device, one that is named twice, a runtime or precision that it does not have, or a limit without a
            device.
        UnitError: a limit without a unit.
    """
    shared = _milliseconds(max_latency, "--max-latency", "5ms")
    given = {"--max-latency": shared, "--runtime": runtime, "--precision": None if sizes else precision}
    if not devices and (option := next((option for option, value in given.items() if value is not None), None)):
        raise DeviceError(f"{option} needs --device: cpu to measure on this machine, or {choices(device_names()[1:])}")
    if runtime not in (None, *RUNTIMES):
        raise DeviceError(f"--runtime is {runtime!r}; legal are {choices(RUNTIMES)}")
    if isinstance(devices, str):
        devices = [devices]
    texts = list(devices.items()) if isinstance(devices, Mapping) else [(text, None) for text in devices]
    for option, value, kind in (("--runtime", runtime, RUNTIMES), ("--precision", precision, BYTES)):
        own = [set(text.split(":")) & kind.keys() for text, _ in texts]
        if value is not None and own and all(own) and not any(value in names for names in own):
            raise DeviceError(f"{option} {value} changes nothing: each --device names its own; leave it out")
    parsed = [_parse(text, limit, runtime, precision, alone=len(texts) == 1) for text, limit in texts]
    seen = set[tuple[str, str | None, str]]()
    for device in parsed:
        if (target := (device.name, device.runtime, device.precision)) in seen:
            raise DeviceError(f"--device {device.label} is given twice; a target has one limit")
        seen.add(target)
    names = Counter(device.name for device in parsed)
    limited = (device if device.max_ms is not None else replace(device, max_ms=shared) for device in parsed)
    return tuple(device if names[device.name] > 1 else replace(device, label=device.name) for device in limited)


def _parse(text: str, limit: str | float | None, runtime: str | None, precision: str | None, *, alone: bool) -> Device:
    """One target from its text, with the runtime and precision that are meant where it names none."""
    name, *parts = text.split(":")
    own_runtime = next((part for part in parts if part in RUNTIMES), None)
    own_precision = next((part for part in parts if part in BYTES), None)
    limits = [part for part in parts if part not in (own_runtime, own_precision)]
    if len(limits) > 1 or (limits and limit is not None):
        raise DeviceError(f"--device {text}: it must be a name, a runtime, a precision and a limit, as in cpu:openvino:int8:10ms")
    if limits and limits[0][:1].isalpha():
        legal = f"a runtime ({choices(RUNTIMES)}), a precision ({choices(BYTES)}) or a limit such as 5ms"
        raise DeviceError(f"--device {text}: {limits[0]!r} is not {legal}")
    max_ms = _milliseconds(limits[0] if limits else limit, f"--device {text}: the limit", "a10:5ms")
    if (near := near_name(name)) is not None:
        raise DeviceError(f"--device is {name!r}, no known device: did you mean {near}?")
    label = ":".join(part for part in (name, own_runtime, own_precision) if part is not None)
    # Of several devices --runtime and --precision may be meant for the others.
    runtime = own_runtime or (runtime if runtime is not None and (alone or _takes(name, runtime)) else None)
    if name == CPU:
        asked = own_precision or (precision if alone or precision in RUNTIMES[_CPU_RUNTIMES[0]]["cpu"] else None)
        device = Device(CPU, max_ms, asked or "fp32", asked, runtime or _CPU_RUNTIMES[0], label)
        if device.runtime not in _CPU_RUNTIMES:
            raise DeviceError(f"cpu is measured in {choices(_CPU_RUNTIMES)}, not {device.runtime!r}")
        if device.precision not in RUNTIMES[device.runtime]["cpu"]:
            legal = choices(RUNTIMES[device.runtime]["cpu"])
            where = "" if device.runtime == _CPU_RUNTIMES[0] else f" in {device.runtime}"
            raise DeviceError(f"cpu is measured{where} in {legal}, not {device.precision!r}; name a GPU with --device for others")
        return device
    asked = own_precision or precision
    if asked is not None and name in profile_names() and name not in (*measured_names(), *devices_at_hand()):
        load_profile(name).peak_ops(asked)
    return Device(name, max_ms, asked or _default_precision(name), asked, runtime, label)


def _takes(device: str, runtime: str) -> bool:
    """Whether a runtime that several devices are given is meant for this one; one that CPUs have is for a GPU at hand alone."""
    if device == CPU:
        return "cpu" in RUNTIMES[runtime]
    return "cuda" in RUNTIMES[runtime] and ("cpu" not in RUNTIMES[runtime] or device in devices_at_hand())


def _milliseconds(limit: str | float | None, what: str, example: str) -> float | None:
    return parse_latency_ms(limit, what, example) if isinstance(limit, str) else limit


def _default_precision(device: str) -> str:
    """The precision of the newest measured profile, else of the modelled one; at hand it doesn't hang on what was profiled.

    Raises:
        DeviceError: the device is unknown.
    """
    if device in devices_at_hand():
        return usual_target(device)[1]
    if device in measured_names():
        return measured_profiles(device)[0][1].precision
    return load_profile(device).precision
