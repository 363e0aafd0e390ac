"""From a space to a measured profile: which subnets are measured, in which order, and what is made of the samples."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from growtas.batch import SubnetBatch
from growtas.errors import ConfigError
from growtas.latency.estimate import PERCENTILE, Conditions
from growtas.latency.measured.campaign import Campaign, Sample
from growtas.latency.measured.fit import fit_latency
from growtas.latency.measured.profile import MeasuredProfile, Role
from growtas.latency.measured.sampling_plan import choose_subnets
from growtas.latency.measured.terms import term_names
from growtas.sampling import sample_batch
from growtas.space import SearchSpace
from growtas.subnet import Subnet

_HELD_OUT_SEED = 1
_ORDER_SEED = 2


@dataclass(frozen=True)
class Plan:
    """Which subnets a profile measures.

    Attributes:
        fit: the model is fitted to these; chosen to tell its terms apart.
        held_out: it is tested on these; drawn at random, none of them among ``fit``.
        repeated: these of both are measured again at the end.
    """

    fit: tuple[Subnet, ...]
    held_out: tuple[Subnet, ...]
    repeated: tuple[Subnet, ...]

    @property
    def first(self) -> list[Subnet]:
        """``fit`` and ``held_out`` in a random order, so that neither is measured in better conditions than the other."""
        subnets = [*self.fit, *self.held_out]
        return [subnets[i] for i in np.random.default_rng(_ORDER_SEED).permutation(len(subnets))]

    @property
    def measurements(self) -> int:
        """How many there are in all."""
        return len(self.fit) + len(self.held_out) + len(self.repeated)


def plan_profile(space: SearchSpace, *, samples: int = 60, held_out: int = 40, repeats: int = 10) -> Plan:
    """The subnets of a profile; the same for the same numbers.

    Raises:
        ConfigError: a number that is too small, or a space with fewer subnets than that.
    """
    for name, value, lowest in (("samples", samples, 4), ("held-out", held_out, 2), ("repeats", repeats, 0)):
        if value < lowest:
            raise ConfigError(f"--{name} is {value}; it must be {lowest} or more")
    if space.size < samples + held_out:
        raise ConfigError(f"{space.name} has {space.size} subnets; --samples and --held-out ask for {samples + held_out}")

    def anything(batch: SubnetBatch) -> Any:
        return np.ones(len(batch), bool)

    fit = choose_subnets(space, anything, samples)
    rng, taken, drawn = np.random.default_rng(_HELD_OUT_SEED), set(fit), dict[Subnet, None]()
    while len(drawn) < held_out:
        drawn |= {subnet: None for subnet in sample_batch(space, held_out, rng) if subnet not in taken}
    plan = Plan(tuple(fit), tuple(drawn)[:held_out], ())
    # Among those measured first, so that the second time is far from the first.
    early = plan.first[: max(len(plan.first) // 2, 1)]
    return dataclasses.replace(plan, repeated=tuple(early[:repeats]))


def measure_plan(
    campaign: Campaign, plan: Plan, on_samples: Callable[[int], None] = lambda count: None
) -> list[tuple[Role, Sample]]:
    """All samples of a plan with their roles, journalled or measured now.

    Raises:
        UnsteadyMachine: the machine is too busy.
        OutputError: the journal can't be written.
    """
    by_subnet = {sample.subnet: sample for sample in campaign.measure(plan.first, on_samples=on_samples)}
    again = campaign.measure(plan.repeated, visit=1, on_samples=on_samples)
    roles: list[tuple[Role, Sample]] = [("fit", by_subnet[subnet]) for subnet in plan.fit]
    roles += [("held-out", by_subnet[subnet]) for subnet in plan.held_out]
    return roles + [("repeat", sample) for sample in again]


def make_profile(
    name: str, campaign: Campaign, samples: list[tuple[Role, Sample]], *, description: str, machine: Mapping[str, Any]
) -> MeasuredProfile:
    """Fit the model to the samples of role ``fit`` and put the profile together; its errors follow from the rest.

    Args:
        description: the CPU or GPU by its full name.
        machine: system, driver and clocks.
    """
    setup, space = campaign.setup, campaign.space
    conditions = Conditions(device=name, percentile=PERCENTILE, batch=setup.batch, precision=setup.precision, runtime=setup.runtime)
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
