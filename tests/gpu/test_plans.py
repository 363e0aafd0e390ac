"""Tests that build and run plans on a CUDA device. Run with ``make test-gpu``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from growtas.export.benchmark.run import BenchOptions
from growtas.export.graph.exporter import export_onnx
from growtas.export.open import open_session
from growtas.export.pipeline.options import ExportOptions
from growtas.export.pipeline.run import export_subnet
from growtas.export.runtimes.base import is_installed
from growtas.export.tensorrt import library
from growtas.export.tensorrt.builder import PlanBuilder, Shapes, TensorRTBuilder, TensorRTRTXBuilder
from growtas.export.tensorrt.targets import RTX_TARGETS
from growtas.export.verification.images import VerificationImages, noise
from growtas.export.verification.parity import run_gate
from growtas.nn.extract import extract
from growtas.nn.supernet import Supernet
from tests.bench_helpers import bench
from tests.export_helpers import SUBNET, TINY, add_search, make_run, needs_rtx, random_supernet
from tests.reference import plain_space

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
needs_tensorrt = pytest.mark.skipif(not is_installed("tensorrt"), reason="tensorrt is not installed")


@needs_tensorrt
def test_a_tensorrt_plan_is_built_run_and_benchmarked(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    add_search(run)
    made = export_subnet(run, ExportOptions(formats=("trt",), precision="fp32"))
    plan = made[-1].manifest.to_dict()
    assert plan["plan"]["runtime"] == "tensorrt"
    assert plan["plan"]["targets"] == [library.local_target()]
    assert plan["executed"] is True
    assert plan["parity"]["passed"] is True
    (artifact,) = bench([made[-1].path], BenchOptions(seconds=0.2))["artifacts"]
    assert artifact["runnable"] is True
    assert all(result["p50_ms"] > 0 and result["threads"] == 0 for result in artifact["results"])


@needs_tensorrt
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_a_low_precision_plan_passes_its_thresholds(tmp_path: Path, precision: str) -> None:
    run = make_run(tmp_path)
    add_search(run)
    plan = export_subnet(run, ExportOptions(formats=("trt",), precision=precision))[-1].manifest.to_dict()
    assert plan["precision"] == precision
    assert plan["executed"] is True
    assert plan["verification"]["passed"] is True


@needs_tensorrt
def test_tensorrt_computes_what_torch_computes(tmp_path: Path) -> None:
    _check(tmp_path, TensorRTBuilder(), "tensorrt")


@needs_rtx
def test_tensorrt_rtx_computes_what_torch_computes(tmp_path: Path) -> None:
    if library.local_target() not in RTX_TARGETS or library.local_target() == "sm75":
        pytest.skip("TensorRT-RTX compiles no fp32 for this GPU")
    _check(tmp_path, TensorRTRTXBuilder(), "tensorrt-rtx")


@needs_tensorrt
def test_tensorrt_computes_a_plain_vit(tmp_path: Path) -> None:
    _check(tmp_path, TensorRTBuilder(), "tensorrt", random_supernet(plain_space(TINY, "qk_norm")))


def _check(folder: Path, builder: PlanBuilder, runtime: str, supernet: Supernet | None = None) -> None:
    model = extract(supernet or random_supernet(), SUBNET)
    export_onnx(model, folder / "m.onnx")
    plan = builder.build(folder / "m.onnx", (str(library.local_target()),), batches=Shapes(max=8))
    (folder / "m.plan").write_bytes(plan.data)

    @torch.inference_mode()
    def reference(images):
        return model(torch.from_numpy(images)).numpy()

    with open_session(folder / "m.plan", runtime=runtime, trusted=True) as session:
        images = noise(12, (3, 16, 16))
        checked_on = VerificationImages(images=images, description="noise", unlabelled_because="it is noise")
        report = run_gate(session.run, {"static ViT": reference}, checked_on, subject="plan", max_batch=8)
        assert report.passed
        one, eight = session.timer(images[:1]), session.timer(images[:8])
        # The session holds buffers for both batches; each timer must run its own.
        assert all(timer() > 0 for timer in (one, eight, one, eight))
