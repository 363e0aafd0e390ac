"""A latency model fitted to measured subnets. It excludes slow subnets from a search, but never replaces a measurement.

The model is a non-negative sum of the terms of :mod:`growtas.latency.measured.terms`, so it is monotone like them. Cross-validation
on the measured samples chooses the set of terms and the strength of the ridge. The error of a prediction comes from the same
samples: each is predicted by a model that is chosen and fitted without it.

A few samples can also adapt the model of another target of the same space, such as another machine, runtime or precision. Its
coefficients are scaled, and then changed as far as the samples require. Cross-validation decides here too, so a model that does not
transfer is not used. (HELP, Lee et al. 2021, and LitePred, Feng et al. 2024, transfer latency predictors in other ways.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.errors import ConfigError
from growtas.latency.estimate import Conditions, Kind
from growtas.latency.measured.terms import terms, weighted_sum
from growtas.space import SearchSpace
from growtas.subnet import Subnet

CANDIDATES = (("coarse", 0.0), ("physical", 0.0), ("physical", 1e-4), ("stepped", 1e-5), ("stepped", 1e-4))
"""Sets of terms and strengths of the ridge among which a fit chooses, simplest first."""
TRANSFERS = (1e3, 1e-1, 1e-2, 1e-3, 1e-4)
"""How strongly the coefficients of an adapted model are held at their scaled values. The first strength allows scaling only."""
ADAPTED_BELOW = 30
"""From this number of samples on, models of other targets are not considered, because the target's own model is better."""
FOLDS = 10
_FEW = 15
_INNER_FOLDS = 5
_CLEARLY_BETTER = 0.95
_FEWEST_MIXED = 3
_ROUNDS = 4
_MOST_EXTRA = 0.25


@dataclass(frozen=True)
class FittedLatency:
    """A monotone model of measured latencies; a :class:`growtas.latency.estimate.LatencyEstimator` of kind ``modelled``.

    Attributes:
        space: the search space.
        conditions: conditions of the samples.
        coefficients: milliseconds per unit of each term of ``basis``, none negative.
        relative_uncertainty: largest relative error on a sample by a model that is chosen and fitted without it; 1 for a single
            sample.
        basis: name of the set of terms, out of :data:`growtas.latency.measured.terms.BASES`.
        residuals: measured / predicted - 1 for subnets to which the prediction was not fitted.
        provenance: source of the model, in words.
        adapted: the model of another target from which this one was adapted; None if the model comes from its own samples alone.
    """

    # A prediction is not a measurement, even if it is based on measurements.
    kind: ClassVar[Kind] = "modelled"

    space: SearchSpace
    conditions: Conditions
    coefficients: NDArray[np.float64]
    relative_uncertainty: float
    basis: str = "coarse"
    residuals: tuple[float, ...] = ()
    provenance: str = ""
    adapted: FittedLatency | None = None

    def predict_ms(self, batch: SubnetBatch) -> NDArray[np.float64]:
        """Returns the predicted milliseconds of each subnet, shape ``(len(batch),)``."""
        return weighted_sum(self.space, self.basis, batch, self.coefficients)

    def interval_ms(self, batch: SubnetBatch, level: float = 0.9) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns lower and upper bounds that contain a subnet's measured latency with probability ``level``.

        The interval is conformal: its half width is the order statistic of the residuals that covers a new one of the same
        distribution. Samples that were chosen and not drawn lie at the edges of the space and rather make it wider. With too few
        residuals for the level, the bounds are zero and infinity.

        Returns:
            Two arrays of shape ``(len(batch),)``, milliseconds.

        Raises:
            ConfigError: the level is not between 0 and 1.
        """
        width, predicted = self.relative_width(level), self.predict_ms(batch)
        return np.maximum(predicted * (1 - width), 0.0), predicted * (1 + width)

    def relative_width(self, level: float = 0.9) -> float:
        """Returns the half width of :meth:`interval_ms`, relative to the prediction; infinite with too few residuals."""
        if not 0 < level < 1:
            raise ConfigError(f"the level of an interval is {level:g}; it must be between 0 and 1")
        rank = int(np.ceil((len(self.residuals) + 1) * level))
        return float(np.sort(np.abs(self.residuals))[rank - 1]) if rank <= len(self.residuals) else float("inf")


@dataclass(frozen=True)
class _Candidate:
    """A candidate for the fit: a set of terms with a ridge, or another target's model to adapt.

    Attributes:
        basis: name of the set of terms.
        strength: strength of the ridge, or with ``adapted`` how strongly the coefficients are held at the model's.
        table: the terms of the samples, shape ``(samples, terms)``.
        adapted: the model to adapt, or None.
    """

    basis: str
    strength: float
    table: NDArray[np.float64]
    adapted: FittedLatency | None = None

    def solve(self, ms: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns the coefficients, fitted to the samples ``rows``."""
        if self.adapted is None:
            return _solve(self.table[rows], ms[rows], self.strength)
        return _move(self.table[rows], ms[rows], self.strength, self.adapted.coefficients)


