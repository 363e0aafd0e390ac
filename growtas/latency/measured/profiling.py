"""Makes a measured profile: measures the subnets of a sampling plan and fits the latency model to the samples."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from growtas.latency.estimate import Conditions
from growtas.latency.measured.campaign import Campaign, Sample
from growtas.latency.measured.fit import fit_latency
from growtas.latency.measured.profile import MeasuredProfile, Role
from growtas.latency.measured.sampling_plan import SamplingPlan
from growtas.latency.measured.terms import term_names


def measure_plan(campaign: Campaign, plan: SamplingPlan) -> list[tuple[Role, Sample]]:
    """All samples of a plan with their roles, journalled or measured now.

    Raises:
        UnsteadyMachine: the machine is too busy.
        OutputError: the journal can't be written.
    """
    by_subnet = {sample.subnet: sample for sample in campaign.measure(plan.first)}
    roles: list[tuple[Role, Sample]] = [("fit", by_subnet[subnet]) for subnet in plan.fit]
    roles += [("held-out", by_subnet[subnet]) for subnet in plan.held_out]
    return roles + [("repeat", sample) for sample in campaign.measure(plan.repeated, visit=1)]


def make_profile(
    name: str, campaign: Campaign, samples: list[tuple[Role, Sample]], *, description: str, machine: Mapping[str, Any]
) -> MeasuredProfile:
    """Fits the model to the samples of role ``fit`` and makes the profile; its errors follow from the other samples.

    Args:
        description: the CPU or GPU by its full name.
        machine: system, driver and clocks.
    """
    setup, space = campaign.setup, campaign.space
    conditions = Conditions(device=name, batch=setup.batch, precision=setup.precision, runtime=setup.runtime)
    fit = [sample for role, sample in samples if role == "fit"]
    model = fit_latency(space, [sample.subnet for sample in fit], [sample.p50_ms for sample in fit], conditions)
    return MeasuredProfile(
        name=name,
        description=description,
        runtime=setup.runtime,
        runtime_version=setup.runtime_version,
        precision=setup.precision,
        batch=setup.batch,
        threads=setup.threads,
        machine=dict(machine),
        space=space,
        samples=tuple(samples),
        basis=model.basis,
        coefficients=dict(zip(term_names(space, model.basis), model.coefficients.tolist(), strict=True)),
        max_cv=campaign.bounds.cv,
        max_drift=campaign.bounds.drift,
        remeasured=campaign.remeasured,
        sources=(
            "Timed on this machine by `growtas profile`: medians over interleaved blocks, in groups that share a reference subnet.",
            "Fitted subnets were chosen D-optimally, held-out ones drawn uniformly.",
        ),
        date=datetime.date.today().isoformat(),
    )
