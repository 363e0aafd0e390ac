from __future__ import annotations

import pytest

from growtas.errors import DeviceError, UnitError
from growtas.latency import at_hand
from growtas.search.devices import Device, parse_devices


def parsed(*devices, max_latency=None, precision=None, runtime=None):
    return parse_devices(devices, max_latency, precision, runtime, sizes=False)


@pytest.mark.parametrize(
    ("text", "runtime", "precision", "max_ms"),
    [
        ("cpu", "onnxruntime", "fp32", None),
        ("cpu:10ms", "onnxruntime", "fp32", 10.0),
        ("cpu:int8:10ms", "onnxruntime", "int8", 10.0),
        ("cpu:openvino", "openvino", "fp32", None),
        ("cpu:openvino:int8:500us", "openvino", "int8", 0.5),
        ("cpu:10ms:int8:openvino", "openvino", "int8", 10.0),
    ],
)
def test_a_target_is_a_device_with_runtime_precision_and_limit_in_any_order(text, runtime, precision, max_ms):
    (device,) = parsed(text)
    assert (device.name, device.runtime, device.precision, device.max_ms) == ("cpu", runtime, precision, max_ms)
    assert device.label == "cpu"


def test_options_are_for_the_targets_that_name_none():
    cpu, a10 = parsed("cpu:int8", "a10:tensorrt-rtx:2ms", max_latency="7ms", precision="fp16")
    assert cpu == Device("cpu", 7.0, "int8", "int8", "onnxruntime", "cpu")
    assert (a10.name, a10.max_ms, a10.precision, a10.runtime) == ("a10", 2.0, "fp16", "tensorrt-rtx")
    (openvino,) = parsed("cpu", precision="int8", runtime="openvino")
    assert (openvino.runtime, openvino.precision) == ("openvino", "int8")
    # --precision and --runtime may be meant for the other device alone.
    both = parsed("cpu", "a10", precision="fp16", runtime="tensorrt")
    assert [(device.runtime, device.precision) for device in both] == [("onnxruntime", "fp32"), ("tensorrt", "fp16")]
    both = parsed("cpu", "a10", runtime="openvino")
    assert [device.runtime for device in both] == ["openvino", None]


def test_several_targets_of_a_device_have_names_of_their_own():
    targets = parsed("cpu:1ms", "cpu:int8:2ms", "cpu:openvino:int8:3ms", "a10:5ms")
    assert [target.label for target in targets] == ["cpu", "cpu:int8", "cpu:openvino:int8", "a10"]
    with pytest.raises(DeviceError, match="cpu:onnxruntime:fp32 occurs twice"):
        parsed("cpu:1ms", "cpu:onnxruntime:fp32:2ms")


def test_a_mapping_says_the_same():
    texts = {"cpu:openvino:int8": "3ms", "a10": 5.0}
    assert parse_devices(texts, None, None, sizes=False) == parsed("cpu:openvino:int8:3ms", "a10:5ms")


def test_a_gpu_at_hand_is_a_target_in_all_that_gpus_have(monkeypatch):
    monkeypatch.setattr(at_hand, "gpu_name", lambda: "NVIDIA A10")
    (plain,), (bf16,), (other,) = parsed("a10:5ms"), parsed("a10:torch:bf16:5ms"), parsed("h100:fp16")
    assert (plain.precision, plain.requested, plain.runtime) == ("fp16", None, None)
    # The datasheet's roofline has no bf16, and what is measured needs none.
    assert (bf16.precision, bf16.runtime, bf16.max_ms) == ("bf16", "torch", 5.0)
    # A runtime that both have is meant for both, but for no device that is elsewhere.
    both = parsed("cpu", "a10", "h100", runtime="torch")
    assert [device.runtime for device in both] == ["torch", "torch", None]
    assert other.name == "h100"
    monkeypatch.setattr(at_hand, "gpu_name", lambda: "NVIDIA H200")
    (unknown,) = parsed("h200:5ms")
    assert (unknown.name, unknown.precision) == ("h200", "fp16")
    with pytest.raises(DeviceError, match="a10 has no precision 'bf16'"):
        parsed("a10:bf16")


@pytest.mark.parametrize(
    ("text", "options", "error", "said"),
    [
        ("cpu:tensorrt", {}, DeviceError, "runtime of cpu must be onnxruntime, openvino, torch or torch.compile, not 'tensorrt'"),
        ("cpu", {"runtime": "tensorrt"}, DeviceError, "the runtime of cpu must be onnxruntime, openvino"),
        ("cpu", {"runtime": "torchscript"}, DeviceError, "--runtime is 'torchscript'; legal are onnxruntime, openvino"),
        ("cpu:fp16", {}, DeviceError, "the precision of cpu must be fp32 or int8, not 'fp16'"),
        ("cpu", {"precision": "fp16"}, DeviceError, "the precision of cpu must be fp32 or int8"),
        ("cpu:1ms:2ms", {}, DeviceError, "as in cpu:openvino:int8:10ms"),
        ("cpu:int8", {"precision": "fp64"}, DeviceError, "--precision fp64 has no effect because each --device sets its own"),
        ("cpu:int8", {"precision": "fp32"}, DeviceError, "--precision fp32 has no effect"),
        ("a10:tensorrt", {"runtime": "tensorrt-rtx"}, DeviceError, "--runtime tensorrt-rtx has no effect"),
        ("cpu:openvno", {}, DeviceError, r"'openvno' is not a runtime \(onnxruntime, openvino.* or a limit such as 5ms"),
        ("cpu:5", {}, UnitError, "--device cpu:5: the limit"),
        ("a10:fp8", {}, DeviceError, "a10 has no precision 'fp8'"),
        ("A10:fp16", {}, DeviceError, "did you mean a10"),
    ],
)
def test_what_no_target_has_is_refused(text, options, error, said):
    with pytest.raises(error, match=said):
        parsed(text, **options)


def test_options_without_a_device_are_refused():
    for options in ({"max_latency": "5ms"}, {"precision": "int8"}, {"runtime": "openvino"}):
        with pytest.raises(DeviceError, match="needs --device"):
            parsed(**options)
