"""Power while artifacts run, by the counters that the system offers; where it offers none, that is said and nothing guessed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from growtas.export.runtimes.base import is_installed

POWERCAP = Path("/sys/class/powercap")


class Meter(Protocol):
    """Reads one device's energy or power."""

    what: str
    """What is metered, and by what, for the report."""
    is_energy: bool
    """Whether :meth:`read` counts joules; otherwise it gives watts at this moment."""

    def read(self) -> float:
        """Joules since some moment in the past, or watts now.

        Raises:
            OSError, ValueError: it can't be read any more.
        """


class RaplMeter:
    """All CPU packages, by the energy counters of Linux' powercap (Intel RAPL, which AMD has too). Other programs' power is in it.

    Args:
        zones: folders with ``energy_uj`` and ``max_energy_range_uj``, one a package.
    """

    is_energy = True

    def __init__(self, zones: list[Path]) -> None:
        self.what = f"RAPL, {len(zones)} CPU package{'s' if len(zones) > 1 else ''}, all programs together"
        self._zones = zones
        self._ranges = [_number(zone / "max_energy_range_uj") for zone in zones]
        self._last = [_number(zone / "energy_uj") for zone in zones]
        self._joules = 0.0

    def read(self) -> float:
        """Joules since the meter was made; the counters wrap around, so it must be read every few minutes."""
        now = [_number(zone / "energy_uj") for zone in self._zones]
        for before, after, limit in zip(self._last, now, self._ranges, strict=True):
            self._joules += (after - before if after >= before else after - before + limit) / 1e6
        self._last = now
        return self._joules


class NvmlMeter:
    """The first GPU's energy counter, by NVML."""

    is_energy = True
    what = "NVML, the whole GPU, all programs together"

    def __init__(self, pynvml: Any) -> None:
        pynvml.nvmlInit()
        self._pynvml, self._handle = pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
        self.read()

    def read(self) -> float:
        """Joules since the driver was loaded."""
        try:
            return float(self._pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except self._pynvml.NVMLError as error:
            raise OSError(f"NVML: {error}") from None


class SmiMeter:
    """The first GPU's power as ``nvidia-smi`` tells it: an average that the driver makes over up to a second."""

    is_energy = False
    what = "nvidia-smi's power.draw after each turn, the whole GPU, all programs together"

    def __init__(self) -> None:
        self.read()

    def read(self) -> float:
        """Watts now."""
        command = ["nvidia-smi", "--id=0", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        except subprocess.SubprocessError as error:
            raise OSError(f"nvidia-smi: {error}") from None
        return float(said.strip().splitlines()[0])


def find_meter(device: str, root: Path = POWERCAP) -> Meter | str:
    """A meter for a device, or why there is none.

    Args:
        device: ``cpu``, or what a session calls its GPU.
        root: of powercap's zones.
    """
    if device != "cpu":
        return _gpu_meter()
    if not root.is_dir():
        return f"no {root} (RAPL)"
    zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if _name(zone).startswith("package")]
    if not zones:
        return f"no CPU package in {root}"
    try:
        return RaplMeter(zones)
    except (OSError, ValueError) as error:
        return f"{root}: {getattr(error, 'strerror', None) or error}"


def _gpu_meter() -> Meter | str:
    if is_installed("pynvml"):
        import pynvml

        try:
            return NvmlMeter(pynvml)
        except (OSError, pynvml.NVMLError):
            pass  # no such counter on this GPU; the other way may work
    try:
        return SmiMeter()
    except (OSError, ValueError, IndexError):
        return "neither NVML nor nvidia-smi tells the GPU's power"


@dataclass(kw_only=True)
class Consumption:
    """What one subject took at one batch, over its turns."""

    joules: float = 0.0
    seconds: float = 0.0
    images: int = 0
    turns: int = 0
    is_energy: bool = True

    def report(self) -> dict[str, float | None] | None:
        """``watts``, and ``joules_per_image`` where energy was counted; None where nothing was read."""
        if not self.turns or self.seconds <= 0:
            return None
        per_image = self.joules / self.images if self.is_energy and self.images else None
        return {"watts": self.joules / self.seconds, "joules_per_image": per_image}


class Metering:
    """Meters turns of work, each on its own device's meter."""

    def __init__(self, devices: list[str], meters: Mapping[str, Meter | str] | None = None) -> None:
        found = meters if meters is not None else {device: find_meter(device) for device in devices}
        self._meters = {device: meter for device, meter in found.items() if not isinstance(meter, str)}
        self._reasons = {device: meter for device, meter in found.items() if isinstance(meter, str)}
        self._start: tuple[float, float] | None = None

    def begin(self, device: str) -> None:
        """Right before a turn."""
        self._start = None
        meter = self._meters.get(device)
        if meter is None:
            return
        try:
            self._start = (meter.read() if meter.is_energy else 0.0, time.perf_counter())
        except (OSError, ValueError) as error:
            self._lost(device, error)

    def end(self, device: str, into: Consumption, images: int) -> None:
        """Right after it; ``images`` is how many the turn ran."""
        meter = self._meters.get(device)
        if meter is None or self._start is None:
            return
        before, seconds = self._start[0], time.perf_counter() - self._start[1]
        try:
            now = meter.read()
        except (OSError, ValueError, IndexError) as error:
            self._lost(device, error)
            return
        into.joules += now - before if meter.is_energy else now * seconds
        into.seconds += seconds
        into.images += images
        into.turns += 1
        into.is_energy = meter.is_energy

    def _lost(self, device: str, error: Exception) -> None:
        self._reasons[device] = f"it could not be read any more ({error})"
        del self._meters[device]

    def report(self) -> dict[str, dict[str, Any]]:
        """By device: ``readable``, with ``by`` or ``because``."""
        read = {device: {"readable": True, "by": meter.what} for device, meter in self._meters.items()}
        return {**read, **{device: {"readable": False, "because": reason} for device, reason in self._reasons.items()}}


def _name(zone: Path) -> str:
    try:
        return (zone / "name").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    return int(path.read_text(encoding="utf-8"))
