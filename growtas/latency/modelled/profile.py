"""Device profiles: what a device can do, and whether that was measured or only modelled.

The profiles are data: JSON files in ``growtas.profiles``, with ``schema.json`` beside them. This module reads the ``modelled``
ones, one a device: a roofline from the datasheet, not a measurement. A folder of the user's goes before them
(:func:`user_folder`). What ``growtas profile`` measured has dots in its file's name, and :mod:`growtas.latency.catalogue` finds it.
``cpu`` is this machine.
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

from growtas.errors import ConfigError, DeviceError, choices
from growtas.fields import RULE, Rule, check_keys, list_of, one_of, real, text, text_like, whole
from growtas.files import check_folder, parse_json, read_text
from growtas.latency.at_hand import CPU, devices_at_hand
from growtas.latency.estimate import Kind

FORMAT = "growtas-profile/1"
BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
"""Bytes of a number in each precision; its keys are the legal precisions."""

POSITIVE, FRACTION, NOT_NEGATIVE, COUNT, TEXT = real(0, above=True), real(0, 1, above=True), real(0), whole(1), text()
OBJECT = Rule(lambda value: isinstance(value, Mapping), "an object")
_MODELLED = Rule(lambda value: value == "modelled", "modelled (what was timed has another format, and `growtas profile` makes it)")


def required(rule: Rule) -> Any:
    """A field of a profile without a default, with a rule for :func:`checked_fields`."""
    return dataclasses.field(metadata={RULE: rule})


NAME = text_like(r"[a-z0-9-]+", "lower-case letters, digits and hyphens")
DATE = text_like(r"\d{4}-\d{2}-\d{2}", "a date as 2026-01-31")
SOURCES = list_of(TEXT, "a list of texts")
_PRECISION = one_of("fp32", "tf32", "fp16", "int8")  # those of Peaks
_TIMES = list_of(POSITIVE, "a list of milliseconds above zero", empty=True)


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Dense peaks of a device; None where the device has no such units.

    Attributes:
        fp32_tflops, tf32_tflops, fp16_tflops: 10^12 floating-point operations a second (two a MAC).
        int8_tops: 10^12 integer operations a second.
        memory_gb_s: memory bandwidth, 10^9 bytes a second.
        sms: streaming multiprocessors.
        l2_mb: level-2 cache, 10^6 bytes.
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
    """What part of the peaks is reached, and what a kernel costs beside its work.

    Attributes:
        compute: reached fraction of the peak operations, 0 to 1.
        memory: reached fraction of the memory bandwidth, 0 to 1.
        launch_us: microseconds that each kernel adds.
        tile_rows, tile_cols: output tile that one multiprocessor computes at a time.
    """

    compute: float = required(FRACTION)
    memory: float = required(FRACTION)
    launch_us: float = required(NOT_NEGATIVE)
    tile_rows: int = required(COUNT)
    tile_cols: int = required(COUNT)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How the efficiency was found, and how far the model is from the numbers it was fitted to.

    Attributes:
        network, precision: what the reference latencies are of.
        batches: batch sizes of the reference.
        reference_ms, modelled_ms: latencies in milliseconds, one a batch size; empty where the device has no reference.
        max_error: largest relative error: of the fit itself, or, without a reference of its own, of predicting each reference
            device with the efficiency of the other.
        own_reference: whether the reference was taken on this device.
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
    """A device as the search sees it.

    Attributes:
        name: what ``--device`` calls it.
        description: the full name of the device.
        kind: ``modelled``; every latency from this profile carries it.
        compute_capability: ``sm86`` and the like.
        runtime: the runtime whose latency is meant.
        precision: default precision.
        peaks, efficiency, calibration: see the classes.
        relative_uncertainty: half width of the interval around a modelled latency, 0.5 for +-50 %.
        sources: where the numbers come from.
        date: when the profile was made, ISO.
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
        """Peak operations a second in a precision.

        Raises:
            DeviceError: the precision is unknown, or the device has no units for it.
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
        """The JSON form, read back by :meth:`from_dict`."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: Any, *, source: str = "profile") -> DeviceProfile:
        """Build a profile from its JSON form; every field is checked.

        Raises:
            ConfigError: a field that is missing, unknown or wrong; the message names it and the legal values.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise ConfigError(f"{source}: not a device profile of format {FORMAT}")
        fields = checked_fields(cls, {key: value for key, value in data.items() if key != "format"}, source)
        for name, part in (("peaks", Peaks), ("efficiency", Efficiency), ("calibration", Calibration)):
            fields[name] = part(**checked_fields(part, fields[name], source, f"{name}."))
        profile = cls(**fields)
        calibration = profile.calibration
        if len(calibration.reference_ms) != len(calibration.modelled_ms) or (
            calibration.reference_ms and len(calibration.reference_ms) != len(calibration.batches)
        ):
            raise ConfigError(f"{source}: calibration needs one reference_ms and one modelled_ms for each of its batches")
        return profile


def checked_fields(part: type, data: Mapping[str, Any], source: str, prefix: str = "") -> dict[str, Any]:
    """The fields of one level of a profile, a dataclass ``part``, each tested by its rule; lists become tuples.

    Fields with a default may be missing.

    Raises:
        ConfigError: a field that is missing, unknown or wrong; the message names it and the legal values.
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
    """Where a user's own profiles lie: ``$GROWTAS_PROFILES``, else ``growtas/profiles`` in the XDG configuration folder.

    Raises:
        ConfigError: ``$GROWTAS_PROFILES`` can't be read. The other folder would count as empty: in a container the home is
            often another user's.
    """
    named = os.environ.get("GROWTAS_PROFILES")
    if named:
        check_folder(named, ConfigError)
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")) / "growtas" / "profiles"


