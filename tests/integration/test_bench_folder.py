"""``growtas bench`` without names takes all that was exported, whatever it is fed and whether it runs here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from growtas.export.artifact import manifest_path
from growtas.export.pipeline.options import ExportOptions
from growtas.export.pipeline.run import export_subnet
from growtas.runs import Run
from tests.export_helpers import Cli, add_search, make_run

QUICK = ("--no-roofline", "--seconds", "0.02", "--rounds", "1", "--threads", "1", "--batch", "1,2")


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(monkeypatch, capsys)


@pytest.fixture
def run(tmp_path: Path, no_probe: None) -> Run:
    """A run with a searched subnet."""
    run = make_run(tmp_path / "runs")
    add_search(run)
    return run


@pytest.mark.parametrize("resize", [False, True])
def test_an_export_that_takes_pixels_is_measured_with_the_others(cli: Cli, run: Run, resize: bool) -> None:
    export_subnet(run, ExportOptions(formats=("onnx",), preprocess=True, resize=resize, softmax=True))
    code, out, err = cli("bench", *QUICK)
    assert code == 0, err
    assert "inputs differ" in out
    assert "tiny-subnet.pixels.onnx 16x16x3 uint8" in out
    fed = "16x16x3 uint8 (NHWC, its height and width are free)" if resize else "16x16x3 uint8 (NHWC)"
    assert f"tiny-subnet.pixels.onnx: measured on images {fed}" in " ".join(err.split())
    report = json.loads((run.path / "bench" / "bench.json").read_text())
    by_file = {artifact["file"]: artifact for artifact in report["artifacts"]}
    assert set(by_file) == {f"tiny-subnet.{end}" for end in ("onnx", "pixels.onnx", "safetensors")}
    for artifact in by_file.values():
        assert [result["batch"] for result in artifact["results"]] == [1, 2]
    pixels = by_file["tiny-subnet.pixels.onnx"]
    assert (pixels["image_shape"], pixels["image_layout"], pixels["any_image_size"]) == ([16, 16, 3], "NHWC", resize)


def test_an_artifact_that_does_not_run_costs_the_others_nothing(cli: Cli, run: Run) -> None:
    export_subnet(run, ExportOptions(formats=("onnx",)))
    broken = run.path / "export" / "tiny-subnet.onnx"
    broken.write_bytes(broken.read_bytes()[:-64])
    manifest_path(broken).unlink()
    code, out, err = cli("bench", *QUICK, "--baseline", "tiny-subnet.onnx", "--csv", "all.csv")
    assert code == 0, err
    assert "tiny-subnet.onnx: not runnable here (" in out
    assert "not a readable .onnx file (it is truncated)" in out
    assert "no ratios: the baseline tiny-subnet.onnx can't be measured" in " ".join(err.split())
    assert "x baseline" not in out
    assert any(line.startswith("tiny-subnet.safetensors ") and "measured" in line for line in out.splitlines())
    report = json.loads((run.path / "bench" / "bench.json").read_text())
    assert [artifact["runnable"] for artifact in report["artifacts"]] == [False, True]
    assert "not a readable .onnx file" in report["settings"]["no_baseline_because"]
    assert "not a readable .onnx file" in Path("all.csv").read_text()
    # Alone it is the command's error.
    code, sentence = cli.fails("bench", broken, *QUICK)
    assert code == 2
    assert "not a readable .onnx file (it is truncated)" in sentence
