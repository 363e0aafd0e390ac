"""Modelled device profiles: the numbers of a device's datasheet that the latency model needs.

Profiles are JSON files in ``growtas.profiles``; ``schema.json`` describes them. This module reads the modelled profiles, one per
device, which are not measurements. Profiles in the user's folder (:func:`user_folder`) take precedence. Profiles that ``growtas
profile`` measured have dots in their file names; :mod:`growtas.latency.catalogue` finds them. ``cpu`` is this machine.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from growtas.errors import ConfigError, DeviceError, brief, choices
from growtas.fields import OBJECT, RULE, Rule, check_keys, list_of, one_of, real, text, text_like, whole
from growtas.files import check_folder, parse_json, read_text
from growtas.latency.at_hand import CPU, devices_at_hand
from growtas.latency.estimate import Kind

FORMAT = "growtas-profile/1"
BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
"""Bytes per number in each precision. The keys are the legal precisions."""

POSITIVE, FRACTION, NOT_NEGATIVE, COUNT, TEXT = real(0, above=True), real(0, 1, above=True), real(0), whole(1), text()
_MODELLED = Rule(lambda value: value == "modelled", "modelled (measured profiles have another format, made by `growtas profile`)")


def required(rule: Rule) -> Any:
    """Declares a field of a profile without a default, with a rule for :func:`checked_fields`."""
    return dataclasses.field(metadata={RULE: rule})


NAME = text_like(r"[a-z0-9-]+", "lower-case letters, digits and hyphens")
DATE = text_like(r"\d{4}-\d{2}-\d{2}", "a date as 2026-01-31")
SOURCES = list_of(TEXT, "a list of texts")
_PRECISION = one_of("fp32", "tf32", "fp16", "int8")  # the precisions of Peaks
_TIMES = list_of(POSITIVE, "a list of milliseconds above zero", empty=True)


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Peak performance of a device without sparsity. A MAC is two operations.

    Attributes:
        fp32_tflops: peak in fp32, in 10^12 operations per second.
        tf32_tflops: peak in tf32, in 10^12 operations per second; null if the device has no tf32.
        fp16_tflops: peak in fp16, in 10^12 operations per second.
        int8_tops: peak in int8, in 10^12 operations per second; null if the device has no int8.
        memory_gb_s: memory bandwidth in 10^9 bytes per second.
        sms: number of streaming multiprocessors.
        l2_mb: size of the level-2 cache in 10^6 bytes.
    """

    fp32_tflops: float = required(POSITIVE)
    tf32_tflops: float | None = required(POSITIVE.or_null())
    fp16_tflops: float = required(POSITIVE)
    int8_tops: float | None = required(POSITIVE.or_null())
    memory_gb_s: float = required(POSITIVE)
    sms: int = required(COUNT)
    l2_mb: float = required(POSITIVE)


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """The share of its peaks that a device reaches, and the overhead of a kernel.

    Attributes:
        compute: reached share of the peak operations per second, 0 to 1.
        memory: reached share of the memory bandwidth, 0 to 1.
        launch_us: overhead of each kernel in microseconds.
        tile_rows: rows of the output tile that one multiprocessor computes at a time.
        tile_cols: columns of the output tile that one multiprocessor computes at a time.
    """

    compute: float = required(FRACTION)
    memory: float = required(FRACTION)
    launch_us: float = required(NOT_NEGATIVE)
    tile_rows: int = required(COUNT)
    tile_cols: int = required(COUNT)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The reference latencies to which the efficiency was fitted, and the errors of the model.

    Attributes:
        network: network of the reference latencies.
        precision: precision of the reference latencies.
        batches: batch sizes of the reference latencies.
        reference_ms: reference latencies in milliseconds, one per batch size; empty if there is no reference for the device.
        modelled_ms: modelled latencies in milliseconds, one per batch size; empty if there is no reference for the device.
        max_error: largest relative error of the fit. Without a reference for the device, it is the largest error of predicting each
            reference device with the efficiency of the other.
        own_reference: whether the reference latencies were measured on this device.
    """

    network: str = required(TEXT)
    precision: str = required(_PRECISION)
    batches: tuple[int, ...] = required(list_of(COUNT, "a list of whole numbers above zero", empty=True))
    reference_ms: tuple[float, ...] = required(_TIMES)
    modelled_ms: tuple[float, ...] = required(_TIMES)
    max_error: float = required(NOT_NEGATIVE)
    own_reference: bool = required(Rule(lambda value: isinstance(value, bool), "true or false"))


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """The modelled profile of a device.

    Attributes:
        name: name of the device for ``--device``.
        description: full name of the device.
        kind: always ``modelled``; every latency from this profile has this kind.
        compute_capability: compute capability of the GPU, such as ``sm86``.
        runtime: runtime whose latencies are modelled.
        precision: default precision.
        peaks: peak performance from the datasheet.
        efficiency: reached share of the peaks, and the overhead of a kernel.
        calibration: reference latencies to which the efficiency was fitted.
        relative_uncertainty: half width of the interval around a modelled latency, relative to it; 0.5 means +-50 %.
        sources: sources of the numbers.
        date: date of the profile, such as 2026-01-31.
    """

    name: str = required(NAME)
    description: str = required(TEXT)
    kind: Kind = required(_MODELLED)
    compute_capability: str = required(text_like(r"sm\d{2,3}", "sm and the number, as sm86"))
    runtime: str = required(TEXT)
    precision: str = required(_PRECISION)
    peaks: Peaks = required(OBJECT)
    efficiency: Efficiency = required(OBJECT)
    calibration: Calibration = required(OBJECT)
    relative_uncertainty: float = required(FRACTION)
    sources: tuple[str, ...] = required(SOURCES)
    date: str = required(DATE)

    def peak_ops(self, precision: str) -> float:
        """Returns the peak operations per second in a precision.

        Raises:
            DeviceError: the precision is unknown, or the device has no peak for it.
        """
        peaks = {
            "fp32": self.peaks.fp32_tflops,
            "tf32": self.peaks.tf32_tflops,
            "fp16": self.peaks.fp16_tflops,
            "int8": self.peaks.int8_tops,
        }
        peak = peaks.get(precision)
        if peak is None:
            legal = choices(name for name, value in peaks.items() if value is not None)
            raise DeviceError(f"{self.name} has no precision {precision!r}; legal are {legal}")
        return peak * 1e12

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form, which :meth:`from_dict` reads."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: Any, *, source: str = "profile") -> DeviceProfile:
        """Builds a profile from its JSON form and checks every field.

        Raises:
            ConfigError: a field is missing, unknown or illegal; the message names it and the legal values.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise ConfigError(f"{source}: this is not a device profile of format {FORMAT}")
        fields = checked_fields(cls, {key: value for key, value in data.items() if key != "format"}, source)
        for name, part in (("peaks", Peaks), ("efficiency", Efficiency), ("calibration", Calibration)):
            fields[name] = part(**checked_fields(part, fields[name], source, f"{name}."))
        profile = cls(**fields)
        calibration = profile.calibration
        if len(calibration.reference_ms) != len(calibration.modelled_ms) or (
            calibration.reference_ms and len(calibration.reference_ms) != len(calibration.batches)
        ):
            raise ConfigError(f"{source}: calibration must have one reference_ms and one modelled_ms for each of its batches")
        return profile