def shipped_names() -> list[str]:
    """Names of the modelled profiles that ship, sorted."""
    names = (file.name for file in resources.files("growtas.profiles").iterdir() if file.name != "schema.json")
    return sorted(name.removesuffix(".json") for name in names if re.fullmatch(r"[^.]+\.json", name))


def shipped_measured() -> list[Traversable]:
    """The measured profiles that ship, sorted by name; their names have dots: the device, the space and what was timed."""
    files = (file for file in resources.files("growtas.profiles").iterdir() if re.fullmatch(r"[^.]+\..+\.json", file.name))
    return sorted(files, key=lambda file: file.name)


def profile_names() -> list[str]:
    """Names of the modelled profiles, the shipped and the user's own, sorted."""
    user_names = (path.stem for path in user_folder().glob("*.json") if "." not in path.stem)
    return sorted({*shipped_names(), *user_names})


def measured_names() -> list[str]:
    """Names of the devices that have measured profiles, the shipped and the user's own, sorted."""
    return sorted({file.name.partition(".")[0] for file in (*shipped_measured(), *user_folder().glob("*.*.json"))})


def device_names() -> list[str]:
    """Every legal ``--device``: ``cpu`` (this machine), then its GPU and what has a profile, modelled or measured, sorted."""
    return [CPU, *sorted({*devices_at_hand(), *profile_names(), *measured_names()} - {CPU})]


def load_profile(name: str) -> DeviceProfile:
    """The modelled profile of a device, the user's own if there is one, else the shipped one.

    Raises:
        DeviceError: there is none of this name; the message lists the legal ones.
        ConfigError: the file can't be read, or holds a wrong field.
    """
    if name == CPU:
        raise DeviceError(f"cpu has no profile, it is measured on this machine; profiles are {choices(profile_names())}")
    if name not in profile_names():
        if name in measured_names():
            raise DeviceError(
                f"{name} has a measured profile but no modelled one, which a compute capability would come from; "
                f"name that with --target, such as sm86, or one of {choices(profile_names())}"
            )
        raise DeviceError(f"unknown device {name!r}; legal are {choices(device_names())}")
    file = modelled_file(name)
    source = f"profile {file if isinstance(file, Path) and file.parent == user_folder() else name}"
    profile = DeviceProfile.from_dict(read_profile_json(file, source), source=source)
    if profile.name != name:
        raise ConfigError(f"{source}: its name is {profile.name!r}; it must be that of the file")
    return profile


def modelled_file(name: str) -> Path | Traversable:
    """The file of a modelled profile, the user's own if there is one, else the shipped one."""
    user_file = user_folder() / f"{name}.json"
    return user_file if os.path.exists(user_file) else resources.files("growtas.profiles") / user_file.name


def read_profile_json(file: Path | Traversable, source: str) -> Any:
    """The JSON of a profile's file, unchecked.

    Raises:
        ConfigError: it can't be read, or is not JSON.
    """
    return parse_json(read_text(file, f"{source}:", ConfigError), f"{source}:", ConfigError)
