"""Reads artifact files without running or deserialising them: operators, inputs, outputs, weights by type, and metadata."""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growtas.archives import check_archive
from growtas.errors import CheckpointError, cause
from growtas.export.artifact import Artifact, Manifest, load_artifact, read_manifest
from growtas.export.formats import ONNX, OPENVINO, PROGRAM, TORCH, format_of, side_files
from growtas.export.graph.foreign import read_ir
from growtas.export.signature import PROBABILITIES, TOP_CLASSES
from growtas.files import MAX_HEADER_BYTES

# Abbreviations in safetensors and OpenVINO files, in lower case and without underscores.
_NAMES = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2",
    "i64": "int64", "i32": "int32", "i8": "int8", "u8": "uint8", "bool": "bool", "boolean": "bool",
}  # fmt: skip
_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1, "int64": 8, "int32": 4,
    "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip
# Numbers of the scalar types in torch.export programs.
_TORCH = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64", 12: "bool", 13: "bfloat16",
}  # fmt: skip
# The default of an export's largest batch.
_USUAL_BATCH = 8
_PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}


def read_graph(path: Path) -> dict[str, Any]:
    """Describes the content of an artifact file.

    Returns:
        ``bytes_by_type`` (of weights and constants), ``tensors``, ``precision`` (in which the weights are stored; None if unknown)
        and, depending on the format, ``inputs``, ``outputs`` (``name``, ``dtype``, ``shape``), ``nodes``, ``operators``,
        ``layout_operators``, ``opset`` and more. Empty for a plan, which can't be read without running native code.

    Raises:
        CheckpointError: the file is absent or damaged, or its content does not match its suffix.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such artifact")
    reader = {ONNX: _read_onnx, TORCH: _read_safetensors, OPENVINO: _read_ir, PROGRAM: _read_program}.get(format_of(path))
    if reader is None:
        return {}
    try:
        return reader(path)
    except CheckpointError:
        raise
    except Exception as error:  # each format's parser has its own exceptions
        raise CheckpointError(f"{path}: not a readable {path.suffix} file ({cause(error)})") from None


def load_described(path: str | os.PathLike[str]) -> Artifact:
    """Loads an artifact with its manifest, or else with the metadata in an ONNX file.

    Raises:
        CheckpointError: as for :func:`growtas.export.artifact.load_artifact`, if the file's metadata does not describe its input.
        UsageError: the file is not an artifact.
    """
    file = Path(path)
    manifest = read_manifest(file) or own_description(file) if file.is_file() and format_of(file) is ONNX else None
    return load_artifact(path) if manifest is None else Artifact(path=file, manifest=manifest)


def own_description(path: Path) -> Manifest | None:
    """Makes a manifest from the metadata of an ONNX file that growtas exported; None for every other file.

    Its largest batch is that of the graph, or :data:`_USUAL_BATCH` if the graph's batch is free.
    """
    if format_of(path) is not ONNX:
        return None
    graph = read_graph(path)
    preprocess, inputs, outputs = graph["described"].get("preprocess"), graph["inputs"], graph["outputs"]
    if not isinstance(preprocess, dict) or len(inputs) != 1 or not outputs:
        return None
    images = inputs[0]
    batch = images["shape"][0] if images["shape"] else 1
    record: dict[str, Any] = {
        "kind": ONNX.kind,
        "precision": graph["precision"],
        "input": {
            **images,
            "layout": "NHWC" if images["dtype"] == "uint8" else "NCHW",
            "resize": not all(isinstance(size, int) for size in images["shape"][1:]),
            "batch": {"max": batch if isinstance(batch, int) and batch > 0 else _USUAL_BATCH},
        },
        "output": outputs[0],
        "preprocess": preprocess,
        "class_names": graph["described"].get("class_names"),
    }
    names = [output["name"] for output in outputs]
    if len(names) > 1:
        top_k = next((output["shape"][-1] for output in outputs if output["name"] == TOP_CLASSES), None)
        record["postprocess"] = {"outputs": names, "softmax": PROBABILITIES in names, "top_k": top_k}
    return Manifest.from_dict(record)


def _json_values(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The values of a file's metadata that are valid JSON."""
    values = {}
    for key, text in metadata.items():
        with contextlib.suppress(ValueError, RecursionError):
            values[key] = json.loads(text)
    return values