def checked_fields(part: type, data: Mapping[str, Any], source: str, prefix: str = "") -> dict[str, Any]:
    """Checks the fields of one level of a profile, which is the dataclass ``part``, and returns them with lists as tuples.

    Fields with a default may be missing.

    Raises:
        ConfigError: a field is missing, unknown or illegal; the message names it and the legal values.
    """
    fields = {field.name: field for field in dataclasses.fields(part)}
    check_keys(data, fields, source)
    for name, field in fields.items():
        if name in data:
            field.metadata[RULE].check(f"{source}: {prefix}{name}", data[name])
        elif field.default is dataclasses.MISSING:
            raise ConfigError(f"{source}: the field {prefix}{name} is missing")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}


def user_folder() -> Path:
    """Returns the folder of the user's profiles: ``$GROWTAS_PROFILES``, else ``growtas/profiles`` in the XDG configuration folder.

    The default folder counts as empty if it can't be read, because in a container the home folder often belongs to another user.

    Raises:
        ConfigError: ``$GROWTAS_PROFILES`` can't be read.
    """
    named = os.environ.get("GROWTAS_PROFILES")
    if named:
        check_folder(named, ConfigError)
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")) / "growtas" / "profiles"


def shipped_names() -> list[str]:
    """Returns the sorted names of the shipped modelled profiles."""
    names = (file.name for file in resources.files("growtas.profiles").iterdir() if file.name != "schema.json")
    return sorted(name.removesuffix(".json") for name in names if re.fullmatch(r"[^.]+\.json", name))


