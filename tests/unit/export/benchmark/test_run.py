from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from growtas.checkpoint import save_model
from growtas.errors import BuildError, CheckpointError, ConfigError, DeviceError, MissingExtra, UsageError
from growtas.export.artifact import Artifact, Manifest, write_manifest
from growtas.export.benchmark import entries, limits
from growtas.export.benchmark import run as bench_module
from growtas.export.benchmark.limits import check_limit
from growtas.export.benchmark.memory import probe
from growtas.export.benchmark.run import BenchOptions
from growtas.export.benchmark.subjects import Subject
from growtas.export.formats import artifacts_in
from growtas.export.open import open_session
from growtas.export.runtimes.base import Session
from growtas.export.tensorrt import library
from growtas.nn.vit import VisionTransformer
from tests.bench_helpers import bench
from tests.export_helpers import without_gpu
from tests.fake_runtime import FakeSession

QUICK = BenchOptions(batches=(1, 3), threads=1, rounds=2, seconds=0.02, roofline=False)


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
    monkeypatch.setattr(entries, "open_subject", lambda subject, **options: sessions[subject.path.name])
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
    assert [[result["steady"] for result in artifact["results"]] for artifact in report["artifacts"]] == [[False] * 2, [True] * 2]
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
    report = bench(artifacts_in(tmp_path), QUICK)
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


def test_what_was_measured_before_an_interrupt_is_reported(tmp_path: Path, fakes: dict[str, FakeSession]) -> None:
    options = BenchOptions(batches=(1, 3), threads=1, rounds=3, seconds=0.02, roofline=False, baseline="b.onnx")

    def stop(what: str, done: int, total: int) -> None:
        # Two memories and six turns are done: all of the first round, and the second one at batch 1.
        if done == 8:
            raise KeyboardInterrupt

    report = bench(paths(tmp_path, "a.onnx", "b.onnx"), options, step=stop)
    assert report["interrupted"] is True
    for artifact in report["artifacts"]:
        assert [len(result["p50_ms_of_rounds"]) for result in artifact["results"]] == [2, 1]
        assert [result["ratio"]["rounds"] for result in artifact["results"]] == [2, 1]
    assert all(session.closed for session in fakes.values())

    def stop_first(what: str, done: int, total: int) -> None:
        if "batch" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench(paths(tmp_path, "a.onnx", "b.onnx"), options, step=stop_first)
    assert bench(paths(tmp_path, "a.onnx", "b.onnx"), QUICK)["interrupted"] is False


def test_ratios_are_to_the_baseline_at_the_same_batch(tmp_path: Path, fakes: dict[str, FakeSession]) -> None:
    fakes["a.onnx"]._latencies, fakes["b.onnx"]._latencies = (5.0,), (10.0,)
    for name, macs in (("a.onnx", 100), ("b.onnx", 400)):
        write_manifest(tmp_path / name, {"precision": "fp32", "macs": macs})
    options = BenchOptions(batches=(1, 3), threads=1, rounds=2, seconds=0.02, roofline=False, baseline="b.onnx")
    report = bench(paths(tmp_path, "a.onnx", "b.onnx"), options)
    assert report["settings"]["baseline"] == "b.onnx"
    assert [artifact["baseline"] for artifact in report["artifacts"]] == [False, True]
    for result in report["artifacts"][0]["results"]:
        assert result["ratio"] == {"median": 0.5, "low": 0.5, "high": 0.5, "rounds": 2}
        # Half the time for a quarter of the work.
        assert result["ratio_per_mac"] == 2.0
    assert all(
        result["ratio"] is None
        for artifact in bench(paths(tmp_path, "a.onnx"), QUICK)["artifacts"]
        for result in artifact["results"]
    )


def test_a_baseline_that_is_not_named_among_them_is_benched_first(tmp_path: Path, fakes: dict[str, FakeSession]) -> None:
    options = BenchOptions(batches=(1,), threads=1, rounds=1, seconds=0.02, roofline=False, baseline=str(tmp_path / "b.onnx"))
    report = bench(paths(tmp_path, "a.onnx"), options)
    assert [(artifact["label"], artifact["baseline"]) for artifact in report["artifacts"]] == [("b.onnx", True), ("a.onnx", False)]


