"""What a search writes: JSON without stand-ins for unknown numbers, a page and a picture that can be read."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from PIL import Image

import growtas
from growtas.costs import count_costs
from growtas.runs import create_run
from growtas.search.limits import Limits
from growtas.subnet import Subnet
from growtas.units import parse_count
from tests.report_helpers import MICRO, Page, a10, write_search

COMMAND = "growtas search --name '<b>a & b</b>'"


@pytest.fixture
def write(tmp_path):
    """Writes the results of a search into a folder."""
    run = create_run(tmp_path / "runs", "r", {"space": MICRO.to_dict()})

    def make(*limits, **changes):
        write_search(run, tmp_path / "out", *limits, command=COMMAND, **changes)
        return tmp_path / "out"

    return make


def read(path):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_what_is_not_known_is_null(write):
    folder = write(Limits(max_params=10**9))
    first, second = read(folder / "result.json")["history"]
    assert (first["subnets"], first["dropped"], first["generation_best_accuracy"]) == (20, 0, 0.595)
    assert first["median_accuracy"] == pytest.approx(0.5475)
    assert (second["subnets"], second["dropped"], second["best_accuracy"]) == (20, 20, 0.595)
    assert (second["generation_best_accuracy"], second["median_accuracy"]) == (None, None)
    rows = Page(folder / "report.html").tables["Generations"]
    assert rows[2] == ("2", "20", "20", "59.50 %", "all left early")
    assert not any("0.00 %" in row for row in rows)


def test_an_accuracy_has_its_standard_error_and_macs_are_counted_both_ways(write):
    folder = write()
    result, error = read(folder / "result.json"), math.sqrt(0.595 * 0.405 / 100)
    for document in (result["best"], result["finalists"][0], read(folder / "subnet.json")):
        assert (document["accuracy"], document["accuracy_standard_error"]) == (0.595, pytest.approx(error))
    assert result["best"]["macs"] < result["best"]["macs_with_relative_position"]
    assert "59.5 ± 4.9 %" in (folder / "report.html").read_text()


def test_the_result_holds_every_point_over_each_limited_cost(write):
    result = read(write(Limits(max_params=280_000, max_macs=10**9), (a10(max_ms=5.0), a10())) / "result.json")
    points = result["points"]
    assert points["accuracies"] == [0.5 + index / 200 for index in reversed(range(20))]
    assert (points["chosen"], points["accuracies"][0]) == (0, result["best"]["accuracy"])
    latency, params, macs = points["costs"]
    assert (latency["cost"], latency["unit"], latency["kind"], latency["limit"]) == ("latency of a10", "ms", "modelled", 5.0)
    assert latency["values"][0] == pytest.approx(result["best"]["latencies"][0]["predicted"]["ms"])
    assert (params["cost"], params["unit"], params["limit"]) == ("params", "count", 280_000)
    assert (macs["cost"], macs["limit"]) == ("MACs", 10**9)
    costs = count_costs(MICRO, Subnet.from_dict(result["best"]))
    assert (params["values"][0], macs["values"][0]) == (costs.params, costs.macs)


def test_the_page_says_where_it_comes_from_and_stands_alone(write):
    folder = write(Limits(max_params=10**9))
    page, result = Page(folder / "report.html"), read(folder / "result.json")
    for text in (result["created"], growtas.__version__, COMMAND, "photos <raw>, 100 search images", "Search of <micro> & more"):
        assert text in page.texts
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}, ("html", "head")) in page.tags
    assert not {"script", "img", "iframe", "b"} & {tag for tag, _, _ in page.tags}
    assert "http" not in page.source.replace('xmlns="http://www.w3.org/2000/svg"', "")
    # On a telephone of 390 pixels a table that is wider scrolls inside the page.
    assert re.search(r"\.wide\{overflow-x:auto", page.style)
    assert all("div" in parents for tag, _, parents in page.tags if tag == "table")


def test_the_page_names_a_folder_of_images_by_its_path(write):
    texts = Page(write(data={"name": "folder", "data_dir": "/photos/raw"}) / "report.html").texts
    assert "/photos/raw, 100 search images" in texts
    assert not any(text.startswith("folder") for text in texts)


def contrast(one, other):
    """The contrast of two colours as WCAG 2.1 defines it."""

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_and_marks_stand_out_on_light_and_on_dark_screens(write):
    page = Page(write(Limits(max_params=200_000)) / "report.html")
    light, dark = (dict(re.findall(r"--(\w+):(#\w{6})", block)) for block in re.findall(r":root\{(\s*--.*?)\}", page.style, re.S))
    assert re.search(r"@media \(prefers-color-scheme:dark\)\{:root\{\s*--page", page.style)
    assert light.keys() == dark.keys()
    # The lines of grids and tables, and what a subnet leaves free, say nothing that the text doesn't.
    faint = {"page", "card", "rule", "free"}
    for colours in (light, dark):
        low = {name: colour for name, colour in colours.items() if name not in faint and contrast(colour, colours["page"]) < 4.5}
        assert low == {} or set(low) <= {"axis", "bar"}, low
        assert min(contrast(colours[name], colours["card"]) for name in ("text", "muted", "accent")) >= 4.5
        assert min(contrast(colours[name], colours["page"]) for name in ("axis", "bar")) >= 3
    # No colour is written past the palettes.
    assert not re.search(r"(fill|stroke|color)[:=]\W?#", page.source)


def dots(page):
    return [float(attributes["cx"]) for _, attributes, _ in page.shapes if attributes.get("class") == "point"]


@pytest.mark.parametrize(
    ("limit", "named", "inside"),
    [(280_000, "limit 280K", True), (parse_count("280.25K"), "limit 280.25K", True), (10**9, "limit 1G \u2192", False)],
)
def test_the_points_choose_the_axis_and_the_limit_is_always_there(write, limit, named, inside):
    folder = write(Limits(max_params=limit))
    page = Page(folder / "report.html")
    assert len(dots(page)) == 20
    assert (max(dots(page)) - min(dots(page))) / 400 > 0.6
    assert named in page.texts
    assert any(attributes.get("class") == "limit-line" for _, attributes, _ in page.shapes) is inside
    with Image.open(folder / "search.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    blue = np.flatnonzero((abs(pixels - (33, 102, 172)).sum(-1) < 30).any(0))
    assert (blue.max() - blue.min()) / pixels.shape[1] > 0.3
    red = (abs(pixels - (178, 24, 43)).sum(-1) < 30).sum(0)
    assert (red.max() > 100) == inside  # the line is as high as the picture
    assert red.any()  # the legend


def test_a_dot_is_where_its_numbers_are(write):
    folder = write(Limits(max_params=280_000))
    points, page = read(folder / "result.json")["points"], Page(folder / "report.html")
    drawn = {title: (float(at["cx"]), float(at["cy"])) for tag, at, title in page.shapes if at.get("class") == "point"}
    costs, accuracies = points["costs"][0]["values"], points["accuracies"]
    assert len(drawn) == len(costs) == 20
    places = [drawn[title] for title in (t for _, at, t in page.shapes if at.get("class") == "point")]
    for values, along in ((costs, 0), (accuracies, 1)):
        coordinates = [place[along] for place in places]
        slope, offset = np.polyfit(values, coordinates, 1)
        assert abs(np.polyval((slope, offset), values) - coordinates).max() < 0.2
        assert (slope > 0) == (along == 0)


def test_the_axis_is_what_was_limited(write):
    assert "accuracy over MACs" in Page(write(Limits(max_macs=10**9)) / "report.html").texts
    page = Page(write(Limits(max_params=10**9), (a10(),)) / "report.html")
    assert "accuracy over params" in page.texts
    assert not any("latency of a10, ms" in text for text in page.texts)
    assert "accuracy over weights in fp32" in Page(write(Limits(max_size_bytes=10**9)) / "report.html").texts
    assert "accuracy over latency of a10, ms (modelled)" in Page(write(Limits(), (a10(),)) / "report.html").texts
