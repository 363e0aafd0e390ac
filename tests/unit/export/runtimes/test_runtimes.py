from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from growtas.checkpoint import save_model
from growtas.errors import BuildError, CheckpointError, DeviceError, MissingExtra, UsageError
from growtas.export.graph.pre_post import add_postprocess, add_preprocess
from growtas.export.open import open_session
from growtas.export.quantization.convert import convert
from growtas.export.runtimes.onnxruntime import OnnxRuntimeSession
from growtas.export.tensorrt import library
from growtas.export.tensorrt.builder import Shapes, TensorRTBuilder, TensorRTRTXBuilder
from growtas.export.tensorrt.targets import RTX_TARGETS, check_rtx_targets
from growtas.export.verification.images import noise
from growtas.nn.vit import VisionTransformer
from growtas.resources import available_threads
from tests.export_helpers import needs_rtx, without_gpu


def test_the_suffix_chooses_the_runtime(onnx_file: Path, model: VisionTransformer, tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", model)
    images = noise(3, (3, 16, 16))
    with open_session(onnx_file, threads=1) as in_onnx, open_session(tmp_path / "m.safetensors", threads=1) as in_torch:
        assert (in_onnx.info.runtime, in_torch.info.runtime) == ("onnxruntime", "torch")
        assert in_onnx.image_shape == in_torch.image_shape == (3, 16, 16)
        assert (in_onnx.info.threads, in_torch.info.threads) == (1, 1)
        np.testing.assert_allclose(in_onnx.run(images), in_torch.run(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(
        UsageError, match=r"model\.pt: not an artifact; legal are files that end in \.safetensors, \.pt2, \.onnx, \.xml or \.plan"
    ):
        open_session("model.pt")


def test_threads_default_to_what_the_process_may_use(onnx_file: Path) -> None:
    with open_session(onnx_file) as session:
        assert session.info.threads == available_threads()


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a"])
def test_a_broken_onnx_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken\.onnx: (ONNX Runtime can't load it|not a readable \.onnx file)") as caught:
        open_session(path)
    assert "\n" not in str(caught.value)


def test_a_timer_times_what_was_bound(onnx_file: Path) -> None:
    with open_session(onnx_file, threads=1) as session:
        one, many = session.timer(noise(1, (3, 16, 16))), session.timer(noise(512, (3, 16, 16)))
        for timer in (one, many):
            timer()
        assert 0 < min(one() for _ in range(5)) < min(many() for _ in range(5))


def test_cuda_without_a_cuda_build_is_a_device_error(onnx_file: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(DeviceError, match="has no CUDA"):
        OnnxRuntimeSession(onnx_file, device="cuda")


def test_missing_packages_are_named_with_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "is_installed", lambda name: False)
    with pytest.raises(MissingExtra, match=r"pip install 'growtas\[trt-rtx\]'"):
        TensorRTRTXBuilder().check(("sm86",), "fp32")
    with pytest.raises(MissingExtra, match=r"pip install 'growtas\[gpu\]'"):
        TensorRTBuilder().check(("sm86",), "fp32")
    monkeypatch.setattr(library, "local_target", lambda: "sm86")
    plan = tmp_path / "m.plan"
    plan.write_bytes(b"plan")
    with pytest.raises(MissingExtra, match="running a plan needs the package tensorrt-rtx-cu13"):
        open_session(plan, runtime="tensorrt-rtx", trusted=True)


@needs_rtx
@pytest.mark.parametrize("targets", [("sm86",), ("sm86", "sm89", "sm120")])
def test_a_plan_is_built_without_a_gpu(onnx_file: Path, targets: tuple[str, ...]) -> None:
    plan = TensorRTRTXBuilder().build(onnx_file, targets, batches=Shapes(max=8))
    assert plan.targets == targets
    assert plan.runtime == "tensorrt-rtx"
    assert plan.settings == {"tf32": False}
    # The plan holds the weights, and nothing precedes what the runtime wants to see first.
    assert len(plan.data) > onnx_file.stat().st_size // 2
    assert plan.data[:4] == TensorRTRTXBuilder().build(onnx_file, ("sm89",), batches=Shapes(max=1)).data[:4]
    assert plan.weights_memory_bytes is not None
    assert 0 < plan.weights_memory_bytes < 10 * onnx_file.stat().st_size
    assert plan.activation_memory_bytes is not None
    assert plan.activation_memory_bytes > 0


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_plan_takes_pixels_and_gives_the_best_classes(onnx_file: Path, precision: str, tmp_path: Path) -> None:
    record = {"image_size": 16, "in_chans": 3, "mean": [0.4] * 3, "std": [0.3] * 3, "interpolation": "bicubic", "crop_pct": 1.0}
    path = tmp_path / "whole.onnx"
    if precision == "fp16":
        convert(onnx_file, path, "fp16", calibration=noise(4, (3, 16, 16)), calibration_are="noise")
    add_postprocess(onnx_file if precision == "fp32" else path, path, softmax=True, top_k=2, class_names=None)
    add_preprocess(path, path, record)
    plan = TensorRTRTXBuilder().build(path, ("sm86", "sm120"), batches=Shapes(max=8), precision=precision)
    assert b"pixels" in plan.data
    assert b"top_classes" in plan.data
    # Any height and width: a plan has fixed ones.
    add_postprocess(onnx_file, path, softmax=True, top_k=2, class_names=None)
    add_preprocess(path, tmp_path / "free.onnx", {**record, "crop_pct": 0.9}, resize=True)
    with pytest.raises(BuildError, match=r"free\.onnx: (height and width of its input are free|tensorrt-rtx can't parse)"):
        TensorRTRTXBuilder().build(tmp_path / "free.onnx", ("sm86",), batches=Shapes(max=2))


@needs_rtx
def test_activation_memory_grows_with_the_batch(onnx_file: Path) -> None:
    small, large = (TensorRTRTXBuilder().build(onnx_file, ("sm86",), batches=Shapes(max=batch)) for batch in (1, 1024))
    assert (large.activation_memory_bytes or 0) > (small.activation_memory_bytes or 0)


@needs_rtx
def test_a_graph_that_the_compiler_refuses_is_a_build_error(onnx_file: Path, tmp_path: Path) -> None:
    proto = onnx.load(onnx_file)
    next(node for node in proto.graph.node if node.op_type == "Gelu").op_type = "NoSuchOperator"
    path = tmp_path / "odd.onnx"
    onnx.save(proto, path)
    with pytest.raises(BuildError, match=r"odd\.onnx: tensorrt-rtx can't parse the ONNX file \(.*NoSuchOperator"):
        TensorRTRTXBuilder().build(path, ("sm86",), batches=Shapes(max=2))


@needs_rtx
def test_sm75_really_builds_no_fp32(onnx_file: Path) -> None:
    # The reason why it is refused up front: if this starts to pass, the refusal can go.
    with pytest.raises(BuildError, match="sm75"):
        TensorRTRTXBuilder().build(onnx_file, ("sm75",), batches=Shapes(max=2))


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ("sm87", r"no plans for sm87 \(Jetson Orin\); legal targets are sm75, sm80, sm86, sm89, sm120 or sm121"),
        ("sm90", r"no plans for sm90 \(H100\)"),
        ("sm61", "no plans for sm61; legal targets are"),
        ("sm75", r"no fp32 matrix products for sm75 \(T4, Turing\); legal targets for fp32 are sm80, sm86"),
    ],
)
def test_targets_that_cannot_be_built_are_refused_with_the_reason(target: str, match: str) -> None:
    with pytest.raises(DeviceError, match=match):
        TensorRTRTXBuilder().check(("sm86", target), "fp32")


def test_other_targets_pass() -> None:
    check_rtx_targets(tuple(target for target in RTX_TARGETS if target != "sm75"), "fp32")
    check_rtx_targets(RTX_TARGETS, "fp16")


@without_gpu
def test_a_plan_without_a_gpu_says_so(tmp_path: Path) -> None:
    (tmp_path / "m.plan").write_bytes(b"plan")
    assert TensorRTRTXBuilder().why_not_runnable(("sm86",)) == "no NVIDIA GPU with a driver on this machine"
    with pytest.raises(DeviceError, match="no NVIDIA GPU"):
        open_session(tmp_path / "m.plan", trusted=True)


def test_a_plan_for_another_gpu_is_not_runnable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "local_target", lambda: "sm90")
    assert library.why_not_here(("sm90", "sm86")) is None
    assert library.why_not_here(("sm86", "sm89")) == "the GPU of this machine is sm90, but the plan is for sm86, sm89"


def test_tensorrt_builds_only_for_the_gpu_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "package", lambda runtime, purpose: None)
    monkeypatch.setattr(library, "local_target", lambda: "sm90")
    TensorRTBuilder().check(("sm90",), "fp32")
    with pytest.raises(DeviceError, match="which is sm90; the requested target is sm86"):
        TensorRTBuilder().check(("sm86",), "fp32")


def test_memory_is_read_from_the_builders_messages() -> None:
    messages = [("INFO", "Total Activation Memory: 12 bytes"), ("INFO", "x"), ("INFO", "Total Activation Memory: 9717248 bytes")]
    assert library.reported_bytes(messages, "Total Activation Memory") == 9717248
    assert library.reported_bytes(messages, "Total Weights Memory") is None
