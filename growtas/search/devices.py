"""Parses the target devices of a search: names, runtimes, precisions and latency limits."""

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
"""A mapping of device names to limits (``"5ms"``, a number of milliseconds, or None), or strings ``NAME`` and ``NAME:LIMIT``. In
both, a runtime and a precision may follow the name, as in ``cpu:openvino:int8``."""
_CPU_RUNTIMES = tuple(runtime for runtime, on in RUNTIMES.items() if "cpu" in on)


@dataclass(frozen=True)
class Device:
    """A target of a search: a device with the runtime and the precision in which it runs the network.

    Attributes:
        name: name of the device: ``cpu``, or the name of a profile.
        max_ms: latency limit in milliseconds, or None.
        precision: precision of the network on the device.
        requested: precision that the user named; None for the device's default.
        runtime: runtime that executes the network. None means the runtime of the device's profile, or for a GPU at hand the one of
            :func:`growtas.latency.catalogue.usual_target`.
        label: name in tables and results: the device's name, or the option's text if a search has several targets on one device.
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
    """Parses and checks the targets of a search.

    Args:
        devices: names of devices, each optionally with its own runtime, precision and limit, as in ``cpu:openvino:int8:10ms``.
        max_latency: limit of the targets without their own, ``"5ms"`` or a number of milliseconds.
        precision: precision of the targets without their own; None for the device's default.
        runtime: runtime of the targets without their own; None for the device's default.
        sizes: whether there is a limit on size or memory, which uses the precision even without a device.

    Raises:
        DeviceError: a device is unknown or occurs twice, it does not support the runtime or precision, or a limit has no device.
        UnitError: a limit has no unit.
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
        named = [set(text.split(":")) & kind.keys() for text, _ in texts]
        if value is not None and named and all(named) and not any(value in names for names in named):
            raise DeviceError(f"{option} {value} has no effect because each --device sets its own; leave it out")
    parsed = [_parse(text, limit, runtime, precision, alone=len(texts) == 1) for text, limit in texts]
    seen = set[tuple[str, str | None, str]]()
    for device in parsed:
        if (target := (device.name, device.runtime, device.precision)) in seen:
            raise DeviceError(f"--device {device.label} occurs twice; name each target once")
        seen.add(target)
    names = Counter(device.name for device in parsed)
    limited = (device if device.max_ms is not None else replace(device, max_ms=shared) for device in parsed)
    return tuple(device if names[device.name] > 1 else replace(device, label=device.name) for device in limited)


def _parse(text: str, limit: str | float | None, runtime: str | None, precision: str | None, *, alone: bool) -> Device:
    """Parses one target; ``runtime`` and ``precision`` apply if the text names none."""
    name, *parts = text.split(":")
    own_runtime = next((part for part in parts if part in RUNTIMES), None)
    own_precision = next((part for part in parts if part in BYTES), None)
    limits = [part for part in parts if part not in (own_runtime, own_precision)]
    if len(limits) > 1 or (limits and limit is not None):
        raise DeviceError(f"--device {text}: it must be NAME:RUNTIME:PRECISION:LIMIT, as in cpu:openvino:int8:10ms")
    if limits and limits[0][:1].isalpha():
        legal = f"a runtime ({choices(RUNTIMES)}), a precision ({choices(BYTES)}) or a limit such as 5ms"
        raise DeviceError(f"--device {text}: {limits[0]!r} is not {legal}")
    max_ms = _milliseconds(limits[0] if limits else limit, f"--device {text}: the limit", "a10:5ms")
    if (near := near_name(name)) is not None:
        raise DeviceError(f"--device is {name!r}, which is not a known device; did you mean {near}?")
    label = ":".join(part for part in (name, own_runtime, own_precision) if part is not None)
    # With several devices, --runtime and --precision may not apply to this one.
    runtime = own_runtime or (runtime if runtime is not None and (alone or _takes(name, runtime)) else None)
    if name == CPU:
        asked = own_precision or (precision if alone or precision in RUNTIMES[_CPU_RUNTIMES[0]]["cpu"] else None)
        device = Device(CPU, max_ms, asked or "fp32", asked, runtime or _CPU_RUNTIMES[0], label)
        if device.runtime not in _CPU_RUNTIMES:
            raise DeviceError(f"the runtime of cpu must be {choices(_CPU_RUNTIMES)}, not {device.runtime!r}")
        if device.precision not in RUNTIMES[device.runtime]["cpu"]:
            legal = choices(RUNTIMES[device.runtime]["cpu"])
            where = "" if device.runtime == _CPU_RUNTIMES[0] else f" in {device.runtime}"
            raise DeviceError(
                f"the precision of cpu{where} must be {legal}, not {device.precision!r}; for others name a GPU with --device"
            )
        return device
    asked = own_precision or precision
    if asked is not None and name in profile_names() and name not in (*measured_names(), *devices_at_hand()):
        load_profile(name).peak_ops(asked)
    return Device(name, max_ms, asked or _default_precision(name), asked, runtime, label)


def _takes(device: str, runtime: str) -> bool:
    """Whether ``--runtime`` applies to this one of several devices. A runtime that CPUs have applies to no GPU but one at hand."""
    if device == CPU:
        return "cpu" in RUNTIMES[runtime]
    return "cuda" in RUNTIMES[runtime] and ("cpu" not in RUNTIMES[runtime] or device in devices_at_hand())


def _milliseconds(limit: str | float | None, what: str, example: str) -> float | None:
    return parse_latency_ms(limit, what, example) if isinstance(limit, str) else limit


def _default_precision(device: str) -> str:
    """Returns the default precision of a device.

    For a device at hand it does not depend on profiles. For others it is that of the newest measured profile, else of the modelled
    one.

    Raises:
        DeviceError: the device is unknown.
    """
    if device in devices_at_hand():
        return usual_target(device)[1]
    if device in measured_names():
        return measured_profiles(device)[0][1].precision
    return load_profile(device).precision
