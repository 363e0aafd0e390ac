"""Curves in a terminal: the dots are read back from the characters and compared with the values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growtas.watch.chart import Chart, draw, thin
from growtas.watch.metrics import Series

# The dots of a braille character by the Unicode standard: 1 to 3 and 7 on the left, 4 to 6 and 8 on the right, from the top.
DOT = {1: (0, 0), 2: (0, 1), 3: (0, 2), 4: (1, 0), 5: (1, 1), 6: (1, 2), 7: (0, 3), 8: (1, 3)}


def series(*values, label="x", first=1):
    return Series(label, tuple(range(first, first + len(values))), tuple(values))


def chart(*curves, **more):
    return Chart("title", curves, lambda value: f"{value:.3g}", **more)


def texts(lines):
    return ["".join(text for text, _ in line) for line in lines]


def rows(lines):
    """The rows of the drawing, from the axis on."""
    return [text.partition("┤" if "┤" in text else "│")[2] for text in texts(lines)[1:-2]]


def dots(lines):
    """(column, row) of all braille dots, in dots from the top left."""
    return {
        (2 * x + DOT[number][0], 4 * y + DOT[number][1])
        for y, row in enumerate(rows(lines))
        for x, char in enumerate(row)
        if 0x2800 <= ord(char) <= 0x28FF
        for number in DOT
        if (ord(char) - 0x2800) >> (number - 1) & 1
    }


def test_a_straight_line():
    lines = draw(chart(series(*range(11))), 80, 11)
    found = dots(lines)
    width, height = max(x for x, _ in found), 4 * len(rows(lines)) - 1
    # The axis goes from 0 to 10, so that the line is the diagonal.
    assert texts(lines)[1].startswith("10 ┤")
    assert texts(lines)[-3].startswith(" 0 ┤")
    assert {x for x, _ in found} == set(range(width + 1))
    assert {(0, height), (width, 0)} <= found
    for x, y in found:
        assert abs(y - height * (1 - x / width)) < 1.5  # a point is rounded to a dot, and so is the line between two


def test_a_peak_is_where_it_belongs():
    found = dots(draw(chart(series(0, 0, 10, 0, 0)), 60, 11))
    width = max(x for x, _ in found)
    top = [x for x, y in found if y == min(y for _, y in found)]
    assert all(abs(x - width / 2) <= 2 for x in top)
    assert min(y for _, y in found) == 0


def test_ticks_stand_beside_their_values():
    lines = draw(chart(series(0, 10, 4)), 80, 11)
    ticks = {float(text.partition("┤")[0]): row for row, text in enumerate(texts(lines)[1:-2]) if "┤" in text}
    assert len(ticks) >= 3
    steps = {a - b for a, b in zip(sorted(ticks.values())[1:], sorted(ticks.values()), strict=False)}
    assert len(steps) == 1
    # The last point is at 4: its row lies where the ticks say.
    last = max(dots(lines))
    low, high = min(ticks), max(ticks)
    expected = ticks[high] + (high - 4) / (high - low) * (ticks[low] - ticks[high])
    assert abs(last[1] // 4 - expected) <= 1


def test_a_value_that_is_not_finite_leaves_a_hole():
    whole = dots(draw(chart(series(1.0, 1.0, 1.0, 1.0, 1.0, 2.0)), 80, 9))
    holed = dots(draw(chart(series(1.0, 1.0, math.nan, 1.0, 1.0, 2.0)), 80, 9))
    width = max(x for x, _ in whole)
    missing = {x for x, _ in whole} - {x for x, _ in holed}
    assert missing == set(range(round(width / 5) + 1, round(3 * width / 5)))


def test_a_point_alone_is_a_full_mark():
    assert sum(row.count("●") for row in rows(draw(chart(series(1.0)), 80, 7))) == 1
    assert sum(row.count("●") for row in rows(draw(chart(series(1.0, math.nan, 2.0)), 80, 7))) == 2


def test_nothing_to_draw():
    assert texts(draw(chart(series(math.nan, math.nan)), 80, 9)) == ["title", "nothing measured yet"]
    assert texts(draw(chart(), 80, 9)) == ["title", "nothing measured yet"]


def test_boundaries_lie_half_an_epoch_before():
    lines = draw(chart(series(*[1.0] * 10, 2.0), boundaries=[(6, "stage 2"), (1, "stage 1"), (99, "stage 9")]), 80, 9)
    found = rows(lines)
    columns = {x for row in found for x, char in enumerate(row) if char == "┊"}
    width = max(x for x, _ in dots(lines)) // 2
    assert len(columns) == 1
    assert abs(columns.pop() - 4.5 / 10 * width) <= 1
    assert "stage 2" in found[0]
    assert not any("stage 1" in row or "stage 9" in row for row in found)


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
    assert "100% ┤" in lines[1]
    assert "0% ┤" in lines[-3]


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
