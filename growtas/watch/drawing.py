"""Drawings for pages as SVG: curves, a search's points, bars, and a subnet block by block.

A drawing is 400 units wide, which a phone shows at about its own size. The classes of ``page.html`` give its colours.
Screen readers read its title and its description.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.watch.chart import Chart, epoch_ticks, segments, thin, ticks_within
from growtas.watch.diagram import ends_of
from growtas.watch.search_report import CostPlane

WIDTH = 400
_CHARACTER, _BOLD, _LINE = 6.9, 7.8, 14.0
"""Approximate width of a character and of a bold character, and height of a line, in a wide font."""
_MOST_POINTS = 200
"""Largest number of points of a curve; longer curves are averaged."""


def curves(chart: Chart) -> Markup:
    """Draws the curves of a chart over the epochs, with the name and last value of each at its end; the chart must have curves."""
    drawn, (first, last), ticks = chart.drawn, chart.epochs, chart.ticks(4)
    labels = {series.label: chart.label(series) for series in drawn}
    right = min(max(map(len, labels.values())) * _BOLD + 8, 190)
    frame = _Frame((first, last), (ticks[0], ticks[-1]), right=right, top=26)
    parts = [
        *frame.y_axis([(tick, chart.tick_text(tick)) for tick in ticks]),
        *frame.x_axis([(epoch, str(epoch)) for epoch in epoch_ticks(first, last, 5)], "epoch"),
    ]
    boundaries = [(frame.x(epoch - 0.5), text) for epoch, text in chart.inner_boundaries]
    gaps = [(x, text, following - x) for (x, text), (following, _) in pairwise([*boundaries, (frame.right_edge, "")])]
    fits = all(len(text) * _CHARACTER < gap for _, text, gap in gaps)
    for x, text, gap in gaps:
        parts.append(_tag("line", x1=x, x2=x, y1=frame.top - 8, y2=frame.base, class_="boundary"))
        shown = text if fits else text.rpartition(" ")[2]  # the number alone
        if len(shown) * _CHARACTER < gap:
            parts.append(_tag("text", shown, x=x + 3, y=frame.top - 3, class_="small"))
    ends: list[tuple[float, str, str]] = []
    for index, series in enumerate(drawn):
        # The last of the curves has the first colour, so that the largest subnet looks alike in every chart.
        look = f"c{(len(drawn) - 1 - index) % 6}"
        for points in segments(thin(series, _MOST_POINTS)):
            places = [(frame.x(epoch), frame.y(value)) for epoch, value in points]
            if len(places) == 1:
                parts.append(_tag("circle", cx=places[0][0], cy=places[0][1], r=3, class_=f"dot {look}"))
            else:
                parts.append(_tag("polyline", points=_points(places), class_=f"curve {look}"))
        assert series.last is not None
        ends.append((frame.y(series.last), labels[series.label], look))
    for y, text, look in _apart(ends, frame.top, frame.base):
        parts.append(
            _tag("text", _shortened(text, int((right - 6) / _BOLD)), x=frame.right_edge + 6, y=y + 4, class_=f"label {look}")
        )
    said = [f"Epochs {first} to {last}."] if last > first else [f"Epoch {first}."]
    for series in drawn:
        (start, before), (end, after) = segments(series)[0][0], segments(series)[-1][-1]
        said.append(f"{series.label}: {chart.form(before)} in epoch {start}, {chart.form(after)} in epoch {end}.")
    said += [f"{text} begins with epoch {epoch}." for epoch, text in chart.inner_boundaries]
    return _svg(f"{chart.title}, by epoch", " ".join(said), frame.height, parts)


def scatter(plane: CostPlane) -> Markup:
    """Draws accuracy over a cost: all evaluated subnets, the front, the limit, the measured finalists and the chosen subnet."""
    left, right = plane.cost_range
    low, high = min(plane.accuracies), max(plane.accuracies)
    pad = 0.06 * (high - low) or 0.02
    frame = _Frame((left, right), (low - pad, min(high + pad, 1 + pad / 4)), right=14, top=26, height=270)
    points = list(zip(plane.costs, plane.accuracies, strict=True))
    titles = [f"{100 * accuracy:.2f} %, {plane.format_cost(cost, with_kind=True)}" for cost, accuracy in points]

    def mark(point: tuple[float, float], look: str, radius: float, title: str) -> Markup:
        shape = _tag("title", title)
        return _tag("circle", shape, cx=frame.x(point[0]), cy=frame.y(point[1]), r=radius, class_=look)

    costs = ticks_within(left, right, 4)
    parts = [
        *frame.y_axis([(tick, f"{100 * tick:.10g}%") for tick in ticks_within(*frame.ys, 4)]),
        *frame.x_axis([(cost, plane.tick_text(cost)) for cost in costs], plane.axis),
        *(mark(point, "point", 2.2, title) for point, title in zip(points, titles, strict=True)),
        _tag(
            "polyline",
            points=_points([(frame.x(c), frame.y(a)) for c, a in (points[row] for row in plane.front)]),
            class_="front-line",
        ),
        *(mark(points[row], "front", 3, f"front: {titles[row]}") for row in plane.front),
    ]
    for ms, accuracy, meets in plane.measured:
        title = f"finalist: {100 * accuracy:.2f} %, {plane.format_cost(ms)} (measured)"
        parts.append(mark((ms, accuracy), "within" if meets else "beyond", 5, title))
    if plane.limit is not None:
        x, inside = frame.x(plane.limit), left <= plane.limit <= right
        if inside:
            parts.append(_tag("line", x1=x, x2=x, y1=frame.top - 6, y2=frame.base, class_="limit-line"))
        x = min(max(x, frame.left), frame.right_edge)
        anchor = "end" if x > (frame.left + frame.right_edge) / 2 else "start"
        parts.append(_tag("text", plane.limit_text, x=x, y=frame.top - 11, text_anchor=anchor, class_="limit"))
    said = [f"{len(points)} evaluated subnets with accuracies from {100 * low:.2f} % to {100 * high:.2f} %."]
    said.append(f"The front has {len(plane.front)} of them." + (f" The {plane.limit_text}." if plane.limit is not None else ""))
    if plane.chosen_row is not None:
        x, y = frame.x(points[plane.chosen_row][0]), frame.y(points[plane.chosen_row][1])
        title = f"found: {titles[plane.chosen_row]}"
        parts.append(_tag("path", _tag("title", title), d=_diamond(x, y, 7), class_="found"))
        said.append(f"The subnet that was {title}.")
    return _svg(f"accuracy over {plane.axis}", " ".join(said), frame.height, parts)


@dataclass(frozen=True)
class Bar:
    """A bar with its name above it, its value as text behind it, and the range of its rounds."""

    name: str
    value: float
    text: str
    low: float
    high: float
    look: str = "bar"


def bars(title: str, rows: Sequence[Bar], unit: str) -> Markup:
    """Draws bars from zero, one below the other, with the range over the rounds as a line."""
    most = max(bar.high for bar in rows) or 1.0
    longest = max(len(bar.text) for bar in rows) * _CHARACTER + 14
    scale, parts = (WIDTH - longest) / most, list[Markup]()
    for index, bar in enumerate(rows):
        y = 14 + 40 * index
        parts += [
            _tag("text", _shortened(bar.name, 60), x=0, y=y, class_="name"),
            _tag("rect", x=0, y=y + 6, width=max(bar.value * scale, 1), height=14, rx=2, class_=bar.look),
            _tag("path", d=f"M{bar.low * scale:.1f} {y + 13}H{bar.high * scale:.1f}", class_="range"),
            _tag("text", bar.text, x=bar.high * scale + 8, y=y + 17.5),
        ]
    said = "; ".join(f"{bar.name}: {bar.text}, rounds from {bar.low:.3g} to {bar.high:.3g} {unit}" for bar in rows)
    return _svg(title, f"{said}.", 40 * len(rows), parts)


def subnet_drawing(space: SearchSpace, subnet: Subnet) -> Markup:
    """Draws a row for each block: a dot for each head, and a bar as long as the hidden layer, over the largest of the space."""
    first, last = ends_of(space, subnet)
    widest, heads_gap = space.max_mlp_ratio * space.max_embed_dim, min(12.0, 110 / space.max_num_heads)
    heads_x, bar_x, bar_width, row = 58, 190, 128, 24
    parts = [
        _tag("text", first, x=0, y=12),
        *(
            _tag("text", text, x=x, y=36, class_="small")
            for text, x in (("block", 0), ("heads", heads_x), ("hidden layer (MLP)", bar_x))
        ),
    ]
    places = {block: place for place, block in enumerate(space.blocks_of(subnet.depth))}
    for index in range(space.max_depth):
        y, place = 54 + row * index, places.get(index)
        used = place is not None
        heads = 0 if place is None else subnet.num_heads[place]
        hidden = 0 if place is None else subnet.hidden_dim(place)
        shapes = [
            _tag("text", str(index + 1), x=14, y=y + 4, class_="" if used else "small"),
            *(
                _tag(
                    "circle",
                    cx=heads_x + 5 + heads_gap * head,
                    cy=y,
                    r=min(4.0, heads_gap / 2.4),
                    class_="head" if head < heads else "free",
                )
                for head in range(space.max_num_heads)
            ),
            _tag("rect", x=bar_x, y=y - 7, width=bar_width, height=14, rx=2, class_="free"),
        ]
        if place is not None:
            ratio = subnet.mlp_ratio[place]
            shapes.insert(0, _tag("title", f"block {index + 1}: {heads} heads, mlp_ratio {ratio:g}, hidden layer {hidden}"))
            shapes += [
                _tag("rect", x=bar_x, y=y - 7, width=max(bar_width * hidden / widest, 1), height=14, rx=2, class_="hidden"),
                _tag("text", f"{hidden} ({ratio:g} x)", x=bar_x + bar_width + 8, y=y + 4),
            ]
        else:
            shapes.append(_tag("text", "left out", x=bar_x + bar_width + 8, y=y + 4, class_="small"))
        parts.append(_tag("g", Markup("").join(shapes)))
    height = 54 + row * space.max_depth
    parts.append(_tag("text", last, x=0, y=height + 4))
    said = [f"{first}. "]
    for block, place in places.items():
        heads, ratio, hidden = subnet.num_heads[place], subnet.mlp_ratio[place], subnet.hidden_dim(place)
        said.append(f"Block {block + 1}: {heads} heads, hidden layer {hidden}, {ratio:g} times the width. ")
    return _svg(f"the subnet: {subnet}", "".join([*said, f"{last}."]), height + 12, parts)


@dataclass(frozen=True)
class _Frame:
    """The axes of a drawing, and the positions of values in it."""

    xs: tuple[float, float]
    ys: tuple[float, float]
    right: float
    top: float
    left: float = 48
    height: float = 240

    @property
    def right_edge(self) -> float:
        return WIDTH - self.right

    @property
    def base(self) -> float:
        return self.height - 40

    def x(self, value: float) -> float:
        low, high = self.xs
        return self.left + (self.right_edge - self.left) * ((value - low) / (high - low) if high > low else 0.5)

    def y(self, value: float) -> float:
        low, high = self.ys
        return self.base - (self.base - self.top) * (value - low) / (high - low)

    def y_axis(self, ticks: Iterable[tuple[float, str]]) -> list[Markup]:
        lines = []
        for value, text in ticks:
            y = self.y(value)
            lines.append(_tag("line", x1=self.left, x2=self.right_edge, y1=y, y2=y, class_="grid"))
            lines.append(_tag("text", text, x=self.left - 6, y=y + 4, text_anchor="end", class_="tick"))
        return lines

    def x_axis(self, ticks: Iterable[tuple[float, str]], name: str) -> list[Markup]:
        lines = [_tag("path", d=f"M{self.left} {self.base}H{self.right_edge:.1f}", class_="axis")]
        for value, text in ticks:
            x = self.x(value)
            lines.append(_tag("path", d=f"M{x:.1f} {self.base}v4", class_="axis"))
            lines.append(_tag("text", text, x=x, y=self.base + 17, text_anchor="middle", class_="tick"))
        middle = (self.left + self.right_edge) / 2
        return [*lines, _tag("text", name, x=middle, y=self.base + 34, text_anchor="middle", class_="tick")]


def _apart(labels: list[tuple[float, str, str]], top: float, base: float) -> list[tuple[float, str, str]]:
    """Moves labels vertically so that none covers another; returns them from top to bottom."""
    placed = sorted(labels)
    heights = [y for y, _, _ in placed]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + _LINE)
    limit = max(base, top + _LINE * (len(heights) - 1))
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], limit - _LINE * (len(heights) - 1 - index))
    return [(y, text, look) for y, (_, text, look) in zip(heights, placed, strict=True)]


def _diamond(x: float, y: float, size: float) -> str:
    return f"M{x:.1f} {y - size:.1f}l{size} {size}l{-size} {size}l{-size} {-size}z"


def _points(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}\u2026"


def _svg(title: str, description: str, height: float, parts: Iterable[Markup]) -> Markup:
    name = re.sub(r"\W+", "-", title.lower()).strip("-")
    content = [_tag("title", title, id=f"{name}-title"), _tag("desc", description, id=f"{name}-desc"), *parts]
    return _tag(
        "svg",
        Markup("").join(content),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height:g}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
    )


def _tag(name: str, content: str = "", /, **attributes: str | float) -> Markup:
    """Makes an element; it escapes text and values that are not markup, and rounds numbers."""
    pairs = [
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
        )
        for key, value in attributes.items()
        if value != ""
    ]
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), Markup("").join(pairs), content)
