"""Measured profiles: samples of a space's subnets on one machine, the model fitted to them, and its errors.

A profile is a JSON file of format :data:`FORMAT` that ``growtas profile`` writes. Its errors are computed again from its samples
when it is read, and a file that states other errors is refused. Only the samples are ``measured``. Latencies of all other subnets
come from the model and are ``modelled``, with the error on held-out subnets.
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
from growtas.errors import ConfigError, DeviceError, SpaceError, SubnetError, brief, choices
from growtas.fields import OBJECT, RULE, Rule, one_of, whole
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
    POSITIVE,
    SOURCES,
    TEXT,
    checked_fields,
    required,
)
from growtas.space import PLAIN, SearchSpace
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
_GEOMETRY = ("head_dim", "image_size", "patch_size", "in_chans", "max_relative_position", *PLAIN)


CLAIMS = """What a profile's file also holds. The numbers follow from the samples; a file that claims other numbers is refused.

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
    """Errors of the model on held-out subnets, which were drawn at random. An error is abs(predicted / measured - 1).

    Attributes:
        count: number of held-out subnets.
        median: median error.
        p95: 95th percentile of the errors.
        max: largest error.
        spearman: rank correlation of predicted and measured latencies.
        within_5: share of the predictions with an error of at most 5 %, 0 to 1.
        within_10: share of the predictions with an error of at most 10 %, 0 to 1.
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
    """Relative differences between two measurements of the same subnet, without sign.

    Attributes:
        count: number of subnets measured twice.
        median: median difference; 0 if no subnet was measured twice.
        max: largest difference; 0 if no subnet was measured twice.
    """

    count: int
    median: float
    max: float


@dataclass(frozen=True, kw_only=True)
class MeasuredProfile:
    """Measured latencies of one space on one machine, for one runtime, precision and batch.

    Attributes:
        name: name of the device for ``--device``.
        description: full name of the CPU or GPU.
        runtime: runtime that executed the network.
        runtime_version: version of the runtime.
        precision: precision of the network.
        batch: number of images per batch.
        threads: number of CPU threads; 0 on a GPU.
        machine: system, driver and clocks as reported by the system, texts and numbers by name.
        space: the measured search space.
        samples: measured subnets with their roles: ``fit`` for fitting the model, ``held-out`` for testing it, ``repeat`` for a
            second measurement.
        basis: name of the model's set of terms: ``coarse``, ``physical`` or ``stepped``.
        coefficients: coefficient of each term in milliseconds, by the term's name.
        max_cv: largest coefficient of variation of a steady sample's blocks.
        max_drift: largest relative change of the reference subnet's latency between steady groups.
        remeasured: number of samples that were discarded and measured again.
        sources: descriptions of how the numbers were obtained.
        date: date of the last sample, such as 2026-01-31.
        adapted_from: the profile whose model was adapted with the fitted samples; empty if the model comes from them alone.
    """

    # The samples were timed, but predictions from them are of kind ``modelled``.
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
        """Makes a profile from a campaign: fits the model to the samples of role ``fit``; the other samples give its errors.

        All latencies are converted to the same speed of the machine: the ratio to the reference in the same blocks, times the
        median latency of the reference.

        Args:
            name: name of the device.
            campaign: the campaign that measured the samples.
            samples: the samples with their roles.
            description: full name of the CPU or GPU.
            machine: system, driver and clocks.
            others: profiles of other targets. With few samples, the model of one with the same space is adapted if that predicts
                better.
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
        """Number of samples that other work disturbed; their latencies come from ratios to the reference subnet."""
        return sum(sample.unsteady for _, sample in self.samples)

    @property
    def conditions(self) -> Conditions:
        """Conditions of the latencies."""
        return Conditions(device=self.name, batch=self.batch, precision=self.precision, runtime=self.runtime)

    def of_role(self, role: Role) -> list[Sample]:
        """Returns the samples of a role."""
        return [sample for sample_role, sample in self.samples if sample_role == role]

    @property
    def held_out(self) -> HeldOut:
        """Errors of the model on the held-out samples."""
        samples = self.of_role("held-out")
        return held_out_errors(self._predicted(samples), np.array([sample.p50_ms for sample in samples]))

    @property
    def repeatability(self) -> Repeatability:
        """Differences between repeated samples and first ones."""
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
        """Returns the fitted model as a :class:`growtas.latency.estimate.LatencyEstimator` for a space.

        Its kind is ``modelled``, its uncertainty is the held-out p95, and its intervals come from the held-out residuals.

        Args:
            space: a space with the same geometry and with choices within the measured ones. The number of classes may differ,
                because the head is one of many matrix products.
            batch: number of images per batch.
            precision: precision of the network; by default the profile's.

        Raises:
            DeviceError: batch, precision or geometry differ, or the choices exceed the measured ones.
        """
        why = self.why_not(space, batch=batch, precision=precision)
        if why:
            raise DeviceError(f"the profile of {self.name} does not fit: {why}")
        return self.model

    @property
    def model(self) -> FittedLatency:
        """The fitted model for subnets of :attr:`space`. :meth:`estimator` checks whether it fits another space."""
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
        """Description in words, such as ``profile of micro in fp32, onnxruntime on cpu (AMD EPYC)``."""
        return f"profile of {self.space.name} in {self.precision}, {self.runtime} on {self.name} ({self.description})"

    def has_terms_of(self, space: SearchSpace) -> bool:
        """Whether a model of the space has the same terms, so that the coefficients of this model can be used for it."""
        return not self.why_not(space, batch=self.batch) and term_names(self.space, self.basis) == term_names(space, self.basis)

    def why_not(self, space: SearchSpace, *, batch: int = 1, precision: str | None = None) -> str:
        """Returns the reason why the profile does not fit a space under these conditions; an empty string if it does."""
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
        """Returns the JSON form, which :meth:`from_dict` reads."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        samples = [{"role": role, **sample.to_dict()} for role, sample in self.samples]
        plain |= {"space": self.space.to_dict(), "samples": samples, "sources": list(self.sources)}
        claims = {"held_out": dataclasses.asdict(self.held_out), "repeatability": dataclasses.asdict(self.repeatability)}
        # Empty entries are left out, as in the profiles of earlier versions.
        if not plain["adapted_from"]:
            del plain["adapted_from"]
        return {"format": FORMAT, "kind": self.kind, **plain, **({"unsteady": self.unsteady} if self.unsteady else {}), **claims}

    @classmethod
    def from_dict(cls, data: Any, *, source: str = "profile") -> MeasuredProfile:
        """Builds a profile from its JSON form. Checks every field, and compares the stated errors with the samples.

        Raises:
            ConfigError: a field is missing, unknown or illegal, or an error differs from the one that the samples give.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT or data.get("kind") != "measured":
            raise ConfigError(f"{source}: this is not a measured profile of format {FORMAT}")
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
                f"{source}: coefficients has missing or unknown terms, the first is {brief(odd)}; it must contain {choices(names)}"
            )
        profile = cls(**fields)
        first = {sample.subnet for role, sample in profile.samples if role != "repeat"}
        if not profile.of_role("fit") or not profile.of_role("held-out"):
            raise ConfigError(f"{source}: samples must contain some of role fit and some of role held-out")
        if any(sample.subnet not in first for sample in profile.of_role("repeat")):
            raise ConfigError(f"{source}: there is a sample of role repeat whose subnet has no first sample")
        for part in ("held_out", "repeatability"):
            _compare(data.get(part), dataclasses.asdict(getattr(profile, part)), f"{source}: {part}")
        # A profile without unsteady samples has no such entry, like the profiles of earlier versions.
        if data.get("unsteady", 0) != profile.unsteady:
            raise ConfigError(
                f"{source}: unsteady is {brief(data.get('unsteady'))}, but {profile.unsteady} of the profile's samples are unsteady"
            )
        return profile


