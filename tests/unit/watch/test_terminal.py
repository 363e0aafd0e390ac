"""Curves in a terminal: the dots are read back from the characters and compared with the values."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growtas.watch.chart import Chart, thin
from growtas.watch.metrics import Series
from growtas.watch.terminal import draw

# The dots of a braille character by the Unicode standard: 1 to 3 and 7 on the left, 4 to 6 and 8 on the right, from the top.
DOT = {1: (0, 0), 2: (0, 1), 3: (0, 2), 4: (1, 0), 5: (1, 1), 6: (1, 2), 7: (0, 3), 8: (1, 3)}


def series(*values, label="x", first=1):
    return Series(label, tuple(range(first, first + len(values))), tuple(values))


def chart(*curves, **more):
    return Chart("title", curves, lambda value: f"{value:.3g}", **more)


def texts(drawn):
    return drawn.plain.split("\n")


def rows(lines):
    """The rows of the drawing, from the axis on."""
    return [text.partition("┤" if "┤" in text else "│")[2] for text in texts(lines)[1:-2]]


def dots(lines):
    """(column, row) of all braille dots, in dots from the top left of the drawing."""
    return {
        (2 * x + DOT[number][0], 4 * y + DOT[number][1])
        for y, row in enumerate(rows(lines))
        for x, char in enumerate(row)
        if 0x2800 <= ord(char) <= 0x28FF
        for number in DOT
        if (ord(char) - 0x2800) >> (number - 1) & 1
    }


def size(drawn):
    """Columns and rows of the drawing."""
    return len(re.search(r"[\u2514+]([\u2500\u252c\u253c\u2534]+)", texts(drawn)[-2])[1]), len(rows(drawn))


def test_a_straight_line():
    drawn = draw(chart(series(*range(11))), 80, 11)
    columns, height = size(drawn)
    assert height == 11
    # The axis goes from 0 to 10, so that the line is the diagonal between the middles of the corners.
    assert texts(drawn)[1].startswith("10\u2524")
    assert texts(drawn)[-3].startswith(" 0\u2524")
    found = dots(drawn)
    for x, y in found:
        assert abs((y - 1.5) / (4 * (height - 1)) - (1 - (x - 0.5) / (2 * (columns - 1)))) < 0.08
    assert max(x for x, _ in found) - min(x for x, _ in found) >= 2 * (columns - 1) - 1


def test_a_peak_is_where_it_belongs():
    drawn = draw(chart(series(0, 0, 10, 0, 0)), 60, 11)
    found = dots(drawn)
    top = [x // 2 for x, y in found if y // 4 == 0]
    assert all(abs(x - size(drawn)[0] / 2) <= 3 for x in top)
    assert top


def test_ticks_stand_beside_their_values():
    drawn = draw(chart(series(0, 10, 4)), 80, 11)
    ticks = {float(text.partition("\u2524")[0]): row for row, text in enumerate(texts(drawn)[1:-2]) if "\u2524" in text}
    assert len(ticks) >= 3
    steps = {a - b for a, b in zip(sorted(ticks.values())[1:], sorted(ticks.values()), strict=False)}
    assert len(steps) == 1
    # The last point is at 4: its row lies where the ticks say.
    last = max(dots(drawn))
    low, high = min(ticks), max(ticks)
    expected = ticks[high] + (high - 4) / (high - low) * (ticks[low] - ticks[high])
    assert abs(last[1] // 4 - expected) <= 1


def test_a_value_that_is_not_finite_leaves_a_hole():
    whole = draw(chart(series(1.0, 1.0, 1.0, 1.0, 1.0, 2.0)), 80, 9)
    holed = draw(chart(series(1.0, 1.0, math.nan, 1.0, 1.0, 2.0)), 80, 9)
    columns = size(whole)[0]
    missing = {x // 2 for x, _ in dots(whole)} - {x // 2 for x, _ in dots(holed)}
    assert missing
    assert abs(min(missing) - 0.2 * columns) <= 2
    assert abs(max(missing) - 0.6 * columns) <= 2
    assert len(missing) == max(missing) - min(missing) + 1


def test_a_point_alone_is_a_full_mark():
    assert sum(row.count("\u25cf") for row in rows(draw(chart(series(1.0)), 80, 7))) == 1
    assert sum(row.count("\u25cf") for row in rows(draw(chart(series(1.0, math.nan, 2.0)), 80, 7))) == 2


def test_nothing_to_draw():
    assert texts(draw(chart(series(math.nan, math.nan)), 80, 9)) == ["title", "nothing measured yet"]
    assert texts(draw(chart(), 80, 9)) == ["title", "nothing measured yet"]


def test_boundaries_lie_half_an_epoch_before():
    drawn = draw(chart(series(*[1.0] * 10, 2.0), boundaries=[(6, "stage 2"), (1, "stage 1"), (99, "stage 9")]), 80, 9)
    columns = {x for row in rows(drawn) for x, char in enumerate(row) if char == "\u250a"}
    assert len(columns) == 1
    assert abs(columns.pop() - 4.5 / 10 * size(drawn)[0]) <= 1
    assert texts(drawn)[0] == "title   stage 2 from epoch 6"


def test_labels_keep_the_curves_order_and_a_row_each():
    curves = [series(0.0, 1.0, label="low"), series(0.0, 1.001, label="high"), series(0.0, 1.0005, label="mid")]
    lines = texts(draw(chart(*curves), 80, 9))
    at = {name: next(row for row, text in enumerate(lines) if f" {name} " in text) for name in ("high", "mid", "low")}
    assert at["high"] < at["mid"] < at["low"]


def test_many_epochs_are_averaged():
    long = series(*[float(epoch % 2) for epoch in range(600)], label="noise")
    short = thin(long, 100)
    assert len(short.epochs) == 100
    assert set(short.values) == {0.5}
    assert (short.epochs[0], short.epochs[-1]) == (4, 598)
    assert thin(short, 100) is short
    spiky = Series("x", (1, 2, 3, 4), (math.nan, 2.0, math.nan, math.nan))
    assert thin(spiky, 2).values[0] == 2.0
    assert math.isnan(thin(spiky, 2).values[1])


def test_percent():
    lines = texts(draw(chart(series(0.0, 0.98), percent=True), 80, 11))
    assert lines[1].startswith("100%\u2524")
    assert lines[-3].startswith("  0%\u2524")


@settings(deadline=None)  # the library is loaded with the first drawing
@given(
    values=st.lists(
        st.lists(st.one_of(st.floats(-1e12, 1e12), st.just(math.nan)), min_size=1, max_size=40), min_size=1, max_size=6
    ),
    width=st.integers(40, 140),
    height=st.integers(3, 15),
    plain=st.booleans(),
    boundary=st.integers(1, 40),
)
def test_never_wider_than_asked_for(values, width, height, plain, boundary):
    drawn = chart(
        *(series(*each, label=f"A{index} largest") for index, each in enumerate(values)), boundaries=[(boundary, "stage 2")]
    )
    lines = texts(draw(drawn, width, height, plain=plain))
    assert all(len(text) <= width for text in lines)
    assert len(lines) <= height + 3
    assert not plain or all(text.isascii() for text in lines)


@pytest.mark.parametrize("value", [0.0, 1e-300, -1e-9, 1e300, 5, -3.2])
def test_a_constant_curve(value):
    lines = draw(chart(series(value, value, value)), 80, 9)
    assert len({y for _, y in dots(lines)}) == 1