def shipped_measured() -> list[Traversable]:
    """Returns the shipped measured profiles, sorted by file name: device, space and setup, separated by dots."""
    files = (file for file in resources.files("growtas.profiles").iterdir() if re.fullmatch(r"[^.]+\..+\.json", file.name))
    return sorted(files, key=lambda file: file.name)


def profile_names() -> list[str]:
    """Returns the sorted names of the modelled profiles, shipped and the user's."""
    user_names = (path.stem for path in user_folder().glob("*.json") if "." not in path.stem)
    return sorted({*shipped_names(), *user_names})


def measured_names() -> list[str]:
    """Returns the sorted names of the devices that have measured profiles, shipped or the user's."""
    return sorted({file.name.partition(".")[0] for file in (*shipped_measured(), *user_folder().glob("*.*.json"))})


def device_names() -> list[str]:
    """Returns all legal values of ``--device``: ``cpu`` (this machine), then this machine's GPU and all devices with a profile."""
    return [CPU, *sorted({*devices_at_hand(), *profile_names(), *measured_names()} - {CPU})]


def load_profile(name: str) -> DeviceProfile:
    """Loads the modelled profile of a device: the user's if there is one, else the shipped one.

    Raises:
        DeviceError: there is no such profile; the message lists the legal names.
        ConfigError: the file can't be read, or has an illegal field.
    """
    if name == CPU:
        raise DeviceError(f"cpu has no profile because it is measured on this machine; profiles are {choices(profile_names())}")
    if name not in profile_names():
        if name in measured_names():
            raise DeviceError(
                f"{name} has a measured profile, but the compute capability comes from a modelled one; "
                f"name it with --target, such as sm86, or one of {choices(profile_names())}"
            )
        raise DeviceError(f"unknown device {name!r}; legal are {choices(device_names())}")
    file = modelled_file(name)
    source = f"profile {file if isinstance(file, Path) and file.parent == user_folder() else name}"
    profile = DeviceProfile.from_dict(read_profile_json(file, source), source=source)
    if profile.name != name:
        raise ConfigError(f"{source}: its name is {brief(profile.name)}; it must equal the name of the file")
    return profile


def modelled_file(name: str) -> Path | Traversable:
    """Returns the file of a modelled profile: the user's if there is one, else the shipped one."""
    user_file = user_folder() / f"{name}.json"
    return user_file if os.path.exists(user_file) else resources.files("growtas.profiles") / user_file.name


def read_profile_json(file: Path | Traversable, source: str) -> Any:
    """Reads the JSON of a profile without checking its fields.

    Raises:
        ConfigError: the file can't be read, or is not JSON.
    """
    return parse_json(read_text(file, f"{source}:", ConfigError), f"{source}:", ConfigError)
