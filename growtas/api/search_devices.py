"""The target devices of a search: this machine's devices are measured, and profiles predict the latencies of others."""

from __future__ import annotations

import dataclasses
import math
import shlex
from dataclasses import dataclass
from pathlib import Path

from growtas.batch import SubnetBatch
from growtas.errors import DeviceError
from growtas.export.benchmark.stopwatch import ArchitectureTurns
from growtas.export.benchmark.targets import check_runtime
from growtas.latency.at_hand import CPU
from growtas.latency.catalogue import fitting_profiles, latency_estimator, usual_target
from growtas.latency.estimate import Hardware
from growtas.latency.measured.campaign import Bounds, Campaign, Setup
from growtas.latency.measured.fit import fit_latency
from growtas.latency.measured.machine import Check, Timed, check_profile, local_setup, recorded_ms, time_together
from growtas.latency.measured.profile import MeasuredProfile
from growtas.latency.measured.sampling_plan import choose_subnets
from growtas.latency.measured.stopwatch import LocalStopwatch, set_aside
from growtas.progress import SILENT, Progress
from growtas.resources import other_work
from growtas.search.devices import Device
from growtas.search.limits import Limits, check_latency
from growtas.search.targets import NOT_MEASURABLE, Target, why_not_measured
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.units import format_ms

JOURNAL = "timings.jsonl"
"""File of the latencies measured for a search: ``DEVICE-timings.jsonl`` in the search's folder. The file ``cpu-latency.jsonl`` of
earlier versions holds latencies of another graph."""
SECONDS = 75.0
"""Seconds of timing after which a search no longer repeats measurements for precision; it decides by the interval that it has."""
SAMPLES = 12
"""Number of subnets that the latency model is fitted to if no profile applies."""


def local_target(
    device: Device,
    space: SearchSpace,
    limits: Limits,
    folder: Path,
    threads: int | None = None,
    *,
    predict: bool,
    profile_of: str | Path,
    strict: bool = False,
    progress: Progress = SILENT,
) -> Target:
    """Makes the target of this machine's CPU or GPU.

    Its latency model comes from a measured profile that applies to this machine, or is fitted to a few subnets that are measured
    now. If the GPU can't build or run anything, :func:`predicted_target` makes the target, and a note says why.

    Args:
        device: the device with its limit, runtime and precision.
        space: the search space.
        limits: the limits that subnets measured for a model must meet; ``batch`` is the batch size of all latencies.
        folder: folder of the latencies' journal.
        threads: CPU threads of the measurement; by default all that this process may use.
        predict: make a latency model even without a limit, as a front needs it. Otherwise only the chosen subnet is measured.
        profile_of: the value of ``growtas profile --space`` for this search, for a note; see
            :func:`growtas.search.supernet.profiled_as`.
        strict: raise if the machine is too unsteady to judge a limit, instead of marking the result.
        progress: receives a stage for the measured subnets, and notes on the profile, the model and the state of the machine.

    Raises:
        DeviceError: The CPU can't be measured, or the GPU can be neither measured nor predicted by a profile.
        LimitError: Not even the smallest subnet meets the limit.
        UnsteadyMachine: The machine is too busy, and ``strict`` is set.
    """
    runtime = device.runtime or usual_target(device.name)[0]
    hardware: Hardware = "cpu" if device.name == CPU else "cuda"
    setup = local_setup(batch=limits.batch, threads=threads, runtime=runtime, precision=device.precision, hardware=hardware)
    machine = _LocalMachine(device.name, space, setup, hardware, folder, strict, progress)
    try:
        check_runtime(runtime, device.precision, hardware)
        return _measured_target(machine, device, limits, threads, predict=predict, profile_of=profile_of)
    except NOT_MEASURABLE as error:
        if hardware == "cpu":
            raise
        why = why_not_measured(error)
    try:
        target = predicted_target(device, space, limits, profile_of)
    except DeviceError as error:
        raise DeviceError(f"{device.label} can't be measured here ({why}), and {error}") from None
    provenance = getattr(target.estimator, "provenance", "") or "modelled from the datasheet"
    progress.note(f"{device.label} is a device of this machine, but can't be measured: {why}; its latencies are {provenance}")
    return dataclasses.replace(target, not_measured_because=why)


def predicted_target(device: Device, space: SearchSpace, limits: Limits, profile_of: str | Path) -> Target:
    """Makes the target of a device whose latencies a profile predicts: a measured profile if one applies, or the modelled one.

    Raises:
        DeviceError: No profile applies.
        LimitError: Not even the smallest subnet meets the limit.
    """
    model = latency_estimator(
        device.name, space, batch=limits.batch, precision=device.requested, runtime=device.runtime, profile_of=profile_of
    )
    target = Target(device=device.label, max_ms=device.max_ms, estimator=model)
    target.check(space)
    return target


