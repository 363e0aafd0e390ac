"""What ``growtas search`` prints when it is done: the chosen subnet, and how reliable its numbers are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from growtas.cli.output import console, print_table
from growtas.units import format_bytes, format_count, format_ms

if TYPE_CHECKING:
    from growtas.api import SearchResult


def show_result(result: SearchResult) -> None:
    """Prints the subnet with its costs beside the limits, as a diagram, and how it was found; on stdout."""
    from growtas.watch.diagram import subnet_text

    _show_costs(result)
    for latency in result.latencies:
        if (text := latency.note) is not None:
            console().print(f"latency of {latency.device}: {text}", soft_wrap=True)
    if result.latencies:
        _show_latencies(result)
    console().print(subnet_text(result.space, result.subnet), soft_wrap=True, markup=False)
    report = result.report
    misses = sum(not finalist.meets for finalist in result.chosen.finalists)
    if misses:
        console().print(f"{misses} better subnets were measured and miss a limit", soft_wrap=True)
    reused = f", {report['reused']} more taken from the journal" if report["reused"] else ""
    dropped = f", {report['dropped']} left early that could not become parents" if report["dropped"] else ""
    console().print(f"{report['evaluated']} subnets evaluated in {report['seconds']:.1f} s{dropped}{reused}", soft_wrap=True)
    if (front := report.get("front")) is not None:
        volume, count = front["hypervolume"], front["subnets"]
        console().print(f"front: {count} subnets, hypervolume {volume:.4f}; {result.files['front']}", soft_wrap=True)
    if "picture" not in result.files:
        console().print("no picture: matplotlib is not installed (pip install 'growtas[watch]')", soft_wrap=True, markup=False)
    written = ", ".join(str(result.files[name]) for name in ("subnet", "report", "picture") if name in result.files)
    console().print(f"written to {written}", soft_wrap=True)


def _show_costs(result: SearchResult) -> None:
    from rich.table import Table

    chosen, limits = result.chosen, result.limits
    table = Table(box=None, pad_edge=False)
    for heading in ("", "subnet found", "limit"):
        table.add_column(heading, overflow="fold")
    table.add_row("subnet", str(chosen.subnet), "")
    table.add_row("params", format_count(chosen.costs["params"]), _at_most(limits.max_params, format_count))
    table.add_row("MACs", format_count(chosen.costs["macs"]), _at_most(limits.max_macs, format_count))
    memory = ("activation memory, modelled", "activation_bytes", limits.max_activation_bytes)
    for label, name, limit in (memory, ("weights, modelled", "size_bytes", limits.max_size_bytes)):
        if limit is not None:
            value = f"{format_bytes(chosen.costs[name])} (batch {limits.batch}, {limits.precision})"
            table.add_row(label, value, _at_most(limit, format_bytes))
    count = result.report["images"]["count"]
    images = f" ({count} search images)" if count is not None else " (as recorded)"
    table.add_row("accuracy", f"{result.accuracy:.2%}{images}", "")
    for latency in result.latencies:
        if (judged := latency.judged) is not None:
            label = f"latency, {judged.kind}"
            table.add_row(label, f"{judged}, {judged.conditions}", _at_most(latency.max_ms, format_ms))
    print_table(table)


def _show_latencies(result: SearchResult) -> None:
    """Prints predicted and measured latencies side by side, and which of them the limit was judged on."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("latency on", "predicted", "measured", "limit", "judged on"):
        table.add_column(heading, no_wrap=True)
    for latency in result.latencies:
        limit = latency.max_ms
        judged = latency.judged.kind if latency.judged is not None and limit is not None else "-"
        table.add_row(
            latency.device,
            str(latency.predicted or "-"),
            str(latency.measured or "- (not at hand)"),
            _at_most(limit, format_ms),
            judged,
        )
    print_table(table)


def _at_most(limit: float | None, form: Callable[[float], str]) -> str:
    return "" if limit is None else f"at most {form(limit)}"
