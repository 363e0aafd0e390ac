from __future__ import annotations

import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from growtas.checkpoint import save_model
from growtas.errors import CheckpointError, UsageError
from growtas.export.artifact import Manifest, check_hash, manifest_path, read_manifest, write_manifest
from growtas.export.formats import side_files
from growtas.export.graph.contents import read_graph
from growtas.export.inspection import inspect, latencies
from growtas.export.runtimes.base import is_installed
from growtas.export.runtimes.openvino import write_ir
from growtas.export.runtimes.torch_export import save_program
from growtas.nn.vit import VisionTransformer

needs_openvino = pytest.mark.skipif(not is_installed("openvino"), reason="openvino is not installed")


def values_model(path: Path, tensors: dict[str, np.ndarray], nodes: list[Any] | None = None) -> Path:
    """An ONNX file with these tensors."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("images", "logits")]
    made = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes or [helper.make_node("Relu", ["images"], ["logits"])], "hand-made", ends[:1], ends[1:], made)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_an_onnx_file_as_onnx_itself_reads_it(onnx_file: Path) -> None:
    graph = read_graph(onnx_file)
    proto = onnx.load(onnx_file)
    assert graph["opset"] == 20
    assert graph["nodes"] == len(proto.graph.node)
    assert graph["layout_operators"] == {
        name: [node.op_type for node in proto.graph.node].count(name) for name in ("Transpose", "Slice", "Concat")
    }
    arrays = [numpy_helper.to_array(tensor) for tensor in proto.graph.initializer]
    want = {str(kind): sum(array.nbytes for array in arrays if array.dtype == kind) for kind in (np.dtype("f4"), np.dtype("i8"))}
    assert graph["bytes_by_type"] == want
    assert graph["inputs"] == [{"name": "images", "dtype": "float32", "shape": ["batch", 3, 16, 16]}]
    assert graph["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}]
    assert graph["precision"] == "fp32"


def test_the_precision_is_what_the_file_holds(tmp_path: Path) -> None:
    big, small = np.ones((64, 64), np.float16), np.ones(8, np.float32)
    assert read_graph(values_model(tmp_path / "a.onnx", {"w": big, "b": small}))["precision"] == "fp16"
    assert read_graph(values_model(tmp_path / "b.onnx", {"w": big.astype(np.float32), "b": big[0]}))["precision"] == "fp32"
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["logits"]),
    ]
    scales = {"s": np.array(0.1, np.float32), "w": big.astype(np.float32)}
    quantised = read_graph(values_model(tmp_path / "c.onnx", {**scales, "z": np.array(0, np.int8)}, nodes))
    assert (quantised["precision"], quantised["quantised_to"]) == ("int8", ["int8"])
    assert read_graph(values_model(tmp_path / "d.onnx", {}))["precision"] is None


def test_a_safetensors_file_by_its_header_alone(model: VisionTransformer, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, model)
    graph = read_graph(path)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert (graph["params"], graph["bytes_by_type"], graph["holds"], graph["precision"]) == (
        count,
        {"float32": 4 * count},
        "model",
        "fp32",
    )
    content = path.read_bytes()
    for damaged in (content[:-1], content + b"\0", content[:100], b"", struct.pack("<Q", 1 << 60) + b"{}"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"m\.safetensors: not a readable \.safetensors file"):
            read_graph(path)


def test_a_program_by_its_json_parts(model: VisionTransformer, tmp_path: Path) -> None:
    save_program(model, tmp_path / "m.pt2", max_batch=5)
    graph = read_graph(tmp_path / "m.pt2")
    assert graph["batch"] == {"min": 1, "max": 5}
    assert graph["operators"]["aten.linear.default"] >= 5
    weights = 4 * sum(math.prod(tensor.shape) for tensor in model.state_dict().values())
    assert weights <= graph["bytes_by_type"]["float32"] < weights + 2000
    assert graph["precision"] == "fp32"


@needs_openvino
def test_an_ir_and_its_weights(onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino as ov

    write_ir(onnx_file, tmp_path / "m.xml")
    save = ov.save_model
    monkeypatch.setattr(ov, "save_model", lambda model, path, **options: save(model, path, compress_to_fp16=True))
    write_ir(onnx_file, tmp_path / "half.xml")
    graph, half = read_graph(tmp_path / "m.xml"), read_graph(tmp_path / "half.xml")
    assert graph["inputs"] == [{"name": "images", "dtype": "float32", "shape": ["dynamic", 3, 16, 16]}]
    assert graph["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["dynamic", 10]}]
    assert (graph["precision"], half["precision"]) == ("fp32", "fp16")
    assert 2 * half["bytes_by_type"]["float16"] == graph["bytes_by_type"]["float32"]
    assert graph["weights_file_bytes"] == (tmp_path / "m.bin").stat().st_size
    assert graph["operators"]["MatMul"] > 5


def test_an_xml_file_that_is_no_ir(tmp_path: Path) -> None:
    for content in (b"<net", b"<other/>", b'<!DOCTYPE net [<!ENTITY a "aa">]><net/>', b""):
        (tmp_path / "m.xml").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"m\.xml: not a readable \.xml file"):
            read_graph(tmp_path / "m.xml")


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".xml", ".safetensors"])
def test_what_can_not_be_read_is_one_sentence(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    with pytest.raises(CheckpointError, match="no such artifact"):
        read_graph(path)
    path.write_bytes(b"\x00nonsense" * 5)
    with pytest.raises(CheckpointError, match=rf"not a readable \{suffix} file") as caught:
        read_graph(path)
    assert "\n" not in str(caught.value)


def test_a_plan_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "m.plan").write_bytes(b"anything")
    write_manifest(tmp_path / "m.plan", {"precision": "fp16", "plan": {"targets": ["sm86"]}})
    summary = inspect(tmp_path / "m.plan")
    assert summary["graph"] == {}
    assert summary["precision"] == {"stated": "fp16", "found": None}
    assert summary["matches_manifest"] is True
    assert summary["problems"] == []


def test_a_summary_with_and_without_a_manifest(onnx_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    shutil.copy(onnx_file, path)
    bare = inspect(path)
    assert (bare["matches_manifest"], bare["problems"], bare["params"], bare["latencies"]) == (None, [], None, [])
    described = {
        "precision": "fp32",
        "params": 7,
        "macs": 9,
        "input": {"name": "images", "dtype": "float32", "shape": ["n", 3, 16, 16]},
        "output": {"name": "logits", "dtype": "float32", "shape": ["n", 10]},
    }
    write_manifest(path, described)
    summary = inspect(path, thorough=True)
    assert (summary["matches_manifest"], summary["problems"]) == (True, [])
    assert (summary["params"], summary["macs"]) == (7, 9)
    with path.open("ab") as file:
        file.write(b"\x22\x00")
    changed = inspect(path)
    assert changed["matches_manifest"] is False
    assert "SHA-256 differs" in changed["problems"][0]


@pytest.mark.parametrize(
    ("described", "match"),
    [
        ({"precision": "int8"}, "the manifest says int8, and the file's weights are fp32"),
        (
            {"input": {"name": "pixels", "dtype": "uint8", "shape": []}},
            r"input is pixels \(uint8\), and the file's is images \(float32\)",
        ),
        (
            {"output": {"name": "logits", "dtype": "float32", "shape": ["batch", 100]}},
            r"output has the shape .* and the file's has",
        ),
        ({"input": {"name": "images", "dtype": "float32", "shape": ["batch", 3, "height", 16]}}, "input has the shape"),
        ({"input": {"name": "images", "dtype": "float32", "shape": [3, 16, 16]}}, "input has the shape"),
    ],
)
def test_contradictions_are_told(onnx_file: Path, tmp_path: Path, described: dict[str, Any], match: str) -> None:
    shutil.copy(onnx_file, tmp_path / "m.onnx")
    write_manifest(tmp_path / "m.onnx", described)
    (problem,) = inspect(tmp_path / "m.onnx")["problems"]
    import re

    assert re.search(match, problem)


def test_a_wrong_number_of_parameters_is_told(model: VisionTransformer, tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", model)
    write_manifest(tmp_path / "m.safetensors", {"params": 5})
    (problem,) = inspect(tmp_path / "m.safetensors")["problems"]
    assert "the manifest says 5 parameters" in problem


def test_format_rules_are_checked_only_when_asked_for(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["absent"], ["logits"])]
    path = values_model(tmp_path / "m.onnx", {}, nodes)
    assert inspect(path)["problems"] == []
    (problem,) = inspect(path, thorough=True)["problems"]
    assert "ONNX's checker refuses it" in problem


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.bin").touch()
    with pytest.raises(UsageError, match=r"legal are files that end in \.safetensors, \.pt2, \.onnx, \.xml or \.plan"):
        inspect(tmp_path / "m.bin")


def test_latencies_are_only_called_measured_where_the_manifest_says_so() -> None:
    measured, modelled = {"ms": 1.5, "kind": "measured", "device": "cpu"}, {"ms": 2, "kind": "modelled", "device": "a10"}
    search = {
        "latency": modelled,
        "latencies": [modelled, measured, {"ms": 3}, {"kind": "measured"}, {"ms": 4, "kind": "best"}],
    }
    assert latencies(Manifest.from_dict({"search": {**search, "latencies": [modelled, "odd"]}})) == []
    listed = latencies(Manifest.from_dict({"search": search}))
    assert listed == [
        modelled,
        measured,
        {"ms": 3, "kind": "not stated"},
        {"ms": 4, "kind": "not stated"},
    ]
    for without in ({}, {"search": None}, {"search": {"latency": None, "latencies": None}}):
        assert latencies(Manifest.from_dict(without)) == []


def test_the_weights_of_an_ir_are_covered(tmp_path: Path) -> None:
    xml, weights = tmp_path / "m.xml", tmp_path / "m.bin"
    xml.write_text("<net><layers/></net>")
    assert side_files(tmp_path / "m.onnx") == ()
    assert side_files(xml) == (weights,)
    with pytest.raises(CheckpointError, match=r"m\.bin is missing beside it"):
        write_manifest(xml, {})
    weights.write_bytes(b"weights")
    made = write_manifest(xml, {})
    check_hash(xml, made.manifest)
    assert inspect(xml)["matches_manifest"] is True
    weights.write_bytes(b"weightz")
    with pytest.raises(CheckpointError, match=r"m\.bin is not the one that the manifest describes"):
        read_manifest(xml)
    assert "m.bin" in inspect(xml)["problems"][0]
    record = made.manifest.to_dict()
    del record["artifact"]["companions"]
    manifest_path(xml).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"does not describe m\.bin"):
        read_manifest(xml)


def test_an_ir_without_its_weights_is_said_without_a_manifest_too(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text('<net version="11"><layers/></net>')
    assert inspect(path)["problems"] == [f"{path}: a.bin is missing beside it"]
    path.with_suffix(".bin").write_bytes(b"")
    assert inspect(path)["problems"] == []