def test_one_artifact_in_several_runtimes(onnx_file: Path, no_probe: None) -> None:
    options = BenchOptions(
        batches=(2,), threads=1, rounds=2, seconds=0.02, runtimes=("onnxruntime", "openvino"), baseline="openvino"
    )
    report = bench([onnx_file], options)
    found = {artifact["label"]: artifact["results"][0]["runtime"] for artifact in report["artifacts"]}
    assert found == {"tiny.onnx in onnxruntime": "onnxruntime", "tiny.onnx in openvino": "openvino"}
    assert report["settings"]["baseline"] == "tiny.onnx in openvino"
    (peak,) = report["peaks"]
    assert (peak["device"], peak["threads"], peak["kind"]) == ("cpu", 1, "measured")
    assert peak["gemm_flops_per_s"] > 1e8
    # Without a manifest nobody knows the MACs.
    assert all(artifact["results"][0]["roofline"] is None for artifact in report["artifacts"])


def test_the_roofline_uses_the_manifest_and_the_file(onnx_file: Path, tmp_path: Path, no_probe: None) -> None:
    shutil.copy(onnx_file, tmp_path / "m.onnx")
    described = {"macs": 1000, "output": {"shape": ["batch", 10]}}
    write_manifest(tmp_path / "m.onnx", {"precision": "fp32", **described})
    report = bench([tmp_path / "m.onnx"], BenchOptions(batches=(2,), threads=1, rounds=1, seconds=0.02))
    (artifact,) = report["artifacts"]
    (result,), (peak,) = artifact["results"], report["peaks"]
    found = result["roofline"]
    assert found["flops"] == 2 * 1000 * 2
    assert found["bytes"] == artifact["weight_bytes"] + 2 * (3 * 16 * 16 * 4 + 10 * 4)
    assert found["gemm_share"] == pytest.approx(found["flops"] / (result["p50_ms"] / 1e3) / peak["gemm_flops_per_s"])


@dataclass(frozen=True)
class Parts:
    host_ms: float
    device_ms: float


