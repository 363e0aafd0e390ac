"""What ``growtas search`` shows when it is done: the subnet that was found, and what its numbers are worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from growtas.cli.output import console, print_table, progress
from growtas.units import format_bytes, format_count, format_ms

if TYPE_CHECKING:
    from growtas.search.finalists import Found
    from growtas.search.limits import Limits
    from growtas.search.targets import DeviceLatency
    from growtas.space import SearchSpace
    from growtas.subnet import Subnet


@contextmanager
def measuring_bar(count: int, *, hidden: bool) -> Iterator[Callable[[Subnet, float], None]]:
    """Progress of the first measurements; yields what to call after each of them."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    with progress(*columns, hidden=hidden) as bar:
        task = bar.add_task("measuring subnets on this machine", total=count)

        def step(subnet: Subnet, ms: float) -> None:
            bar.update(task, advance=1, description=f"measuring subnets on this machine, last {format_ms(ms)} (measured)")

        yield step


def latency_note(found: DeviceLatency) -> str | None:
    """What kind of number a latency is, in words; None without one."""
    latency, limit_ms = found.judged, found.max_ms
    if latency is None:
        return None
    if latency.kind == "measured":
        return f"measured on this machine ({latency.conditions})"
    spread = latency.relative_uncertainty or 0.0
    text = f"{found.provenance}, not measured; uncertainty +-{spread:.0%} ({latency.conditions})"
    highest = latency.ms * (1 + spread)
    if limit_ms is None:
        return text
    if highest > limit_ms:
        return f"{text}; at the upper end, {format_ms(highest)}, it misses the limit"
    return f"{text}; it meets the limit even at the upper end, {format_ms(highest)}"


def show_found(space: SearchSpace, found: Found, limits: Limits, report: dict[str, Any]) -> None:
    """The subnet with its costs beside the limits, drawn, and how it was found; on stdout."""
    from growtas.watch.diagram import subnet_text

    _show_costs(found, limits, report)
    for latency in found.latencies:
        if (said := latency_note(latency)) is not None:
            console().print(f"latency of {latency.device}: {said}", soft_wrap=True)
    if found.latencies:
        _show_latencies(found)
    console().print(subnet_text(space, found.subnet), soft_wrap=True, markup=False)
    misses = sum(not finalist.meets for finalist in found.finalists)
    if misses:
        console().print(f"{misses} better subnets were measured and miss a limit", soft_wrap=True)
    reused = f", {report['reused']} more taken from the journal" if report["reused"] else ""
    dropped = f", {report['dropped']} left early that could not become parents" if report["dropped"] else ""
    console().print(f"{report['evaluated']} subnets evaluated in {report['seconds']:.1f} s{dropped}{reused}", soft_wrap=True)
    if (front := report.get("front")) is not None:
        volume, count = front["hypervolume"], front["subnets"]
        console().print(f"front: {count} subnets, hypervolume {volume:.4f}; {report['files']['front']}", soft_wrap=True)
    if "picture" not in report["files"]:
        console().print("no picture: matplotlib is not installed (pip install 'growtas[watch]')", soft_wrap=True, markup=False)
    drawn = ", ".join(report["files"][name] for name in ("subnet", "report", "picture") if name in report["files"])
    console().print(f"written to {drawn}", soft_wrap=True)


def _show_costs(found: Found, limits: Limits, report: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("", "subnet found", "limit"):
        table.add_column(heading, overflow="fold")
    table.add_row("subnet", str(found.subnet), "")
    table.add_row("params", format_count(found.costs["params"]), _at_most(limits.max_params, format_count))
    table.add_row("MACs", format_count(found.costs["macs"]), _at_most(limits.max_macs, format_count))
    memory = ("activation memory, modelled", "activation_bytes", limits.max_activation_bytes)
    for label, name, limit in (memory, ("weights, modelled", "size_bytes", limits.max_size_bytes)):
        if limit is not None:
            said = f"{format_bytes(found.costs[name])} (batch {limits.batch}, {limits.precision})"
            table.add_row(label, said, _at_most(limit, format_bytes))
    count = report["images"]["count"]
    images = f" ({count} search images)" if count is not None else " (as recorded)"
    table.add_row("accuracy", f"{found.evaluation.accuracy:.2%}{images}", "")
    for latency in found.latencies:
        if (judged := latency.judged) is not None:
            label = f"latency, {judged.kind}"
            table.add_row(label, f"{judged}, {judged.conditions}", _at_most(latency.max_ms, format_ms))
    print_table(table)


def _show_latencies(found: Found) -> None:
    """Predicted and measured side by side, with kinds, and which of them the limit was judged on."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("latency on", "predicted", "measured", "limit", "judged on"):
        table.add_column(heading, no_wrap=True)
    for latency in found.latencies:
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
