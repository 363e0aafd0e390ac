"""The devices that a search is asked for: names, limits and precisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from growtas.errors import DeviceError, choices
from growtas.latency.catalogue import measured_profiles, near_name
from growtas.latency.modelled.profile import CPU, device_names, load_profile, measured_names, profile_names
from growtas.units import parse_latency_ms

Devices = Mapping[str, str | float | None] | Sequence[str]
"""Names of devices with their limits (``"5ms"``, milliseconds, or None), or texts ``NAME`` and ``NAME:LIMIT``."""


@dataclass(frozen=True)
class Device:
    """A device whose latency is limited or measured.

    Attributes:
        name: ``cpu``, or the name of a profile.
        max_ms: its limit in milliseconds, or None.
        precision: that its latency is meant for.
        requested: the precision that the user asked for; None for the device's default.
    """

    name: str
    max_ms: float | None
    precision: str
    requested: str | None = None


def parse_devices(devices: Devices, max_latency: str | float | None, precision: str | None, *, sizes: bool) -> tuple[Device, ...]:
    """Checks the devices of a search.

    Args:
        max_latency: limit of the devices that have none, ``"5ms"`` or milliseconds.
        precision: of the devices' latencies; None for their defaults.
        sizes: whether a size or memory is limited, which a precision is for even without a device.

    Raises:
        DeviceError: an unknown device, one that is named twice, a precision that it does not have, or a limit without a device.
        UnitError: a limit without a unit.
    """
    shared = _milliseconds(max_latency, "--max-latency", "5ms")
    if not devices and (shared is not None or (precision is not None and not sizes)):
        option = "--max-latency" if shared is not None else "--precision"
        raise DeviceError(f"{option} needs --device: cpu to measure on this machine, or {choices(device_names()[1:])}")
    if isinstance(devices, str):
        devices = [devices]
    if isinstance(devices, Mapping):
        limits = list(devices.items())
    else:
        limits = [(name, limit if colon else None) for name, colon, limit in (text.partition(":") for text in devices)]
    parsed: list[Device] = []
    for name, limit in limits:
        own_ms = _milliseconds(limit, f"--device {name}:{limit}: the limit", "a10:5ms")
        max_ms = shared if own_ms is None else own_ms
        if any(device.name == name for device in parsed):
            raise DeviceError(f"--device {name} is given twice; a device has one limit")
        if (near := near_name(name)) is not None:
            raise DeviceError(f"--device is {name!r}, no known device: did you mean {near}?")
        if name == CPU:
            if precision not in (None, "fp32") and len(limits) == 1:
                raise DeviceError(f"cpu is measured in fp32, not {precision!r}; leave --precision out, or name a GPU with --device")
            parsed.append(Device(CPU, max_ms, "fp32"))
        else:
            parsed.append(Device(name, max_ms, precision or _default_precision(name), precision))
            if precision is not None and name in profile_names() and name not in measured_names():
                load_profile(name).peak_ops(precision)
    return tuple(parsed)


def _milliseconds(limit: str | float | None, what: str, example: str) -> float | None:
    return parse_latency_ms(limit, what, example) if isinstance(limit, str) else limit


def _default_precision(device: str) -> str:
    """The precision of the newest measured profile, else of the modelled one.

    Raises:
        DeviceError: the device is unknown.
    """
    if device in measured_names():
        return measured_profiles(device)[0][1].precision
    return load_profile(device).precision
