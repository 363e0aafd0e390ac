"""Every profile there is, shipped and the user's own, modelled and measured; and the estimator that a device's name stands for."""

from __future__ import annotations

import re
from pathlib import Path

from growtas.errors import ConfigError, DeviceError
from growtas.latency.estimate import LatencyEstimator
from growtas.latency.measured import MeasuredProfile
from growtas.latency.profile import (
    CPU,
    DeviceProfile,
    device_names,
    load_profile,
    measured_names,
    profile_names,
    read_profile_json,
    shipped_names,
    user_folder,
)
from growtas.latency.roofline import RooflineLatency
from growtas.space import SearchSpace

SHIPPED = "shipped"


def measured_file_name(device: str, space: str, runtime: str, precision: str, batch: int) -> str:
    """Name of the file: ``cpu.micro.onnxruntime-fp32-b1.json``; letters of a space's name that files don't like become hyphens."""
    return f"{device}.{re.sub(r'[^a-zA-Z0-9_-]+', '-', space)}.{runtime}-{precision}-b{batch}.json"


def measured_file(profile: MeasuredProfile, folder: Path | None = None) -> Path:
    """Where a measured profile lies: one file for each device, space, runtime, precision and batch."""
    return (folder or user_folder()) / measured_file_name(
        profile.name, profile.space.name, profile.runtime, profile.precision, profile.batch
    )


def load_measured(path: Path) -> MeasuredProfile:
    """A measured profile from its file.

    Raises:
        ConfigError: the file can't be read or holds a wrong field, or its name begins with another device.
    """
    source = f"profile {path}"
    profile = MeasuredProfile.from_dict(read_profile_json(path, source), source=source)
    if path.parent == user_folder() and path.name.partition(".")[0] != profile.name:
        raise ConfigError(f"{source}: its name is {profile.name!r}; the file's name must begin with it and a dot")
    return profile


def measured_profiles(device: str | None = None) -> list[tuple[Path, MeasuredProfile]]:
    """The user's measured profiles, of one device or of all, the newest first.

    Raises:
        ConfigError: one of them can't be read; the message names it.
    """
    found = [(path, load_measured(path)) for path in sorted(user_folder().glob(f"{device or '*'}.*.json"))]
    return sorted(found, key=lambda item: item[1].date, reverse=True)


def modelled_profiles() -> list[tuple[str, DeviceProfile]]:
    """The modelled profiles with where each is from: ``shipped``, or the user's file.

    Raises:
        ConfigError: one of them can't be read; the message names it.
    """
    return [(_origin(name), load_profile(name)) for name in profile_names()]


def _origin(name: str) -> str:
    own = user_folder() / f"{name}.json"
    return str(own) if name not in shipped_names() or own.exists() else SHIPPED


def latency_estimator(
    device: str, space: SearchSpace, *, batch: int = 1, precision: str | None = None, runtime: str | None = None
) -> LatencyEstimator:
    """Who predicts a device's latencies of a space: a measured profile that fits, else the modelled one.

    Args:
        precision, runtime: by default whatever there is, the newest measurement first.

    Raises:
        DeviceError: an unknown device, or one without a profile that fits; the message says what would be right.
        ConfigError: a profile that can't be read.
    """
    if device not in device_names():
        # Its message lists the legal ones.
        load_profile(device)
    reasons = []
    for _, profile in measured_profiles(device) if device in measured_names() else ():
        why = profile.why_not(space, batch=batch, precision=precision)
        if runtime not in (None, profile.runtime):
            why = f"it was measured in {profile.runtime}, not {runtime}"
        if not why:
            return profile.estimator(space, batch=batch, precision=precision)
        reasons.append(why)
    if device in profile_names() and device != CPU:
        modelled = load_profile(device)
        if runtime in (None, modelled.runtime):
            return RooflineLatency(profile=modelled, space=space, batch=batch, precision=precision or "")
        reasons.append(f"the modelled profile is of {modelled.runtime}, not {runtime}")
    because = f" that fits ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""
    command = f"growtas profile --device {device} --space {space.name} --batch {batch}"
    raise DeviceError(f"{device} has no profile{because}; measure one with `{command}`")
