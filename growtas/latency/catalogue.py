"""Finds profiles, shipped and the user's own, modelled and measured, and the estimator for a device's name."""

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
    """Name of the file: ``a10.micro.tensorrt-fp16-b1.json``, of a CPU ``cpu.micro.onnxruntime-fp32-b1.amd-epyc-t2.json``.

    So the profiles of several CPUs lie side by side. Letters of a name that files don't like become hyphens.
    """
    parts = [device, re.sub(r"[^a-zA-Z0-9_-]+", "-", space), f"{runtime}-{precision}-b{batch}"]
    if device == CPU:
        name = re.sub(r"\((r|tm)\)", "", cpu_name().lower())
        parts.append(f"{re.sub(r'[^a-z0-9]+', '-', name).strip('-')}-t{threads}")
    return ".".join([*parts, "json"])


def load_measured(path: Path | Traversable) -> MeasuredProfile:
    """A measured profile from its file.

    Raises:
        ConfigError: the file can't be read or holds a wrong field, or its name begins with another device.
    """
    source = f"profile {path}"
    profile = MeasuredProfile.from_dict(read_profile_json(path, source), source=source)
    if isinstance(path, Path) and path.parent == user_folder() and path.name.partition(".")[0] != profile.name:
        raise ConfigError(f"{source}: its name is {profile.name!r}; the file's name must begin with it and a dot")
    return profile


def measured_profiles(device: str | None = None) -> list[tuple[Path | Traversable, MeasuredProfile]]:
    """The measured profiles, of one device or of all: the user's own, the newest first, then those that ship, the newest first.

    Raises:
        ConfigError: one of them can't be read; the message names it.
    """
    shipped = (file for file in shipped_measured() if device is None or file.name.partition(".")[0] == device)
    files: list[Path | Traversable] = [*sorted(user_folder().glob(f"{device or '*'}.*.json")), *shipped]
    profiles = [(file, load_measured(file)) for file in files]
    return sorted(profiles, key=lambda item: (origin(item[0]) != SHIPPED, item[1].date), reverse=True)


def origin(file: Path | Traversable) -> str:
    """Where a profile is from: ``shipped``, or the user's file."""
    return str(file) if isinstance(file, Path) and file.parent == user_folder() else SHIPPED


def near_name(name: str) -> str | None:
    """The known device that a name is likely a slip of; None for a known name, and for one that is near none.

    Looked at are one changed, missing, additional or swapped character, and letters that look like digits. Another number is
    another device: ``a30`` is no slip of ``a10``.
    """
    known = device_names()
    if name in known:
        return None
    # What is left of a10, A10 or a-10?, when letters that look like digits are those digits.
    alike = str.maketrans("oil", "011")

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower()).translate(alike)

    same = [other for other in known if plain(other) == plain(name)]
    numbers = re.findall(r"\d+", name)
    alphabetic = [other for other in known if re.findall(r"\d+", other) == numbers]
    near = same or [other for other in alphabetic if difflib.SequenceMatcher(None, other, name).ratio() >= 0.75]
    return max(near, key=lambda other: difflib.SequenceMatcher(None, other, name).ratio(), default=None)


def modelled_profiles() -> list[tuple[str, DeviceProfile]]:
    """The modelled profiles with where each is from: ``shipped``, or the user's file.

    Raises:
        ConfigError: one of them can't be read; the message names it.
    """
    return [(origin(modelled_file(name)), load_profile(name)) for name in profile_names()]


def usual_target(device: str) -> tuple[str, str]:
    """The runtime and the precision that a device's name means unless others are asked for, where it is at hand.

    Raises:
        ConfigError: a profile that can't be read.
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
    """The measured profiles that answer for a space, the best first, and why the others don't.

    Several may fit, as CPUs of one name differ; which of them was made on such a machine, timing tells
    (:func:`growtas.latency.measured.machine.check_profile`). Arguments as :func:`latency_estimator`'s.

    Raises:
        ConfigError: a profile that can't be read.
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
    """Who predicts a device's latencies of a space: a measured profile that fits, else the modelled one.

    A profile of ``cpu`` fits the machine that it was made on, as far as that tells its name, threads and runtime; a search
    also times it (:func:`growtas.latency.measured.machine.check_profile`).

    Args:
        precision, runtime: by default whatever there is, the newest measurement first.
        here: what a profile of a device at hand must have been measured with; of ``cpu`` by default this machine.
        profile_of: what ``growtas profile --space`` takes for this space, for the message; by default the space's name.

    Raises:
        DeviceError: an unknown device, or one without a profile that fits; the message says what would be right.
        ConfigError: a profile that can't be read.
    """
    if device not in device_names():
        # Its message lists the legal ones.
        load_profile(device)
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
