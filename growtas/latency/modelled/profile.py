"""Device profiles: what a device can do, and whether that was measured or only modelled.

The profiles are data: JSON files in ``growtas.profiles``, with ``schema.json`` beside them. This module reads the ``modelled``
ones, one a device: a roofline from the datasheet, not a measurement. A folder of the user's goes before them
(:func:`user_folder`). What ``growtas profile`` measured has dots in its file's name, and :mod:`growtas.latency.catalogue` finds it.
``cpu`` is this machine.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from growtas.errors import ConfigError, DeviceError, choices
from growtas.latency.estimate import Kind

FORMAT = "growtas-profile/1"
BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "int8": 1}
"""Bytes of a number in each precision; its keys are the legal precisions."""
PRECISIONS = tuple(BYTES)
CPU = "cpu"


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

    fp32_tflops: float
    tf32_tflops: float | None
    fp16_tflops: float
    int8_tops: float | None
    memory_gb_s: float
    sms: int
    l2_mb: float


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """What part of the peaks is reached, and what a kernel costs beside its work.

    Attributes:
        compute: reached fraction of the peak operations, 0 to 1.
        memory: reached fraction of the memory bandwidth, 0 to 1.
        launch_us: microseconds that each kernel adds.
        tile_rows, tile_cols: output tile that one multiprocessor computes at a time.
    """

    compute: float
    memory: float
    launch_us: float
    tile_rows: int
    tile_cols: int


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

    network: str
    precision: str
    batches: tuple[int, ...]
    reference_ms: tuple[float, ...]
    modelled_ms: tuple[float, ...]
    max_error: float
    own_reference: bool


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

    name: str
    description: str
    kind: Kind
    compute_capability: str
    runtime: str
    precision: str
    peaks: Peaks
    efficiency: Efficiency
    calibration: Calibration
    relative_uncertainty: float
    sources: tuple[str, ...]
    date: str

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
        return {"format": FORMAT, **_plain(dataclasses.asdict(self))}

    @classmethod
    def from_dict(cls, data: Any, *, source: str = "profile") -> DeviceProfile:
        """Build a profile from its JSON form; every field is checked.

        Raises:
            ConfigError: a field that is missing, unknown or wrong; the message names it and the legal values.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise ConfigError(f"{source}: not a device profile of format {FORMAT}")
        fields = checked_fields(cls, {key: value for key, value in data.items() if key != "format"}, source, "")
        for name, part in (("peaks", Peaks), ("efficiency", Efficiency), ("calibration", Calibration)):
            fields[name] = part(**checked_fields(part, fields[name], source, f"{name}."))
        profile = cls(**fields)
        calibration = profile.calibration
        if len(calibration.reference_ms) != len(calibration.modelled_ms) or (
            calibration.reference_ms and len(calibration.reference_ms) != len(calibration.batches)
        ):
            raise ConfigError(f"{source}: calibration needs one reference_ms and one modelled_ms for each of its batches")
        return profile


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _positive(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value) and value > 0


def _fraction(value: Any) -> bool:
    return _positive(value) and value <= 1


def _whole(value: Any) -> bool:
    return _positive(value) and isinstance(value, int)


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _error(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value) and value >= 0


_RULES: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("description", "runtime", "calibration.network"), (_text, "a text")),
    "name": (lambda v: isinstance(v, str) and re.fullmatch(r"[a-z0-9-]+", v), "lower-case letters, digits and hyphens"),
    "kind": (lambda v: v == "modelled", "modelled (what was timed has another format, and `growtas profile` makes it)"),
    "compute_capability": (lambda v: isinstance(v, str) and re.fullmatch(r"sm\d{2,3}", v), "sm and the number, as sm86"),
    **dict.fromkeys(("precision", "calibration.precision"), (lambda v: v in PRECISIONS, choices(PRECISIONS))),
    "date": (lambda v: isinstance(v, str) and re.fullmatch(r"\d{4}-\d{2}-\d{2}", v), "a date as 2026-01-31"),
    **dict.fromkeys(("peaks", "efficiency", "calibration"), (lambda v: isinstance(v, Mapping), "an object")),
    "sources": (lambda v: isinstance(v, list | tuple) and v and all(map(_text, v)), "a list of texts"),
    **dict.fromkeys(
        ("peaks.fp32_tflops", "peaks.fp16_tflops", "peaks.memory_gb_s", "peaks.l2_mb"), (_positive, "a number above zero")
    ),
    **dict.fromkeys(
        ("peaks.tf32_tflops", "peaks.int8_tops"), (lambda v: v is None or _positive(v), "a number above zero, or null")
    ),
    **dict.fromkeys(("peaks.sms", "efficiency.tile_rows", "efficiency.tile_cols"), (_whole, "a whole number above zero")),
    **dict.fromkeys(
        ("efficiency.compute", "efficiency.memory", "relative_uncertainty"), (_fraction, "a fraction above 0, at most 1")
    ),
    "runtime_version": (_text, "a text"),
    "basis": (_text, "a text"),
    "batch": (_whole, "a whole number above zero"),
    **dict.fromkeys(("threads", "remeasured"), (lambda v: v == 0 or _whole(v), "a whole number from zero up")),
    **dict.fromkeys(("space", "machine"), (lambda v: isinstance(v, Mapping), "an object")),
    "samples": (lambda v: isinstance(v, list | tuple) and v, "a list of samples"),
    "coefficients": (lambda v: isinstance(v, Mapping) and all(map(_error, v.values())), "milliseconds by term, zero or more"),
    **dict.fromkeys(("max_cv", "max_drift"), (_fraction, "a fraction above 0, at most 1")),
    "efficiency.launch_us": (_error, "microseconds, zero or more"),
    "calibration.max_error": (_error, "a number, zero or more"),
    "calibration.own_reference": (lambda v: isinstance(v, bool), "true or false"),
    "calibration.batches": (lambda v: isinstance(v, list | tuple) and all(map(_whole, v)), "a list of whole numbers above zero"),
    **dict.fromkeys(
        ("calibration.reference_ms", "calibration.modelled_ms"),
        (lambda v: isinstance(v, list | tuple) and all(map(_positive, v)), "a list of milliseconds above zero"),
    ),
}


