"""What a precision gains over fp32, with sessions that take known times."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from growtas.cli.bench_view import print_report
from growtas.export.artifact import Artifact, read_manifest, write_manifest
from growtas.export.benchmark import entries, precision_gain
from growtas.export.benchmark import run as bench_module
from growtas.export.benchmark.precision_gain import measured_gains
from growtas.export.benchmark.run import BenchOptions
from growtas.export.benchmark.run import bench as run_bench
from tests.export_helpers import SUBNET, TINY, Cli, add_search, make_run
from tests.fake_runtime import FakeSession

MANIFEST: dict[str, Any] = {"executed": True, "subnet": SUBNET.to_dict(), "source": {"checkpoint_sha256": "c"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, precision in (("a.onnx", "fp32"), ("a.int8.onnx", "int8"), ("a.xml", "int8")):
        (tmp_path / name).write_bytes(name.encode())
        (tmp_path / "a.bin").write_bytes(b"weights")
        write_manifest(tmp_path / name, {**MANIFEST, "precision": precision})
    return tmp_path


def artifacts(folder: Path, *names: str) -> list[Artifact]:
    return [Artifact(path=folder / name, manifest=manifest) for name in names if (manifest := read_manifest(folder / name))]


def sessions(times: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Sessions that take the milliseconds of their file's precision; lists what was opened."""
    opened: list[tuple[str, str]] = []

    def open_session(path: Path, *, runtime: str) -> FakeSession:
        opened.append((path.name, runtime))
        return FakeSession(lambda images: images, (times["int8" if ".int8." in path.name else "fp32"],))

    monkeypatch.setattr(precision_gain, "open_session", open_session)
    return opened


def test_an_export_is_timed_in_the_runtime_that_it_is_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = sessions({"fp32": 0.98, "int8": 1.02}, monkeypatch)
    (gain,) = measured_gains(artifacts(folder, "a.onnx", "a.int8.onnx"))
    assert gain == {
        "file": "a.int8.onnx", "runtime": "onnxruntime", "precision": "int8", "ms": 1.02, "fp32_ms": 0.98, "kind": "measured",
        "no_faster": "int8 is no faster than fp32 here in onnxruntime: 1.02 ms and 0.98 ms (both measured)",
    }  # fmt: skip
    (gain,) = measured_gains(artifacts(folder, "a.onnx", "a.int8.onnx", "a.xml"))
    assert gain["no_faster"].startswith("int8 is no faster than fp32 here in openvino: ")
    assert opened == [(name, runtime) for runtime in ("onnxruntime", "openvino") for name in ("a.int8.onnx", "a.onnx")]
    sessions({"fp32": 0.98, "int8": 0.5}, monkeypatch)
    (gain,) = measured_gains(artifacts(folder, "a.onnx", "a.int8.onnx"))
    assert (gain["ms"], gain["no_faster"]) == (0.5, None)
    assert measured_gains(artifacts(folder, "a.onnx")) == []


@pytest.mark.parametrize(("ms", "slower"), [(1.2, True), (0.6, False)])
def test_export_says_where_int8_is_no_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, ms: float, slower: bool
) -> None:
    run = make_run(tmp_path / "runs", space=TINY)
    add_search(run)
    sessions({"fp32": 1.0, "int8": ms}, monkeypatch)
    loose = ("--images", "16", "--calibration-images", "8", "--max-accuracy-drop", "100", "--min-agreement", "0")
    code, out, err = Cli(monkeypatch, capsys)("export", run.path, "--precision", "int8", *loose)
    assert code == 0, err
    assert ("int8 is no faster than fp32 here in onnxruntime: 1.2 ms and 1 ms (both measured)" in err) is slower
    assert "no faster" not in out


@pytest.mark.parametrize(("times", "slower"), [((1.0, 1.1), True), ((1.0, 0.7), False)])
def test_bench_says_where_int8_is_no_faster(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], times: tuple[float, float], slower: bool
) -> None:
    monkeypatch.setattr(bench_module, "probe", lambda path, **options: {"load_ms": 1.0, "peak_rss_bytes": 2})
    made = {name: FakeSession(lambda images: images, (ms,)) for name, ms in zip(("a.onnx", "a.int8.onnx"), times, strict=True)}
    monkeypatch.setattr(entries, "open_subject", lambda subject, **options: made[subject.path.name])
    options = BenchOptions(batches=(1, 3), threads=1, rounds=2, seconds=0.02, roofline=False)
    report = run_bench([folder / name for name in made], options)
    fp32, int8 = report.to_dict()["artifacts"]
    assert [result["fp32"] for result in fp32["results"]] == [None, None]
    for result in int8["results"]:
        assert result["fp32"] == {
            "artifact": "a.onnx",
            "p50_ms": times[0],
            "ratio": {
                "median": pytest.approx(times[1]),
                "low": pytest.approx(times[1]),
                "high": pytest.approx(times[1]),
                "rounds": 2,
            },
        }
    print_report(report)
    said = re.findall(
        r"int8 is no faster than fp32 here in fake, batch (\d): 1\.1 ms and 1 ms \(both measured\)", capsys.readouterr().out
    )
    assert said == (["1", "3"] if slower else [])
    # Of another network there is nothing to compare with.
    write_manifest(folder / "a.onnx", {**MANIFEST, "precision": "fp32", "source": {"checkpoint_sha256": "d"}})
    other = run_bench([folder / name for name in made], options).to_dict()["artifacts"][1]
    assert [result["fp32"] for result in other["results"]] == [None, None]
