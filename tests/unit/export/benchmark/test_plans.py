"""ONNX files in TensorRT: a plan for each batch that is measured, tuned for it, in the file's precision."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from growtas.errors import BuildError, DeviceError
from growtas.export.artifact import Manifest, write_manifest
from growtas.export.benchmark import run as bench_module
from growtas.export.benchmark import stopwatch as turns
from growtas.export.benchmark.run import BenchOptions
from growtas.export.benchmark.sessions import open_subject
from growtas.export.benchmark.subjects import Subject
from growtas.export.quantization.convert import convert
from growtas.export.runtimes.base import Session
from growtas.export.tensorrt import builder, engine, library
from growtas.export.tensorrt.builder import BuiltPlan, TensorRTRTXBuilder
from growtas.export.verification.images import noise
from tests.bench_helpers import bench
from tests.export_helpers import SUBNET, TINY, needs_rtx
from tests.fake_runtime import FakeMachine, FakePlanBuilder, FakePlanSession

IMAGE = (3, 16, 16)


@pytest.fixture(scope="module")
def files(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model in several precisions, without manifests."""
    folder = tmp_path_factory.mktemp("precisions")
    found = {"fp32": onnx_file}
    for precision in ("fp16", "bf16", "int8", "fp8"):
        found[precision] = folder / f"tiny.{precision}.onnx"
        rest = {"rest": "fp16"} if precision in ("int8", "fp8") else {}
        convert(onnx_file, found[precision], precision, calibration=noise(4, IMAGE), calibration_are="noise", **rest)
    return found


class Opened:
    """The fake plans that were built and opened."""

    def __init__(self) -> None:
        self.sessions: list[FakePlanSession] = []

    def __call__(self, trt: Any, data: bytes, **options: Any) -> FakePlanSession:
        self.sessions.append(FakePlanSession(trt, data, **options))
        return self.sessions[-1]

    @property
    def headers(self) -> list[tuple[Any, Any]]:
        return [(session.header["precision"], session.header["batches"]) for session in self.sessions]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """A machine with a GPU, whose plans are fake ones."""
    opened = Opened()
    FakeMachine(gpu="sm86").install(monkeypatch)
    monkeypatch.setattr(builder, "builder_of", lambda runtime: FakePlanBuilder(name=runtime))
    monkeypatch.setattr(engine, "PlanSession", opened)
    return opened


def compiled(file: Path, *batches: int, runtime: str = "tensorrt", manifest: Manifest | None = None) -> Session:
    """An ONNX file as plans, one for each batch."""
    subject = Subject(name=file.name, runtime=runtime, label=file.name, path=file, manifest=manifest)
    return open_subject(subject, threads=1, batches=batches or (1,))


