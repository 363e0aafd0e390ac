"""A latency model fitted to some measured subnets; it prunes, and never stands in for a measurement.

The model is a non-negative mixture of the terms of :mod:`growtas.latency.measured.terms`, so it is monotone as they are. Which
set of terms, and how strongly coefficients are held down, is chosen by cross-validation among the measured samples. How far a
prediction may be off comes from the same samples: each is predicted by a model, chosen and fitted without it.

A handful of samples can also adapt the model of another target of the same space, such as another machine, runtime or precision:
its coefficients are scaled and then moved, as far as the samples ask for it. Cross-validation decides here too, so a model that
does not transfer is not used. (HELP, Lee et al. 2021, and LitePred, Feng et al. 2024, transfer latency predictors in other ways.)
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
"""Sets of terms and strengths of the ridge that a fit chooses among, the simplest first."""
TRANSFERS = (1e3, 1e-1, 1e-2, 1e-3, 1e-4)
"""How strongly the coefficients of an adapted model are held to the scaled ones; the first strength only scales."""
ADAPTED_BELOW = 30
"""Samples from which on the models of other targets are not considered: a model of the target's own is better then."""
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
        space: the space of the subnets.
        conditions: what the samples were measured under.
        coefficients: milliseconds for each term of ``basis``, none negative.
        relative_uncertainty: largest relative error on a sample when chosen and fitted without it; 1 for a single sample.
        basis: the set of terms, of :data:`growtas.latency.measured.terms.BASES`.
        residuals: measured over predicted, less 1, of subnets that the prediction was not fitted to.
        provenance: where the model comes from, for people.
        adapted: the model of another target that this one was adapted from; None for a model of its own samples alone.
    """

    # A prediction is not a measurement, even if it comes from some.
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
        """Predicted milliseconds of each subnet, shape ``(len(batch),)``."""
        return weighted_sum(self.space, self.basis, batch, self.coefficients)

    def interval_ms(self, batch: SubnetBatch, level: float = 0.9) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bounds that hold a subnet's measured latency with probability ``level``: two arrays of shape ``(len(batch),)``.

        Conformal: the half width is the order statistic of the residuals that covers a new one drawn like them. Samples that were
        chosen, not drawn, lie at the edges of the space and make it wider rather than narrower. Too few residuals for the level
        give bounds of zero and infinity.

        Raises:
            ConfigError: a level outside 0 to 1.
        """
        width, predicted = self.relative_width(level), self.predict_ms(batch)
        return np.maximum(predicted * (1 - width), 0.0), predicted * (1 + width)

    def relative_width(self, level: float = 0.9) -> float:
        """Half width of :meth:`interval_ms` over the prediction; infinite where there are too few residuals for the level."""
        if not 0 < level < 1:
            raise ConfigError(f"the level of an interval is {level:g}; it must lie between 0 and 1")
        rank = int(np.ceil((len(self.residuals) + 1) * level))
        return float(np.sort(np.abs(self.residuals))[rank - 1]) if rank <= len(self.residuals) else float("inf")


