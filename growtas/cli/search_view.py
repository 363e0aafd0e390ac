"""The view of a finished ``growtas search``: the chosen subnet, and how reliable its numbers are."""

from __future__ import annotations

from growtas.api import SearchResult
from growtas.cli.output import new_table, print_line, print_table, print_text
from growtas.units import format_accuracy, format_bytes, format_count, format_ms
from growtas.watch.diagram import subnet_text
from growtas.watch.search_report import at_most


def show_result(result: SearchResult) -> None:
    """Prints the subnet with its costs beside the limits, as a diagram, and how it was found; on stdout."""
    _show_costs(result)
    for latency in result.latencies:
        if latency.note is not None:
            print_text(f"latency of {latency.device}: {latency.note}")
    if result.latencies:
        _show_latencies(result)
    print_line(subnet_text(result.space, result.subnet))
    report = result.report
    misses = sum(not finalist.meets for finalist in result.chosen.finalists[:-1])
    if misses:
        print_line(f"better subnets that were measured and miss a limit: {misses}")
    reused = f", {report['reused']} more taken from the journal" if report["reused"] else ""
    dropped = f", {report['dropped']} left early that could not become parents" if report["dropped"] else ""
    print_text(f"{report['evaluated']} subnets evaluated in {report['seconds']:.1f} s{dropped}{reused}")
    if (front := report.get("front")) is not None:
        print_line(f"front: {front['subnets']} subnets, hypervolume {front['hypervolume']:.4f}; {result.files['front']}")
    if "picture" not in result.files:
        print_line("no picture: matplotlib is not installed (pip install 'growtas[watch]')")
    written = [str(result.files[name]) for name in ("subnet", "report", "picture") if name in result.files]
    print_line(f"written to {', '.join(written)}")


def _show_costs(result: SearchResult) -> None:
    chosen, limits = result.chosen, result.limits
    table = new_table("", "subnet found", "limit", fold="subnet found")
    table.add_row("subnet", str(chosen.subnet), "")
    table.add_row("params", format_count(chosen.costs["params"]), at_most(limits.max_params, format_count))
    table.add_row("MACs", format_count(chosen.costs["macs"]), at_most(limits.max_macs, format_count))
    with_position = format_count(chosen.costs["macs_with_relative_position"])
    table.add_row("with relative position", with_position, at_most(limits.max_macs_with_relative_position, format_count))
    memory = ("activation memory, modelled", "activation_bytes", limits.max_activation_bytes)
    for label, name, limit in (memory, ("weights, modelled", "size_bytes", limits.max_size_bytes)):
        if limit is not None:
            value = f"{format_bytes(chosen.costs[name])} (batch {limits.batch}, {limits.precision})"
            table.add_row(label, value, at_most(limit, format_bytes))
    count = result.report["images"]["count"]
    images = f" ({count} search images)" if count is not None else " (as recorded)"
    table.add_row("accuracy", f"{format_accuracy(result.accuracy, count)}{images}", "")
    for latency in result.latencies:
        if (judged := latency.judged) is not None:
            table.add_row(f"latency, {judged.kind}", f"{judged}, {judged.conditions}", at_most(latency.max_ms, format_ms))
    print_table(table)


def _show_latencies(result: SearchResult) -> None:
    """Prints predicted and measured latencies side by side, and which of them the limit was judged on."""
    table = new_table("latency on", "predicted", "measured", "limit", "judged on")
    for latency in result.latencies:
        judged = latency.judged.kind if latency.judged is not None and latency.max_ms is not None else "-"
        predicted, measured = str(latency.predicted or "-"), str(latency.measured or "- (not at hand)")
        table.add_row(latency.device, predicted, measured, at_most(latency.max_ms, format_ms), judged)
    print_table(table)
