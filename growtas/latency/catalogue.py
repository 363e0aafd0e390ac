"""Finds latency profiles (shipped or the user's, modelled or measured), and the estimator for a device."""

from __future__ import annotations

import difflib
import re
import shlex
from importlib.resources.abc import Traversable
from pathlib import Path

from growtas.errors import ConfigError, DeviceError
from growtas.latency import at_hand
from growtas.latency.at_hand import CPU, cpu_name
from growtas.latency.estimate import LatencyEstimator
from growtas.latency.measured.campaign import Setup
from growtas.latency.measured.machine import local_setup, why_not_here
from growtas.latency.measured.profile import MeasuredProfile
from growtas.latency.modelled.profile import (
    DeviceProfile,
    device_names,
    load_profile,
    measured_names,
    modelled_file,
    profile_names,
    read_profile_json,
    shipped_measured,
    user_folder,
)
from growtas.latency.modelled.roofline import RooflineLatency
from growtas.space import SearchSpace

SHIPPED = "shipped"


def measured_file_name(device: str, space: str, runtime: str, precision: str, batch: int, threads: int) -> str:
    """Returns the file name of a measured profile, such as ``a10.micro.tensorrt-fp16-b1.json``.

    For a CPU it also contains the CPU's name and the threads, as in ``cpu.micro.onnxruntime-fp32-b1.amd-epyc-t2.json``, so that the
    profiles of several CPUs can be stored together. Characters that are unsuitable in file names become hyphens.
    """
    parts = [device, re.sub(r"[^a-zA-Z0-9_-]+", "-", space), f"{runtime}-{precision}-b{batch}"]
    if device == CPU:
        name = re.sub(r"\((r|tm)\)", "", cpu_name().lower())
        parts.append(f"{re.sub(r'[^a-z0-9]+', '-', name).strip('-')}-t{threads}")
    return ".".join([*parts, "json"])


def load_measured(path: Path | Traversable) -> MeasuredProfile:
    """Reads a measured profile.

    Raises:
        ConfigError: the file can't be read, has an illegal field, or its name begins with another device.
    """
    source = f"profile {path}"
    profile = MeasuredProfile.from_dict(read_profile_json(path, source), source=source)
    if isinstance(path, Path) and path.parent == user_folder() and path.name.partition(".")[0] != profile.name:
        raise ConfigError(f"{source}: its name is {profile.name!r}; the file name must begin with {profile.name}.")
    return profile


def measured_profiles(device: str | None = None) -> list[tuple[Path | Traversable, MeasuredProfile]]:
    """Returns the measured profiles of one device or of all: first the user's, then the shipped ones, each newest first.

    Raises:
        ConfigError: a profile can't be read; the message names it.
    """
    shipped = (file for file in shipped_measured() if device is None or file.name.partition(".")[0] == device)
    files: list[Path | Traversable] = [*sorted(user_folder().glob(f"{device or '*'}.*.json")), *shipped]
    profiles = [(file, load_measured(file)) for file in files]
    return sorted(profiles, key=lambda item: (origin(item[0]) != SHIPPED, item[1].date), reverse=True)


def origin(file: Path | Traversable) -> str:
    """Returns the origin of a profile: ``shipped``, or the path of the user's file."""
    return str(file) if isinstance(file, Path) and file.parent == user_folder() else SHIPPED


def near_name(name: str) -> str | None:
    """Returns the known device that a misspelled name probably means; None for a known name, or if no name is similar.

    It handles single changed, missing, additional or swapped characters, and letters that look like digits. A different number
    means a different device: ``a30`` is not taken for ``a10``.
    """
    known = device_names()
    if name in known:
        return None
    # Letters that look like digits are replaced by these digits, and everything but letters and digits is removed.
    alike = str.maketrans("oil", "011")

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower()).translate(alike)

    same = [other for other in known if plain(other) == plain(name)]
    numbers = re.findall(r"\d+", name)
    alphabetic = [other for other in known if re.findall(r"\d+", other) == numbers]
    near = same or [other for other in alphabetic if difflib.SequenceMatcher(None, other, name).ratio() >= 0.75]
    return max(near, key=lambda other: difflib.SequenceMatcher(None, other, name).ratio(), default=None)


