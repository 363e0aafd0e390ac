"""Checks whether a measured profile was made on such a machine: by name, threads and runtime, and then by timing.

Names such as "AMD EPYC" are coarse, clocks differ, and clouds share cores. So if the names agree, the profile's reference subnet is
timed and compared with its latency in the profile, which is recorded beside every sample.
"""

from __future__ import annotations

import importlib
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
"""Largest relative difference of the reference subnet's latency, and of factors between subnets, that counts as no difference."""
MAX_FACTOR = 2.0
"""Largest factor, in either direction, by which the latencies of a profile may be scaled."""


def local_setup(
    *,
    batch: int = 1,
    threads: int | None = None,
    runtime: str = "onnxruntime",
    precision: str = "fp32",
    hardware: Hardware = "cpu",
) -> Setup:
    """Returns the setup of a timing on this machine: the name of its CPU or GPU, the threads, and the installed runtime.

    Args:
        batch: number of images per batch.
        threads: number of CPU threads; by default all that this process may use.
        runtime: runtime that executes the network.
        precision: precision of the network.
        hardware: ``cpu`` or ``cuda``.
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
    """Returns the installed version of a runtime; an empty string if it is not installed."""
    try:
        module = importlib.import_module("torch" if runtime.startswith("torch") else runtime.replace("-", "_"))
    except ImportError:
        return ""
    # OpenVINO appends the build to its version.
    return str(module.__version__).split("-")[0]


def why_not_here(profile: MeasuredProfile, here: Setup) -> str:
    """Returns the reason why a profile does not fit this machine; an empty string if name, threads and runtime are the same."""
    if profile.description != here.machine:
        return f"it was measured on {profile.description}, but this machine has {here.machine}"
    if profile.threads != here.threads:
        return f"it was measured with {profile.threads} threads, not {here.threads}"
    if (profile.runtime, profile.runtime_version) != (here.runtime, here.runtime_version):
        return f"it was measured in {profile.runtime} {profile.runtime_version}, not {here.runtime} {here.runtime_version}"
    return ""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Latencies of subnets that were timed together.

    Attributes:
        ms: median latency of each subnet on the idle machine, in milliseconds.
        unsteady: whether other work disturbed the timings, so that ``ms`` is estimated from the quietest rounds.
        mixture: uncertainty of the last subnet if unsteady; see :class:`growtas.latency.measured.paired.PairedRatio`.
    """

    ms: tuple[float, ...]
    unsteady: bool
    mixture: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Check:
    """Result of timing a profile's subnets on this machine.

    Attributes:
        timed: the timings; the reference is their last subnet.
        factor: factor for the profile's latencies; 1 if the reference takes as long as recorded; None if the profile must not be
            used.
        message: explanation in words; empty if the reference takes as long as recorded.
    """

    timed: Timed
    factor: float | None
    message: str = ""

    @property
    def reference_ms(self) -> float:
        """Latency of the reference subnet now, in milliseconds."""
        return self.timed.ms[-1]


def recorded_ms(profile: MeasuredProfile) -> float:
    """Returns the latency of the reference subnet in the profile: the median over its groups, in milliseconds."""
    return float(np.median([sample.reference_ms for _, sample in profile.samples]))


def check_profile(profile: MeasuredProfile, timer: InterleavedTimer, *, strict: bool = False) -> Check:
    """Checks a profile by timing its reference subnet, and if that differs, together with the fastest and the slowest sample.

    If all three differ by the same factor, the profile fits after scaling. If they don't, or if the factor exceeds
    :data:`MAX_FACTOR`, this is another machine or a busy one, and the profile must not be used. The tolerance is :data:`TOLERANCE`;
    for unsteady timings it is twice as much, or their mixture if that is larger.

    Args:
        profile: the profile.
        timer: times subnets of the profile's space.
        strict: see :func:`time_together`.

    Raises:
        UnsteadyMachine: the timings stay unsteady, and ``strict`` is set.
    """
    recorded = {sample.subnet: sample.p50_ms for role, sample in profile.samples if role != "repeat"}
    ends = [min(recorded, key=recorded.__getitem__), max(recorded, key=recorded.__getitem__)]
    # The reference is timed again beside the ends, because the load of the machine may have changed.
    for others in ([], ends):
        timed = time_together([*others, profile.space.middle()], timer, profile.threads, strict=strict)
        *ends_ms, now = timed.ms
        factor, tolerance = now / recorded_ms(profile), max(2 * TOLERANCE, timed.mixture) if timed.unsteady else TOLERANCE
        if abs(factor - 1) <= tolerance:
            return Check(timed=timed, factor=1.0)
    factors = [ms / recorded[end] for ms, end in zip(ends_ms, ends, strict=True)]
    message = f"the profile's reference subnet takes {factor:.2f} times as long as in the profile"
    why_not = ""
    if not 1 / MAX_FACTOR <= factor <= MAX_FACTOR:
        why_not = ", so this is another machine, or it is busy"
    elif max(abs(other / factor - 1) for other in factors) > tolerance:
        why_not = f", its fastest subnet {factors[0]:.2f} times and its slowest {factors[1]:.2f} times"
    return Check(timed=timed, factor=None if why_not else factor, message=f"{message}{why_not}")


def time_together(subnets: list[Subnet], timer: InterleavedTimer, threads: int, *, strict: bool = False) -> Timed:
    """Times subnets together, and again while their blocks vary more than a campaign allows.

    Args:
        subnets: the subnets; the last one is the reference.
        timer: times subnets.
        threads: number of CPU threads; 0 on a GPU.
        strict: whether to pause between tries, and to fail if the blocks vary in every try. Without it the rounds of all tries give
            an estimate: for the reference from its quietest blocks, for the others from their ratios to it.

    Raises:
        UnsteadyMachine: the blocks vary in every try, and ``strict`` is set.
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
            f"the machine is too busy, or its clocks change: a subnet's timings {why}, {bounds.tries} times; earlier results are "
            "kept, and the same command continues when the machine is idle"
        )
    *others, reference = rounds
    reference_ms = quiet_ms(reference, threads)
    ratios = (PairedRatio.of_blocks(times, reference, threads).ratio for times in others)
    mixture = PairedRatio.of_blocks(reference, reference, threads).mixture
    return Timed(ms=(*(ratio * reference_ms for ratio in ratios), reference_ms), unsteady=True, mixture=mixture)
