from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from growtas.checkpoint import save_model
from growtas.errors import BuildError, CheckpointError, ConfigError, UsageError
from growtas.export import bench as bench_module
from growtas.export.backends import open_session
from growtas.export.backends.fake import FakeSession
from growtas.export.bench import BenchOptions, bench, check_limit, find_artifacts
from growtas.export.manifest import write_manifest
from growtas.export.probe import probe
from growtas.nn.vit import VisionTransformer
from tests.export_helpers import without_gpu

QUICK = BenchOptions(batches=(1, 3), threads=1, rounds=2, seconds=0.02)


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "probe", lambda path, **options: {"load_ms": 1.0, "peak_rss_bytes": 2, **options})


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_probe: None) -> dict[str, FakeSession]:
    """Two artifacts whose sessions return known times."""
    sessions = {
        "a.onnx": FakeSession(lambda images: images, (1.0, 2.0, 3.0, 4.0)),
        "b.onnx": FakeSession(lambda images: images, (10.0,)),
    }
    for name in sessions:
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.setattr(bench_module, "open_session", lambda path, **options: sessions[path.name])
    return sessions


def paths(folder: Path, *names: str) -> list[Path]:
    return [folder / name for name in names]


def test_every_artifact_is_measured_at_every_batch(tmp_path: Path, fakes: dict[str, FakeSession]) -> None:
    notes: list[str] = []
    report = bench(paths(tmp_path, "a.onnx", "b.onnx"), QUICK, note=notes.append)
    assert [artifact["file"] for artifact in report["artifacts"]] == ["a.onnx", "b.onnx"]
    for artifact in report["artifacts"]:
        assert [result["batch"] for result in artifact["results"]] == [1, 3]
        assert all(result["kind"] == "measured" for result in artifact["results"])
        assert all(len(result["p50_ms_of_rounds"]) == 2 for result in artifact["results"])
        assert artifact["memory"]["batch"] == 3
    slow = report["artifacts"][1]["results"]
    assert [result["p50_ms"] for result in slow] == [10.0, 10.0]
    assert [result["images_per_second"] for result in slow] == [100.0, 300.0]
    assert 1.0 <= report["artifacts"][0]["results"][0]["p50_ms"] <= 4.0
    assert len(notes) >= 2
    assert "a.onnx: no manifest beside it" in notes[0]
    assert all(session.closed for session in fakes.values())


def test_rounds_are_interleaved_and_change_direction(tmp_path: Path, fakes: dict[str, FakeSession]) -> None:
    steps: list[tuple[str, int, int]] = []
    bench(paths(tmp_path, "a.onnx", "b.onnx"), QUICK, step=lambda *step: steps.append(step))
    turns = [what for what, _, _ in steps if "batch" in what]
    first = ["a.onnx, batch 1", "b.onnx, batch 1", "a.onnx, batch 3", "b.onnx, batch 3"]
    second = ["b.onnx, batch 1", "a.onnx, batch 1", "b.onnx, batch 3", "a.onnx, batch 3"]
    assert turns == first + second
    assert [done for _, done, _ in steps] == list(range(10))
    assert {total for _, _, total in steps} == {10}


def test_real_artifacts_run(onnx_file: Path, model: VisionTransformer, tmp_path: Path) -> None:
    shutil.copy(onnx_file, tmp_path / "m.onnx")
    save_model(tmp_path / "m.safetensors", model)
    report = bench(find_artifacts(tmp_path), QUICK)
    runtimes = [result["runtime"] for artifact in report["artifacts"] for result in artifact["results"]]
    assert runtimes == ["onnxruntime"] * 2 + ["torch"] * 2
    for artifact in report["artifacts"]:
        assert artifact["memory"]["peak_rss_bytes"] > artifact["memory"]["rss_imported_bytes"] > 1e7
        assert artifact["memory"]["load_ms"] > 0
        assert all(result["threads"] == 1 for result in artifact["results"])
    # A runtime process that imported torch would hide what ONNX Runtime needs.
    assert report["artifacts"][0]["memory"]["peak_rss_bytes"] < report["artifacts"][1]["memory"]["peak_rss_bytes"] / 2
    assert report["environment"]["threads"] == 1
    assert report["versions"]["onnxruntime"]


@without_gpu
def test_a_plan_without_a_gpu_is_reported_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "m.plan").write_bytes(b"plan")
    write_manifest(tmp_path / "m.plan", {"precision": "fp32", "plan": {"targets": ["sm86"], "activation_memory_bytes": 77}})
    (artifact,) = bench([tmp_path / "m.plan"], QUICK)["artifacts"]
    assert artifact["runnable"] is False
    assert artifact["not_runnable_because"] == "no NVIDIA GPU with a driver on this machine"
    assert (artifact["bytes"], artifact["activation_memory_bytes"], artifact["targets"]) == (4, 77, ["sm86"])
    assert artifact["results"] == []


def test_a_changed_artifact_is_not_even_loaded(tmp_path: Path, fakes: dict[str, FakeSession]) -> None:
    write_manifest(tmp_path / "b.onnx", {})
    (tmp_path / "b.onnx").write_bytes(b"changed")
    with pytest.raises(CheckpointError, match="not the one that its manifest describes"):
        bench(paths(tmp_path, "a.onnx", "b.onnx"), QUICK)
    assert not any(session.calls for session in fakes.values())


