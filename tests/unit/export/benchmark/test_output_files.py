"""The report as CSV and as a picture."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from growtas.errors import MissingExtra
from growtas.export.benchmark import plot as picture
from growtas.export.benchmark.csv_table import COLUMNS, write_csv
from growtas.export.benchmark.plot import draw_png


def result(batch: int, p50: float, **changes: Any) -> dict[str, Any]:
    measured = {
        "kind": "measured", "p50_ms": p50, "p95_ms": 2 * p50, "p99_ms": 3 * p50, "mean_ms": p50, "cv": 0.05, "samples": 9,
        "batch": batch, "threads": 2, "runtime": "onnxruntime", "runtime_version": "1", "device": "cpu", "precision": "fp32",
        "images_per_second": batch * 1e3 / p50, "p50_ms_of_rounds": [p50 * 0.9, p50 * 1.2], "steady": True, "parts": None,
        "power": None, "roofline": None, "ratio": None, "ratio_per_mac": None,
    }  # fmt: skip
    return {**measured, **changes}


def report() -> dict[str, Any]:
    full = {
        "ratio": {"median": 1.5, "low": 1.25, "high": 1.75, "rounds": 2},
        "ratio_per_mac": 0.75,
        "roofline": {"gemm_share": 0.5, "bandwidth_share": 0.125},
        "power": {"watts": 20.0, "joules_per_image": None},
    }
    common = {"path": None, "precision": "fp32", "not_runnable_because": None, "memory": None}
    return {
        "environment": {"cpu": "a CPU", "threads": 2},
        "artifacts": [
            {**common, "label": "a.onnx", "memory": {"load_ms": 7.5}, "results": [result(1, 2.0, **full), result(8, 1 / 3)]},
            {**common, "label": "a.plan", "results": [], "not_runnable_because": "no GPU, really"},
        ],
    }  # fmt: skip


def test_csv_has_a_line_for_each_artifact_and_batch(tmp_path: Path) -> None:
    write_csv(report(), tmp_path / "b.csv")
    lines = list(csv.DictReader((tmp_path / "b.csv").read_text().splitlines()))
    assert tuple(lines[0]) == COLUMNS
    assert [(line["label"], line["batch"]) for line in lines] == [("a.onnx", "1"), ("a.onnx", "8"), ("a.plan", "")]
    first, second, third = lines
    numbers = ("ratio", "ratio_low", "ratio_high", "ratio_per_mac", "gemm_share", "bandwidth_share", "watts", "load_ms")
    assert [float(first[name]) for name in numbers] == [1.5, 1.25, 1.75, 0.75, 0.5, 0.125, 20.0, 7.5]
    assert first["joules_per_image"] == first["first_run_ms"] == ""
    assert float(second["p50_ms"]) == 1 / 3
    assert second["ratio"] == second["watts"] == ""
    assert (first["kind"], third["kind"], third["p50_ms"]) == ("measured", "", "")
    assert third["not_runnable_because"] == "no GPU, really"


def test_the_picture_shows_each_median_with_the_range_of_its_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: drawn.append(self) or save(self, *args, **options))
    draw_png(report(), tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    bars, lines = drawn[0].axes
    assert [bar.get_width() for bar in bars.patches] == [2.0, 1 / 3]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["a.onnx, batch 1", "a.onnx, batch 8"]
    whiskers = [[point[0] for point in segment] for group in bars.collections for segment in group.get_segments()]
    assert whiskers == [pytest.approx([1.8, 2.4]), pytest.approx([0.3, 0.4])]
    (line,) = lines.lines
    assert list(line.get_xdata()) == [1, 8]
    assert list(line.get_ydata()) == pytest.approx([500.0, 24_000.0])
    assert "measured" in bars.get_xlabel()
    assert "measured" in lines.get_ylabel()


def test_nothing_measured_is_no_error(tmp_path: Path) -> None:
    empty = {**report(), "artifacts": report()["artifacts"][1:]}
    draw_png(empty, tmp_path / "b.png")
    assert (tmp_path / "b.png").is_file()


def test_without_matplotlib_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "is_installed", lambda module: False)
    with pytest.raises(MissingExtra, match=r"matplotlib, which is not installed: pip install 'growtas\[watch\]'"):
        draw_png(report(), tmp_path / "b.png")