def checked_fields(part: type, data: Mapping[str, Any], source: str, prefix: str) -> dict[str, Any]:
    """The fields of one level of a profile, a dataclass ``part``, each tested by its rule; lists become tuples.

    Raises:
        ConfigError: a field that is missing, unknown or wrong; the message names it and the legal values.
    """
    names = [field.name for field in dataclasses.fields(part)]
    for name in data:
        if name not in names:
            raise ConfigError(f"{source}: unknown field {prefix + str(name)!r}; known are {choices(prefix + n for n in names)}")
    for name in names:
        if name not in data:
            raise ConfigError(f"{source}: the field {prefix}{name} is missing")
        legal, meaning = _RULES[prefix + name]
        if not legal(data[name]):
            raise ConfigError(f"{source}: {prefix}{name} is {data[name]!r}; it must be {meaning}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}


def user_folder() -> Path:
    """Where a user's own profiles lie: ``$GROWTAS_PROFILES``, else ``growtas/profiles`` in the XDG configuration folder."""
    named = os.environ.get("GROWTAS_PROFILES")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "growtas" / "profiles"


def shipped_names() -> list[str]:
    """Names of the modelled profiles that ship, sorted."""
    stems = (name.removesuffix(".json") for name in _shipped())
    return sorted(stem for stem in stems if "." not in stem and stem != "schema")


def shipped_measured() -> list[str]:
    """File names of the measured profiles that ship, sorted."""
    return sorted(name for name in _shipped() if "." in name.removesuffix(".json"))


def _shipped() -> list[str]:
    return [entry.name for entry in resources.files("growtas.profiles").iterdir() if entry.name.endswith(".json")]


def profile_names() -> list[str]:
    """Names of the modelled profiles, the shipped and the user's own, sorted."""
    # A measured profile has dots in its file's name: the device, the space and what was timed.
    own = (path.stem for path in user_folder().glob("*.json") if "." not in path.stem)
    return sorted({*shipped_names(), *own})


def measured_names() -> list[str]:
    """Names of the devices that have measured profiles, the shipped and the user's own, sorted."""
    return sorted(
        {name.partition(".")[0] for name in (*shipped_measured(), *(path.name for path in user_folder().glob("*.*.json")))}
    )


def device_names() -> list[str]:
    """Every legal ``--device``: ``cpu`` (this machine), then what has a profile, modelled or measured, sorted."""
    return [CPU, *sorted({*profile_names(), *measured_names()} - {CPU})]


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
    own = user_folder() / f"{name}.json"
    source = f"profile {own}" if own.exists() else f"profile {name}"
    profile = DeviceProfile.from_dict(read_profile_json(own if own.exists() else shipped_file(name), source), source=source)
    if profile.name != name:
        raise ConfigError(f"{source}: its name is {profile.name!r}; it must be that of the file")
    return profile


def shipped_file(name: str) -> Traversable:
    """The file of a shipped profile; of a measured one the name has dots."""
    return resources.files("growtas.profiles") / f"{name}.json"


def read_profile_json(file: Path | Traversable, source: str) -> Any:
    """The JSON of a profile's file, unchecked.

    Raises:
        ConfigError: it can't be read, or is not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: can't be read ({getattr(error, 'strerror', None) or 'not text'})") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{source}: not JSON (line {error.lineno}: {error.msg})") from None