def fit_latency(
    space: SearchSpace,
    subnets: Sequence[Subnet],
    measured_ms: Sequence[float],
    conditions: Conditions,
    others: Sequence[FittedLatency] = (),
) -> FittedLatency:
    """Fits a latency model by non-negative least squares on relative errors. Cross-validation chooses the set of terms.

    With fewer than 15 samples the set is always ``coarse``, because they are too few for a choice.

    Args:
        space: the search space.
        subnets: the measured subnets.
        measured_ms: their latencies in milliseconds.
        conditions: conditions of the measurements.
        others: models of other targets with the same space. With fewer than :data:`ADAPTED_BELOW` samples, the best of them is
            adapted if it predicts left-out samples clearly better.

    Raises:
        ConfigError: there is no sample, the numbers of subnets and latencies differ, or a latency is not above zero.
    """
    ms = np.array(measured_ms, np.float64)
    if not subnets:
        raise ConfigError("a latency model needs measured subnets, but there are none")
    if len(ms) != len(subnets) or not (np.isfinite(ms) & (ms > 0)).all():
        raise ConfigError(f"a latency model needs one latency above zero for each of its {len(subnets)} subnets")
    batch = SubnetBatch.from_subnets(subnets)
    tables = {basis: terms(space, basis, batch) for basis in dict(CANDIDATES)}
    # All latencies are converted to those of subnets with different blocks, because nearly all subnets are of that kind.
    mixed = np.array([_unlike_blocks(subnet) for subnet in subnets])
    # With too few terms, the error of the terms would be mistaken for the effect of different blocks.
    basis, ridge = CANDIDATES[-1] if len(ms) >= _FEW else CANDIDATES[0]
    extra = _extra_of_mixed(tables[basis], ms, mixed, ridge)
    ms = ms * (1 + extra) / (1 + extra * mixed)
    candidates = [_Candidate(basis, ridge, tables[basis]) for basis, ridge in CANDIDATES]
    for other in others if len(ms) < ADAPTED_BELOW else ():
        table = terms(other.space, other.basis, batch)
        candidates += [_Candidate(other.basis, strength, table, other) for strength in TRANSFERS]
    residuals = np.zeros(len(ms))
    for train, test in _folds(len(ms), FOLDS if len(ms) >= _FEW else len(ms)):
        chosen = _choose(candidates, ms, train)
        predicted = chosen.table[test] @ chosen.solve(ms, train)
        # A model with only zero coefficients predicts zero, which gives a huge residual instead of a division by zero.
        residuals[test] = ms[test] / np.maximum(predicted, 1e-9 * ms[test]) - 1
    every = np.arange(len(ms))
    chosen = _choose(candidates, ms, every)
    known, adapted = len(ms) > 1, chosen.adapted
    return FittedLatency(
        space=space if adapted is None else adapted.space,
        conditions=conditions,
        coefficients=chosen.solve(ms, every),
        # Reported errors are relative to the measurement, while residuals are relative to the prediction, as intervals need them.
        relative_uncertainty=float(np.abs(1 / (1 + residuals) - 1).max()) if known else 1.0,
        basis=chosen.basis,
        residuals=tuple(residuals.tolist()) if known else (),
        provenance=f"predicted from {len(ms)} measured subnets",
        adapted=adapted,
    )


