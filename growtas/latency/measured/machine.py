"""Checks whether a measured profile was made on this machine: by name, threads and runtime, then by timing.

Names such as "AMD EPYC" are coarse, clocks differ, and clouds share cores: so what the names allow is checked by timing the
profile's reference subnet, whose latency the profile recorded beside every sample.
"""

from __future__ import annotations

import importlib
import os
import time
from dataclasses import dataclass

import numpy as np

from growtas.latency import at_hand
from growtas.latency.at_hand import cpu_name
from growtas.latency.estimate import Hardware
from growtas.latency.measured.campaign import Bounds, Setup, UnsteadyMachine, scatter
from growtas.latency.measured.paired import Block, InterleavedTimer, PairedRatio, medians, quiet_ms
from growtas.latency.measured.profile import MeasuredProfile
from growtas.resources import available_threads
from growtas.subnet import Subnet

TOLERANCE = 0.04
"""Relative difference up to which the reference subnet takes as long as the profile says, and factors count as one."""
MAX_FACTOR = 2.0
"""Beyond this factor, either way, nothing of a profile is believed."""


def local_setup(
    *,
    batch: int = 1,
    threads: int | None = None,
    runtime: str = "onnxruntime",
    precision: str = "fp32",
    hardware: Hardware = "cpu",
) -> Setup:
    """What a timing on this machine would depend on: the name of its CPU or GPU, the threads, the installed runtime.

    Args:
        threads: of a CPU; by default all that this process may use.
        hardware: where the runtime executes.
    """
    on_cpu = hardware == "cpu"
    return Setup(
        batch=batch,
        threads=(threads or available_threads()) if on_cpu else 0,
        runtime=runtime,
        runtime_version=_version(runtime),
        precision=precision,
        machine=cpu_name() if on_cpu else at_hand.gpu_name() or "",
    )


def _version(runtime: str) -> str:
    """The installed version as a session tells it; empty where the runtime is not installed."""
    try:
        module = importlib.import_module("torch" if runtime.startswith("torch") else runtime.replace("-", "_"))
    except ImportError:
        return ""
    # OpenVINO's has the build behind it.
    return str(module.__version__).split("-")[0]


def other_work() -> str:
    """Names the load of other programs on this machine, for a note; empty where it is low or unknown."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return f"other work is running here (load average {load:.1f})" if load > available_threads() / 2 else ""


def why_not_here(profile: MeasuredProfile, here: Setup) -> str:
    """Why a profile says nothing of this machine; empty if it was made on one that calls itself the same."""
    if profile.description != here.machine:
        return f"it was measured on {profile.description}, and this is {here.machine}"
    if profile.threads != here.threads:
        return f"it was measured with {profile.threads} threads, not {here.threads}"
    if (profile.runtime, profile.runtime_version) != (here.runtime, here.runtime_version):
        return f"it was measured in {profile.runtime} {profile.runtime_version}, not {here.runtime} {here.runtime_version}"
    return ""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Subnets that were timed together.

    Attributes:
        ms: median milliseconds of each while nothing else runs.
        unsteady: whether other work disturbed the timings, so that ``ms`` are estimates from the quietest rounds.
        mixture: of the last one, if so; see :class:`growtas.latency.measured.paired.PairedRatio`.
    """

    ms: tuple[float, ...]
    unsteady: bool
    mixture: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Check:
    """What timing a profile's subnets now has shown.

    Attributes:
        factor: what the profile's latencies are to be multiplied by; 1 where the reference takes as long as recorded; None where
            the profile is not to be used.
        message: for people; empty where there is nothing to say.
        timed: the timings of the reference that tell so; the reference is their last subnet.
    """

    timed: Timed
    factor: float | None
    message: str = ""

    @property
    def reference_ms(self) -> float:
        """What the reference subnet takes now, milliseconds."""
        return self.timed.ms[-1]


def recorded_ms(profile: MeasuredProfile) -> float:
    """What the reference subnet took when the profile was measured: the median over its groups, milliseconds."""
    return float(np.median([sample.reference_ms for _, sample in profile.samples]))


def check_profile(profile: MeasuredProfile, timer: InterleavedTimer, *, strict: bool = False) -> Check:
    """Times the profile's reference subnet; where it is off, once more together with the smallest and the largest sample.

    If all three are off by one factor, the profile holds after scaling; if they are not, or the factor is above :data:`MAX_FACTOR`,
    this is another machine or a busy one, and the profile is not to be used. Where the timings are unsteady, twice
    :data:`TOLERANCE` is allowed, or their mixture where that is more.

    Args:
        timer: times subnets of the profile's space.
        strict: see :func:`time_together`.

    Raises:
        UnsteadyMachine: the timings do not settle, and ``strict``.
    """
    recorded = {sample.subnet: sample.p50_ms for role, sample in profile.samples if role != "repeat"}
    ends = [min(recorded, key=recorded.__getitem__), max(recorded, key=recorded.__getitem__)]
    # The reference again beside the ends, since a busy moment may have come or gone since.
    for beside in ([], ends):
        timed = time_together([*beside, profile.space.middle()], timer, profile.threads, strict=strict)
        *ends_ms, now = timed.ms
        factor, tolerance = now / recorded_ms(profile), max(2 * TOLERANCE, timed.mixture) if timed.unsteady else TOLERANCE
        if abs(factor - 1) <= tolerance:
            return Check(timed=timed, factor=1.0)
    factors = [ms / recorded[end] for ms, end in zip(ends_ms, ends, strict=True)]
    message = f"the profile's reference subnet takes {factor:.2f} times what it took then"
    why_not = ""
    if not 1 / MAX_FACTOR <= factor <= MAX_FACTOR:
        why_not = ": another machine, or a busy one"
    elif max(abs(other / factor - 1) for other in factors) > tolerance:
        why_not = f", the smallest one {factors[0]:.2f} and the largest {factors[1]:.2f} times"
    return Check(timed=timed, factor=None if why_not else factor, message=f"{message}{why_not}")


def time_together(subnets: list[Subnet], timer: InterleavedTimer, threads: int, *, strict: bool = False) -> Timed:
    """Medians of subnets, of which the last one is the reference; timed again while their blocks vary more than a campaign allows.

    Args:
        threads: CPU threads of a run; 0 on a GPU.
        strict: pause between the tries, and raise where the blocks vary each time. Without it the rounds of all tries together give
            an estimate: of the reference its quiet blocks, of the others their ratios to it.

    Raises:
        UnsteadyMachine: they vary each time, and ``strict``.
    """
    bounds, why = Bounds(strict=strict), ""
    rounds: list[list[Block]] = [[] for _ in subnets]
    for attempt in range(bounds.tries):
        if attempt and strict:
            time.sleep(2.0 * attempt)
        blocks = timer(subnets)
        why = next(filter(None, (scatter(times, bounds) for times in blocks)), "")
        if not why:
            return Timed(ms=tuple(float(np.median(medians(times))) for times in blocks), unsteady=False)
        for earlier, times in zip(rounds, blocks, strict=True):
            earlier.extend(times)
    if strict:
        raise UnsteadyMachine(
            f"the machine is too busy, or its clocks change: a subnet's timings {why}, {bounds.tries} times; nothing was lost, and "
            "the same command goes on when it is quiet"
        )
    *others, reference = rounds
    reference_ms = quiet_ms(reference, threads)
    ratios = (PairedRatio.of_blocks(times, reference, threads).ratio for times in others)
    mixture = PairedRatio.of_blocks(reference, reference, threads).mixture
    return Timed(ms=(*(ratio * reference_ms for ratio in ratios), reference_ms), unsteady=True, mixture=mixture)
