"""What is timed in a precision is what export ships in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from growtas.errors import DeviceError
from growtas.export.benchmark.stopwatch import ArchitectureTurns
from growtas.export.benchmark.targets import check_runtime
from growtas.export.graph.exporter import export_onnx
from growtas.export.quantization.convert import convert
from growtas.export.runtimes.onnxruntime import OnnxRuntimeSession
from growtas.export.verification.images import noise
from growtas.nn.architecture import Architecture
from growtas.nn.vit import random_network
from growtas.subnet import Subnet
from tests.export_helpers import SUBNET, TINY

IMAGE = (3, 16, 16)
OTHER = Subnet(24, (1, 2), (2.0, 3.0))


def turns(*announced: Subnet, precision: str) -> ArchitectureTurns:
    return ArchitectureTurns(
        TINY, announced, runtime="onnxruntime", precision=precision, batch=1, threads=1, rounds=2, seconds=0.001
    )


def shipped(subnet: Subnet, folder: Path) -> Path:
    """The int8 file of the network with random weights that is timed, by way of files as an export makes them."""
    export_onnx(random_network(Architecture.of(TINY, subnet)), folder / "fp32.onnx")
    convert(folder / "fp32.onnx", folder / "int8.onnx", "int8", calibration=noise(2, IMAGE), calibration_are="noise")
    return folder / "int8.onnx"


@pytest.mark.parametrize("subnet", [SUBNET, pytest.param(OTHER, marks=pytest.mark.slow)])
def test_int8_networks_are_those_that_an_export_converts(subnet: Subnet, tmp_path: Path) -> None:
    images = noise(4, IMAGE)
    with (
        turns(precision="int8").session(subnet) as timed,
        turns(precision="fp32").session(subnet) as full,
        OnnxRuntimeSession(shipped(subnet, tmp_path), threads=1) as reference,
    ):
        np.testing.assert_array_equal(timed.run(images), reference.run(images))
        assert not np.array_equal(timed.run(images), full.run(images))


def test_graphs_that_are_put_together_are_converted_too() -> None:
    images = noise(4, IMAGE)
    quantised, full = (turns(SUBNET, OTHER, precision=precision) for precision in ("int8", "fp32"))
    for subnet in (SUBNET, OTHER):
        with quantised.session(subnet) as timed, full.session(subnet) as reference:
            error = np.abs(timed.run(images) - reference.run(images)).max() / np.abs(reference.run(images)).max()
            assert 0 < error < 0.2
    assert [len(blocks) for blocks in quantised([SUBNET, OTHER])] == [2, 2]


@pytest.mark.parametrize(
    ("runtime", "precision", "said"),
    [
        ("onnxruntime", "fp16", "--precision is 'fp16'; onnxruntime is measured in fp32 or int8"),
        ("onnxruntime", "tf32", "onnxruntime is measured in fp32 or int8"),
        ("tensorrt", "fp64", "tensorrt is measured in fp32, fp16, bf16, int8 or fp8"),
        ("torchscript", "fp32", "--runtime is 'torchscript'; legal are onnxruntime, openvino, tensorrt, tensorrt-rtx, torch,"),
    ],
)
def test_what_is_not_measured_is_refused(runtime: str, precision: str, said: str) -> None:
    with pytest.raises(DeviceError, match=said):
        check_runtime(runtime, precision)
