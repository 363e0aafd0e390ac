"""A latency model fitted to a few measured subnets; it prunes, and never stands in for a measurement.

The terms are what a block costs, not where it is: a constant (stem and head), the number of blocks, MACs, heads (attention weights)
and token channels (normalisation, residuals). Coefficients are not negative, so the model is monotone like the terms are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.costs import count_costs_batch
from growtas.errors import ConfigError
from growtas.latency.estimate import Conditions
from growtas.latency.profile import Kind
from growtas.sampling import Feasible, sample_feasible
from growtas.space import SearchSpace
from growtas.subnet import Subnet

SAMPLES = 10
_SAMPLE_SEED = 0


def sample_subnets(space: SearchSpace, feasible: Feasible, count: int = SAMPLES) -> list[Subnet]:
    """The subnets to measure: the smallest, then legal ones spread over the legal range of MACs.

    They do not depend on the search's seed, so that a later search finds them measured.

    Args:
        feasible: the limits that need no latency; at least the smallest subnet must be legal.
        count: how many, at least two; fewer come back where there are fewer.
    """
    rng = np.random.default_rng(_SAMPLE_SEED)
    draws = sample_feasible(space, 64 * count, rng, feasible)
    order = np.argsort(count_costs_batch(space, draws)[1], kind="stable")
    picks = order[np.linspace(0, len(order) - 1, count - 1).round().astype(np.int64)]
    return list(dict.fromkeys([space.smallest, *draws[picks]]))


@dataclass(frozen=True)
class FittedLatency:
    """A monotone model of measured latencies; a :class:`growtas.latency.estimate.LatencyEstimator` of kind ``modelled``.

    Attributes:
        space: the space of the subnets.
        conditions: what the samples were measured under.
        coefficients: milliseconds for each term of :func:`_terms`, none negative.
        held_out_error: largest relative error on a sample when fitted to the others; 1 where there is but one sample.
    """

    space: SearchSpace
    conditions: Conditions
    coefficients: NDArray[np.float64]
    held_out_error: float

    @property
    def kind(self) -> Kind:
        """A prediction is not a measurement, even if it comes from some."""
        return "modelled"

    @property
    def relative_uncertainty(self) -> float:
        """The error on held-out samples."""
        return self.held_out_error

    def predict_ms(self, batch: SubnetBatch) -> NDArray[np.float64]:
        """Predicted milliseconds of each subnet, shape ``(len(batch),)``."""
        return np.asarray(_terms(self.space, batch) @ self.coefficients)


def fit_latency(
    space: SearchSpace, subnets: Sequence[Subnet], measured_ms: Sequence[float], conditions: Conditions
) -> FittedLatency:
    """Fit the terms by non-negative least squares on relative errors.

    Raises:
        ConfigError: no sample.
    """
    if not subnets:
        raise ConfigError("a latency model needs measured subnets, got none")
    terms, ms = _terms(space, SubnetBatch.from_subnets(subnets)), np.array(measured_ms, np.float64)
    errors = []
    for left_out in range(len(ms)) if len(ms) > 1 else ():
        rest = np.arange(len(ms)) != left_out
        predicted = float(terms[left_out] @ _solve(terms[rest], ms[rest]))
        errors.append(abs(predicted / ms[left_out] - 1))
    return FittedLatency(space, conditions, _solve(terms, ms), float(max(errors, default=1.0)))


def _solve(terms: NDArray[np.float64], ms: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.optimize import nnls

    scale = terms.max(axis=0)
    coefficients, _ = nnls(terms / scale / ms[:, None], np.ones(len(ms)))
    return np.asarray(coefficients / scale)


def _terms(space: SearchSpace, batch: SubnetBatch) -> NDArray[np.float64]:
    """Monotone terms of each subnet, shape ``(n, 5)``: constant, blocks, MACs, heads, token channels."""
    columns = [np.ones(len(batch)), batch.depth, count_costs_batch(space, batch)[1], batch.num_heads.sum(axis=1)]
    return np.stack([*columns, batch.depth * batch.embed_dim], axis=1).astype(np.float64)
