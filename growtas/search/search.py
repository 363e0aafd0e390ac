"""A search from its limits to the chosen subnet: journalled evolution, then finalists that are measured where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from growtas.batch import SubnetBatch
from growtas.costs import Costs, count_costs
from growtas.latency.estimate import Latency, LatencyEstimator
from growtas.latency.fitted import fit_latency
from growtas.latency.samples import LatencySamples
from growtas.sampling import Feasible
from growtas.search.evolution import EvolutionConfig, EvolutionResult, GenerationResult, evolve
from growtas.search.journal import Evaluation
from growtas.search.limits import Limits
from growtas.search.scoring import Score as Score  # scores are public here too
from growtas.search.scoring import Scorer as Scorer
from growtas.space import SearchSpace
from growtas.subnet import Subnet

MAX_FINALISTS = 8
"""Finalists that are measured before the search falls back on the smallest subnet."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The subnet that a search chose.

    Attributes:
        subnet: the architecture.
        costs: its params and MACs.
        evaluation: on the search split.
        latency: None where no device was named.
        measured_finalists: finalists with their measured milliseconds, in the order they were tried.
    """

    subnet: Subnet
    costs: Costs
    evaluation: Evaluation
    latency: Latency | None
    measured_finalists: tuple[tuple[Subnet, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: the subnet's keys and its costs, accuracy, loss and latency."""
        return {
            **self.subnet.to_dict(),
            "params": self.costs.params,
            "macs": self.costs.macs,
            "accuracy": self.evaluation.accuracy,
            "loss": self.evaluation.loss if np.isfinite(self.evaluation.loss) else None,
            "latency": self.latency.to_dict() if self.latency else None,
        }


@dataclass(frozen=True, kw_only=True)
class Search:
    """What to search and under which limits.

    Args:
        space: whose choices are searched.
        limits: hard; :meth:`growtas.search.limits.Limits.check` them first, for a better message.
        latency: predicts latencies; needed for a latency limit.
        samples: measures subnets here; with it, ``latency`` only prunes and the chosen subnet is one that was measured.
        fitted_to: the measured subnets that ``latency`` was fitted to; what misses the limit is added to them.
    """

    space: SearchSpace
    limits: Limits
    latency: LatencyEstimator | None = None
    samples: LatencySamples | None = None
    fitted_to: tuple[Subnet, ...] = ()

    def feasible(self) -> Feasible:
        """The predicate of the limits. A smallest subnet that was measured counts, whatever the model predicts for it."""
        limits = self.limits
        if self.samples is not None and self.latency is not None and limits.max_latency_ms is not None:
            lowest = float(self.latency.predict_ms(SubnetBatch.from_subnets([self.space.smallest]))[0])
            limits = Limits(
                max_params=limits.max_params,
                max_macs=limits.max_macs,
                max_latency_ms=max(limits.max_latency_ms, lowest),
            )
        return limits.feasible(self.space, self.latency)

    def run(
        self,
        scorer: Scorer,
        config: EvolutionConfig,
        seed: int,
        on_generation: Callable[[GenerationResult[Score]], None] | None = None,
        on_finalist: Callable[[Subnet], None] | None = None,
    ) -> tuple[Found, EvolutionResult[Score]]:
        """Evolve, then choose: the best score, or the best score whose measured latency meets the limit.

        Raises:
            LimitError: no subnet is legal.
        """
        rng = np.random.default_rng(seed)
        result = evolve(self.space, scorer, self.feasible(), rng, config, on_generation)
        ranked = list(result.ranked)
        if self.samples is None:
            subnet, score = ranked[0]
            predicted = self._predicted(subnet) if self.latency else None
            return self._found(subnet, score, predicted), result
        return self._measured_best(ranked, scorer, on_finalist), result

    def _measured_best(
        self, ranked: list[tuple[Subnet, Score]], scorer: Scorer, on_finalist: Callable[[Subnet], None] | None
    ) -> Found:
        """The best score whose measured latency meets the limit.

        A finalist that misses is added to what the model is fitted to, and whatever then is predicted to miss is left out. After
        ``MAX_FINALISTS`` misses it is the smallest subnet, which is known to meet the limit.
        """
        assert self.samples is not None
        limit, tried = self.limits.max_latency_ms, list[tuple[Subnet, float]]()
        fallback = self.space.smallest
        while ranked and len(tried) < MAX_FINALISTS:
            subnet, score = ranked.pop(0)
            if on_finalist:
                on_finalist(subnet)
            tried.append((subnet, self.samples.measure_ms(subnet)))
            if limit is None or tried[-1][1] <= limit:
                break
            ranked = self._still_predicted_legal(ranked, [*self.fitted_to, *(missed for missed, _ in tried)])
        else:
            subnet, score = fallback, scorer([fallback])[0]
            tried.append((subnet, self.samples.measure_ms(subnet)))
        latency = Latency(ms=tried[-1][1], kind="measured", conditions=self.samples.conditions)
        return self._found(subnet, score, latency, tuple(tried))

    def _still_predicted_legal(self, ranked: list[tuple[Subnet, Score]], measured: list[Subnet]) -> list[tuple[Subnet, Score]]:
        assert self.samples is not None
        if not ranked:
            return ranked
        values = self.samples.measure_all(measured)
        model = fit_latency(self.space, measured, values, self.samples.conditions)
        predicted = model.predict_ms(SubnetBatch.from_subnets([subnet for subnet, _ in ranked]))
        legal = predicted <= (np.inf if self.limits.max_latency_ms is None else self.limits.max_latency_ms)
        return [item for item, keep in zip(ranked, legal, strict=True) if keep]

    def _predicted(self, subnet: Subnet) -> Latency:
        assert self.latency is not None
        ms = float(self.latency.predict_ms(SubnetBatch.from_subnets([subnet]))[0])
        estimator = self.latency
        return Latency(
            ms=ms, kind=estimator.kind, conditions=estimator.conditions, relative_uncertainty=estimator.relative_uncertainty
        )

    def _found(self, subnet: Subnet, score: Score, latency: Latency | None, tried: tuple[tuple[Subnet, float], ...] = ()) -> Found:
        return Found(
            subnet=subnet,
            costs=count_costs(self.space, subnet),
            evaluation=Evaluation(score[0], -score[1]),
            latency=latency,
            measured_finalists=tried,
        )
