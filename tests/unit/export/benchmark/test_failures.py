"""What can't be loaded or run is reported with its reason, and the others are measured."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from growtas.errors import BuildError, CheckpointError, DeviceError, MissingExtra, UsageError
from growtas.export.artifact import write_manifest
from growtas.export.benchmark import baselines as zoo
from growtas.export.benchmark import entries
from growtas.export.benchmark import run as bench_module
from growtas.export.benchmark.run import BenchOptions
from growtas.export.benchmark.subjects import Subject
from growtas.export.quantization.convert import convert
from growtas.export.runtimes.base import Timer
from growtas.export.runtimes.torch_export import save_program
from growtas.export.tensorrt import library
from growtas.export.verification.images import noise
from growtas.nn.vit import VisionTransformer
from tests.bench_helpers import bench
from tests.export_helpers import without_gpu
from tests.fake_runtime import FakeSession

QUICK = BenchOptions(batches=(1, 3), threads=1, rounds=2, seconds=0.02, roofline=False)


@pytest.fixture(autouse=True)
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "probe", lambda path, **options: {"load_ms": 1.0, "peak_rss_bytes": 2, **options})


def to(baseline: str) -> BenchOptions:
    return BenchOptions(batches=(1, 3), threads=1, rounds=2, seconds=0.02, roofline=False, baseline=baseline)


def reasons(report: dict[str, Any]) -> dict[str, str | None]:
    """Why each artifact was not measured; None for those that were, at every batch."""
    for artifact in report["artifacts"]:
        assert len(artifact["results"]) == (2 if artifact["runnable"] else 0)
    return {artifact["label"]: artifact["not_runnable_because"] for artifact in report["artifacts"]}


class Failing(FakeSession):
    """Fails in its first run of three images."""

    def timer(self, images: Any) -> Timer:
        if len(images) < 3:
            return super().timer(images)

        def once() -> float:
            raise RuntimeError("out of\nmemory")

        return once


class Machine:
    """Artifacts whose sessions are fake ones, or errors."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sessions = folder, dict[str, FakeSession | Exception]()
        self.notes: list[str] = []

    def __call__(self, subject: Subject, **options: Any) -> FakeSession:
        found = self.sessions[subject.label]
        if isinstance(found, Exception):
            raise found
        return found

    def files(self, **sessions: FakeSession | Exception) -> list[Path]:
        self.sessions = {f"{name}.onnx": session for name, session in sessions.items()}
        for name in self.sessions:
            (self.folder / name).write_bytes(name.encode())
        return [self.folder / name for name in self.sessions]

    def bench(self, options: BenchOptions = QUICK, **sessions: FakeSession | Exception) -> dict[str, Any]:
        return bench(self.files(**sessions), options, note=self.notes.append)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)
    monkeypatch.setattr(entries, "open_subject", machine)
    return machine


def fake() -> FakeSession:
    return FakeSession(lambda images: images)


@pytest.mark.parametrize(
    "error",
    [
        CheckpointError("bad.onnx: ONNX Runtime can't load it (no)"),
        BuildError("the compiler failed"),
        UsageError("a batch too large"),
        DeviceError("no GPU"),
        MissingExtra("openvino", "openvino", "running"),
    ],
)
def test_an_artifact_that_cannot_be_opened_costs_the_others_nothing(machine: Machine, error: Exception) -> None:
    report = machine.bench(bad=error, good=fake())
    assert reasons(report) == {"bad.onnx": str(error), "good.onnx": None}
    assert f"bad.onnx: not measured: {error}" in machine.notes


def test_an_artifact_that_fails_in_its_first_run_is_closed_and_reported(machine: Machine) -> None:
    failing, closed = Failing(lambda images: images), list[bool]()
    files = machine.files(bad=failing, good=fake())
    report = bench(files, QUICK, step=lambda what, done, total: closed.append(failing.closed))
    assert reasons(report) == {"bad.onnx": "bad.onnx: onnxruntime can't run it (out of memory)", "good.onnx": None}
    # The others are measured without it in memory.
    assert all(closed)
    assert report["artifacts"][0]["image_shape"] is None


