"""The front of a search as data: subnets that no other evaluated one beats, and the volume they dominate."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from growtas.batch import SubnetBatch
from growtas.costs import count_costs
from growtas.search.evolution import EvolutionResult
from growtas.search.pareto import hypervolume, non_dominated
from growtas.search.scoring import DROPPED
from growtas.search.search import Search


def front_report(search: Search, result: EvolutionResult) -> dict[str, Any]:
    """The content of ``front.json``.

    The hypervolume is relative: 1 would be accuracy 1 at the cost of the smallest subnet, and the reference point is accuracy 0 at
    the limit, or at the cost of the largest subnet where there is none. Measured latencies are those that were measured anyway.

    Args:
        search: with the axes of a front.
        result: every evaluated subnet.
    """
    axes, ranked = search.axes(), [item for item in result.ranked if item[1][0] != DROPPED]
    batch = SubnetBatch.from_subnets([subnet for subnet, _ in ranked])
    costs = np.column_stack([axis.costs(batch) for axis in axes])
    errors = np.array([1 - score[0] for _, score in ranked])
    low, high = (np.array([getattr(axis, end) for axis in axes]) for end in ("lowest", "highest"))
    scaled = np.column_stack([errors, (costs - low) / np.maximum(high - low, np.finfo(float).tiny)])
    rows = np.flatnonzero(non_dominated(scaled))
    subnets = []
    for row in rows[np.argsort(scaled[rows, 1], kind="stable")]:
        subnet, score = ranked[row]
        subnets.append(
            {
                "subnet": subnet.to_dict(),
                "accuracy": score[0],
                **asdict(count_costs(search.space, subnet)),
                "latencies": [target.latency(subnet, measure=False).to_dict() for target in search.targets],
            }
        )
    return {
        "axes": [
            {"name": "accuracy", "kind": "evaluated", "reference": 0.0, "ideal": 1.0},
            *({"name": a.name, "kind": a.kind, "unit": a.unit, "reference": a.highest, "ideal": a.lowest} for a in axes),
        ],
        "hypervolume": hypervolume(scaled, np.ones(scaled.shape[1])),
        "evaluated": len(ranked),
        "subnets": subnets,
    }
