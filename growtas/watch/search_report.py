"""The result of a search as text, and as points of cost and accuracy."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from growtas.batch import SubnetBatch
from growtas.files import read_json_lines
from growtas.latency.estimate import kind_text
from growtas.search.evolution import EvolutionResult
from growtas.search.journal import parse_evaluations
from growtas.search.limits import Limits
from growtas.search.pareto import non_dominated
from growtas.search.scoring import DROPPED
from growtas.search.search import Outcome, Search
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.units import format_accuracy, format_bytes, format_count, format_limit, format_ms


def at_most(limit: float | None, form: Callable[[float, int], str]) -> str:
    """Formats a limit as it was typed; returns an empty text without a limit."""
    return "" if limit is None else f"at most {format_limit(limit, form)}"


def cost_rows(data: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The chosen subnet, its accuracy and its costs with their limits, as text, from the content of ``result.json``."""
    best, limits, count = data["best"], data["limits"], data["images"]["count"]
    images = f"{count:,} search images" if count is not None else "as recorded"
    yield "subnet", str(Subnet.from_dict(best)), ""
    if not best.get("converted"):
        yield "accuracy", f"{format_accuracy(best['accuracy'], count)} ({images})", ""
    else:
        for name, precision, accuracy in accuracies(best):
            chosen = "; it was chosen by this" if precision in best["chosen_by"] else ""
            yield f"accuracy in {name}", f"{format_accuracy(accuracy, count)} ({images}){chosen}", ""
    meant = f" (batch {limits['batch']}, {limits['precision']})"
    for label, name, limit, form, note in (
        ("params", "params", "max_params", format_count, ""),
        ("MACs", "macs", "max_macs", format_count, ""),
        ("with relative position", "macs_with_relative_position", "max_macs_with_relative_position", format_count, ""),
        ("activation memory, modelled", "modelled_activation_bytes", "max_activation_bytes", format_bytes, meant),
        ("weights, modelled", "modelled_size_bytes", "max_size_bytes", format_bytes, meant),
    ):
        if name != "macs_with_relative_position" or best[name] != best["macs"] or limits.get(limit):
            yield label, f"{form(best[name])}{note}", at_most(limits.get(limit), form)


