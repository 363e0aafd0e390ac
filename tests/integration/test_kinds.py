"""Modelled is never shown as measured: every latency in tables, JSON and reports says which it is."""

from __future__ import annotations

import json
import re

from tests.export_helpers import make_run

KINDS = ("measured", "modelled")
_TIME = re.compile(r"(?<![\w.])\d[\d.]* (ms|us)\b")
_NO_LATENCY = re.compile(r"(max_.*|limit|load)_ms")


def untold(value, path="", told=False):
    """Places in a JSON document that hold a latency without saying its kind: beside it, or in what encloses it."""
    if isinstance(value, dict):
        told = told or value.get("kind") in KINDS or any(isinstance(v, dict) and v.get("kind") in KINDS for v in value.values())
        for key, item in value.items():
            place = f"{path}.{key}"
            is_latency = (key == "ms" or key.endswith("_ms")) and not _NO_LATENCY.fullmatch(key) and key != "measured_ms"
            if is_latency and item is not None and not told:
                yield place
            yield from untold(item, place, told)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from untold(item, f"{path}[{index}]", told)


def untold_lines(text):
    """Lines with a latency that say neither its kind nor that it is a limit; and table headings in ms without a column for it."""
    for line in text.splitlines():
        if _TIME.search(line) and not any(word in line for word in (*KINDS, "at most", "limit")):
            yield line
        if re.search(r"\b(p50|p95|latency) ms\b", line) and "kind" not in line:
            yield line


def test_the_walk_itself_finds_what_is_untold():
    assert list(untold({"a": [{"ms": 1.0}], "load_ms": 2})) == [".a[0].ms"]
    assert list(untold({"kind": "measured", "a": {"p50_ms": 1.0}})) == []
    assert list(untold({"kind": "guessed", "interval_ms": [1.0]})) == [".interval_ms"]
    assert list(untold_lines("a 4 ms\nb 4 ms (measured)\nat most 4 ms\np50 ms  images/s")) == ["a 4 ms", "p50 ms  images/s"]


def test_every_latency_that_is_printed_or_written_says_its_kind(tmp_path, growtas, monkeypatch, stopwatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs")
    cheap = ("--generations", "2", "--population", "4", "--limit-images", "20")
    timed = ("--batch", "1", "--rounds", "1", "--seconds", "0.02")
    commands = [
        ("search", "--device", "a10:5ms", "--device", "cpu:900ms", "--objective", "pareto", *cheap),
        ("search", "--device", "a10:5ms", "--device", "cpu:900ms", *cheap),
        ("search", "--replay", "--device", "cpu:900ms"),
        ("devices",),
        ("export", "--format", "onnx"),
        ("bench", *timed),
    ]
    seen = 0
    for command in commands:
        for form in ((), ("--json",)):
            code, out, err = growtas(*command, *form)
            assert code == 0, err
            if form:
                assert list(untold(json.loads(out))) == [], command
            else:
                assert list(untold_lines(out + err)) == [], command
        for path in tmp_path.glob("runs/**/*.json*"):
            if path.name in ("recipe.json", "metrics.jsonl"):
                continue
            text = path.read_text()
            documents = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
            assert list(untold(documents)) == [], path
            seen += '_ms"' in text or '"ms"' in text
        for path in tmp_path.glob("runs/**/*.html"):
            assert _TIME.search(path.read_text())
            assert list(untold_lines(re.sub(r"</(tr|text|title)>", "\n", path.read_text()))) == [], path
    assert seen > 10
