"""What a search writes: JSON without stand-ins for unknown numbers, a page and a picture that can be read."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import growtas
from growtas.api.search_results import write_results
from growtas.latency.modelled.profile import load_profile
from growtas.latency.modelled.roofline import RooflineLatency
from growtas.runs import create_run
from growtas.sampling import sample_batch
from growtas.search.evolution import EvolutionResult, GenerationResult
from growtas.search.finalists import choose
from growtas.search.limits import Limits
from growtas.search.scoring import DROPPED
from growtas.search.search import Outcome, Search, Spent
from growtas.search.targets import Target
from growtas.space import PRESETS
from growtas.units import parse_count

MICRO = PRESETS["micro"].replace(name="<micro> & more")
COMMAND = "growtas search --name '<b>a & b</b>'"
VOID = {"meta", "circle", "rect", "line", "path", "polyline"}


@pytest.fixture
def write(tmp_path):
    """Writes a search of 40 subnets in two generations, the second of which was left early as a whole."""
    run = create_run(tmp_path / "runs", "r", {"space": MICRO.to_dict()})

    def make(limits=None, targets=(), data=None, **changes):
        subnets = list(dict.fromkeys(sample_batch(MICRO, 60, np.random.default_rng(0))))[:40]
        scores = [(0.5 + index / 200, -1.0, -index) for index in range(20)] + [(DROPPED, -math.inf, 0)] * 20
        scored = list(zip(subnets, scores, strict=True))
        best_first = sorted(scored, key=lambda item: item[1], reverse=True)
        history = (
            GenerationResult(1, tuple(sorted(scored[:20], key=lambda item: item[1], reverse=True)), best_first[0]),
            GenerationResult(2, tuple(scored[20:]), best_first[0]),
        )
        search = Search(space=MICRO, limits=limits or Limits(), targets=targets, **changes)
        chosen = choose(MICRO, search.limits, targets, best_first, lambda subnets: [])
        outcome = Outcome(chosen=chosen, result=EvolutionResult(tuple(best_first), history), spent=Spent())
        record = {
            "run": "runs/r", "data": data or {"name": "photos <raw>"}, "command": COMMAND, "checkpoint_sha256": "c", "device": None,
            "devices": [], "limits": {**vars(search.limits), "max_latency_ms": None}, "evaluated": 20, "dropped": 20, "reused": 0,
            "seconds": 1.0, "images": {"split": "search", "count": 100, "fingerprint": "d"},
        }  # fmt: skip
        write_results(run, tmp_path / "out", search, outcome, record)
        return tmp_path / "out"

    return make


def read(path):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


class Page(HTMLParser):
    """The tags of a page, each of which must be closed in its turn, with the text and the classes in them."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.texts, self.source = [], [], [], path.read_text()
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.style = re.search(r"<style>(.*)</style>", self.source)[1]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_what_is_not_known_is_null(write):
    folder = write(Limits(max_params=10**9))
    first, second = read(folder / "result.json")["history"]
    assert (first["subnets"], first["dropped"], first["generation_best_accuracy"]) == (20, 0, 0.595)
    assert first["median_accuracy"] == pytest.approx(0.5475)
    assert (second["subnets"], second["dropped"], second["best_accuracy"]) == (20, 20, 0.595)
    assert (second["generation_best_accuracy"], second["median_accuracy"]) == (None, None)
    rows = re.findall(r"<tr>(.*?)</tr>", (folder / "report.html").read_text())
    assert "<td>2</td><td>20</td><td>20</td><td>59.50 %</td><td>all left early</td>" in rows
    assert not any("<td>0.00 %</td>" in row for row in rows)


def test_an_accuracy_has_its_standard_error_and_macs_are_counted_both_ways(write):
    folder = write()
    result, error = read(folder / "result.json"), math.sqrt(0.595 * 0.405 / 100)
    for document in (result["best"], result["finalists"][0], read(folder / "subnet.json")):
        assert (document["accuracy"], document["accuracy_standard_error"]) == (0.595, pytest.approx(error))
    assert result["best"]["macs"] < result["best"]["macs_with_relative_position"]
    assert "59.5 ± 4.9 %" in (folder / "report.html").read_text()


