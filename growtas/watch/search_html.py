"""A search as one page of HTML, with its drawings as SVG inside: nothing to fetch, no script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from growtas.files import replacing
from growtas.latency.estimate import kind_text
from growtas.units import format_bytes, format_count, format_ms
from growtas.watch.diagram import subnet_svg
from growtas.watch.search_report import SearchReport, at_most

_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:.25em .9em .25em 0;text-align:left;border-bottom:1px solid #ddd}svg{max-width:100%;height:auto}"
)
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 420, 64, 48


def write_search_page(report: SearchReport, path: Path) -> None:
    """Write the page; a file at ``path`` is replaced.

    Raises:
        OutputError: the place can't be written.
    """
    data, best, limits = report.data, report.data["best"], report.data["limits"]
    memory, size = best["modelled_activation_bytes"], best["modelled_size_bytes"]
    costs = [
        ("subnet", str(report.chosen), ""),
        ("accuracy", f"{best['accuracy']:.2%} on the search split", ""),
        ("params", format_count(best["params"]), at_most(limits["max_params"], format_count)),
        ("MACs", format_count(best["macs"]), at_most(limits["max_macs"], format_count)),
        ("activation memory (modelled)", format_bytes(memory), at_most(limits["max_activation_bytes"], format_bytes)),
        ("weights (modelled)", format_bytes(size), at_most(limits["max_size_bytes"], format_bytes)),
    ]
    latencies = [
        (x["device"], *_latencies(x), at_most(x["max_latency_ms"], format_ms), x["judged_on"] or "no limit")
        for x in best["latencies"]
    ]
    finalists = [
        (f"{f['accuracy']:.2%}", x["device"], *_latencies(x), "within" if f["meets"] else "beyond a limit")
        for f in data["finalists"]
        for x in f["latencies"]
    ]
    generations = [
        (str(g["generation"]), str(g["subnets"]), f"{g['best_accuracy']:.2%}", f"{g['median_accuracy']:.2%}")
        for g in data["history"]
    ]
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>growtas search</title>'
        f"<style>{_STYLE}</style><h1>Search of {escape(report.space.name)}</h1>"
        f"<p>{escape(str(data['run']))}: {data['evaluated']} subnets evaluated, {data['reused']} from the journal, "
        f"{data['seconds']:.1f} s.</p>"
        + _table("", ("", "found", "limit"), costs)
        + subnet_svg(report.space, report.chosen)
        + _table("Latency", ("device", "predicted", "measured", "limit", "judged on"), latencies)
        + f"<h2>All that was evaluated</h2>{_scatter_svg(report)}"
        + _table("Finalists", ("accuracy", "device", "predicted", "measured", "limits"), finalists)
        + _table("Generations", ("generation", "subnets", "best so far", "median"), generations)
        + "</html>\n"
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _scatter_svg(report: SearchReport) -> str:
    """Accuracy over cost as an ``<svg>`` element: every evaluated subnet, the front, the limit and the chosen subnet."""
    costs = [*report.costs, *(ms for ms, _, _ in report.measured)]
    left, right = min(costs), max(costs)
    if report.limit is not None:
        # A limit far beyond every subnet would leave the points no room.
        farthest = left + 1.5 * (right - left) if max(report.costs) > left else report.limit
        left, right = min(left, report.limit), max(right, min(report.limit, farthest))
    low, high = min(report.accuracies), max(report.accuracies)

    def place(cost: float, accuracy: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - 16) * (0.03 + 0.94 * (cost - left) / ((right - left) or 1))
        return x, _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - 16) * (0.04 + 0.92 * (accuracy - low) / ((high - low) or 1))

    def mark(cost: float, accuracy: float, colour: str, radius: float, title: str) -> str:
        x, y = place(cost, accuracy)
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"><title>{escape(title)}</title></circle>'

    points = list(zip(report.costs, report.accuracies, strict=True))
    titles = [f"{accuracy:.2%}, {report.format_cost(cost, with_kind=True)}" for cost, accuracy in points]
    parts = [mark(*point, "#c4c4c4", 2.2, title) for point, title in zip(points, titles, strict=True)]
    line = " ".join("{:.1f},{:.1f}".format(*place(*points[row])) for row in report.front)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#2166ac" stroke-width="1.5"/>')
    parts += [mark(*points[row], "#2166ac", 3, f"front: {titles[row]}") for row in report.front]
    for ms, accuracy, meets in report.measured:
        parts.append(
            mark(ms, accuracy, "#1b7837" if meets else "#b2182b", 5, f"finalist: {accuracy:.2%}, {format_ms(ms)} (measured)")
        )
    if (row := report.chosen_row) is not None:
        parts.append(mark(*points[row], "#d9881c", 6, f"found: {titles[row]}"))
    if report.limit is not None and report.limit <= right:
        x, _ = place(report.limit, low)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="12" y2="{_HEIGHT - _BOTTOM}" stroke="#b2182b" stroke-dasharray="5 4"/>')
        parts.append(
            f'<text x="{x - 4:.1f}" y="24" text-anchor="end" fill="#b2182b">limit {report.format_cost(report.limit)}</text>'
        )
    base = _HEIGHT - _BOTTOM
    parts.append(f'<path d="M{_LEFT} 12V{base}H{_WIDTH - 16}" fill="none" stroke="#888"/>')
    for cost, anchor in ((left, "start"), (right, "end")):
        number = f"{cost:.3g}" if report.kind else report.format_cost(cost)  # the axis' label has the unit and the kind
        parts.append(f'<text x="{place(cost, low)[0]:.1f}" y="{base + 18}" text-anchor="{anchor}">{number}</text>')
    for accuracy in dict.fromkeys((low, high)):
        parts.append(f'<text x="{_LEFT - 6}" y="{place(left, accuracy)[1] + 4:.1f}" text-anchor="end">{accuracy:.1%}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH) / 2}" y="{base + 38}" text-anchor="middle">{escape(report.axis)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" '
        f'font-family="sans-serif" font-size="12"><title>accuracy over {escape(report.axis)}</title>{"".join(parts)}</svg>'
    )


def _table(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table under its title; nothing where it has no rows."""
    if not rows:
        return ""
    heading = f"<h2>{title}</h2>" if title else ""
    lines = [("th", head), *(("td", row) for row in rows)]
    cells = ("".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in line) for tag, line in lines)
    return f"{heading}<table>{''.join(f'<tr>{line}</tr>' for line in cells)}</table>"


def _latencies(device: Mapping[str, Any]) -> Iterator[str]:
    """The predicted and the measured latency."""
    for latency in (device["predicted"], device["measured"]):
        spread = f" +-{latency['relative_uncertainty']:.0%}" if latency and latency.get("relative_uncertainty") is not None else ""
        yield f"{format_ms(latency['ms'])}{spread} ({kind_text(latency['kind'], latency.get('unsteady'))})" if latency else "-"