def _read_onnx(path: Path) -> dict[str, Any]:
    import onnx

    from growtas.export.graph.edit import load_proto

    proto = load_proto(path, weights=False)
    sizes: Counter[str] = Counter()
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.STRING:
            size = sum(map(len, tensor.string_data))
        else:
            size = math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        sizes[_onnx_type(tensor.data_type)] += size
    operators = Counter(node.op_type for node in proto.graph.node)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    quantising = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    quantised = sorted({_onnx_type(types[name]) for node in quantising for name in node.input[2:3] if name in types})
    precision = _precision(sizes)
    if quantising:
        precision = "fp8" if any(kind.startswith("float8") for kind in quantised) else "int8"
    return {
        "opset": next((int(entry.version) for entry in proto.opset_import if not entry.domain), None),
        "ir_version": int(proto.ir_version),
        "other_domains": sorted({node.domain for node in proto.graph.node} - {""}),
        **_counted(operators),
        "inputs": [_onnx_value(value) for value in proto.graph.input],
        "outputs": [_onnx_value(value) for value in proto.graph.output],
        "tensors": len(proto.graph.initializer),
        "bytes_by_type": dict(sizes.most_common()),
        "quantised_to": quantised,
        "metadata": sorted(metadata),
        "described": _json_values(metadata),
        "precision": precision,
    }


def _onnx_type(number: int) -> str:
    import onnx

    name = onnx.TensorProto.DataType.Name(number).lower()
    return {"float": "float32", "double": "float64", "float8e4m3fn": "float8_e4m3fn", "float8e5m2": "float8_e5m2"}.get(name, name)


def _onnx_value(value: Any) -> dict[str, Any]:
    tensor = value.type.tensor_type
    shape = [_text(dim.dim_param) or dim.dim_value for dim in tensor.shape.dim]
    return {"name": _text(value.name), "dtype": _onnx_type(tensor.elem_type), "shape": shape}