def test_a_batch_beyond_a_plan_is_refused(tmp_path: Path, fakes: dict[str, FakeSession], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module.nvinfer, "why_not_here", lambda targets: None)
    (tmp_path / "m.plan").write_bytes(b"plan")
    write_manifest(tmp_path / "m.plan", {"plan": {"targets": ["sm86"], "max_batch": 2}})
    with pytest.raises(ConfigError, match="built for batches up to 2; --batch asks for 3"):
        bench([tmp_path / "m.plan"], QUICK)


def test_a_process_that_fails_costs_the_memory_only(
    tmp_path: Path, fakes: dict[str, FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, **options: int) -> None:
        raise BuildError("out of memory")

    monkeypatch.setattr(bench_module, "probe", fail)
    notes: list[str] = []
    report = bench(paths(tmp_path, "a.onnx"), QUICK, note=notes.append)
    assert report["artifacts"][0]["memory"] is None
    assert report["artifacts"][0]["results"]
    assert "memory not measured: out of memory" in notes


def test_wrong_files_are_refused(tmp_path: Path, onnx_file: Path) -> None:
    with pytest.raises(UsageError, match=r"weights\.pt: not an artifact"):
        bench([tmp_path / "weights.pt"], QUICK)
    with pytest.raises(CheckpointError, match=r"none\.onnx: no such artifact"):
        bench([tmp_path / "none.onnx"], QUICK)
    with pytest.raises(UsageError, match="named twice"):
        bench([onnx_file, onnx_file.parent / ".." / onnx_file.parent.name / onnx_file.name], QUICK)
    with pytest.raises(UsageError, match="no artifacts to bench"):
        find_artifacts(tmp_path)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batches": ()}, "--batch"),
        ({"batches": (1, 0)}, "--batch"),
        ({"threads": 0}, "--threads is 0"),
        ({"rounds": 0}, "--rounds is 0"),
        ({"seconds": 0.0}, "--seconds is 0"),
        ({"seconds": float("nan")}, "--seconds is nan"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        BenchOptions(**options)


def test_the_probe_says_why_it_failed(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no")
    with pytest.raises(BuildError, match=r"m\.onnx: it can't be loaded in a fresh process \(.*CheckpointError"):
        probe(tmp_path / "m.onnx", batch=1, threads=1)


RESULT = {"batch": 1, "device": "cpu", "precision": "fp32", "runtime": "onnxruntime", "p50_ms": 2.0, "p95_ms": 4.0}


def search(limit_ms: float | None = 3.0, device: str = "cpu", **latency: Any) -> dict[str, Any]:
    promised = {"ms": 1.0, "kind": "measured", "percentile": "p50", "batch": 1, "precision": "fp32", **latency}
    return {"limits": {"max_latency_ms": limit_ms}, "device": device, "latency": promised}


@pytest.mark.parametrize(
    ("given", "measured", "holds"),
    [(search(), 2.0, True), (search(1.5), 2.0, False), (search(percentile="p95"), 4.0, False), (search(2.0), 2.0, True)],
)
def test_a_limit_is_held_against_the_same_percentile(given: dict[str, Any], measured: float, holds: bool) -> None:
    answer = check_limit(given, [{**RESULT, "batch": 8, "p50_ms": 9.0}, RESULT])
    assert answer is not None
    assert (answer["measured_ms"], answer["holds"]) == (measured, holds)
    assert answer["promised"]["kind"] == "measured"


@pytest.mark.parametrize("given", [search(device="a10"), search(batch=8), search(precision="fp16"), search(runtime="torch")])
def test_a_limit_for_something_else_is_not_judged(given: dict[str, Any]) -> None:
    answer = check_limit(given, [RESULT])
    assert answer is not None
    assert (answer["measured_ms"], answer["holds"]) == (None, None)
    assert "not measured here" in answer["unchecked_because"]


@pytest.mark.parametrize(
    ("device", "name", "same"),
    [
        ("a10", "NVIDIA A10", True),
        ("a100", "NVIDIA A100-SXM4-40GB", True),
        ("a10", "NVIDIA A100-SXM4-40GB", False),
        ("t4", "Tesla T4", True),
    ],
)
def test_a_gpu_is_known_by_its_name(device: str, name: str, same: bool) -> None:
    answer = check_limit(search(device=device), [{**RESULT, "device": name}])
    assert answer is not None
    assert (answer["holds"] is True) == same


@pytest.mark.parametrize("given", [None, search(None), {"limits": None}, {}])
def test_without_a_limit_there_is_no_verdict(given: dict[str, Any] | None) -> None:
    assert check_limit(given, [RESULT]) is None


def test_sessions_see_the_same_images(onnx_file: Path, monkeypatch: pytest.MonkeyPatch, no_probe: None) -> None:
    seen: list[np.ndarray] = []

    class Recording:
        def __init__(self, path: Path, **options: Any) -> None:
            self._session = open_session(path, **options)
            self.info, self.image_shape = self._session.info, self._session.image_shape

        def timer(self, images: np.ndarray) -> Any:
            seen.append(images)
            return self._session.timer(images)

        def __enter__(self) -> Recording:
            return self

        def __exit__(self, *exception: object) -> None: ...

    monkeypatch.setattr(bench_module, "open_session", Recording)
    bench([onnx_file], QUICK)
    assert [images.shape for images in seen] == [(1, 3, 16, 16), (3, 3, 16, 16)]
    assert all(images.std() > 0.5 for images in seen)
