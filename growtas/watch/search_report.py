"""The result of a search, laid out as points of cost and accuracy."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from growtas.batch import SubnetBatch
from growtas.costs import count_costs_batch
from growtas.search.evolution import EvolutionResult
from growtas.search.pareto import non_dominated
from growtas.search.scoring import DROPPED
from growtas.search.search import Outcome, Search
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.units import format_count, format_limit, format_ms


def at_most(limit: float | None, form: Callable[[float, int], str]) -> str:
    """A limit in words, as it was typed; empty where there is none."""
    return "" if limit is None else f"at most {format_limit(limit, form)}"


def history(result: EvolutionResult) -> list[dict[str, Any]]:
    """The numbers of each generation, as ``result.json`` holds them."""
    return [
        {
            "generation": generation.number,
            "subnets": len(generation.ranked),
            "best_accuracy": generation.best[1][0],
            "generation_best_accuracy": generation.ranked[0][1][0],
            # Those dropped from a race have no accuracy.
            "median_accuracy": statistics.median([score[0] for _, score in generation.ranked if score[0] != DROPPED] or [0.0]),
        }
        for generation in result.history
    ]


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """The points of a search: cost and accuracy of what was evaluated.

    Attributes:
        data: the content of ``result.json``.
        space: the space that was searched.
        chosen: the subnet that the search chose.
        axis: what the costs are, with unit and kind: ``latency of a10, ms (modelled)``.
        kind: of the latencies, in milliseconds; empty for params.
        costs, accuracies: of every evaluated subnet.
        front: rows that no other one beats in both, by rising cost.
        limit: on the cost; None without one.
        chosen_row: the row of ``chosen``; None where it was not evaluated.
        measured: (measured ms, accuracy, within all limits) of finalists, where the axis is the latency of a device at hand.
    """

    data: dict[str, Any]
    space: SearchSpace
    chosen: Subnet
    axis: str
    kind: str
    costs: tuple[float, ...]
    accuracies: tuple[float, ...]
    front: tuple[int, ...]
    limit: float | None
    chosen_row: int | None
    measured: tuple[tuple[float, float, bool], ...]

    @classmethod
    def of(cls, search: Search, outcome: Outcome, data: dict[str, Any]) -> SearchReport:
        """Lay a search out over the first device's predicted latency, or over params where none is predicted."""
        ranked = [(subnet, score[0]) for subnet, score in outcome.result.ranked if score[0] != DROPPED]
        subnets, accuracies = [subnet for subnet, _ in ranked], np.array([accuracy for _, accuracy in ranked])
        batch = SubnetBatch.from_subnets(subnets)
        target = next((target for target in search.targets if target.estimator is not None), None)
        measured: list[tuple[float, float, bool]] = []
        kind, axis = "", "params"
        limit: float | None = search.limits.max_params
        if target is None or target.estimator is None:
            costs = count_costs_batch(search.space, batch)[0].astype(float)
        else:
            kind, limit, costs = target.estimator.kind, target.max_ms, np.asarray(target.estimator.predict_ms(batch))
            axis = f"latency of {target.device}, ms ({kind})"
            index = search.targets.index(target)
            for finalist in outcome.chosen.finalists:
                if (timed := finalist.latencies[index].measured) is not None:
                    measured.append((timed.ms, finalist.accuracy, finalist.meets))
        rows = np.flatnonzero(non_dominated(np.column_stack([costs, -accuracies])))
        return cls(
            data=data,
            space=search.space,
            chosen=outcome.chosen.subnet,
            axis=axis,
            kind=kind,
            costs=tuple(map(float, costs)),
            accuracies=tuple(map(float, accuracies)),
            front=tuple(int(row) for row in rows[np.argsort(costs[rows], kind="stable")]),
            limit=limit,
            chosen_row=subnets.index(outcome.chosen.subnet) if outcome.chosen.subnet in subnets else None,
            measured=tuple(measured),
        )

    def format_cost(self, cost: float, *, with_kind: bool = False) -> str:
        """A cost as text, with its unit; ``with_kind`` adds to a latency whether it is measured or modelled."""
        if not self.kind:
            return format_count(cost)
        return f"{format_ms(cost)} ({self.kind})" if with_kind else format_ms(cost)
