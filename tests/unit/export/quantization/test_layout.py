"""The form of a graph in which tokens keep their batch axis."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from growtas import Subnet
from growtas.export.graph.edit import infer_types, layer_name, load_typed_model, to_proto
from growtas.export.graph.exporter import export_onnx
from growtas.export.quantization.convert import convert
from growtas.export.quantization.layout import reshape_norms, restore_batch_axis
from growtas.export.quantization.qdq import merge_linears
from growtas.export.runtimes.base import is_installed
from growtas.nn.architecture import Architecture
from growtas.nn.vit import random_network

IMAGES = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)


def exported(folder: Path, heads: tuple[int, ...], ratios: tuple[float, ...], distance: int | None = 2) -> Path:
    architecture = Architecture(
        subnet=Subnet(32, heads, ratios),
        image_size=16,
        patch_size=4,
        in_chans=3,
        num_classes=5,
        head_dim=8,
        max_relative_position=distance,
    )
    path = folder / "net.onnx"
    export_onnx(random_network(architecture), path)
    return path


def run(proto: onnx.ModelProto, images: np.ndarray = IMAGES) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": images})[0])


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    blocks=st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([1.0, 2.0, 3.5])), min_size=1, max_size=2),
    merged=st.booleans(),
    change=st.sampled_from([restore_batch_axis, reshape_norms]),
)
def test_it_is_exact(tmp_path: Path, blocks: list[tuple[int, float]], merged: bool, change: Callable[[ir.Model], None]) -> None:
    path = exported(tmp_path, tuple(h for h, _ in blocks), tuple(r for _, r in blocks))
    model = load_typed_model(path)
    if merged:
        merge_linears(model)
    change(model)
    proto = to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    for count in (1, 3):
        want = run(onnx.load(path), IMAGES[:count])
        np.testing.assert_allclose(run(proto, IMAGES[:count]), want, rtol=1e-4, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("distance", [2, None])
def test_no_matrix_of_tokens_is_left(tmp_path: Path, distance: int | None) -> None:
    path = exported(tmp_path, (2, 3), (2.0, 1.0), distance)
    before, model = onnx.load(path), load_typed_model(path)
    restore_batch_axis(model)
    proto = to_proto(infer_types(model))
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in proto.graph.value_info}
    # Pooled features and logits are matrices, one row an image.
    pooled = {name for node in proto.graph.node if node.op_type in ("ReduceMean", "Gemm") for name in node.output}
    shapes = {name for node in proto.graph.node if node.op_type in ("Shape", "Concat") for name in node.output}
    assert not [name for name, rank in ranks.items() if rank == 2 and name not in pooled | shapes]
    assert [node.op_type for node in proto.graph.node].count("Gemm") == 1
    assert len(proto.graph.node) <= len(before.graph.node) + sum(node.op_type == "Gemm" for node in before.graph.node)
    names = {entry.name for entry in proto.graph.initializer}
    assert {"blocks.0.fc1.weight", "blocks.1.attn.proj.bias"} <= names


def test_norms_get_their_batch_axis(tmp_path: Path) -> None:
    model = load_typed_model(exported(tmp_path, (2, 3), (2.0, 1.0)))
    count = len(model.graph)
    reshape_norms(model)
    proto = to_proto(infer_types(model))
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in proto.graph.value_info}
    norms = [node for node in proto.graph.node if node.op_type == "LayerNormalization"]
    assert [ranks[node.input[0]] for node in norms] == [3] * 5
    # The last one is read by the pooling, which had a reshape already.
    assert len(proto.graph.node) == count + 2 * 4
    again = ir.from_proto(proto)
    reshape_norms(again)
    assert [node.op_type for node in again.graph] == [node.op_type for node in proto.graph.node]


def test_twice_is_once(tmp_path: Path) -> None:
    once = load_typed_model(exported(tmp_path, (2,), (2.0,)))
    restore_batch_axis(once)
    twice = infer_types(once)
    restore_batch_axis(twice)
    assert [node.op_type for node in twice.graph] == [node.op_type for node in once.graph]
    np.testing.assert_allclose(run(to_proto(twice)), run(to_proto(once)), rtol=1e-5, atol=1e-6)


def test_a_weight_that_two_layers_share_is_transposed_once(tmp_path: Path) -> None:
    model = load_typed_model(exported(tmp_path, (2, 2), (2.0, 2.0)))
    first, second = (node for node in model.graph if layer_name(node).endswith(".fc1"))
    second.replace_input_with(1, first.inputs[1])
    want = run(to_proto(model))
    restore_batch_axis(model)
    np.testing.assert_allclose(run(to_proto(model)), want, rtol=1e-4, atol=1e-6 * np.abs(want).max())


@pytest.mark.skipif(not is_installed("openvino"), reason="openvino is not installed")
@pytest.mark.parametrize("distance", [2, None])
@pytest.mark.parametrize("biases", [True, False])
def test_openvino_compiles_what_is_quantised(tmp_path: Path, distance: int | None, biases: bool) -> None:
    """Where a product of rows goes straight to heads it fails, which these forms avoid."""
    from growtas.export.runtimes.openvino import OpenVINOSession

    source, low = exported(tmp_path, (2, 3), (2.0, 1.0), distance), tmp_path / "low.onnx"
    if not biases:
        proto = onnx.load(source)
        for entry in proto.graph.initializer:
            if entry.name.endswith(".bias"):
                entry.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tuple(entry.dims), np.float32), entry.name))
        onnx.save(proto, source)
    convert(source, low, "int8", calibration=IMAGES, calibration_are="noise")
    want = run(onnx.load(low))
    with OpenVINOSession(low, threads=1) as session:
        got = session.run(IMAGES)
    # Roundings of activations may fall on the other side.
    assert np.abs(got - want).max() <= 0.05 * np.abs(want).max()
    assert np.abs(want - run(onnx.load(source))).max() > 1e-6