def test_the_page_says_where_it_comes_from_and_stands_alone(write):
    folder = write(Limits(max_params=10**9))
    page, result = Page(folder / "report.html"), read(folder / "result.json")
    for text in (result["created"], growtas.__version__, COMMAND, "photos <raw>, 100 search images", "Search of <micro> & more"):
        assert text in page.texts
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}, ("html", "head")) in page.tags
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _, _ in page.tags}
    assert "http" not in page.source.replace('xmlns="http://www.w3.org/2000/svg"', "")
    # On a telephone of 390 pixels whatever is wider scrolls inside the page.
    assert re.search(r"\.wide\{overflow-x:auto\}", page.style)
    assert all("div" in parents for tag, _, parents in page.tags if tag in ("table", "svg"))


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


def test_text_and_dots_stand_out_on_light_and_on_dark_screens(write):
    page = Page(write(Limits(max_params=200_000)) / "report.html")
    light, dark = (dict(re.findall(r"--(\w+):(#\w{6})", block)) for block in re.findall(r":root\{(--.*?)\}", page.style, re.DOTALL))
    assert re.search(r"@media \(prefers-color-scheme:dark\)\{:root\{--page", page.style)
    assert light.keys() == dark.keys()
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", page.style)
    used = {
        (name, prop): re.search(rf"(?:^|;){prop}:var\(--(\w+)\)", body)[1]
        for selectors, body in rules
        for name in selectors.split(",")
        for prop in ("color", "fill", "stroke")
        if re.search(rf"(?:^|;){prop}:var\(--(\w+)\)", body)
    }
    texts = {colour for (name, prop), colour in used.items() if prop == "color" or "text" in name}
    marks = {
        used[f".{attrs['class']}", prop]
        for tag, attrs, _ in page.tags
        if tag in VOID and "class" in attrs and attrs["class"] != "box"
        for prop in ("fill", "stroke")
        if (f".{attrs['class']}", prop) in used
    }
    assert {"text", "muted", "limit"} <= texts
    assert {"point", "front", "found", "limit", "bar", "head"} <= marks
    for colours in (light, dark):
        assert min(contrast(colours[name], colours["page"]) for name in texts) >= 4.5
        assert contrast(colours["text"], colours["box"]) >= 4.5
        assert min(contrast(colours[name], colours["page"]) for name in marks) >= 3
        assert min(contrast(colours[name], colours["box"]) for name in ("bar", "head")) >= 3
    # No colour is written past the palettes.
    assert not re.search(r"(fill|stroke|color)[:=]\W?#", page.source)


def dots(page):
    return [float(attrs["cx"]) for _, attrs, _ in page.tags if attrs.get("class") == "point"]


@pytest.mark.parametrize(
    ("limit", "named", "inside"),
    [(280_000, "limit 280K", True), (parse_count("280.25K"), "limit 280.25K", True), (10**9, "limit 1G \u2192", False)],
)
def test_the_points_choose_the_axis_and_the_limit_is_always_there(write, limit, named, inside):
    folder = write(Limits(max_params=limit))
    page = Page(folder / "report.html")
    assert (max(dots(page)) - min(dots(page))) / 720 > 0.6
    assert named in page.texts
    assert any(attrs.get("class") == "limit-line" for _, attrs, _ in page.tags) is inside
    with Image.open(folder / "search.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    blue = np.flatnonzero((abs(pixels - (33, 102, 172)).sum(-1) < 30).any(0))
    assert (blue.max() - blue.min()) / pixels.shape[1] > 0.3
    red = (abs(pixels - (178, 24, 43)).sum(-1) < 30).sum(0)
    assert (red.max() > 100) == inside  # the line is as high as the picture
    assert red.any()  # the legend


def test_the_axis_is_what_was_limited(write):
    a10 = Target(device="a10", estimator=RooflineLatency(profile=load_profile("a10"), space=MICRO))
    assert "accuracy over MACs" in Page(write(Limits(max_macs=10**9)) / "report.html").texts
    assert "accuracy over params" in Page(write(Limits(max_params=10**9), (a10,)) / "report.html").texts
    assert "accuracy over weights in fp32" in Page(write(Limits(max_size_bytes=10**9)) / "report.html").texts
    assert "accuracy over latency of a10, ms (modelled)" in Page(write(targets=(a10,)) / "report.html").texts