def test_a_plan_is_built_in_the_precision_and_for_the_batch_that_it_is_timed_at(
    onnx_file: Path, opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with turns.plan_session(onnx_file.read_bytes(), "tensorrt", 6, precision="fp16") as session:
        assert opened.headers == [("fp16", [1, 6, 6])]
        assert session.image_shape == IMAGE
    assert not list(tmp_path.iterdir())
    # Profiles of subnets are fp32, at the batch of the search.
    timed = turns.ArchitectureTurns(TINY, [SUBNET], runtime="tensorrt", batch=4, threads=1)
    with timed.session(SUBNET):
        assert opened.headers[-1] == ("fp32", [1, 4, 4])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_the_precision_is_the_graph_s_where_no_manifest_says_it(
    files: dict[str, Path], opened: Opened, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    asked: list[str] = []

    class Builder(FakePlanBuilder):
        def build(self, onnx: Path, targets: tuple[str, ...], **settings: Any) -> BuiltPlan:
            asked.append(settings["precision"])
            raise BuildError("enough is known")

    monkeypatch.setattr(builder, "builder_of", lambda runtime: Builder())
    for file, manifest in ((files[precision], None), (files["fp32"], Manifest.from_dict({"precision": precision}))):
        with pytest.raises(BuildError, match="enough is known"):
            compiled(file, manifest=manifest)
    assert asked == [precision] * 2


def test_every_measured_batch_has_a_plan_of_its_own(files: dict[str, Path], opened: Opened) -> None:
    with compiled(files["fp16"], 1, 4) as session:
        assert opened.headers == [("fp16", [1, 1, 1]), ("fp16", [1, 4, 4])]
        one, four = opened.sessions
        for batch, plan in ((1, one), (4, four), (3, four)):
            before = plan.calls
            assert session.timer(noise(batch, IMAGE))() == float(batch)
            assert plan.calls == before + 1
            assert session.run(noise(batch, IMAGE)).shape == (batch, TINY.num_classes)
        assert (session.image_shape, session.info) == (IMAGE, one.info)
    assert one.closed
    assert four.closed
    # The process that measures the memory asks for the largest batch alone.
    with compiled(files["fp16"], 4):
        assert opened.headers[2:] == [("fp16", [1, 4, 4])]


def test_files_of_other_precisions_are_measured_as_plans(
    files: dict[str, Path], opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_module, "probe", lambda path, **options: {"load_ms": 1.0, "peak_rss_bytes": 2, **options})
    with_manifest = tmp_path / "m.onnx"
    with_manifest.write_bytes(files["int8"].read_bytes())
    write_manifest(with_manifest, {"precision": "int8"})
    options = BenchOptions(batches=(1, 3), threads=1, rounds=1, seconds=0.01, roofline=False, runtimes=("tensorrt",))
    report = bench([files["fp16"], with_manifest], options)
    assert opened.headers == [(precision, [1, batch, batch]) for precision in ("fp16", "int8") for batch in (1, 3)]
    for artifact in report["artifacts"]:
        assert [result["p50_ms"] for result in artifact["results"]] == [1.0, 3.0]
        assert [result["parts"]["h2d_ms"] for result in artifact["results"]] == [0.5, 1.5]
    assert report["artifacts"][1]["results"][0]["precision"] == "int8"


def test_what_the_gpu_lacks_is_refused_before_anything_is_compiled(
    files: dict[str, Path], opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = FakeMachine(gpu="sm86", lacks=(("sm86", "fp8"),))
    monkeypatch.setattr(builder, "builder_of", lambda runtime: FakePlanBuilder(machine))
    with pytest.raises(DeviceError, match="has no fp8 for sm86"):
        compiled(files["fp8"])
    assert not opened.sessions
    monkeypatch.setattr(library, "local_target", lambda: None)
    with pytest.raises(DeviceError, match="no NVIDIA GPU"):
        compiled(files["fp16"])


def test_plans_are_closed_where_a_later_one_fails(files: dict[str, Path], opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    class Builder(FakePlanBuilder):
        def build(self, onnx: Path, targets: tuple[str, ...], **settings: Any) -> BuiltPlan:
            if settings["batches"].max > 1:
                raise BuildError("out of memory")
            return super().build(onnx, targets, **settings)

    monkeypatch.setattr(builder, "builder_of", lambda runtime: Builder())
    with pytest.raises(BuildError, match="out of memory"):
        compiled(files["fp16"], 1, 8)
    assert [session.closed for session in opened.sessions] == [True]


@needs_rtx
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_compiler_takes_files_of_other_precisions(
    files: dict[str, Path], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real compiler, which needs no GPU; its plans are loaded by nobody."""
    built: list[BuiltPlan] = []
    fake_package = SimpleNamespace(__version__="1.0", machine=FakeMachine(gpu="sm86"))

    class Builder(TensorRTRTXBuilder):
        def build(self, onnx: Path, targets: tuple[str, ...], **settings: Any) -> BuiltPlan:
            built.append(super().build(onnx, targets, **settings))
            return dataclasses.replace(built[-1], data=FakePlanBuilder().build(onnx, targets, **settings).data)

    monkeypatch.setattr(library, "local_target", lambda: "sm86")
    monkeypatch.setattr(builder, "builder_of", lambda runtime: Builder())
    monkeypatch.setattr(engine, "PlanSession", lambda trt, data, **options: FakePlanSession(fake_package, data, **options))
    with compiled(files[precision], 2, runtime="tensorrt-rtx") as session:
        assert np.isfinite(session.run(noise(2, IMAGE))).all()
    (plan,) = built
    assert (plan.precision, plan.batches.opt, plan.batches.max) == (precision, 2, 2)