def _measured_target(
    machine: _LocalMachine, device: Device, limits: Limits, threads: int | None, *, predict: bool, profile_of: str | Path
) -> Target:
    if device.max_ms is None and not predict:
        return machine.target_without_limit(device)
    setup, name = machine.setup, machine.device
    fitting, reasons = fitting_profiles(
        name, machine.space, batch=setup.batch, precision=setup.precision, runtime=setup.runtime, here=setup
    )
    if (checked := machine.best_checked(fitting)) is not None:
        return machine.target_of_profile(device, *checked)
    if not fitting:
        why = f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""
        asked = {"--runtime": setup.runtime, "--precision": setup.precision, "--batch": setup.batch}
        usual = dict(zip(asked, (*usual_target(name), 1), strict=True))
        more = "".join(f" {option} {value}" for option, value in asked.items() if value != usual[option])
        more += f" --threads {threads}" if threads is not None and machine.hardware == "cpu" else ""
        command = f"growtas profile --device {name} --space {shlex.quote(str(profile_of))}{more}"
        machine.progress.note(
            f"no measured profile fits this search{why}; `{command}` makes one, which saves the measurements before a search"
        )
    return machine.target_of_samples(device, limits)


@dataclass(frozen=True)
class _LocalMachine:
    """A device of this machine during a search.

    Attributes:
        device: its name in ``--device``.
    """

    device: str
    space: SearchSpace
    setup: Setup
    hardware: Hardware
    folder: Path
    strict: bool
    progress: Progress

    def target_without_limit(self, device: Device) -> Target:
        """Makes a target that only measures the chosen subnet."""
        timer = self._timer(self.space, [])
        if self.hardware == "cuda":
            # Fails now, rather than after the search, if nothing can be built on the GPU.
            timer.info(self.space.middle())
        # Not strict: without a limit, an unsteady measurement is enough, and it is marked as unsteady.
        campaign = Campaign(self._journal, self.space, self._graph_setup(timer), timer, progress=self.progress)
        return Target(device=device.label, stopwatch=LocalStopwatch(campaign, device=self.device))

    def best_checked(self, profiles: list[MeasuredProfile]) -> tuple[MeasuredProfile, Check, ArchitectureTurns] | None:
        """Returns the profile whose reference subnet's latency is closest to its latency now, with the check and its timer.

        Returns None, and notes why, if none of the profiles applies to this machine.
        """
        best, least = None, math.inf
        for profile in profiles:
            # The check times the profile's own reference subnet, whose latency the profile records.
            timer = self._timer(profile.space.replace(num_classes=self.space.num_classes), [])
            check = check_profile(profile, timer, strict=self.strict)
            if check.factor is None:
                self.progress.note(f"{_title(profile)} is not used: {check.message}{_other_work()}")
            elif abs(math.log(check.factor)) < least:
                best, least = (profile, check, timer), abs(math.log(check.factor))
            if least == 0:
                break
        return best

    def target_of_profile(self, device: Device, profile: MeasuredProfile, check: Check, timer: ArchitectureTurns) -> Target:
        """Makes a target that prunes with a checked profile's model, scaled by the factor by which this machine's speed differs."""
        assert check.factor is not None
        name = _title(profile)
        model, usual_ms = profile.estimator(self.space, batch=self.setup.batch), recorded_ms(profile)
        self.progress.note(
            f"latency model for pruning: {name}, error on held-out subnets up to {model.relative_uncertainty:.1%} (p95); its "
            f"reference subnet takes {format_ms(check.reference_ms)} now and {format_ms(usual_ms)} in the profile (both measured)"
        )
        if check.factor != 1:
            self.progress.note(
                f"{check.message}, and so do the smallest and the largest; the predictions are scaled by it{_other_work()}"
            )
            provenance = f"{model.provenance}, times {check.factor:.2f}"
            model = dataclasses.replace(model, coefficients=model.coefficients * check.factor, provenance=provenance)
            usual_ms *= check.factor
        samples = {sample.subnet: sample.p50_ms * check.factor for role, sample in profile.samples if role != "repeat"}
        if profile.unsteady:
            self.progress.note(f"{name} is unsteady: {profile.unsteady} of its samples were taken while other work was running")
        stopwatch = self._stopwatch(timer, check.timed, usual_ms=usual_ms, repeatability=profile.repeatability.max)
        target = Target(
            device=device.label,
            max_ms=device.max_ms,
            estimator=model,
            stopwatch=stopwatch,
            fitted_to={subnet: ms for subnet, ms in samples.items() if self.space.holds(subnet)},
            margin=stopwatch.expected_margin(check.timed),
        )
        # If the search space has fewer choices than the profile's, the profile may not have timed its smallest subnet.
        expected = float(model.predict_ms(SubnetBatch.from_subnets([self.space.smallest]))[0]) * (1 + model.relative_uncertainty)
        self._check_smallest(target, stopwatch, samples.get(self.space.smallest, expected))
        return target

    def target_of_samples(self, device: Device, limits: Limits) -> Target:
        """Makes a target that prunes with a model fitted to a few subnets, which are measured now."""
        space = self.space
        subnets = choose_subnets(space, limits.feasible(space), SAMPLES, basis="coarse")
        timer = self._timer(space, [*subnets, space.middle()])
        timer.check_against_exporter(space.middle(), self.progress)
        reference = time_together([space.middle()], timer, self.setup.threads, strict=self.strict)
        stopwatch = self._stopwatch(timer, reference)
        smallest_ms = stopwatch.campaign.measure([space.smallest])[0].p50_ms
        self._check_smallest(Target(device=device.label, max_ms=device.max_ms), stopwatch, smallest_ms)
        self.progress.stage("measuring subnets on this machine", len(subnets))
        # Each subnet is measured once, which is enough to fit a model but not to judge a limit.
        values = [sample.p50_ms for sample in stopwatch.campaign.measure(subnets)]
        model = fit_latency(space, subnets, values, stopwatch.conditions)
        self.progress.note(
            f"latency model for pruning: {len(subnets)} subnets measured here, "
            f"held-out error up to {model.relative_uncertainty:.0%}"
        )
        return Target(
            device=device.label,
            max_ms=device.max_ms,
            estimator=model,
            stopwatch=stopwatch,
            fitted_to=dict(zip(subnets, values, strict=True)),
            margin=stopwatch.expected_margin(reference),
        )

    def _check_smallest(self, target: Target, stopwatch: LocalStopwatch, ms: float) -> None:
        """Raises if no subnet meets the limit; measures the smallest one unless its expected latency ``ms`` leaves no doubt."""
        if target.max_ms is not None and target.max_ms < ms * (1 + target.margin):
            smallest = stopwatch.measure(self.space.smallest, target.max_ms)
            # On an unsteady machine, only a limit that is missed beyond doubt raises.
            judged_ms = smallest.ms if smallest.unsteady else smallest.upper_ms
            check_latency(self.space, target.max_ms, judged_ms, "measured", stopwatch.conditions, unsteady=smallest.unsteady)

    @property
    def _journal(self) -> Path:
        return self.folder / f"{self.device}-{JOURNAL}"

    def _timer(self, space: SearchSpace, subnets: list[Subnet]) -> ArchitectureTurns:
        setup = self.setup
        return ArchitectureTurns(
            space,
            subnets,
            runtime=setup.runtime,
            precision=setup.precision,
            batch=setup.batch,
            threads=setup.threads,
            hardware=self.hardware,
        )

    def _graph_setup(self, timer: ArchitectureTurns) -> Setup:
        return dataclasses.replace(self.setup, graph=timer.signature(timer.space.middle()))

    def _stopwatch(
        self, timer: ArchitectureTurns, reference: Timed, *, usual_ms: float | None = None, repeatability: float = 0.0
    ) -> LocalStopwatch:
        """Returns the stopwatch with its journal.

        If the reference subnet is now faster or slower than in an existing journal, that journal is set aside. An unsteady
        reference can't be compared with the journal; without a profile, the samples then show its latency on the idle machine.
        """
        path, bounds, setup = self._journal, Bounds(strict=self.strict, seconds=SECONDS), self._graph_setup(timer)
        if not reference.unsteady:
            existed, reference_ms = path.exists(), reference.ms[-1]
            before_ms = set_aside(path, setup, reference_ms, bounds.drift)
            if existed and not path.exists():
                changed = f"this machine is now faster or slower than in {path}; those timings are set aside"
                self.progress.note(f"{changed}{_other_work()}")
            usual_ms = usual_ms or max(reference_ms, before_ms or 0.0)
        campaign = Campaign(path, timer.space, setup, timer, bounds=bounds, usual_ms=usual_ms, progress=self.progress)
        return LocalStopwatch(campaign, device=self.device, repeatability=repeatability)


def _title(profile: MeasuredProfile) -> str:
    return f"the profile of {profile.space.name} from {profile.date}"


def _other_work() -> str:
    work = other_work()
    return f"; {work}" if work else ""
