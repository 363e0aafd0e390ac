"""What can be measured on this machine, and why the rest can't."""

from __future__ import annotations

import json
from types import SimpleNamespace

import onnxruntime
import pytest
from typer.testing import CliRunner

from growtas.cli.app import app
from growtas.errors import DeviceError, GrowtasError, MissingExtra
from growtas.export.benchmark.targets import check_device, check_runtime, hardware_of, targets_here
from growtas.export.runtimes.onnxruntime import OnnxRuntimeSession
from growtas.export.tensorrt import library
from growtas.latency import at_hand
from growtas.latency.catalogue import usual_target
from growtas.latency.estimate import RUNTIMES
from tests.fake_runtime import FakeMachine

A10 = FakeMachine(gpu="sm86", name="NVIDIA A10", lacks=(("sm86", "fp8"),))


def test_where_a_runtime_executes_follows_from_the_device_and_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("cpu", "a10", "my-box")
    assert [hardware_of(name, "onnxruntime") for name in names] == ["cpu", "cpu", "cpu"]
    assert [hardware_of(name, "tensorrt") for name in names] == ["cuda", "cuda", "cuda"]
    monkeypatch.setattr(at_hand, "gpu_name", lambda: "NVIDIA A10")
    assert [hardware_of(name, "torch") for name in names] == ["cpu", "cuda", "cuda"]
    assert [hardware_of(name, "openvino") for name in names] == ["cpu", "cpu", "cpu"]
    with pytest.raises(DeviceError, match="--runtime is 'tflite'; legal are onnxruntime"):
        hardware_of("cpu", "tflite")


def test_what_a_name_means_unless_something_else_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usual_target("cpu") == usual_target("my-box") == ("onnxruntime", "fp32")
    assert usual_target("a10") == ("tensorrt", "fp16")
    monkeypatch.setattr(at_hand, "gpu_name", lambda: "NVIDIA H200")
    assert usual_target("cpu") == ("onnxruntime", "fp32")
    assert usual_target("h200") == ("tensorrt", "fp16")


@pytest.mark.parametrize(
    ("runtime", "precision", "hardware", "error", "said"),
    [
        ("tensorrt", "fp16", "cpu", DeviceError, "tensorrt is not measured on a CPU, but on a GPU"),
        ("openvino", "fp32", "cuda", DeviceError, "openvino is not measured on a GPU, but on a CPU"),
        ("onnxruntime", "fp16", "cpu", DeviceError, "onnxruntime is measured in fp32 or int8 on a CPU"),
        ("torch", "int8", "cuda", DeviceError, "torch is measured in fp32, fp16 or bf16 on a GPU"),
        ("tensorrt", "fp8", "cuda", DeviceError, "the fake compiler has no fp8 for sm86"),
        ("onnxruntime", "fp16", "cuda", DeviceError, r"this ONNX Runtime \(.*\) has no CUDA"),
    ],
)
def test_what_a_machine_with_an_a10_cannot_measure(
    monkeypatch: pytest.MonkeyPatch, runtime: str, precision: str, hardware: str, error: type[GrowtasError], said: str
) -> None:
    A10.install_builders(monkeypatch)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(error, match=said):
        check_runtime(runtime, precision, hardware)  # type: ignore[arg-type]


def test_a_gpu_that_pytorch_cannot_use_is_told_apart_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "local_target", lambda: None)
    with pytest.raises(DeviceError, match="needs an NVIDIA GPU with a driver on this machine"):
        check_runtime("torch", "fp16", "cuda")
    monkeypatch.setattr(at_hand, "gpu_name", lambda: "NVIDIA A10")
    with pytest.raises(DeviceError, match="needs a PyTorch that can use this machine's GPU, NVIDIA A10"):
        check_runtime("torch", "fp16", "cuda")


def test_a_runtime_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("growtas.export.runtimes.onnxruntime.is_installed", lambda module: False)
    with pytest.raises(MissingExtra, match="needs the package onnxruntime"):
        check_runtime("onnxruntime", "fp32")
    check_runtime("torch", "fp32")


def test_a_name_at_hand_is_for_that_device_only() -> None:
    check_device("h200", ("a10", "h200"), "NVIDIA H200")
    with pytest.raises(DeviceError, match="runs on NVIDIA H200, not on such a GPU; use its own name, h200"):
        check_device("a10", ("a10", "h200"), "NVIDIA H200")
    with pytest.raises(DeviceError, match="--device h200: this runtime runs on cpu, not on such a GPU"):
        check_device("h200", ("a10", "h200"), "cpu")


def test_every_target_is_listed_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    without = {(t.device, t.runtime, t.precision): t.why_not for t in targets_here()}
    on_cpu = {(runtime, precision) for runtime, on in RUNTIMES.items() for precision in on.get("cpu", ())}
    assert {key[1:] for key in without if key[0] == "cpu"} == on_cpu
    assert without["cpu", "onnxruntime", "int8"] is without["cpu", "torch", "fp32"] is None
    assert without[None, "tensorrt", "fp16"] == "no NVIDIA GPU with a driver on this machine"
    A10.install_builders(monkeypatch)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    here = {(t.device, t.runtime, t.precision): t.why_not for t in targets_here()}
    assert here["a10", "tensorrt", "fp16"] is here["a10", "torch", "bf16"] is here["a10", "torch.cudagraphs", "fp32"] is None
    assert here["a10", "tensorrt", "fp8"] == "the fake compiler has no fp8 for sm86"
    assert "has no CUDA" in str(here["a10", "onnxruntime", "fp16"])
    assert not any(device is None or (device == "a10" and runtime == "openvino") for device, runtime, _ in here)


def test_the_command_prints_them(monkeypatch: pytest.MonkeyPatch) -> None:
    A10.install_builders(monkeypatch)
    out = CliRunner().invoke(app, ["devices"], catch_exceptions=False).stdout
    assert "a10 is this machine's NVIDIA A10" in out
    assert [line.split()[:2] for line in out.splitlines() if "the fake compiler has no fp8" in line] == [["a10", "tensorrt,"]]
    here = json.loads(CliRunner().invoke(app, ["devices", "--json"]).stdout)["here"]
    (fp16,) = [t for t in here if (t["device"], t["runtime"], t["precision"]) == ("a10", "tensorrt", "fp16")]
    assert fp16 == {
        "device": "a10", "description": "NVIDIA A10", "runtime": "tensorrt", "precision": "fp16", "why_not": None, "profiles": [],
    }  # fmt: skip


def test_onnx_runtime_never_passes_its_cpu_off_as_a_gpu(monkeypatch: pytest.MonkeyPatch, onnx_file) -> None:
    """Where CUDA's libraries can't be loaded, ONNX Runtime opens the session on the CPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    opened = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *arguments, **options: opened)
    with pytest.raises(DeviceError, match="can't load its CUDA libraries"):
        OnnxRuntimeSession(onnx_file, device="cuda")