def accuracies(subnet: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Returns the accuracies of a subnet of ``result.json`` as (name, precision, accuracy), fp32 first."""
    converted = subnet.get("converted", ())
    runtimes = {entry["runtime"] for entry in converted}
    names = [entry["precision"] + (f" ({entry['runtime']})" if len(runtimes) > 1 else "") for entry in converted]
    named = [(name, entry["precision"], entry["accuracy"]) for name, entry in zip(names, converted, strict=True)]
    return [("fp32", "fp32", subnet["accuracy"]), *named]


def latency_rows(latencies: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, str, str, str]]:
    """Returns for each device its name, predicted and measured latency, limit, and which of the two was compared with the limit."""
    for x in latencies:
        predicted, measured = (_latency_text(x[kind]) if x[kind] else "" for kind in ("predicted", "measured"))
        limit, judged_on = at_most(x["max_latency_ms"], format_ms), x["judged_on"] or "no limit"
        without = "- (not measured)" if x.get("not_measured_because") else "- (not at hand)"
        yield x["device"], predicted or "-", measured or without, limit, judged_on


def no_faster_lines(data: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each device on which the precision is no faster than fp32, from the content of ``result.json``."""
    return list(dict.fromkeys(gain["no_faster"] for gain in data.get("compared_with_fp32", ()) if gain["no_faster"]))


def _latency_text(latency: Mapping[str, Any]) -> str:
    spread = f" +-{latency['relative_uncertainty']:.0%}" if latency.get("relative_uncertainty") is not None else ""
    return f"{format_ms(latency['ms'])}{spread} ({kind_text(latency['kind'], latency.get('unsteady'))})"


def history(result: EvolutionResult) -> list[dict[str, Any]]:
    """Returns the numbers of each generation, as in ``result.json``.

    Subnets that were dropped from a race have no accuracy. They are counted, and best and median are those of the others, or None
    if there are no others.
    """
    generations = []
    for generation in result.history:
        known = [score[0] for _, score in generation.ranked if score[0] != DROPPED]
        best = generation.best[1][0]
        generations.append(
            {
                "generation": generation.number,
                "subnets": len(generation.ranked),
                "dropped": len(generation.ranked) - len(known),
                "best_accuracy": None if best == DROPPED else best,
                "generation_best_accuracy": max(known, default=None),
                "median_accuracy": statistics.median(known) if known else None,
            }
        )
    return generations


@dataclass(frozen=True, kw_only=True)
class CostPlane:
    """The points of a search over one of its costs.

    Attributes:
        cost: what the cost is: ``latency of a10``, ``params``.
        unit: ``ms``, ``count`` or ``bytes``.
        kind: of a latency, ``measured`` or ``modelled``; empty for other costs.
        costs, accuracies: of every subnet that was evaluated on all images.
        limit: on the cost; None without one.
        chosen_row: the row of the subnet that the search chose; None where it is not among them.
        measured: (measured ms, accuracy, within all limits) of finalists, where the cost is the latency of a device at hand.
    """

    cost: str
    unit: str
    kind: str
    costs: tuple[float, ...]
    accuracies: tuple[float, ...]
    limit: float | None
    chosen_row: int | None
    measured: tuple[tuple[float, float, bool], ...]

    @classmethod
    def all_of(cls, points: Mapping[str, Any]) -> list[CostPlane]:
        """Returns the planes of the entry ``points`` of ``result.json``; none if no subnet was evaluated on all images."""
        if not points["accuracies"]:
            return []
        return [
            cls(
                cost=axis["cost"],
                unit=axis["unit"],
                kind=axis["kind"],
                costs=tuple(map(float, axis["values"])),
                accuracies=tuple(map(float, points["accuracies"])),
                limit=axis["limit"],
                chosen_row=points["chosen"],
                measured=tuple((entry["ms"], entry["accuracy"], entry["meets"]) for entry in axis["measured"]),
            )
            for axis in points["costs"]
        ]

    @cached_property
    def front(self) -> tuple[int, ...]:
        """The rows that no other row dominates in accuracy and cost, by rising cost."""
        costs = np.array(self.costs)
        rows = np.flatnonzero(non_dominated(np.column_stack([costs, -np.array(self.accuracies)])))
        return tuple(int(row) for row in rows[np.argsort(costs[rows], kind="stable")])

    @property
    def axis(self) -> str:
        """The name of the cost's axis, such as ``latency of a10, ms (modelled)``."""
        return f"{self.cost}, ms ({self.kind})" if self.kind else self.cost

    @property
    def cost_range(self) -> tuple[float, float]:
        """The ends of the cost axis. They enclose the points, and the limit if it is near the points."""
        costs = [*self.costs, *(ms for ms, _, _ in self.measured)]
        left, right = min(costs), max(costs)
        span = right - left or 0.1 * abs(right) or 1.0
        if self.limit is not None and left - 0.25 * span <= self.limit <= right + 0.25 * span:
            left, right = min(left, self.limit), max(right, self.limit)
        return left - 0.03 * span, right + 0.03 * span

    @property
    def limit_text(self) -> str:
        """The limit for a legend, with an arrow if it lies beyond the ends of the axis; empty without a limit."""
        if self.limit is None:
            return ""
        (left, right), text = self.cost_range, f"limit {format_limit(self.limit, _FORMS[self.unit])}"
        return f"\u2190 {text}" if self.limit < left else f"{text} \u2192" if self.limit > right else text

    def format_cost(self, cost: float, *, with_kind: bool = False) -> str:
        """A cost as text, with its unit; ``with_kind`` adds to a latency whether it is measured or modelled."""
        text = _FORMS[self.unit](cost)
        return f"{text} ({self.kind})" if with_kind and self.kind else text

    def tick_text(self, cost: float) -> str:
        """A round cost as text; the name of a latency axis has the unit."""
        return f"{cost:.10g}" if self.kind else _FORMS[self.unit](cost, 10)


def search_points(search: Search, outcome: Outcome) -> dict[str, Any]:
    """Returns the subnets that a search evaluated, as the entry ``points`` of ``result.json``.

    ``accuracies`` are those of every subnet that was evaluated on all images, and ``chosen`` is the row of the chosen one among
    them. ``costs`` has an entry for each cost that was limited: its name, unit, kind and limit, its value for each of the subnets,
    and what was measured of the finalists. Where nothing was limited it is the first predicted latency, or params.
    """
    ranked = [(subnet, score[0]) for subnet, score in outcome.result.ranked if score[0] != DROPPED]
    batch = SubnetBatch.from_subnets([subnet for subnet, _ in ranked])
    predicted = [target for target in search.targets if target.estimator is not None]
    limited = [target for target in predicted if target.max_ms is not None]
    axes = _limited_costs(search.limits, search.space, batch)
    if not limited and axes[0]["limit"] is None and predicted:
        limited, axes = predicted[:1], []
    elif limited and axes[0]["limit"] is None:
        axes = []
    latencies = []
    for target in limited:
        assert target.estimator is not None
        timed = [
            {"ms": latency.measured.ms, "accuracy": finalist.accuracy, "meets": finalist.meets}
            for finalist in outcome.chosen.finalists
            for latency in finalist.latencies
            if latency.device == target.device and latency.measured is not None
        ]
        about = {"cost": f"latency of {target.device}", "unit": "ms", "kind": target.estimator.kind, "limit": target.max_ms}
        latencies.append({**about, "values": target.estimator.predict_ms(batch).tolist(), "measured": timed})
    chosen = next((row for row, (subnet, _) in enumerate(ranked) if subnet == outcome.chosen.subnet), None)
    return {"accuracies": [accuracy for _, accuracy in ranked], "chosen": chosen, "costs": [*latencies, *axes]}


def recorded_points(journal: Path, space: SearchSpace, chosen: Subnet) -> dict[str, Any]:
    """Returns the points of the last search in a journal like :func:`search_points`, over the costs that need no device.

    It serves results of older versions of growtas, which recorded no points.

    Raises:
        CheckpointError: a line is not a journal's.
    """
    lines = read_json_lines(journal)
    header = next((line for line in reversed(lines) if isinstance(line, Mapping) and line.get("type") == "header"), None)
    known = parse_evaluations(journal, lines, header["key"])[0] if header else {}
    given = (header or {}).get("limits") or {}
    limits = Limits(**{field.name: given[field.name] for field in fields(Limits) if given.get(field.name) is not None})
    subnets = list(known)
    return {
        "accuracies": [evaluation.accuracy for evaluation in known.values()],
        "chosen": subnets.index(chosen) if chosen in known else None,
        "costs": _limited_costs(limits, space, SubnetBatch.from_subnets(subnets)),
    }


def _limited_costs(limits: Limits, space: SearchSpace, batch: SubnetBatch) -> list[dict[str, Any]]:
    """Returns the limited costs that need no device; the parameters if no cost is limited."""
    terms = limits.terms(space)
    return [
        {
            "cost": what.removeprefix("of "),
            "unit": "bytes" if form is format_bytes else "count",
            "kind": "",
            "limit": limit,
            "values": count(batch).tolist(),
            "measured": [],
        }
        for limit, count, what, form in [term for term in terms if term[0] is not None] or terms[:1]
    ]


_FORMS: dict[str, Callable[..., str]] = {"ms": format_ms, "count": format_count, "bytes": format_bytes}
