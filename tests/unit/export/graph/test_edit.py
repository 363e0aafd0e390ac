"""Loading, editing and saving graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from growtas.errors import BuildError, CheckpointError
from growtas.export.graph.contents import read_graph
from growtas.export.graph.edit import (
    add_constant,
    insert_after,
    is_within,
    load_model,
    load_typed_model,
    numbers,
    operand,
    remove_unused,
    save_model,
    to_proto,
)
from growtas.export.inspection import inspect
from growtas.export.quantization.convert import convert
from growtas.export.runtimes.onnxruntime import OnnxRuntimeSession


def test_a_saved_graph_is_the_loaded_one_and_nothing_else_is_written(onnx_file: Path, tmp_path: Path) -> None:
    model = load_model(onnx_file)
    model.metadata_props.update({"preprocess": "{}", "class_names": "[]"})
    save_model(model, tmp_path / "saved.onnx", "the graph")
    assert [path.name for path in tmp_path.iterdir()] == ["saved.onnx"]
    before, after = onnx.load(onnx_file), onnx.load(tmp_path / "saved.onnx")
    assert [entry.key for entry in after.metadata_props] == ["preprocess", "class_names"]
    onnx.helper.set_model_props(after, {})
    assert after.SerializeToString() == before.SerializeToString()


def test_all_tensors_have_types_once_they_are_inferred(onnx_file: Path) -> None:
    model = load_typed_model(onnx_file)
    assert all(value.dtype is not None and value.shape is not None for node in model.graph for value in node.outputs)


def test_a_node_behind_another_one_takes_over_its_output(onnx_file: Path) -> None:
    model = load_model(onnx_file)
    last = model.graph.outputs[0].producer()
    assert last is not None
    one = add_constant(model.graph, "one", [1.0], ir.DataType.FLOAT)
    assert add_constant(model.graph, "one", [2.0], ir.DataType.FLOAT) is one
    insert_after(last, "Add", [one], "added", renamed="before")
    add_constant(model.graph, "unused", [0.0], ir.DataType.FLOAT)
    remove_unused(model)
    proto = to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert [(node.name, *node.input, *node.output) for node in proto.graph.node][-1] == ("added", "before", "one", "logits")
    assert "unused" not in {entry.name for entry in proto.graph.initializer}
    assert numbers(operand(list(model.graph)[-1], 1)).tolist() == [1.0]


def test_constants_are_rounded_to_their_type(onnx_file: Path) -> None:
    graph = load_model(onnx_file).graph
    value = add_constant(graph, "fp8", np.array([[448.0], [0.1]]), ir.DataType.FLOAT8E4M3FN)
    assert numbers(value).astype(float).tolist() == [[448.0], [0.1015625]]


def test_an_invalid_graph_is_not_written(onnx_file: Path, tmp_path: Path) -> None:
    model = load_model(onnx_file)
    next(node for node in model.graph if node.op_type == "Softmax").attributes["axis"] = ir.AttrString("axis", "last")
    with pytest.raises(BuildError, match=r"^bad\.onnx: the edited graph is not valid ONNX \("):
        save_model(model, tmp_path / "bad.onnx", "the edited graph")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"no graph"])
def test_other_files_are_no_graphs(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"other\.onnx: not a readable .onnx file \("):
        load_typed_model(tmp_path / "other.onnx")


def test_a_part_of_the_model_names_its_layers() -> None:
    assert is_within("blocks.3.fc1", ["blocks.3"])
    assert not is_within("blocks.30.fc1", ["blocks.3"])


def test_weights_in_a_file_of_their_own_are_read(onnx_file: Path, tmp_path: Path) -> None:
    path, images = tmp_path / "apart.onnx", np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    onnx.save(onnx.load(onnx_file), path, save_as_external_data=True, location="apart.data", size_threshold=0)
    want = OnnxRuntimeSession(onnx_file, threads=1).run(images)
    assert read_graph(path)["bytes_by_type"] == read_graph(onnx_file)["bytes_by_type"]
    assert inspect(path, thorough=True)["problems"] == []
    for precision, tolerance in (("fp32", 0), ("fp16", 1e-2), ("int8", 0.5)):
        made = tmp_path / f"{precision}.onnx"
        if precision == "fp32":
            save_model(load_model(path), made, "the graph")
        else:
            convert(path, made, precision, calibration=images)
        got = OnnxRuntimeSession(made.read_bytes(), threads=1).run(images)
        assert np.abs(got - want).max() <= tolerance * np.abs(want).max(), precision
    (tmp_path / "apart.data").unlink()
    with pytest.raises(CheckpointError, match=r"apart\.onnx: not a readable \.onnx file"):
        load_model(path)
    assert "not a readable .onnx file" in inspect(path, thorough=True)["problems"][0]


@pytest.mark.parametrize("location", ["../secret", "below/secret", ""])
def test_weights_outside_of_the_files_folder_are_never_read(onnx_file: Path, tmp_path: Path, location: str) -> None:
    path = tmp_path / "own" / "m.onnx"
    path.parent.mkdir()
    proto = onnx.load(onnx_file)
    weight = max(proto.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    (tmp_path / "secret").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    path.write_bytes(proto.SerializeToString())
    for load in (load_model, OnnxRuntimeSession):
        with pytest.raises(CheckpointError, match=r"m\.onnx: ") as caught:
            load(path)
        assert "\n" not in str(caught.value)
    assert inspect(path)["problems"] == []
    (problem,) = inspect(path, thorough=True)["problems"]
    assert "not a readable .onnx file" in problem


def test_the_standard_domain_may_be_written_out(onnx_file: Path, tmp_path: Path) -> None:
    proto = onnx.load(onnx_file)
    proto.opset_import[0].domain = "ai.onnx"
    onnx.save(proto, tmp_path / "named.onnx")
    convert(tmp_path / "named.onnx", tmp_path / "bf16.onnx", "bf16")
    assert [(entry.domain, entry.version) for entry in onnx.load(tmp_path / "bf16.onnx").opset_import] == [("", 22)]
