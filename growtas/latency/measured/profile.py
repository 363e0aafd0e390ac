"""Measured profiles: samples of a space's subnets on one machine, the model fitted to them, and how far it was off.

A profile is data, a JSON file of format :data:`FORMAT` that ``growtas profile`` writes. What it claims is computed from its samples
when it is read, and a file that claims something else is refused. Only a latency that was timed is measured; what the model says of
any other subnet is ``modelled``, with the error on held-out subnets.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import numpy as np
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.errors import ConfigError, DeviceError, SpaceError, SubnetError, choices
from growtas.fields import RULE, Rule, one_of, whole
from growtas.latency.estimate import Conditions, Kind
from growtas.latency.measured.campaign import Campaign, Role, Sample
from growtas.latency.measured.fit import FittedLatency, fit_latency
from growtas.latency.measured.terms import BASES, term_names, weighted_sum
from growtas.latency.modelled.profile import (
    BYTES,
    COUNT,
    DATE,
    FRACTION,
    NAME,
    NOT_NEGATIVE,
    OBJECT,
    POSITIVE,
    SOURCES,
    TEXT,
    checked_fields,
    required,
)
from growtas.space import SearchSpace
from growtas.subnet import Subnet

FORMAT = "growtas-profile/2"
ROLES = get_args(Role)
_COEFFICIENTS = Rule(
    lambda value: isinstance(value, Mapping) and all(map(NOT_NEGATIVE.accepts, value.values())),
    "milliseconds by term, zero or more",
)
_HOW_MEASURED = (
    "Timed on this machine by `growtas profile`: medians over interleaved blocks, in groups that share a reference subnet.",
    "Latencies are ratios to the reference subnet in the same blocks, times its median over all groups.",
    "Two thirds of the fitted subnets were chosen D-optimally; the others and the held-out ones were drawn uniformly.",
)
_ON_NOISE = "Quantised networks were calibrated on noise."
_ABOVE_ZERO = Rule(POSITIVE.accepts, "a finite number above zero")
_FROM_ZERO = Rule(NOT_NEGATIVE.accepts, "a finite number from zero up")
_SAMPLE_RULES = {"role": one_of(*ROLES), "p50_ms": _ABOVE_ZERO, "cv": _FROM_ZERO, "reference_ms": _ABOVE_ZERO}
_UNSTEADY_RULES = {
    "unsteady": Rule(lambda value: value is True, "true, or left out"),
    "half_width": _FROM_ZERO,
    "mixture": _FROM_ZERO,
}
_CLAIMED = ("format", "kind", "unsteady", "held_out", "repeatability")
_LATER_CLAIMS = {"within_5", "within_10"}
_GEOMETRY = ("head_dim", "image_size", "patch_size", "in_chans", "max_relative_position")


CLAIMS = """What a profile's file says besides its own fields. The numbers follow from the samples; a file that says others is refused.

Fields:
    kind (text): Always ``measured``.
    unsteady (whole number): Samples that were taken while other work disturbed the timings. Absent where there are none.
    held_out (object): Errors of the fitted model on subnets that it was not fitted to.
    repeatability (object): How far two measurements of one subnet lie apart.
    samples[].role (text): ``fit``, ``held-out``, or ``repeat`` for a second measurement.
    samples[].unsteady (true): Other work disturbed the timings. Absent in a steady sample.
"""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Errors of the model on subnets that it was not fitted to, drawn at random.

    Attributes:
        count: how many.
        median, p95, max: of the relative error, predicted over measured less 1, without its sign.
        spearman: rank correlation of predicted and measured latencies.
        within_5, within_10: hit rates, the shares of predictions that are off by at most 5 % and 10 %.
    """

    count: int
    median: float
    p95: float
    max: float
    spearman: float
    within_5: float
    within_10: float


@dataclass(frozen=True, kw_only=True)
class Repeatability:
    """How far measurements of one subnet at two times lie apart.

    Attributes:
        count: subnets measured twice.
        median, max: of the relative difference, without its sign; zero where nothing was measured twice.
    """

    count: int
    median: float
    max: float