@dataclass(frozen=True)
class _Candidate:
    """A set of terms with how its coefficients are held down; or, with ``adapted``, the model whose coefficients they are held to.

    Attributes:
        table: the terms of the samples, shape ``(samples, terms)``.
    """

    basis: str
    strength: float
    table: NDArray[np.float64]
    adapted: FittedLatency | None = None

    def solve(self, ms: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """The coefficients, fitted to some of the samples."""
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
    """Fit the terms by non-negative least squares on relative errors; the set of terms is chosen by cross-validation.

    Below 15 samples the set is always ``coarse``: fewer can't choose.

    Args:
        others: models of other targets whose spaces hold the subnets. Below :data:`ADAPTED_BELOW` samples the best of them is
            adapted if that predicts left-out samples clearly better.

    Raises:
        ConfigError: no sample, not one latency a sample, or a latency that is not above zero.
    """
    ms = np.array(measured_ms, np.float64)
    if not subnets:
        raise ConfigError("a latency model needs measured subnets, got none")
    if len(ms) != len(subnets) or not (np.isfinite(ms) & (ms > 0)).all():
        raise ConfigError(f"a latency model needs one latency above zero for each of its {len(subnets)} subnets")
    batch = SubnetBatch.from_subnets(subnets)
    tables = {basis: terms(space, basis, batch) for basis in dict(CANDIDATES)}
    # From here on what subnets of unlike blocks take: nearly all subnets are of that kind.
    mixed = np.array([_unlike_blocks(subnet) for subnet in subnets])
    # With too few terms, what they miss would count as the blocks' being unlike.
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
        # A model whose every coefficient is zero predicts nothing; its residual is as bad as can be.
        residuals[test] = ms[test] / np.maximum(predicted, 1e-9 * ms[test]) - 1
    every = np.arange(len(ms))
    chosen = _choose(candidates, ms, every)
    known, adapted = len(ms) > 1, chosen.adapted
    return FittedLatency(
        space=space if adapted is None else adapted.space,
        conditions=conditions,
        coefficients=chosen.solve(ms, every),
        # Relative to the measurement, as errors are reported; residuals are relative to the prediction, as intervals need them.
        relative_uncertainty=float(np.abs(1 / (1 + residuals) - 1).max()) if known else 1.0,
        basis=chosen.basis,
        residuals=tuple(residuals.tolist()) if known else (),
        provenance=f"predicted from {len(ms)} measured subnets",
        adapted=adapted,
    )


def _unlike_blocks(subnet: Subnet) -> float:
    """How unlike a subnet's blocks are: 0 where all are alike, 0.5 with two kinds, 1 with more."""
    return min(len(set(zip(subnet.num_heads, subnet.mlp_ratio, strict=True))) - 1, 2) / 2


def _extra_of_mixed(table: NDArray[np.float64], ms: NDArray[np.float64], mixed: NDArray[np.float64], ridge: float) -> float:
    """By how much longer subnets of unlike blocks take than their terms say; zero or above.

    Up to 8 % were measured. No term can say so, since a change of one block in either direction makes blocks unlike.
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
    """The candidate with the least cross-validated error among these rows; a simpler one unless it is clearly worse."""
    few = len(rows) < _FEW - _FEW // FOLDS - 1
    # Fewer samples can't choose between sets of terms, but they can tell whether another target's model transfers.
    open_ = [c for c in candidates if c.adapted is not None or not few or c is candidates[0]]
    if len(open_) == 1 or len(rows) < 2:
        return open_[0]
    best, least = open_[0], np.inf
    for candidate in open_:
        errors = []
        for train, test in _folds(len(rows), len(rows) if few else _INNER_FOLDS):
            predicted = candidate.table[rows[test]] @ candidate.solve(ms, rows[train])
            errors.append(predicted / ms[rows[test]] - 1)
        error = float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))
        if error < _CLEARLY_BETTER * least:
            best, least = candidate, error
    return best


def _folds(count: int, folds: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to fit and rows to test, every row tested once; every fold runs through the whole range of sizes."""
    if count < 2:
        return
    fold = np.arange(count) % folds
    for number in range(min(folds, count)):
        yield np.flatnonzero(fold != number), np.flatnonzero(fold == number)


def _solve(table: NDArray[np.float64], ms: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    """Non-negative coefficients with the least squared relative error, plus a ridge on columns scaled alike."""
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
    """Non-negative coefficients with the least squared relative error, held to another model's coefficients times one factor.

    How far a coefficient is moved counts by its term's mean share of the latencies, so that the terms' units don't matter.
    """
    from scipy.optimize import nnls

    rows = table / ms[:, None]
    predicted = rows @ coefficients
    if not predicted.any():
        return coefficients
    scaled = coefficients * (predicted.sum() / (predicted @ predicted))
    share = np.sqrt(strength * len(ms)) * rows.mean(axis=0)
    # A term that none of the samples has stays as it is: it only takes a weight that keeps the system well posed.
    hold = np.diag(np.where(share > 0, share, 1.0))
    moved, _ = nnls(np.concatenate([rows, hold]), np.concatenate([np.ones(len(ms)), hold @ scaled]), maxiter=10000)
    return np.asarray(moved)