def held_out_errors(predicted_ms: NDArray[np.float64], measured_ms: NDArray[np.float64]) -> HeldOut:
    """Computes the errors of predictions, given arrays of milliseconds of the same shape ``(n,)``, ``n`` at least two."""
    from scipy.stats import rankdata

    errors = np.abs(predicted_ms / measured_ms - 1)
    ranks = rankdata(predicted_ms), rankdata(measured_ms)
    # Equal predictions have no ranking.
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
    # Earlier versions write no mixture.
    if not isinstance(item, Mapping) or set(item) not in (names, names | marks, names | marks - {"mixture"}):
        more = f", and for an unsteady sample {choices(_UNSTEADY_RULES)}"
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
    """Refuses errors that differ from those that the samples give. Profiles of earlier versions have no hit rates."""
    if not isinstance(claimed, Mapping) or not set(computed) - _LATER_CLAIMS <= set(claimed) <= set(computed):
        raise ConfigError(f"{where} must be an object with {choices(computed)}")
    for name, claim in claimed.items():
        value = computed[name]
        if isinstance(claim, bool) or not isinstance(claim, int | float) or not abs(claim - value) <= 1e-6 + 1e-6 * abs(value):
            raise ConfigError(f"{where}.{name} is {brief(claim)}, but the samples of the profile give {value:.6g}")