def modelled_profiles() -> list[tuple[str, DeviceProfile]]:
    """Returns the modelled profiles, each with its origin: ``shipped``, or the path of the user's file.

    Raises:
        ConfigError: a profile can't be read; the message names it.
    """
    return [(origin(modelled_file(name)), load_profile(name)) for name in profile_names()]


def usual_target(device: str) -> tuple[str, str]:
    """Returns the default runtime and precision of a device at hand.

    Raises:
        ConfigError: a profile can't be read.
    """
    if device != CPU and device in profile_names():
        profile = load_profile(device)
        return profile.runtime, profile.precision
    return ("onnxruntime", "fp32") if device == CPU or at_hand.gpu_name() is None else ("tensorrt", "fp16")


def fitting_profiles(
    device: str,
    space: SearchSpace,
    *,
    batch: int = 1,
    precision: str | None = None,
    runtime: str | None = None,
    here: Setup | None = None,
) -> tuple[list[MeasuredProfile], list[str]]:
    """Returns the measured profiles that fit a space, best first, and the reasons why the others do not fit.

    Several may fit, because CPUs of the same name differ. Timing tells which of them was made on such a machine
    (:func:`growtas.latency.measured.machine.check_profile`). Arguments: see :func:`latency_estimator`.

    Raises:
        ConfigError: a profile can't be read.
    """
    fitting, reasons = list[MeasuredProfile](), list[str]()
    for _, profile in measured_profiles(device) if device in measured_names() else ():
        why = profile.why_not(space, batch=batch, precision=precision)
        if not why and runtime not in (None, profile.runtime):
            why = f"it was measured in {profile.runtime}, not {runtime}"
        if not why and (device == CPU or here is not None):
            why = why_not_here(profile, here or local_setup(batch=batch, runtime=profile.runtime, precision=profile.precision))
        if why:
            reasons.append(why)
        else:
            fitting.append(profile)
    return fitting, reasons


def latency_estimator(
    device: str,
    space: SearchSpace,
    *,
    batch: int = 1,
    precision: str | None = None,
    runtime: str | None = None,
    here: Setup | None = None,
    profile_of: str | Path | None = None,
) -> LatencyEstimator:
    """Returns the estimator of a device's latencies for a space: a measured profile that fits, else the modelled profile.

    A profile of ``cpu`` fits if the CPU's name, the threads and the runtime are the same as on this machine. A search also checks
    it by timing (:func:`growtas.latency.measured.machine.check_profile`).

    Args:
        device: name of the device.
        space: the search space.
        batch: number of images per batch.
        precision, runtime: precision and runtime of the profile; None takes any, the newest measurement first.
        here: setup that a profile of a device at hand must have; for ``cpu`` by default that of this machine.
        profile_of: value of ``growtas profile --space`` for the error message; by default the space's name.

    Raises:
        DeviceError: the device is unknown, or has no profile that fits; the message states the command that measures one.
        ConfigError: a profile can't be read.
    """
    if device not in device_names():
        load_profile(device)  # raises an error that lists the legal names
    fitting, reasons = fitting_profiles(device, space, batch=batch, precision=precision, runtime=runtime, here=here)
    if fitting:
        return fitting[0].estimator(space, batch=batch, precision=precision)
    if device in profile_names() and device != CPU:
        modelled = load_profile(device)
        if runtime in (None, modelled.runtime):
            return RooflineLatency(profile=modelled, space=space, batch=batch, precision=precision or "")
        reasons.append(f"it is modelled in {modelled.runtime}, not {runtime}")
    because = f" that fits ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""
    command = f"growtas profile --device {device} --space {shlex.quote(str(profile_of or space.name))} --batch {batch}"
    command += "".join(f" --{option} {value}" for option, value in (("runtime", runtime), ("precision", precision)) if value)
    raise DeviceError(f"{device} has no profile{because}; measure one with `{command}`")