def test_host_and_device_times_are_told_where_a_session_knows_them(
    tmp_path: Path, fakes: dict[str, FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fakes["a.onnx"], "timer_parts", lambda images: lambda: Parts(0.25, len(images) / 2), raising=False)
    report = bench(paths(tmp_path, "a.onnx", "b.onnx"), QUICK)
    told = [[result["parts"] for result in artifact["results"]] for artifact in report["artifacts"]]
    samples = told[0][0]["samples"]
    assert samples > 1
    assert told == [
        [{"host_ms": 0.25, "device_ms": 0.5, "samples": samples}, {"host_ms": 0.25, "device_ms": 1.5, "samples": samples}],
        [None, None],
    ]


def test_a_missing_package_is_an_error_only_where_nothing_else_runs(
    tmp_path: Path, fakes: dict[str, FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_subject(subject: Subject, **options: Any) -> FakeSession:
        if subject.label == "b.onnx":
            raise MissingExtra("openvino", "openvino", "running a model in OpenVINO")
        return fakes[subject.label]

    monkeypatch.setattr(entries, "open_subject", open_subject)
    report = bench(paths(tmp_path, "a.onnx", "b.onnx"), QUICK)
    assert [artifact["runnable"] for artifact in report["artifacts"]] == [True, False]
    assert "pip install 'growtas[openvino]'" in report["artifacts"][1]["not_runnable_because"]
    with pytest.raises(MissingExtra):
        bench(paths(tmp_path, "b.onnx"), QUICK)


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
    monkeypatch.setattr(library, "why_not_here", lambda targets: None)
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
    with pytest.raises(UsageError, match="no artifacts here; name files that end in"):
        artifacts_in(tmp_path)


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
    with pytest.raises(BuildError, match=r"m\.onnx: it can't be loaded in a new process \(.*CheckpointError"):
        probe(tmp_path / "m.onnx", batch=1, threads=1, runtime="onnxruntime", device="cpu")


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


def test_what_cannot_be_timed_leaves_the_other_limits_judged(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_artifact(artifact: Artifact, *, runtime: str, device: str) -> Session:
        if runtime == "openvino":
            raise DeviceError("there is no OpenVINO")
        return open_session(artifact.path, runtime=runtime, device=device, threads=1)

    monkeypatch.setattr(limits, "open_artifact", open_artifact)
    promises = [search()["latency"] | {"device": "cpu", "runtime": runtime} for runtime in ("onnxruntime", "openvino")]
    latencies = [
        {"device": f"cpu:{promised['runtime']}", "max_latency_ms": 1e3, "measured": promised, "predicted": None}
        for promised in promises
    ]
    manifest = Manifest.from_dict({"precision": "fp32", "search": {"latencies": latencies}})
    judged, unjudged = limits.judge_limits(Artifact(path=onnx_file, manifest=manifest))
    assert (judged["device"], judged["holds"], "unchecked_because" in judged) == ("cpu:onnxruntime", True, False)
    assert 0 < judged["measured_ms"] < 1e3
    assert (unjudged["holds"], unjudged["unchecked_because"]) == (None, "there is no OpenVINO")


@pytest.mark.parametrize(
    ("device", "name", "same"),
    [
        ("a10", "NVIDIA A10", True),
        ("a100", "NVIDIA A100-SXM4-40GB", True),
        ("a10", "NVIDIA A100-SXM4-40GB", False),
        ("t4", "Tesla T4", True),
        ("rtx-4090", "NVIDIA GeForce RTX 4090", True),
        ("rtx-4090", "NVIDIA GeForce RTX 4090 Laptop GPU", False),
        ("h200", "NVIDIA H200", True),
    ],
)
def test_a_gpu_is_known_by_its_name(device: str, name: str, same: bool) -> None:
    answer = check_limit(search(device=device), [{**RESULT, "device": name}])
    assert answer is not None
    assert (answer["holds"] is True) == same


def test_one_of_several_targets_of_a_device_is_judged_by_its_own_conditions() -> None:
    given = search(device="cpu:openvino:int8")
    given["latency"] = {"device": "cpu", "percentile": "p50", "batch": 1, "precision": "int8", "runtime": "openvino"}
    ran = {**RESULT, "device": "cpu", "precision": "int8", "runtime": "openvino", "p50_ms": 0.1}
    answer = check_limit(given, [ran])
    assert answer is not None
    assert (answer["device"], answer["measured_ms"], answer["holds"]) == ("cpu:openvino:int8", 0.1, True)
    # What else was measured at the same batch does not matter, in whatever order.
    assert check_limit(given, [RESULT, {**ran, "device": "NVIDIA A10"}, ran]) == answer
    other = check_limit(given, [{**ran, "runtime": "onnxruntime"}])
    assert other is not None
    assert other["holds"] is None


@pytest.mark.parametrize("given", [None, search(None), {"limits": None}, {}])
def test_without_a_limit_there_is_no_verdict(given: dict[str, Any] | None) -> None:
    assert check_limit(given, [RESULT]) is None


def test_sessions_see_the_same_images(onnx_file: Path, monkeypatch: pytest.MonkeyPatch, no_probe: None) -> None:
    seen: list[np.ndarray] = []

    class Recording:
        def __init__(self, subject: Subject, **options: Any) -> None:
            self._session = open_session(subject.path, threads=1)
            self.info, self.image_shape = self._session.info, self._session.image_shape

        def timer(self, images: np.ndarray) -> Any:
            seen.append(images)
            return self._session.timer(images)

        def __enter__(self) -> Recording:
            return self

        def __exit__(self, *exception: object) -> None: ...

    monkeypatch.setattr(entries, "open_subject", Recording)
    bench([onnx_file], QUICK)
    assert [images.shape for images in seen] == [(1, 3, 16, 16), (3, 3, 16, 16)]
    assert all(images.std() > 0.5 for images in seen)
