"""Modelled is never shown as measured: every latency in tables, JSON and reports says which it is."""

from __future__ import annotations

import json
import re
import zlib

import pytest
import yaml

from tests.export_helpers import make_run
from tests.search_helpers import fake_ms

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


def falsely_measured(value, timed, path=""):
    """Places in a JSON document that call a number measured which was never timed. What was judged has its margin on top."""
    if isinstance(value, dict):
        number = value.get("ms", value.get("p50_ms"))
        if (
            value.get("kind") == "measured"
            and number is not None
            and not path.endswith(".judged")
            and not near(number, timed, 1e-6)
        ):
            yield path
        for key, item in value.items():
            yield from falsely_measured(item, timed, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from falsely_measured(item, timed, f"{path}[{index}]")


def falsely_measured_lines(text, timed):
    """Lines with a latency right before ``(measured)`` that was never timed, as far as three digits tell."""
    scale = {"ms": 1.0, "us": 1e-3}
    for line in text.splitlines():
        for number, unit in re.findall(r"(\d[\d.]*) (ms|us)(?: \(p50\))? \(measured\)", line):
            if not near(float(number) * scale[unit], timed, 6e-3):
                yield line


def near(number, timed, tolerance):
    return any(abs(number - known) <= tolerance * known for known in timed)


def test_the_walk_for_false_kinds_finds_them():
    assert list(falsely_measured({"a": [{"kind": "measured", "ms": 1.0}, {"kind": "modelled", "ms": 2.0}]}, {1.0})) == []
    assert list(falsely_measured({"a": [{"kind": "measured", "ms": 2.0}]}, {1.0})) == [".a[0]"]
    assert list(falsely_measured_lines("1.23 ms (measured) 2 us (modelled)\n4 us (measured)", {1.234})) == ["4 us (measured)"]


@pytest.fixture
def timed(monkeypatch, stopwatch):
    """Milliseconds that were timed: none that a smooth model would predict."""
    known = set()

    def crooked_ms(subnet):
        ms = fake_ms(subnet) * (1 + 0.2 * (zlib.crc32(repr(subnet).encode()) % 1000) / 1000)
        known.add(ms)
        return ms

    monkeypatch.setattr("tests.integration.conftest.fake_ms", crooked_ms)
    return known


def test_every_latency_that_is_printed_or_written_says_its_kind(tmp_path, growtas, monkeypatch, timed, no_probe):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GROWTAS_PROFILES", str(tmp_path / "profiles"))
    run = make_run(tmp_path / "runs")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(run.space.to_dict()))
    cheap = ("--generations", "2", "--population", "4", "--limit-images", "20")
    rounds = ("--batch", "1", "--rounds", "1", "--seconds", "0.02")
    commands = [
        ("search", "--device", "a10:5ms", "--device", "cpu:900ms", "--objective", "pareto", *cheap),
        ("search", "--device", "a10:5ms", "--device", "cpu:900ms", *cheap),
        ("search", "--replay", "--device", "cpu:900ms"),
        ("devices",),
        ("export", "--format", "onnx", "--images", "20"),
        ("bench", *rounds),
        ("profile", "--device", "cpu", "--space", "tiny.yaml", "--samples", "8", "--held-out", "4", "--repeats", "2"),
        ("devices",),
        ("search", "--device", "cpu:900ms", "--out", "runs/tiny/search-on-profile", *cheap),
        ("search", "--replay", "--device", "a10:5ms", "--device", "cpu:900ms", "--out", "runs/tiny/search-on-profile"),
    ]
    seen = 0
    for command in commands:
        for form in ((), ("--json",)):
            code, out, err = growtas(*command, *form)
            assert code == 0, err
            # What the bench times, it times in earnest.
            known = None if command[0] == "bench" else timed
            if form:
                assert list(untold(json.loads(out))) == [], command
                assert known is None or list(falsely_measured(json.loads(out), known)) == [], command
            else:
                assert list(untold_lines(out + err)) == [], command
                assert known is None or list(falsely_measured_lines(out + err, known)) == [], command
            if "search-on-profile" in command[-1]:
                assert "latency model for pruning: the profile of tiny" in err
        for path in [*tmp_path.glob("runs/**/*.json*"), *tmp_path.glob("profiles/*.json")]:
            if path.name in ("recipe.json", "metrics.jsonl"):
                continue
            text = path.read_text()
            documents = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
            assert list(untold(documents)) == [], path
            if path.parent.name != "bench":
                assert list(falsely_measured(documents, timed)) == [], path
            seen += '_ms"' in text or '"ms"' in text
        for path in tmp_path.glob("runs/**/*.html"):
            text = re.sub(r"</(tr|text|title)>", "\n", path.read_text())
            assert _TIME.search(text)
            assert list(untold_lines(text)) == [], path
            assert list(falsely_measured_lines(text, timed)) == [], path
    assert seen > 10
    assert len(timed) > 10