def _unlike_blocks(subnet: Subnet) -> float:
    """Returns how different a subnet's blocks are: 0 if all are equal, 0.5 with two kinds, 1 with more."""
    return min(len(set(zip(subnet.num_heads, subnet.mlp_ratio, strict=True))) - 1, 2) / 2


def _extra_of_mixed(table: NDArray[np.float64], ms: NDArray[np.float64], mixed: NDArray[np.float64], ridge: float) -> float:
    """Returns the relative extra time of subnets with different blocks over the sum of their terms; zero or more.

    Up to 8 % was measured. A monotone term can't describe it, because making any block smaller or larger makes equal blocks differ.
    """
    several = mixed == 1
    if several.sum() < _FEWEST_MIXED:
        return 0.0
    extra = 0.0
    for _ in range(_ROUNDS):
        predicted = table @ _solve(table, ms / (1 + extra * mixed), ridge)
        extra = min(max(float(np.median(ms[several] / np.maximum(predicted[several], 1e-9))) - 1, 0.0), _MOST_EXTRA)
    return extra


def _choose(candidates: Sequence[_Candidate], ms: NDArray[np.float64], rows: NDArray[np.int64]) -> _Candidate:
    """Returns the candidate with the smallest cross-validated error on these rows; a simpler one unless it is clearly worse."""
    few = len(rows) < _FEW - _FEW // FOLDS - 1
    # Few samples can't choose between sets of terms, but they can tell whether another target's model transfers.
    allowed = [c for c in candidates if c.adapted is not None or not few or c is candidates[0]]
    if len(allowed) == 1 or len(rows) < 2:
        return allowed[0]
    best, least = allowed[0], np.inf
    for candidate in allowed:
        errors = []
        for train, test in _folds(len(rows), len(rows) if few else _INNER_FOLDS):
            predicted = candidate.table[rows[test]] @ candidate.solve(ms, rows[train])
            errors.append(predicted / ms[rows[test]] - 1)
        error = float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))
        if error < _CLEARLY_BETTER * least:
            best, least = candidate, error
    return best


def _folds(count: int, folds: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yields the rows to fit and the rows to test of each fold. Every row is tested once, and every fold covers all sizes."""
    if count < 2:
        return
    fold = np.arange(count) % folds
    for number in range(min(folds, count)):
        yield np.flatnonzero(fold != number), np.flatnonzero(fold == number)


def _solve(table: NDArray[np.float64], ms: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    """Returns the non-negative coefficients with the least squared relative error, plus a ridge on normalised columns."""
    from scipy.optimize import nnls

    scale = table.max(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    typical = float(np.median(ms))
    rows, target = table / scale / ms[:, None], np.ones(len(ms))
    if ridge:
        rows = np.concatenate([rows, np.eye(len(scale)) * np.sqrt(ridge * len(ms)) / typical])
        target = np.concatenate([target, np.zeros(len(scale))])
    coefficients, _ = nnls(rows * typical, target)
    return np.asarray(coefficients * typical / scale)


def _move(
    table: NDArray[np.float64], ms: NDArray[np.float64], strength: float, coefficients: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns the non-negative coefficients with the least squared relative error, held near another model's times one factor.

    A change of a coefficient is weighted by its term's mean share of the latencies, so that the units of the terms don't matter.
    """
    from scipy.optimize import nnls

    rows = table / ms[:, None]
    predicted = rows @ coefficients
    if not predicted.any():
        return coefficients
    scaled = coefficients * (predicted.sum() / (predicted @ predicted))
    share = np.sqrt(strength * len(ms)) * rows.mean(axis=0)
    # A term that is zero in all samples keeps its coefficient; any positive weight keeps the system well posed.
    hold = np.diag(np.where(share > 0, share, 1.0))
    moved, _ = nnls(np.concatenate([rows, hold]), np.concatenate([np.ones(len(ms)), hold @ scaled]), maxiter=10000)
    return np.asarray(moved)