def test_where_nothing_is_left_the_first_error_is_the_command_s(machine: Machine) -> None:
    with pytest.raises(BuildError, match="the compiler failed"):
        machine.bench(gpu=DeviceError("no GPU"), one=BuildError("the compiler failed"), two=CheckpointError("two.onnx: truncated"))
    assert [text for text in machine.notes if "not measured" in text] == [
        "gpu.onnx: not measured: no GPU",
        "two.onnx: not measured: two.onnx: truncated",
    ]
    # What this machine has no device for is no mistake of anybody's.
    assert reasons(machine.bench(gpu=DeviceError("no GPU"))) == {"gpu.onnx": "no GPU"}


def test_a_baseline_that_fails_is_told_and_there_are_no_ratios(machine: Machine) -> None:
    report = machine.bench(to("base.onnx"), base=CheckpointError("base.onnx: truncated"), good=fake(), other=fake())
    assert [text for text in machine.notes if "base.onnx" in text and "manifest" not in text] == [
        "no ratios: the baseline base.onnx can't be measured (base.onnx: truncated)"
    ]
    settings = report["settings"]
    assert (settings["baseline"], settings["no_baseline_because"]) == (None, "base.onnx: truncated")
    for artifact in report["artifacts"]:
        assert artifact["baseline"] is False
        assert all(result["ratio"] is None for result in artifact["results"])
    settings = machine.bench(to("base.onnx"), base=fake(), good=fake())["settings"]
    assert (settings["baseline"], settings["no_baseline_because"]) == ("base.onnx", None)


def test_an_added_baseline_alone_is_not_worth_measuring(machine: Machine) -> None:
    base = fake()
    added, named = machine.files(base=base, bad=CheckpointError("bad.onnx: truncated"))
    with pytest.raises(CheckpointError, match=r"bad\.onnx: truncated"):
        bench([named], to(str(added)))
    assert base.closed


def test_a_timm_model_that_cannot_be_exported_is_a_baseline_that_fails(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, folder: Path) -> None:
        raise BuildError(f"timm:{name}: the ONNX exporter failed (no)")

    monkeypatch.setattr(zoo, "exported", fail)
    report = machine.bench(to("test_vit"), good=fake())
    told = "timm:test_vit: the ONNX exporter failed (no)"
    assert reasons(report) == {"timm:test_vit": told, "good.onnx": None}
    assert report["settings"]["no_baseline_because"] == told


def test_a_batch_beyond_a_plan_costs_that_plan_only(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "why_not_here", lambda targets: None)
    plan = machine.folder / "m.plan"
    plan.write_bytes(b"plan")
    write_manifest(plan, {"plan": {"targets": ["sm86"], "max_batch": 2}})
    report = bench([plan, *machine.files(good=fake())], QUICK)
    assert reasons(report) == {"m.plan": f"{plan}: built for batches up to 2; --batch asks for 3", "good.onnx": None}


@without_gpu
def test_a_plan_without_its_gpu_as_the_baseline(machine: Machine) -> None:
    plan = machine.folder / "m.plan"
    plan.write_bytes(b"plan")
    write_manifest(plan, {"plan": {"targets": ["sm86"]}})
    report = bench([plan, *machine.files(good=fake())], to("m.plan"), note=machine.notes.append)
    reason = "no NVIDIA GPU with a driver on this machine"
    assert report["settings"]["no_baseline_because"] == reason
    assert f"no ratios: the baseline m.plan can't be measured ({reason})" in machine.notes


def test_files_that_this_machine_cannot_run(onnx_file: Path, model: VisionTransformer, tmp_path: Path) -> None:
    """The real ones: bf16 that ONNX Runtime has no kernels for, a program for smaller batches, and a file that is none."""
    shutil.copy(onnx_file, tmp_path / "m.onnx")
    convert(onnx_file, tmp_path / "m.bf16.onnx", "bf16", calibration=noise(2, (3, 16, 16)), calibration_are="noise")
    save_program(model, tmp_path / "m.pt2", max_batch=2)
    (tmp_path / "cut.onnx").write_bytes(onnx_file.read_bytes()[:-100])
    found = reasons(bench([tmp_path / name for name in ("m.bf16.onnx", "m.pt2", "cut.onnx", "m.onnx")], QUICK))
    assert found["m.onnx"] is None
    assert "m.bf16.onnx: ONNX Runtime can't load it" in str(found["m.bf16.onnx"])
    assert found["m.pt2"] == "the program takes batches of 1 to 2, not 3; export it with --max-batch"
    assert "cut.onnx: not a readable .onnx file (it is truncated)" in str(found["cut.onnx"])
