"""``growtas search --device cpu``: who knows this machine's latencies, a fitting profile or subnets measured first."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

from growtas.cli.output import note

if TYPE_CHECKING:
    from growtas.cli.search_plan import Device
    from growtas.export.benchmark.stopwatch import ArchitectureTurns
    from growtas.latency.measured.profile import MeasuredProfile
    from growtas.latency.measured.timings import Timings
    from growtas.search.limits import Limits
    from growtas.search.targets import Target
    from growtas.space import SearchSpace
    from growtas.subnet import Subnet

JOURNAL = "cpu-timings.jsonl"
"""What was measured for a search, in its folder. Versions before wrote cpu-latency.jsonl, timings of another graph."""
UNBOUND = "cpu-timings-unbound.jsonl"
"""The same without a limit, taken on a machine that may have been busy: never judged on."""
SAMPLES = 12


def measured_target(
    device: Device, space: SearchSpace, limits: Limits, batch: int, out: Path, *, predict: bool, hidden: bool
) -> Target:
    """This machine. A measured profile that fits it prunes; without one, a model that is fitted to some subnets, measured first.

    Args:
        out: folder of the file that keeps what was measured.
        predict: a front needs predictions even without a limit, which otherwise only has the winner measured.
        hidden: show no progress.

    Raises:
        LimitError: not even the smallest subnet meets the limit.
        UnsteadyMachine: the machine is too busy.
    """
    here = _Here(space, batch, out, hidden)
    if device.max_ms is None and not predict:
        return here.unlimited(device)
    profile, reasons = here.profile()
    if profile is not None and (target := here.profiled(device, profile)) is not None:
        return target
    if profile is None:
        why = f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""
        more = f" --batch {batch}" if batch != 1 else ""
        command = f"growtas profile --device cpu --space {space.name}{more}"
        note(f"no measured profile fits this search{why}; `{command}` makes one: nothing is measured beforehand then")
    return here.fitted(device, limits)


class _Here:
    """This machine, for one search."""

    def __init__(self, space: SearchSpace, batch: int, out: Path, hidden: bool) -> None:
        import onnxruntime

        from growtas.export.runtimes.base import available_threads
        from growtas.latency.measured.machine import local_setup

        self.space, self.out, self.hidden = space, out, hidden
        self.setup = dataclasses.replace(
            local_setup(batch=batch), threads=available_threads(), runtime_version=onnxruntime.__version__
        )

    def profile(self) -> tuple[MeasuredProfile | None, list[str]]:
        """The measured profile of a machine that calls itself like this one, and why others are none."""
        from growtas.latency.catalogue import fitting_profile
        from growtas.latency.modelled.profile import CPU

        s = self.setup
        return fitting_profile(CPU, self.space, batch=s.batch, precision=s.precision, runtime=s.runtime, here=s)

    def unlimited(self, device: Device) -> Target:
        """The winner alone is measured."""
        from growtas.search.targets import Target

        turns = self._turns(self.space, [])
        # Nothing is judged on it: a busy machine's number will do, and its margin tells.
        timings = self._timings(self.space, turns, None)
        return Target(device=device.name, stopwatch=timings)

    def profiled(self, device: Device, profile: MeasuredProfile) -> Target | None:
        """With the profile's model, if timing its reference subnet shows that this is the machine; None if not, which is said."""
        from growtas.batch import SubnetBatch
        from growtas.latency.measured.machine import check_profile, recorded_ms
        from growtas.search.targets import Target
        from growtas.units import format_ms

        # The reference is the profile's, so that what it recorded can be compared.
        space = profile.space.replace(num_classes=self.space.num_classes)
        turns = self._turns(space, [])
        check = check_profile(profile, turns, time.sleep)
        what = f"the profile of {profile.space.name} from {profile.date}"
        if check.factor is None:
            note(f"{what} is not used: {check.said}; measuring subnets instead{_load()}")
            return None
        model, usual = profile.estimator(self.space, batch=self.setup.batch), recorded_ms(profile)
        note(
            f"latency model for pruning: {what}, error on held-out subnets up to {model.relative_uncertainty:.1%} (p95); its "
            f"reference subnet takes {format_ms(check.reference_ms)} here, {format_ms(usual)} then (both measured)"
        )
        if check.factor != 1:
            note(f"{check.said}, and so do the smallest and the largest; its predictions are scaled{_load()}")
            provenance = f"{model.provenance}, times {check.factor:.2f}"
            model = dataclasses.replace(model, coefficients=model.coefficients * check.factor, provenance=provenance)
            usual *= check.factor
        samples = {sample.subnet: sample.p50_ms * check.factor for role, sample in profile.samples if role != "repeat"}
        timings = self._timings(space, turns, check.reference_ms, usual_ms=usual, repeatability=profile.repeatability.max)
        target = Target(
            device=device.name,
            max_ms=device.max_ms,
            estimator=model,
            stopwatch=timings,
            fitted_to={subnet: ms for subnet, ms in samples.items() if self.space.holds(subnet)},
            margin=timings.expected_margin(check.reference_ms),
        )
        # The profile may not have timed the smallest subnet of narrower choices.
        expected = float(model.predict_ms(SubnetBatch.from_subnets([self.space.smallest]))[0]) * (1 + model.relative_uncertainty)
        self._check_smallest(target, timings, samples.get(self.space.smallest, expected))
        return target

    def fitted(self, device: Device, limits: Limits) -> Target:
        """With a model that is fitted to some subnets, which are measured now."""
        from growtas.cli.search_view import measuring_bar
        from growtas.latency.measured.fit import fit_latency
        from growtas.latency.measured.sampling_plan import choose_subnets
        from growtas.search.targets import Target

        space = self.space
        subnets = choose_subnets(space, limits.feasible(space), SAMPLES, basis="coarse")
        turns = self._turns(space, [*subnets, space.middle()])
        if not turns.check_against_exporter(space.middle()):
            note("graphs put together from blocks differ from exported ones here; exporting each subnet, which takes longer")
        timings = self._timings(space, turns, self._reference_ms(space, turns))
        smallest_ms = timings.samples_ms([space.smallest])[0]
        self._check_smallest(Target(device=device.name, max_ms=device.max_ms), timings, smallest_ms)
        with measuring_bar(len(subnets), hidden=self.hidden) as step:
            values = timings.samples_ms(subnets, step)
        model = fit_latency(space, subnets, values, timings.conditions)
        note(f"latency model for pruning: {len(subnets)} subnets measured here, held-out error up to {model.held_out_error:.0%}")
        return Target(
            device=device.name,
            max_ms=device.max_ms,
            estimator=model,
            stopwatch=timings,
            fitted_to=dict(zip(subnets, values, strict=True)),
        )

    def _check_smallest(self, target: Target, timings: Timings, ms: float) -> None:
        """Raise before the search where nothing meets the limit: the smallest subnet is measured unless ``ms`` leaves no doubt."""
        from growtas.search.limits import check_latency

        if target.max_ms is not None and target.max_ms < ms * (1 + target.margin):
            smallest = timings.measure(self.space.smallest)
            check_latency(self.space, target.max_ms, smallest.upper_ms, "measured", timings.conditions)

    def _turns(self, space: SearchSpace, subnets: list[Subnet]) -> ArchitectureTurns:
        from growtas.export.benchmark.stopwatch import ArchitectureTurns

        s = self.setup
        return ArchitectureTurns(space, subnets, runtime=s.runtime, batch=s.batch, threads=s.threads)

    def _reference_ms(self, space: SearchSpace, turns: ArchitectureTurns) -> float:
        from growtas.latency.measured.machine import steady_ms

        return steady_ms([space.middle()], turns, time.sleep)[0]

    def _timings(
        self,
        space: SearchSpace,
        turns: ArchitectureTurns,
        reference_ms: float | None,
        *,
        usual_ms: float | None = None,
        repeatability: float = 0.0,
    ) -> Timings:
        """The stopwatch with its journal; one whose reference took another time is set aside.

        Args:
            reference_ms: what the reference takes now; None measures without any bounds, in no journal that counts.
            usual_ms: what it usually takes, where that is known.
        """
        from growtas.files import ensure_writable
        from growtas.latency.measured.campaign import Bounds, Campaign
        from growtas.latency.measured.timings import Timings, as_usual, set_aside

        path = self.out / (JOURNAL if reference_ms is not None else UNBOUND)
        ensure_writable(path.parent)
        setup = dataclasses.replace(self.setup, graph=turns.signature(space.middle()))
        if reference_ms is None:
            campaign = Campaign(path, space, setup, turns, bounds=Bounds(cv=1.0, drift=1.0), note=note)
            return Timings(campaign)
        bounds, was = Bounds(), path.exists()
        before = set_aside(path, setup, reference_ms, bounds.drift)
        if was and not path.exists():
            note(f"this machine is faster or slower than when the timings in {path} were taken; they are set aside{_load()}")
        usual = usual_ms or max(reference_ms, before or 0.0)
        guarded = as_usual(turns, usual, bounds, note, time.sleep)
        campaign = Campaign(path, space, setup, guarded, bounds=bounds, note=note, pause=time.sleep)
        return Timings(campaign, usual_ms=usual, repeatability=repeatability)


def _load() -> str:
    """What the system says of other work, to be added to a note; empty where it is idle."""
    from growtas.export.benchmark.timing import environment

    machine = environment()
    load = machine["load_average_1min"] or 0
    return f"; other work is running here (load average {load:.1f})" if load > machine["cpu_threads_available"] / 2 else ""
