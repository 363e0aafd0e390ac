"""The form of attention that TensorRT compiles to one kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from growtas import Subnet
from growtas.export.graph.attention_fusion import fuse_attention
from growtas.export.graph.edit import forget_types, load_typed_model, save_model, to_proto
from growtas.export.graph.exporter import export_onnx
from growtas.export.quantization.convert import convert
from growtas.export.runtimes.base import is_installed
from growtas.nn.architecture import Architecture
from growtas.nn.vit import random_network
from tests.reference import PLAIN

Blocks = list[tuple[int, float]]


def exported(
    folder: Path,
    blocks: Blocks,
    *,
    size: int = 16,
    distance: int | None = 2,
    head_dim: int = 8,
    dim: int = 32,
    **plain: Any,
) -> Path:
    architecture = Architecture(
        subnet=Subnet(dim, tuple(heads for heads, _ in blocks), tuple(ratio for _, ratio in blocks)),
        image_size=size,
        patch_size=4,
        in_chans=3,
        num_classes=5,
        head_dim=head_dim,
        max_relative_position=distance,
        **plain,
    )
    path = folder / "net.onnx"
    export_onnx(random_network(architecture), path)
    return path


def run(proto: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": images})[0])


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# 7 patches: as many lines as distances once both are padded.
@example(blocks=[(1, 1.0), (2, 2.0)], patches=7, distance=14)
@given(
    blocks=st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([1.0, 2.0])), min_size=1, max_size=2),
    # 2 to 10 patches a side: the lines of the grid, and the distances, are and are not multiples of 8.
    patches=st.integers(2, 10),
    distance=st.integers(1, 14),
)
def test_it_is_exact(tmp_path: Path, blocks: Blocks, patches: int, distance: int) -> None:
    path = exported(tmp_path, blocks, size=4 * patches, distance=distance)
    model = load_typed_model(path)
    assert fuse_attention(model) == len(blocks)
    proto = to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    images = np.random.default_rng(0).standard_normal((3, 3, 4 * patches, 4 * patches)).astype(np.float32)
    for count in (1, 3):
        want = run(onnx.load(path), images[:count])
        np.testing.assert_allclose(run(proto, images[:count]), want, rtol=1e-4, atol=1e-6 * np.abs(want).max())


def test_the_form(tmp_path: Path) -> None:
    model = load_typed_model(exported(tmp_path, [(2, 2.0), (3, 1.0)]))
    fuse_attention(model)
    proto = to_proto(model)
    kinds = [node.op_type for node in proto.graph.node]
    assert "GatherElements" not in kinds
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    lengths = {value.name: value.type.tensor_type.shape.dim[-1].dim_value for value in inferred.graph.value_info}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    producers = {name: node for node in proto.graph.node for name in node.output}
    for softmax in (node for node in proto.graph.node if node.op_type == "Softmax"):
        (attended,) = readers[softmax.output[0]]
        logits = producers[softmax.input[0]]
        assert {attended.op_type, logits.op_type} == {"MatMul"}
        assert lengths[logits.input[0]] % 8 == lengths[attended.output[0]] % 8 == 0
    # Nothing is computed that nobody reads.
    outputs = {output.name for output in proto.graph.output}
    assert all(any(name in readers or name in outputs for name in node.output) for node in proto.graph.node)


def test_a_network_without_relative_position_stays_as_it_is(tmp_path: Path) -> None:
    model = load_typed_model(exported(tmp_path, [(2, 2.0)], distance=None))
    before = to_proto(model).SerializeToString()
    assert fuse_attention(model) == 0
    assert to_proto(model).SerializeToString() == before


def test_twice_is_once(tmp_path: Path) -> None:
    model = load_typed_model(exported(tmp_path, [(2, 2.0)]))
    fuse_attention(model)
    once = len(model.graph)
    assert fuse_attention(model) == 0
    assert len(model.graph) == once


@pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="tensorrt-rtx is not installed")
@pytest.mark.parametrize(
    ("precision", "rest", "kind"),
    [
        ("fp16", "fp32", "relative"),
        ("int8", "fp16", "relative"),
        pytest.param("bf16", "fp32", "relative", marks=pytest.mark.slow),
        pytest.param("fp16", "fp32", "qk_norm", marks=pytest.mark.slow),
    ],
)
def test_tensorrt_compiles_it_to_one_kernel(tmp_path: Path, precision: str, rest: str, kind: str) -> None:
    """For every block; and not in the form of the fp32 graph. Attention without a relative position has this form anyway."""
    from growtas.export.quantization.half import cast_floats
    from growtas.export.tensorrt.builder import Shapes, TensorRTRTXBuilder

    blocks = [(3, 2.0), (2, 1.0)]
    plain: dict[str, Any] = {} if kind == "relative" else {"distance": None, **PLAIN[kind]}
    source = exported(tmp_path, blocks, size=56, head_dim=64, dim=64, **{"distance": 14, **plain})
    images = np.random.default_rng(0).standard_normal((4, 3, 56, 56)).astype(np.float32)
    low = tmp_path / "low.onnx"
    convert(source, low, precision, calibration=images, calibration_are="noise", rest=rest)

    def fused(path: Path, precision: str) -> int:
        plan = TensorRTRTXBuilder().build(path, ("sm86",), batches=Shapes(opt=1, max=4), precision=precision)
        return plan.data.count(b"function={ name=_gemm_mha")

    assert fused(low, precision) == len(blocks)
    if (precision, kind) == ("fp16", "relative"):
        unfused = load_typed_model(source)
        cast_floats(unfused, "fp16", (), "plain")
        forget_types(unfused)
        save_model(unfused, tmp_path / "plain.onnx", "the plain graph")
        assert fused(tmp_path / "plain.onnx", "fp16") == 0