@dataclass(frozen=True, kw_only=True)
class MeasuredProfile:
    """A machine's measured latencies of one space, runtime, precision and batch.

    Attributes:
        name: what ``--device`` calls the machine.
        description: CPU or GPU by its full name.
        runtime, runtime_version, precision, batch, threads: what was timed how; 0 threads on a GPU.
        machine: system, driver and clocks, as far as the system told; texts and numbers.
        space: the choices and the geometry that were measured.
        samples: timed subnets with their role: ``fit``, ``held-out``, or ``repeat`` for a second time.
        basis: the model's set of terms, of :data:`growtas.latency.measured.terms.BASES`.
        coefficients: milliseconds for each term, by its name.
        max_cv, max_drift: bounds that the steady samples keep.
        remeasured: samples that were thrown away and measured again.
        sources: how the numbers came about.
        date: of the last sample, ISO.
        adapted_from: the profile whose model was adapted with the fitted samples; empty where they alone made the model.
    """

    # The samples were timed; predictions from them are of kind ``modelled`` all the same.
    kind: ClassVar[Kind] = "measured"

    name: str = required(NAME)
    description: str = required(TEXT)
    runtime: str = required(TEXT)
    runtime_version: str = required(TEXT)
    precision: str = required(one_of(*BYTES))
    batch: int = required(COUNT)
    threads: int = required(whole(0))
    machine: Mapping[str, Any] = required(OBJECT)
    space: SearchSpace = required(OBJECT)
    samples: tuple[tuple[Role, Sample], ...] = required(
        Rule(lambda value: isinstance(value, list | tuple) and bool(value), "a list of samples")
    )
    basis: str = required(one_of(*BASES))
    coefficients: Mapping[str, float] = required(_COEFFICIENTS)
    max_cv: float = required(FRACTION)
    max_drift: float = required(FRACTION)
    remeasured: int = required(whole(0))
    sources: tuple[str, ...] = required(SOURCES)
    date: str = required(DATE)
    adapted_from: str = dataclasses.field(default="", metadata={RULE: TEXT})

    @classmethod
    def of_samples(
        cls,
        name: str,
        campaign: Campaign,
        samples: Sequence[tuple[Role, Sample]],
        *,
        description: str,
        machine: Mapping[str, Any],
        others: Sequence[MeasuredProfile] = (),
    ) -> MeasuredProfile:
        """Fits the model to a campaign's samples of role ``fit``; the profile's errors follow from the other samples.

        Each latency is taken at the same speed of the machine: as its ratio to the reference in the same blocks, times what the
        reference took in the median.

        Args:
            others: profiles of other targets; a few samples adapt the model of one of the same space, if that predicts better.
        """
        setup, space = campaign.setup, campaign.space
        usual_ms = float(np.median([sample.reference_ms for _, sample in samples]))
        samples = [
            (role, dataclasses.replace(sample, p50_ms=sample.p50_ms / sample.reference_ms * usual_ms, reference_ms=usual_ms))
            for role, sample in samples
        ]
        conditions = Conditions(device=name, batch=setup.batch, precision=setup.precision, runtime=setup.runtime)
        fit = [sample for role, sample in samples if role == "fit"]
        models = [(other.title, other.model) for other in others if other.has_terms_of(space)]
        subnets, ms = [sample.subnet for sample in fit], [sample.p50_ms for sample in fit]
        model = fit_latency(space, subnets, ms, conditions, [other for _, other in models])
        return cls(
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
            sources=(*_HOW_MEASURED, _ON_NOISE) if setup.precision in ("int8", "fp8") else _HOW_MEASURED,
            date=datetime.date.today().isoformat(),
            adapted_from=next((title for title, other in models if other is model.adapted), ""),
        )

    @property
    def unsteady(self) -> int:
        """Samples that were taken while other work disturbed the timings; their latencies are ratios to the reference subnet."""
        return sum(sample.unsteady for _, sample in self.samples)

    @property
    def conditions(self) -> Conditions:
        """What its latencies are of."""
        return Conditions(device=self.name, batch=self.batch, precision=self.precision, runtime=self.runtime)

    def of_role(self, role: Role) -> list[Sample]:
        """The samples of a role."""
        return [sample for sample_role, sample in self.samples if sample_role == role]

    @property
    def held_out(self) -> HeldOut:
        """The model's errors on the held-out samples."""
        samples = self.of_role("held-out")
        return held_out_errors(self._predicted(samples), np.array([sample.p50_ms for sample in samples]))

    @property
    def repeatability(self) -> Repeatability:
        """How far the repeated samples lie from the first ones."""
        first = {sample.subnet: sample.p50_ms for role, sample in self.samples if role != "repeat"}
        apart = [abs(sample.p50_ms / first[sample.subnet] - 1) for sample in self.of_role("repeat")]
        return Repeatability(count=len(apart), median=float(np.median(apart)) if apart else 0.0, max=max(apart, default=0.0))

    @property
    def _coefficients(self) -> NDArray[np.float64]:
        return np.array([self.coefficients[name] for name in term_names(self.space, self.basis)])

    def _predicted(self, samples: Sequence[Sample]) -> NDArray[np.float64]:
        batch = SubnetBatch.from_subnets([sample.subnet for sample in samples])
        return weighted_sum(self.space, self.basis, batch, self._coefficients)

    def estimator(self, space: SearchSpace, *, batch: int = 1, precision: str | None = None) -> FittedLatency:
        """The fitted model as a :class:`growtas.latency.estimate.LatencyEstimator` for a space's subnets.

        Its kind is ``modelled``, its uncertainty the held-out p95, its intervals come from the held-out residuals.

        Args:
            space: same geometry, its choices within the measured ones; the number of classes may differ (one product of many).
            precision: by default the profile's.

        Raises:
            DeviceError: another batch or precision, another geometry, or choices beyond the measured ones.
        """
        why = self.why_not(space, batch=batch, precision=precision)
        if why:
            raise DeviceError(f"the profile of {self.name} does not fit: {why}")
        return self.model

    @property
    def model(self) -> FittedLatency:
        """The fitted model, for subnets of :attr:`space`; :meth:`estimator` checks that it answers for another space's too."""
        samples = self.of_role("held-out")
        residuals = np.array([sample.p50_ms for sample in samples]) / self._predicted(samples) - 1
        error, unsteady = self.held_out.p95, f" ({self.unsteady} samples of the profile are unsteady)" if self.unsteady else ""
        of = f"{len(self.of_role('fit'))} measured subnets{unsteady}"
        adapted = f", adapted from the {self.adapted_from}" if self.adapted_from else ""
        return FittedLatency(
            space=self.space,
            conditions=self.conditions,
            coefficients=self._coefficients,
            relative_uncertainty=error,
            basis=self.basis,
            residuals=tuple(residuals.tolist()),
            provenance=f"predicted from {of}{adapted}, held-out error p95 {error:.1%}",
        )

    @property
    def title(self) -> str:
        """What it is of, for people: ``profile of micro in fp32, onnxruntime on cpu (AMD EPYC)``."""
        return f"profile of {self.space.name} in {self.precision}, {self.runtime} on {self.name} ({self.description})"

    def has_terms_of(self, space: SearchSpace) -> bool:
        """Whether a model of the space has the same terms, so that this one's coefficients can be taken over."""
        return not self.why_not(space, batch=self.batch) and term_names(self.space, self.basis) == term_names(space, self.basis)

    def why_not(self, space: SearchSpace, *, batch: int = 1, precision: str | None = None) -> str:
        """Why the profile tells nothing about a space's subnets under these conditions; empty if it does."""
        if batch != self.batch:
            return f"it was measured at batch {self.batch}, not {batch}"
        if precision not in (None, self.precision):
            return f"it was measured in {self.precision}, not {precision}"
        for field in _GEOMETRY:
            ours, theirs = getattr(self.space, field), getattr(space, field)
            if ours != theirs:
                return f"it was measured with {field} {ours}, not {theirs}"
        for field in ("embed_dim", "num_heads", "mlp_ratio", "depth"):
            ours, theirs = getattr(self.space, field), getattr(space, field)
            if theirs[0] < ours[0] or theirs[-1] > ours[-1]:
                return f"{field} was measured from {ours[0]:g} to {ours[-1]:g}, not from {theirs[0]:g} to {theirs[-1]:g}"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, read back by :meth:`from_dict`."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        samples = [{"role": role, **sample.to_dict()} for role, sample in self.samples]
        plain |= {"space": self.space.to_dict(), "samples": samples, "sources": list(self.sources)}
        claims = {"held_out": dataclasses.asdict(self.held_out), "repeatability": dataclasses.asdict(self.repeatability)}
        # Left out where they say nothing, as in the profiles of earlier versions.
        if not plain["adapted_from"]:
            del plain["adapted_from"]
        return {"format": FORMAT, "kind": self.kind, **plain, **({"unsteady": self.unsteady} if self.unsteady else {}), **claims}

    @classmethod
    def from_dict(cls, data: Any, *, source: str = "profile") -> MeasuredProfile:
        """Build a profile from its JSON form; every field is checked, and its claims are compared with its samples.

        Raises:
            ConfigError: a field that is missing, unknown or wrong, or a claim that the samples don't bear out.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT or data.get("kind") != "measured":
            raise ConfigError(f"{source}: not a measured profile of format {FORMAT}")
        rest = {key: value for key, value in data.items() if key not in _CLAIMED}
        fields = checked_fields(cls, rest, source)
        try:
            fields["space"] = SearchSpace.from_dict(fields["space"], source=f"{source}: space")
        except SpaceError as error:
            raise ConfigError(str(error)) from None
        fields["samples"] = tuple(
            _sample(item, f"{source}: sample {i}", fields["space"]) for i, item in enumerate(fields["samples"])
        )
        names = term_names(fields["space"], fields["basis"])
        if set(fields["coefficients"]) != set(names):
            odd = sorted(set(names) ^ set(fields["coefficients"]))[0]
            raise ConfigError(
                f"{source}: coefficients has too much or too little, beginning with {odd!r}; it must name {choices(names)}"
            )
        profile = cls(**fields)
        first = {sample.subnet for role, sample in profile.samples if role != "repeat"}
        if not profile.of_role("fit") or not profile.of_role("held-out"):
            raise ConfigError(f"{source}: samples must hold some of role fit and some of role held-out")
        if any(sample.subnet not in first for sample in profile.of_role("repeat")):
            raise ConfigError(f"{source}: a sample of role repeat is of a subnet without a first sample")
        for part in ("held_out", "repeatability"):
            _compare(data.get(part), dataclasses.asdict(getattr(profile, part)), f"{source}: {part}")
        # Left out where there are none, as in the profiles of earlier versions.
        if data.get("unsteady", 0) != profile.unsteady:
            raise ConfigError(
                f"{source}: unsteady is {data.get('unsteady')!r}, but {profile.unsteady} of the profile's samples are"
            )
        return profile


def held_out_errors(predicted_ms: NDArray[np.float64], measured_ms: NDArray[np.float64]) -> HeldOut:
    """Errors of predictions against measurements, arrays of one shape ``(n,)`` with ``n`` of at least two."""
    from scipy.stats import rankdata

    errors = np.abs(predicted_ms / measured_ms - 1)
    ranks = rankdata(predicted_ms), rankdata(measured_ms)
    # Of predictions that are all alike no ranking can be told.
    flat = any(np.ptp(rank) == 0 for rank in ranks)
    return HeldOut(
        count=len(errors),
        median=float(np.median(errors)),
        p95=float(np.percentile(errors, 95)),
        max=float(errors.max()),
        spearman=0.0 if flat else float(np.corrcoef(*ranks)[0, 1]),
        within_5=float(np.mean(errors <= 0.05)),
        within_10=float(np.mean(errors <= 0.10)),
    )


def _sample(item: Any, source: str, space: SearchSpace) -> tuple[Role, Sample]:
    names = {"role", "subnet", "p50_ms", "cv", "reference_ms"}
    marks = set(_UNSTEADY_RULES)
    # Earlier versions know of no mixture.
    if not isinstance(item, Mapping) or set(item) not in (names, names | marks, names | marks - {"mixture"}):
        more = f", and of an unsteady sample {choices(_UNSTEADY_RULES)}"
        raise ConfigError(f"{source}: it must be an object with role, subnet, p50_ms, cv and reference_ms{more}")
    for name, rule in (_SAMPLE_RULES | _UNSTEADY_RULES).items():
        if name in item:
            rule.check(f"{source}: {name}", item[name])
    try:
        subnet = space.validate(Subnet.from_dict(item["subnet"]))
    except SubnetError as error:
        raise ConfigError(f"{source}: {error}") from None
    return item["role"], Sample.of(item, subnet, int(item["role"] == "repeat"))


def _compare(claimed: Any, computed: dict[str, float], where: str) -> None:
    """Refuse claims that are not what the samples give. Profiles of earlier versions claim no hit rates."""
    if not isinstance(claimed, Mapping) or not set(computed) - _LATER_CLAIMS <= set(claimed) <= set(computed):
        raise ConfigError(f"{where} must be an object with {choices(computed)}")
    for name, claim in claimed.items():
        value = computed[name]
        if isinstance(claim, bool) or not isinstance(claim, int | float) or not abs(claim - value) <= 1e-6 + 1e-6 * abs(value):
            raise ConfigError(f"{where}.{name} is {claim!r}, but the profile's own samples give {value:.6g}")
