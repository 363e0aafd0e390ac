"""Measures the power while artifacts run with the system's counters. Without counters the report says so; nothing is guessed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.export.benchmark.timing import query_gpu
from growtas.export.runtimes.base import is_installed

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, kw_only=True)
class Meter:
    """Reads one device's energy or power.

    Attributes:
        what: description of the counter, and of what it measures, for the report.
        is_energy: whether ``read`` returns joules; otherwise it returns watts.
        read: returns the joules since a moment in the past, or the current watts; raises OSError, ValueError or IndexError if the
            counter can't be read.
    """

    what: str
    is_energy: bool
    read: Callable[[], float]


def _rapl_meter(zones: list[Path]) -> Meter:
    """Measures all CPU packages with the energy counters of Linux' powercap (Intel RAPL, which AMD CPUs have too).

    The counters wrap around, so they must be read every few minutes.

    Args:
        zones: one folder per package, with the files ``energy_uj`` and ``max_energy_range_uj``.
    """
    ranges = [_number(zone / "max_energy_range_uj") for zone in zones]
    last = [_number(zone / "energy_uj") for zone in zones]
    joules = 0.0

    def read() -> float:
        nonlocal last, joules
        now = [_number(zone / "energy_uj") for zone in zones]
        for before, after, limit in zip(last, now, ranges, strict=True):
            joules += (after - before if after >= before else after - before + limit) / 1e6
        last = now
        return joules

    what = f"RAPL, {len(zones)} CPU package{'s' if len(zones) > 1 else ''}, all programs together"
    return Meter(what=what, is_energy=True, read=read)


def _nvml_meter(pynvml: Any) -> Meter:
    """Measures the first GPU with its energy counter, which counts since the driver was loaded."""
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)

    def read() -> float:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        except pynvml.NVMLError as error:
            raise OSError(f"NVML: {error}") from None

    return Meter(what="NVML, the whole GPU, all programs together", is_energy=True, read=read)


def _smi_meter() -> Meter:
    """Measures the first GPU with ``nvidia-smi``, whose power is the driver's average over up to one second."""
    what = "nvidia-smi's power.draw after each turn, the whole GPU, all programs together"
    return Meter(what=what, is_energy=False, read=lambda: float(query_gpu("power.draw")[0]))


def find_meter(device: str, root: Path = POWERCAP) -> Meter | str:
    """Returns a meter for a device, or the reason why there is none.

    Args:
        device: ``cpu``, or the GPU's name in a session's ``info``.
        root: folder of powercap's zones.
    """
    if device != "cpu":
        return _gpu_meter()
    if not root.is_dir():
        return f"no {root} (RAPL)"
    zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if _name(zone).startswith("package")]
    if not zones:
        return f"no CPU package in {root}"
    try:
        return _rapl_meter(zones)
    except (OSError, ValueError) as error:
        return f"{root}: {getattr(error, 'strerror', None) or error}"


def _gpu_meter() -> Meter | str:
    if is_installed("pynvml"):
        import pynvml

        try:
            meter = _nvml_meter(pynvml)
            meter.read()
            return meter
        except (OSError, pynvml.NVMLError):
            pass  # this GPU has no such counter; nvidia-smi may work
    try:
        meter = _smi_meter()
        meter.read()
        return meter
    except (OSError, ValueError, IndexError):
        return "neither NVML nor nvidia-smi reports the GPU's power"


@dataclass(kw_only=True)
class Consumption:
    """The energy that one subject used at one batch size, over all its turns.

    Attributes:
        joules: energy.
        seconds: duration of the turns.
        images: number of images in the turns.
        is_energy: whether an energy counter was read; otherwise the energy is power times duration.
    """

    joules: float = 0.0
    seconds: float = 0.0
    images: int = 0
    is_energy: bool = True

    def report(self) -> dict[str, float | None] | None:
        """Returns ``watts``, and ``joules_per_image`` if an energy counter was read (else None); None if nothing was read."""
        if self.seconds <= 0:
            return None
        per_image = self.joules / self.images if self.is_energy and self.images else None
        return {"watts": self.joules / self.seconds, "joules_per_image": per_image}


class Metering:
    """Measures turns of work with the meter of their device.

    Args:
        meters: the meter of each device, or the reason why there is none.
    """

    def __init__(self, meters: Mapping[str, Meter | str]) -> None:
        self._meters = dict(meters)

    def begin(self, device: str) -> None:
        """Must be called directly before a turn."""
        meter = self._meters[device]
        self._before = 0.0 if isinstance(meter, Meter) and not meter.is_energy else self._read(device)
        self._start = time.perf_counter()

    def end(self, device: str, into: Consumption, images: int) -> None:
        """Must be called directly after the turn, with the number of its images."""
        seconds, meter, now = time.perf_counter() - self._start, self._meters[device], self._read(device)
        if isinstance(meter, str) or self._before is None or now is None:
            return
        into.joules += now - self._before if meter.is_energy else now * seconds
        into.seconds += seconds
        into.images += images
        into.is_energy = meter.is_energy

    def _read(self, device: str) -> float | None:
        meter = self._meters[device]
        if isinstance(meter, str):
            return None
        try:
            return meter.read()
        except (OSError, ValueError, IndexError) as error:
            self._meters[device] = f"the counter could no longer be read ({error})"
            return None

    def report(self) -> dict[str, dict[str, Any]]:
        """Returns for each device, readable ones first, ``readable`` and ``by`` (the counter) or ``because`` (the reason)."""
        return {
            device: {"readable": False, "because": meter} if isinstance(meter, str) else {"readable": True, "by": meter.what}
            for device, meter in sorted(self._meters.items(), key=lambda item: isinstance(item[1], str))
        }


def _name(zone: Path) -> str:
    try:
        return (zone / "name").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    return int(path.read_text(encoding="utf-8"))