def _text(value: str | bytes) -> str:
    """A name in an ONNX file; protobuf gives a name that is not UTF-8 as bytes."""
    return value if isinstance(value, str) else value.decode(errors="backslashreplace")


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Reads only the header: eight bytes with its length, then JSON."""
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, path.stat().st_size - 8):
            raise CheckpointError(f"{path}: not a readable .safetensors file (its header is missing or truncated)")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    sizes: Counter[str] = Counter()
    params = 0
    for entry in header.values():
        begin, end = entry["data_offsets"]
        count, dtype = math.prod(entry["shape"]), _dtype(entry["dtype"])
        if end - begin != count * _BYTES.get(dtype, (end - begin) / max(count, 1)):
            raise CheckpointError(f"{path}: not a readable .safetensors file (a tensor's size does not match its shape)")
        sizes[dtype] += end - begin
        params += count
    if 8 + length + sum(sizes.values()) != path.stat().st_size:
        raise CheckpointError(f"{path}: not a readable .safetensors file (it is truncated, or longer than its tensors)")
    described = json.loads(metadata.get("growtas", "{}"))
    if not isinstance(described, dict):
        raise CheckpointError(f"{path}: not a readable .safetensors file (its metadata is not a JSON object)")
    return {
        "tensors": len(header),
        "params": params,
        "bytes_by_type": dict(sizes.most_common()),
        "holds": described.get("kind"),
        "precision": _precision(sizes),
    }


def _read_ir(path: Path) -> dict[str, Any]:
    """Reads the graph of an OpenVINO IR: layers with their types, shapes and sizes, but not the weights in the ``.bin``."""
    root = read_ir(path)
    sizes: Counter[str] = Counter()
    operators: Counter[str] = Counter()
    inputs: list[dict[str, Any]] = []
    outputs: list[dict[str, Any]] = []
    constants = 0
    for layer in root.iterfind("layers/layer"):
        kind, settings = layer.get("type", ""), layer.find("data")
        if kind == "Const" and settings is not None:
            sizes[_dtype(settings.get("element_type", ""))] += int(settings.get("size", 0))
            constants += 1
            continue
        operators[kind] += kind != "Result"
        port = layer.find("output/port") if kind == "Parameter" else layer.find("input/port") if kind == "Result" else None
        if port is not None:
            name = (port.get("names") or layer.get("name") or "").split(",")[0].split("/sink_port_")[0]
            shape = ["dynamic" if dim.text == "-1" else int(dim.text or 0) for dim in port.iterfind("dim")]
            value = {"name": name, "dtype": _dtype(port.get("precision", "").lower().replace("fp", "f")), "shape": shape}
            (inputs if kind == "Parameter" else outputs).append(value)
    operators = +operators
    precision = "int8" if operators["FakeQuantize"] or sizes["int8"] > sizes["float32"] else _precision(sizes)
    (weights,) = side_files(path)
    return {
        "ir_version": int(root.get("version", 0)),
        **_counted(operators),
        "inputs": inputs,
        "outputs": outputs,
        "tensors": constants,
        "bytes_by_type": {kind: size for kind, size in sizes.most_common() if size},
        "weights_file": weights.name,
        "weights_file_bytes": weights.stat().st_size if weights.is_file() else None,
        "precision": precision,
    }


def _read_program(path: Path) -> dict[str, Any]:
    """Reads the JSON parts of a torch.export program, without unpickling anything."""
    with zipfile.ZipFile(path) as archive:
        check_archive(archive, path.stat().st_size)
        members = {name.split("/", 1)[-1]: name for name in archive.namelist()}

        def read(name: str) -> Any:
            if name not in members:
                raise CheckpointError(f"{path}: not a readable .pt2 file ({name} is missing)")
            if archive.getinfo(members[name]).file_size > MAX_HEADER_BYTES:
                raise CheckpointError(f"{path}: not a readable .pt2 file ({name} has more than {MAX_HEADER_BYTES:,} bytes)")
            return json.loads(archive.read(members[name]))

        program = read("models/model.json")
        tensors = [
            entry["tensor_meta"]
            for config in ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
            for entry in read(config)["config"].values()
        ]
        stored = {name: archive.getinfo(member).file_size for name, member in members.items()}
    sizes: Counter[str] = Counter()
    for meta in tensors:
        kind = _TORCH.get(meta["dtype"], str(meta["dtype"]))
        sizes[kind] += _BYTES.get(kind, 4) * math.prod(size["as_int"] for size in meta["sizes"])
    graph = program["graph_module"]["graph"]
    operators = Counter(node["target"].removeprefix("torch.ops.") for node in graph["nodes"])
    ranges = [(bounds["min_val"], bounds["max_val"]) for bounds in program["range_constraints"].values()]
    return {
        "torch_version": program.get("torch_version"),
        "batch": dict(zip(("min", "max"), ranges[0], strict=True)) if ranges else None,
        "nodes": sum(operators.values()),
        "operators": dict(operators.most_common()),
        "tensors": len(tensors),
        "bytes_by_type": dict(sizes.most_common()),
        "pickled_bytes": sum(size for name, size in stored.items() if name.endswith(".pt")),
        "precision": _precision(sizes),
    }


def _dtype(abbreviation: str) -> str:
    return _NAMES.get(abbreviation.lower().replace("_", ""), abbreviation.lower())


def _counted(operators: Counter[str]) -> dict[str, Any]:
    return {
        "nodes": sum(operators.values()),
        "operators": dict(operators.most_common()),
        "layout_operators": {name: operators[name] for name in ("Transpose", "Slice", "Concat")},
    }


def _precision(sizes: Mapping[str, int]) -> str | None:
    """The precision in which most floating-point bytes are stored."""
    floats = {kind: size for kind, size in sizes.items() if kind in _PRECISIONS and size}
    return _PRECISIONS[max(floats, key=lambda kind: floats[kind])] if floats else None
