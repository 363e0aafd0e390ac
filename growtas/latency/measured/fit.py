"""A latency model fitted to some measured subnets; it prunes, and never stands in for a measurement.

The model is a non-negative mixture of the terms of :mod:`growtas.latency.measured.terms`, so it is monotone as they are. Which
set of terms, and how strongly coefficients are held down, is chosen by cross-validation among the measured samples. How far a
prediction may be off comes from the same samples: each is predicted by a model, chosen and fitted without it.
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
FOLDS = 10
_FEW = 15
_INNER_FOLDS = 5
_CLEARLY_BETTER = 0.95


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


def fit_latency(
    space: SearchSpace, subnets: Sequence[Subnet], measured_ms: Sequence[float], conditions: Conditions
) -> FittedLatency:
    """Fit the terms by non-negative least squares on relative errors; the set of terms is chosen by cross-validation.

    Below 15 samples the set is always ``coarse``: fewer can't choose.

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
    residuals = np.zeros(len(ms))
    for train, test in _folds(len(ms), FOLDS if len(ms) >= _FEW else len(ms)):
        basis, ridge = _choose(tables, ms, train)
        predicted = tables[basis][test] @ _solve(tables[basis][train], ms[train], ridge)
        # A model whose every coefficient is zero predicts nothing; its residual is as bad as can be.
        residuals[test] = ms[test] / np.maximum(predicted, 1e-9 * ms[test]) - 1
    basis, ridge = _choose(tables, ms, np.arange(len(ms)))
    known = len(ms) > 1
    return FittedLatency(
        space=space,
        conditions=conditions,
        coefficients=_solve(tables[basis], ms, ridge),
        # Relative to the measurement, as errors are reported; residuals are relative to the prediction, as intervals need them.
        relative_uncertainty=float(np.abs(1 / (1 + residuals) - 1).max()) if known else 1.0,
        basis=basis,
        residuals=tuple(residuals.tolist()) if known else (),
        provenance=f"predicted from {len(ms)} measured subnets",
    )


def _choose(tables: dict[str, NDArray[np.float64]], ms: NDArray[np.float64], rows: NDArray[np.int64]) -> tuple[str, float]:
    """The candidate with the least cross-validated error among these rows; a simpler one unless it is clearly worse."""
    if len(rows) < _FEW - _FEW // FOLDS - 1:
        return CANDIDATES[0]
    best, least = CANDIDATES[0], np.inf
    for basis, ridge in CANDIDATES:
        table, errors = tables[basis], []
        for train, test in _folds(len(rows), _INNER_FOLDS):
            coefficients = _solve(table[rows[train]], ms[rows[train]], ridge)
            errors.append(table[rows[test]] @ coefficients / ms[rows[test]] - 1)
        error = float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))
        if error < _CLEARLY_BETTER * least:
            best, least = (basis, ridge), error
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
