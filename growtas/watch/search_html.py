"""A search as one page of HTML, with its drawings as SVG inside: nothing to fetch, no script."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from growtas.files import replacing
from growtas.units import format_bytes, format_count, format_ms
from growtas.watch.diagram import subnet_svg
from growtas.watch.search_report import SearchReport

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
    with replacing(path) as temporary:
        temporary.write_text(search_page(report), encoding="utf-8")


def search_page(report: SearchReport) -> str:
    """The page as HTML."""
    data, best = report.data, report.data["best"]
    costs = [
        ("subnet", str(report.chosen), ""),
        ("accuracy", f"{best['accuracy']:.2%} on the search split", ""),
        ("params", format_count(best["params"]), _limit(data, "max_params", format_count)),
        ("MACs", format_count(best["macs"]), _limit(data, "max_macs", format_count)),
        (
            "activation memory (modelled)",
            format_bytes(best["modelled_activation_bytes"]),
            _limit(data, "max_activation_bytes", format_bytes),
        ),
        ("weights (modelled)", format_bytes(best["modelled_size_bytes"]), _limit(data, "max_size_bytes", format_bytes)),
    ]
    latencies = [
        [
            x["device"],
            _ms(x["predicted"]),
            _ms(x["measured"]),
            _at_most(x["max_latency_ms"], format_ms),
            x["judged_on"] or "no limit",
        ]
        for x in best["latencies"]
    ]
    finalists = [
        [f"{f['accuracy']:.2%}", x["device"], _ms(x["predicted"]), _ms(x["measured"]), "within" if f["meets"] else "beyond a limit"]
        for f in data["finalists"]
        for x in f["latencies"]
    ]
    generations = [
        [str(g["generation"]), str(g["subnets"]), f"{g['best_accuracy']:.2%}", f"{g['median_accuracy']:.2%}"]
        for g in data["history"]
    ]
    parts = [
        f"<h1>Search of {escape(report.space.name)}</h1>",
        f"<p>{escape(str(data['run']))}: {data['evaluated']} subnets evaluated, {data['reused']} from the journal, "
        f"{data['seconds']:.1f} s.</p>",
        _table(("", "found", "limit"), costs),
        subnet_svg(report.space, report.chosen),
    ]
    if latencies:
        parts += ["<h2>Latency</h2>", _table(("device", "predicted", "measured", "limit", "judged on"), latencies)]
    parts += ["<h2>All that was evaluated</h2>", scatter_svg(report)]
    if finalists:
        parts += ["<h2>Finalists</h2>", _table(("accuracy", "device", "predicted", "measured", "limits"), finalists)]
    if generations:
        parts += ["<h2>Generations</h2>", _table(("generation", "subnets", "best so far", "median"), generations)]
    head = f'<meta charset="utf-8"><title>growtas search</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en">{head}{"".join(parts)}</html>\n'


def scatter_svg(report: SearchReport) -> str:
    """Accuracy over cost as an ``<svg>`` element: every evaluated subnet, the front, the limit and the chosen subnet."""
    xs = [*report.costs, *(ms for ms, _, _ in report.measured), *([report.limit] if report.limit is not None else [])]
    left, right = min(xs), max(xs)
    # A limit far beyond every subnet would leave the points no room.
    if report.limit == right and max(report.costs) > left:
        right = min(right, left + 1.5 * (max([*report.costs, *(ms for ms, _, _ in report.measured)]) - left))
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
        parts.append(f'<text x="{place(cost, low)[0]:.1f}" y="{base + 18}" text-anchor="{anchor}">{_tick(report, cost)}</text>')
    for accuracy in dict.fromkeys((low, high)):
        parts.append(f'<text x="{_LEFT - 6}" y="{place(left, accuracy)[1] + 4:.1f}" text-anchor="end">{accuracy:.1%}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH) / 2}" y="{base + 38}" text-anchor="middle">{escape(report.axis)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" '
        f'font-family="sans-serif" font-size="12"><title>accuracy over {escape(report.axis)}</title>{"".join(parts)}</svg>'
    )


def _tick(report: SearchReport, cost: float) -> str:
    """A number at the axis, whose label has the unit and the kind."""
    return f"{cost:.3g}" if report.latency else report.format_cost(cost)


def _table(head: tuple[str, ...], rows: Any) -> str:
    def line(cells: Any, tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _ms(latency: dict[str, Any] | None) -> str:
    if latency is None:
        return "-"
    spread = f" +-{latency['relative_uncertainty']:.0%}" if latency.get("relative_uncertainty") is not None else ""
    return f"{format_ms(latency['ms'])}{spread} ({latency['kind']})"


def _limit(data: dict[str, Any], name: str, form: Any) -> str:
    return _at_most(data["limits"][name], form)


def _at_most(limit: float | None, form: Any) -> str:
    return "" if limit is None else f"at most {form(limit)}"
