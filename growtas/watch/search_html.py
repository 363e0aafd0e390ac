"""A search as one page of HTML, with its drawings as SVG inside: nothing to fetch, no script, for light and for dark screens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from growtas.files import replacing
from growtas.runs import data_title
from growtas.subnet import Subnet
from growtas.units import format_accuracy, format_ms
from growtas.watch.diagram import subnet_svg
from growtas.watch.search_report import SearchReport, accuracies, cost_rows, latency_rows, no_faster_lines

# Text has a contrast of 4.5 or more with what it stands on, dots, bars and lines of 3 or more, in both palettes.
_LIGHT = {
    "page": "#ffffff", "text": "#222222", "muted": "#595959", "rule": "#8a8a8a", "point": "#8a8a8a", "front": "#2166ac",
    "limit": "#b2182b", "within": "#1b7837", "found": "#b35900", "box": "#f2f2f2", "bar": "#4a6f99", "head": "#1b7837",
}  # fmt: skip
_DARK = {
    "page": "#16181c", "text": "#e6e6e6", "muted": "#b3b3b3", "rule": "#7a7a7a", "point": "#8c8c8c", "front": "#74aee8",
    "limit": "#ff8a80", "within": "#5fd07a", "found": "#f0a43a", "box": "#24282e", "bar": "#7ea3cf", "head": "#5fd07a",
}  # fmt: skip


def _palette(colours: Mapping[str, str]) -> str:
    return ":root{" + ";".join(f"--{name}:{colour}" for name, colour in colours.items()) + "}"


_STYLE = (
    f"{_palette(_LIGHT)}@media (prefers-color-scheme:dark){{{_palette(_DARK)}}}:root{{color-scheme:light dark}}"
    "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:var(--text);background:var(--page)}"
    ".wide{overflow-x:auto}table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:.25em .9em .25em 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule);"
    "overflow-wrap:anywhere;min-width:3.5em}"
    "svg text{fill:var(--text)}svg text.limit{fill:var(--limit)}"
    ".point{fill:var(--point)}.front{fill:var(--front)}.within{fill:var(--within)}.beyond{fill:var(--limit)}.found{fill:var(--found)}"
    ".box{fill:var(--box);stroke:var(--rule)}.bar{fill:var(--bar)}.head{fill:var(--head)}"
    ".axis,.front-line,.limit-line{fill:none;stroke:var(--rule)}.front-line{stroke:var(--front);stroke-width:1.5}"
    ".limit-line{stroke:var(--limit);stroke-dasharray:5 4}footer,.note{color:var(--muted)}"
)
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 420, 64, 48


def write_search_page(report: SearchReport, path: Path) -> None:
    """Write the page; a file at ``path`` is replaced.

    Raises:
        OutputError: the place can't be written.
    """
    data = report.data
    devices, count = ("device", "predicted", "measured"), data["images"]["count"]
    finalists = [
        (_accuracies(finalist, count), *row[:3], "within" if finalist["meets"] else "beyond a limit")
        for finalist in data["finalists"]
        for row in latency_rows(finalist["latencies"])
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>growtas search of {escape(report.space.name)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>Search of {escape(report.space.name)}</h1>"
        + _table("", (), _facts(data))
        + _table("Found", ("", "found", "limit"), cost_rows(data))
        + f'<div class="wide">{subnet_svg(report.space, report.chosen)}</div>'
        + _table("Latency", (*devices, "limit", "judged on"), latency_rows(data["best"]["latencies"]))
        + "".join(f"<p>{escape(sentence)}</p>\n" for sentence in no_faster_lines(data))
        + f'<h2>All that was evaluated</h2><div class="wide">{_scatter_svg(report)}</div>'
        + _table("Finalists", ("accuracy", *devices, "limits"), finalists)
        + _table("Scored in the precision that ships", ("subnet", "accuracy"), _scored(data, count))
        + _table("Front", ("subnet", "precision", "accuracy", *devices[1:]), _front(data, count))
        + _table("Generations", ("generation", "subnets", "left early", "best so far", "median"), _generations(data["history"]))
        + '<p class="note">Left early: subnets that could not become parents any more; their accuracy is not known. An accuracy is '
        "given with its standard error. MACs are counted as in papers, without the relative position, unless it is named.</p>"
        "</body></html>\n"
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _facts(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """When and with what the search was made; what is not known is left out."""
    images, dropped = data["images"]["count"], data["dropped"]
    yield "date", str(data["created"])
    if data.get("command"):
        yield "command", str(data["command"])
    yield "run", str(data["run"])
    if data.get("data"):
        searched = f", {images:,} search images" if images is not None else ""
        yield "data set", f"{data_title(data['data'])}{searched}"
    yield "growtas", str(data["growtas"])
    early = f", {dropped} left early" if dropped else ""
    yield "evaluated", f"{data['evaluated']} subnets{early}, {data['reused']} from the journal, in {data['seconds']:.1f} s"


def _accuracies(subnet: Mapping[str, Any], count: int | None) -> str:
    """All accuracies of a subnet; where it was scored in fp32 alone the bare number."""
    named = accuracies(subnet)
    texts = [f"{format_accuracy(accuracy, count)} in {name}" for name, _, accuracy in named]
    return ", ".join(texts) if len(named) > 1 else format_accuracy(subnet["accuracy"], count)


def _scored(data: Mapping[str, Any], count: int | None) -> Iterator[tuple[str, str]]:
    for subnet in data["scored"]:
        yield str(Subnet.from_dict(subnet["subnet"])), _accuracies(subnet, count)


def _front(data: Mapping[str, Any], count: int | None) -> Iterator[tuple[str, ...]]:
    """The points of a front over subnets and precisions; other fronts are drawn alone."""
    for point in data.get("front", {}).get("points", ()):
        name = str(Subnet.from_dict(point["subnet"]))
        for row in latency_rows(point["latencies"]):
            yield name, point["precision"], format_accuracy(point["accuracy"], count), *row[1:3]


def _generations(history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for g in history:
        shares = (
            "all left early" if share is None else f"{100 * share:.2f} %" for share in (g["best_accuracy"], g["median_accuracy"])
        )
        yield str(g["generation"]), str(g["subnets"]), str(g["dropped"]), *shares


def _scatter_svg(report: SearchReport) -> str:
    """Accuracy over cost as an ``<svg>`` element: every evaluated subnet, the front, the limit and the chosen subnet."""
    left, right = report.cost_range
    low, high = min(report.accuracies), max(report.accuracies)

    def place(cost: float, accuracy: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - 16) * (cost - left) / (right - left)
        return x, _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - 16) * (0.04 + 0.92 * (accuracy - low) / ((high - low) or 1))

    def mark(cost: float, accuracy: float, kind: str, radius: float, title: str) -> str:
        x, y = place(cost, accuracy)
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="{kind}"><title>{escape(title)}</title></circle>'

    points = list(zip(report.costs, report.accuracies, strict=True))
    titles = [f"{100 * accuracy:.2f} %, {report.format_cost(cost, with_kind=True)}" for cost, accuracy in points]
    parts = [mark(*point, "point", 2.2, title) for point, title in zip(points, titles, strict=True)]
    line = " ".join("{:.1f},{:.1f}".format(*place(*points[row])) for row in report.front)
    parts.append(f'<polyline points="{line}" class="front-line"/>')
    parts += [mark(*points[row], "front", 3, f"front: {titles[row]}") for row in report.front]
    for ms, accuracy, meets in report.measured:
        title = f"finalist: {100 * accuracy:.2f} %, {format_ms(ms)} (measured)"
        parts.append(mark(ms, accuracy, "within" if meets else "beyond", 5, title))
    if (row := report.chosen_row) is not None:
        parts.append(mark(*points[row], "found", 6, f"found: {titles[row]}"))
    base = _HEIGHT - _BOTTOM
    if report.limit is not None:
        x, inside = place(report.limit, low)[0], left <= report.limit <= right
        if inside:
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="12" y2="{base}" class="limit-line"/>')
        x = min(max(x - 4 if inside else x, _LEFT + 4), _WIDTH - 20)
        anchor = "end" if x > (_LEFT + _WIDTH) / 2 else "start"
        parts.append(f'<text x="{x:.1f}" y="10" text-anchor="{anchor}" class="limit">{escape(report.limit_text)}</text>')
    parts.append(f'<path d="M{_LEFT} 12V{base}H{_WIDTH - 16}" class="axis"/>')
    for cost, anchor in ((min(report.costs), "start"), (max(report.costs), "end")):
        number = f"{cost:.3g}" if report.kind else report.format_cost(cost)  # the axis' label has the unit and the kind
        parts.append(f'<text x="{place(cost, low)[0]:.1f}" y="{base + 18}" text-anchor="{anchor}">{number}</text>')
    for accuracy in dict.fromkeys((low, high)):
        y = place(left, accuracy)[1] + 4
        parts.append(f'<text x="{_LEFT - 6}" y="{y:.1f}" text-anchor="end">{100 * accuracy:.1f} %</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH) / 2}" y="{base + 38}" text-anchor="middle">{escape(report.axis)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="12"><title>accuracy over {escape(report.axis)}</title>{"".join(parts)}</svg>'
    )


def _table(title: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table under its title, which scrolls where the screen is narrower; nothing where it has no rows."""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    if not body:
        return ""
    heading = f"<h2>{title}</h2>" if title else ""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    top = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f'{heading}<div class="wide"><table>{top}<tbody>{body}</tbody></table></div>\n'
