"""Shows the result of ``growtas search``: the chosen subnet and how reliable its numbers are."""

from __future__ import annotations

from collections import Counter

from growtas.api import ProxySearchResult, SearchResult
from growtas.cli.output import new_table, print_line, print_lines, print_table, print_text
from growtas.units import format_count, format_ms
from growtas.watch.diagram import subnet_text
from growtas.watch.search_report import at_most, cost_rows, latency_rows, no_faster_lines


def show_result(result: SearchResult) -> None:
    """Prints the subnet with its costs and limits, its diagram and the search's statistics on stdout."""
    _show_costs(result)
    for latency in result.latencies:
        if latency.note is not None:
            print_text(f"latency of {latency.device}: {latency.note}")
    if result.latencies:
        _show_latencies(result)
    for sentence in no_faster_lines(result.report):
        print_text(sentence)
    print_lines(subnet_text(result.space, result.subnet))
    report = result.report
    misses = sum(not finalist.meets for finalist in result.chosen.finalists[:-1])
    if misses:
        print_line(f"more accurate subnets that miss a limit, measured: {misses}")
    reused = f", {report['reused']} more read from the journal" if report["reused"] else ""
    dropped = f", {report['dropped']} more stopped early because they could not become parents" if report["dropped"] else ""
    print_text(f"{report['evaluated']} subnets evaluated in {report['seconds']:.1f} s{dropped}{reused}")
    if (front := report.get("front")) is not None:
        what = "points" if "points" in front else "subnets"
        print_line(f"front: {front['subnets']} {what}, hypervolume {front['hypervolume']:.4f}; {result.files['front']}")
        for precision, count in Counter(point["precision"] for point in front.get("points", ())).items():
            print_line(f"front in {precision}: {count} points")
        for because in dict.fromkeys(
            f"{point['precision']} is not scored: {point['because']}" for point in front.get("unscored", ())
        ):
            print_text(because)
    if "picture" not in result.files:
        print_line("no picture: matplotlib is not installed (pip install 'growtas[watch]')")
    written = [str(result.files[name]) for name in ("subnet", "report", "picture") if name in result.files]
    print_line(f"written to {', '.join(written)}")


def show_proxy_result(result: ProxySearchResult) -> None:
    """Prints the subnet of a search without training, with its costs and proxies."""
    table = new_table("", "subnet found", fold="subnet found")
    table.add_row("params", format_count(result.params))
    table.add_row("MACs", format_count(result.proxies.macs))
    table.add_row("expressivity", f"{result.proxies.expressivity:.4f}")
    table.add_row("trainability", f"{result.proxies.trainability:.4f}")
    print_table(table)
    print_lines(subnet_text(result.space, result.subnet))
    print_text(f"{result.measured} subnets scored in {result.seconds:.1f} s, without training; the score is no accuracy")
    print_line(f"written to {result.file}")


def _show_costs(result: SearchResult) -> None:
    table = new_table("", "subnet found", "limit", fold="subnet found")
    for row in cost_rows(result.report):
        table.add_row(*row)
    for latency in result.latencies:
        if (judged := latency.judged) is not None:
            table.add_row("latency", f"{judged}, {judged.conditions}", at_most(latency.max_ms, format_ms))
    print_table(table)


def _show_latencies(result: SearchResult) -> None:
    """Prints predicted and measured latencies side by side, and which of them was compared with the limit."""
    table = new_table("latency on", "predicted", "measured", "limit", "judged on")
    for row in latency_rows(result.report["best"]["latencies"]):
        table.add_row(*row)
    print_table(table)
