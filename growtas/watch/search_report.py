"""The result of a search, laid out as points of cost and accuracy."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from growtas.batch import SubnetBatch
from growtas.latency.estimate import kind_text
from growtas.search.evolution import EvolutionResult
from growtas.search.pareto import non_dominated
from growtas.search.scoring import DROPPED
from growtas.search.search import Outcome, Search
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.units import format_accuracy, format_bytes, format_count, format_limit, format_ms


def at_most(limit: float | None, form: Callable[[float, int], str]) -> str:
    """A limit in words, as it was typed; empty where there is none."""
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
        yield label, f"{form(best[name])}{note}", at_most(limits.get(limit), form)


def accuracies(subnet: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """The accuracies of a subnet of ``result.json``, in fp32 first: what each is called, its precision, and the number."""
    converted = subnet["converted"]
    runtimes = {entry["runtime"] for entry in converted}
    names = [entry["precision"] + (f" ({entry['runtime']})" if len(runtimes) > 1 else "") for entry in converted]
    named = [(name, entry["precision"], entry["accuracy"]) for name, entry in zip(names, converted, strict=True)]
    return [("fp32", "fp32", subnet["accuracy"]), *named]


def latency_rows(latencies: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, str, str, str]]:
    """Of each device its name, the predicted and the measured latency, the limit, and which of the two the limit was judged on."""
    for x in latencies:
        predicted, measured = (_latency_text(x[kind]) if x[kind] else "" for kind in ("predicted", "measured"))
        limit, judged_on = at_most(x["max_latency_ms"], format_ms), x["judged_on"] or "no limit"
        yield x["device"], predicted or "-", measured or "- (not at hand)", limit, judged_on


def no_faster_lines(data: Mapping[str, Any]) -> list[str]:
    """A sentence for each device on which the precision gains nothing over fp32, from the content of ``result.json``."""
    return list(dict.fromkeys(gain["no_faster"] for gain in data.get("compared_with_fp32", ()) if gain["no_faster"]))


def _latency_text(latency: Mapping[str, Any]) -> str:
    spread = f" +-{latency['relative_uncertainty']:.0%}" if latency.get("relative_uncertainty") is not None else ""
    return f"{format_ms(latency['ms'])}{spread} ({kind_text(latency['kind'], latency.get('unsteady'))})"


def history(result: EvolutionResult) -> list[dict[str, Any]]:
    """The numbers of each generation, as ``result.json`` holds them.

    Of subnets that were dropped from a race no accuracy is known. They are counted, and best and median are those of the others;
    None where there are no others.
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
class SearchReport:
    """The points of a search: cost and accuracy of what was evaluated.

    Attributes:
        data: the content of ``result.json``.
        space: the space that was searched.
        chosen: the subnet that the search chose.
        axis: what the costs are, with unit and kind: ``latency of a10, ms (modelled)``.
        kind: of the latencies, in milliseconds; empty for other costs.
        form: writes a cost with its unit.
        costs, accuracies: of every subnet that was evaluated on all images.
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
    form: Callable[..., str]
    costs: tuple[float, ...]
    accuracies: tuple[float, ...]
    front: tuple[int, ...]
    limit: float | None
    chosen_row: int | None
    measured: tuple[tuple[float, float, bool], ...]

    @classmethod
    def of(cls, search: Search, outcome: Outcome, data: dict[str, Any]) -> SearchReport:
        """Lay a search out over the first cost that has a limit: a predicted latency, or another one.

        Where nothing is limited it is the first predicted latency, or params.
        """
        ranked = [(subnet, score[0]) for subnet, score in outcome.result.ranked if score[0] != DROPPED]
        subnets, accuracies = [subnet for subnet, _ in ranked], np.array([accuracy for _, accuracy in ranked])
        batch = SubnetBatch.from_subnets(subnets)
        predicted = [target for target in search.targets if target.estimator is not None]
        limited = [target for target in predicted if target.max_ms is not None]
        terms = search.limits.terms(search.space)
        limited_terms = [term for term in terms if term[0] is not None]
        measured: list[tuple[float, float, bool]] = []
        kind, limit = "", None
        form: Callable[..., str]
        if limited or (predicted and not limited_terms):
            target = (limited or predicted)[0]
            assert target.estimator is not None
            kind, limit, costs, form = target.estimator.kind, target.max_ms, target.estimator.predict_ms(batch), format_ms
            axis = f"latency of {target.device}, ms ({kind})"
            for finalist in outcome.chosen.finalists:
                timed = next((x.measured for x in finalist.latencies if x.device == target.device), None)
                if timed is not None:
                    measured.append((timed.ms, finalist.accuracy, finalist.meets))
        else:
            limit, count, what, form = (limited_terms or terms)[0]
            costs, axis = count(batch).astype(np.float64), what.removeprefix("of ")
        rows = np.flatnonzero(non_dominated(np.column_stack([costs, -accuracies])))
        return cls(
            data=data,
            space=search.space,
            chosen=outcome.chosen.subnet,
            axis=axis,
            kind=kind,
            form=form,
            costs=tuple(map(float, costs)),
            accuracies=tuple(map(float, accuracies)),
            front=tuple(int(row) for row in rows[np.argsort(costs[rows], kind="stable")]),
            limit=limit,
            chosen_row=subnets.index(outcome.chosen.subnet) if outcome.chosen.subnet in subnets else None,
            measured=tuple(measured),
        )

    @property
    def cost_range(self) -> tuple[float, float]:
        """The ends of the cost axis, chosen by the points; the limit is within them only where it lies near the points."""
        costs = [*self.costs, *(ms for ms, _, _ in self.measured)]
        left, right = min(costs), max(costs)
        span = right - left or 0.1 * abs(right) or 1.0
        if self.limit is not None and left - 0.25 * span <= self.limit <= right + 0.25 * span:
            left, right = min(left, self.limit), max(right, self.limit)
        return left - 0.03 * span, right + 0.03 * span

    @property
    def limit_text(self) -> str:
        """The limit for a legend, with an arrow to where it lies beyond the cost axis; empty without a limit."""
        if self.limit is None:
            return ""
        (left, right), text = self.cost_range, f"limit {format_limit(self.limit, self.form)}"
        return f"\u2190 {text}" if self.limit < left else f"{text} \u2192" if self.limit > right else text

    def format_cost(self, cost: float, *, with_kind: bool = False) -> str:
        """A cost as text, with its unit; ``with_kind`` adds to a latency whether it is measured or modelled."""
        return f"{self.form(cost)} ({self.kind})" if with_kind and self.kind else self.form(cost)
