"""Pre- and post-processing as nodes of an ONNX file: pixels in, probabilities or the best classes out.

Only the ends of a graph are touched, so fp32, fp16 and int8 (Q/DQ) files are treated alike, and what was verified stays as it is.
What the nodes compute, and how far that is from Pillow's resizing, is in docs/artifacts.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.errors import BuildError, CheckpointError, ConfigError, UsageError, choices
from growtas.export.graph.resize import CROPPED, PIXELS, PLANES, check_resizing, resize_nodes, to_planes
from growtas.export.runtimes.base import Array
from growtas.files import replacing

LOGITS, PROBABILITIES, TOP_SCORES, TOP_CLASSES = "logits", "probabilities", "top_scores", "top_classes"
_RECORD = ("image_size", "in_chans", "mean", "std", "interpolation", "crop_pct")
_FLOAT, _UINT8, _INT64, _FLOAT16 = 1, 2, 7, 10  # onnx.TensorProto's numbers


def add_preprocess(onnx_in: Path, onnx_out: Path, preprocess: Mapping[str, Any] | None, *, resize: bool = False) -> dict[str, Any]:
    """Put the preprocessing in front of a model: uint8 ``pixels`` ``(batch, H, W, C)`` become the normalised images it takes.

    Args:
        onnx_in: a model whose one input is ``(batch, C, image_size, image_size)``, float32 or float16.
        onnx_out: where the new model goes; may be the same file.
        preprocess: the manifest's record (:mod:`growtas.data.preprocess`).
        resize: take pixels of any height and width, resize and crop them as the evaluation did; else ``H = W = image_size``.

    Returns:
        What the new input is, for the manifest: ``name``, ``dtype``, ``layout``, ``shape``, ``color``, ``resize``, ``resize_error``
        (:func:`growtas.export.graph.resize.check_resizing`; None without ``resize``), ``nodes``.

    Raises:
        BuildError: the new graph is not valid.
        CheckpointError: not an ONNX file that can be read.
        ConfigError: the record is absent, incomplete or does not fit the model.
        UsageError: the input is not one batch of float images, or the evaluation's resizing can't be reproduced.
    """
    from onnx import helper

    proto = _load(onnx_in)
    graph = proto.graph
    record = _checked(preprocess, onnx_in)
    name, element, channels = _image_input(graph, record, onnx_in)
    size = record["image_size"]
    nodes: list[Any] = [to_planes()]
    planes, error = PLANES, None
    constants: dict[str, NDArray[Any]] = {}
    if resize:
        error = check_resizing(record, _opset(proto), onnx_in)
        added, constants = resize_nodes(record)
        nodes, planes = [*nodes, *added], CROPPED
    scale, shift = _affine(record)
    constants |= {"preprocess.scale": scale.reshape(1, channels, 1, 1), "preprocess.shift": shift.reshape(1, channels, 1, 1)}
    last = name if element == _FLOAT else "preprocess.normalised"
    nodes += [
        helper.make_node("Cast", [planes], ["preprocess.float"], to=_FLOAT),
        helper.make_node("Mul", ["preprocess.float", "preprocess.scale"], ["preprocess.scaled"]),
        helper.make_node("Add", ["preprocess.scaled", "preprocess.shift"], [last]),
    ]
    if last != name:
        nodes.append(helper.make_node("Cast", [last], [name], to=element))
    shape: list[int | str] = [_batch_name(graph.input[0]), *(("height", "width") if resize else (size, size)), channels]
    _prepend(graph, nodes, constants, helper.make_tensor_value_info(PIXELS, _UINT8, shape))
    _metadata(proto, "preprocess", dict(record))
    _save(proto, onnx_out)
    return {
        "name": PIXELS,
        "dtype": "uint8",
        "layout": "NHWC",
        "shape": shape,
        "color": "gray" if channels == 1 else "RGB",
        "resize": resize,
        "resize_error": error,
        "nodes": len(nodes),
    }


def add_postprocess(
    onnx_in: Path, onnx_out: Path, *, softmax: bool, top_k: int | None, class_names: Sequence[str] | None
) -> dict[str, Any]:
    """Add outputs after a model's logits, which stay the first output, so that the file can be verified and benched as before.

    Args:
        onnx_in: a model whose one output is ``(batch, num_classes)``, float32 or float16.
        onnx_out: where the new model goes; may be the same file.
        softmax: add ``probabilities``, float32 ``(batch, num_classes)``.
        top_k: add ``top_scores``, float32, and ``top_classes``, int64, both ``(batch, top_k)``, best first. The scores are
            probabilities with ``softmax``, logits without.
        class_names: kept in the file's metadata as JSON, under ``class_names``.

    Returns:
        What was added, for the manifest: ``outputs``, ``softmax``, ``top_k``, ``nodes``.

    Raises:
        BuildError: the new graph is not valid.
        CheckpointError: not an ONNX file that can be read.
        ConfigError: neither is asked for, or ``top_k`` or the number of names does not fit the classes.
        UsageError: the model has other outputs than logits.
    """
    from onnx import helper

    proto = _load(onnx_in)
    graph = proto.graph
    if not softmax and top_k is None:
        raise ConfigError("there is nothing to add after the logits; legal are --softmax, --top-k or both")
    name, element, classes, batch = _logits_output(graph, onnx_in)
    if top_k is not None and not 1 <= top_k <= classes:
        raise ConfigError(f"--top-k is {top_k}; the model has {classes} classes, so it must be from 1 to {classes}")
    if class_names is not None and len(class_names) != classes:
        raise ConfigError(f"there are {len(class_names)} class names, and the model has {classes} classes")
    nodes: list[Any] = []
    outputs: list[Any] = []
    scores = name
    if element != _FLOAT:
        scores = "postprocess.logits"
        nodes.append(helper.make_node("Cast", [name], [scores], to=_FLOAT))
    if softmax:
        nodes.append(helper.make_node("Softmax", [scores], [PROBABILITIES], axis=-1))
        outputs.append(helper.make_tensor_value_info(PROBABILITIES, _FLOAT, [batch, classes]))
        scores = PROBABILITIES
    constants = {}
    if top_k is not None:
        constants["postprocess.k"] = np.array([top_k], np.int64)
        nodes.append(helper.make_node("TopK", [scores, "postprocess.k"], [TOP_SCORES, TOP_CLASSES], axis=-1))
        outputs += [helper.make_tensor_value_info(TOP_SCORES, _FLOAT, [batch, top_k])]
        outputs += [helper.make_tensor_value_info(TOP_CLASSES, _INT64, [batch, top_k])]
    _name(nodes, "postprocess")
    graph.node.extend(nodes)
    graph.output.extend(outputs)
    _add_constants(graph, constants)
    if class_names is not None:
        _metadata(proto, "class_names", list(class_names))
    _save(proto, onnx_out)
    return {"outputs": [output.name for output in graph.output], "softmax": softmax, "top_k": top_k, "nodes": len(nodes)}


def pixels_of(images: Array, preprocess: Mapping[str, Any]) -> NDArray[np.uint8]:
    """The uint8 pixels ``(batch, H, W, C)`` that normalised images ``(batch, C, H, W)`` came from, or the nearest ones."""
    mean, std = (np.asarray(preprocess[key], np.float64).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    values = np.rint((images.astype(np.float64) * std + mean) * 255).clip(0, 255)
    return np.ascontiguousarray(values.astype(np.uint8).transpose(0, 2, 3, 1))


def _affine(record: Mapping[str, Any]) -> tuple[Array, Array]:
    """``(pixel / 255 - mean) / std`` as ``pixel * scale + shift``, rounded to float32 once."""
    mean, std = (np.asarray(record[key], np.float64) for key in ("mean", "std"))
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)


def _checked(preprocess: Mapping[str, Any] | None, path: Path) -> Mapping[str, Any]:
    if preprocess is None:
        raise ConfigError(f"{path}: its run says nothing about preprocessing, so --preprocess has nothing to put into the graph")
    missing = [key for key in _RECORD if key not in preprocess]
    if missing:
        raise ConfigError(f"{path}: the preprocessing record lacks {choices(missing)}")
    counts = {len(preprocess[key]) for key in ("mean", "std")}
    if counts != {preprocess["in_chans"]} or min(preprocess["std"]) <= 0:
        channels = preprocess["in_chans"]
        raise ConfigError(f"{path}: the preprocessing record needs a mean and a std above zero for each of its {channels} channels")
    return preprocess


def _image_input(graph: Any, record: Mapping[str, Any], path: Path) -> tuple[str, int, int]:
    """Name, element type and channels of a model's one input, if it takes what the record describes."""
    shapes = [_dims(value) for value in graph.input]
    if len(shapes) != 1 or len(shapes[0]) != 4 or graph.input[0].type.tensor_type.elem_type not in (_FLOAT, _FLOAT16):
        raise UsageError(f"{path}: its input is not one batch of float images; is the preprocessing in the graph already?")
    value = graph.input[0]
    want = (record["in_chans"], record["image_size"], record["image_size"])
    if tuple(shapes[0][1:]) != want:
        raise ConfigError(f"{path}: it takes images {tuple(shapes[0][1:])}, and the preprocessing record makes {want}")
    return value.name, value.type.tensor_type.elem_type, want[0]


def _logits_output(graph: Any, path: Path) -> tuple[str, int, int, int | str]:
    """Name, element type, classes and batch of a model's one output."""
    values = list(graph.output)
    dims = [_dims(value) for value in values]
    if len(dims) != 1 or len(dims[0]) != 2 or not isinstance(dims[0][1], int):
        raise UsageError(f"{path}: its output is not one batch of logits; is the postprocessing in the graph already?")
    return values[0].name, values[0].type.tensor_type.elem_type, dims[0][1], dims[0][0]


def _dims(value: Any) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _opset(proto: Any) -> int:
    return next((int(entry.version) for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _batch_name(value: Any) -> int | str:
    return _dims(value)[0]


def _prepend(graph: Any, nodes: list[Any], constants: Mapping[str, NDArray[Any]], value: Any) -> None:
    """Put nodes before all others, and ``value`` in place of the graph's input, which the last node now makes."""
    _name(nodes, "preprocess")
    rest = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes, *rest])
    graph.input.append(value)
    _add_constants(graph, constants)


def _name(nodes: Sequence[Any], where: str) -> None:
    for index, node in enumerate(nodes):
        node.name = f"{where}.{index}.{node.op_type}"


def _add_constants(graph: Any, constants: Mapping[str, NDArray[Any]]) -> None:
    from onnx import numpy_helper

    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())


def _metadata(proto: Any, key: str, value: Any) -> None:
    entry = proto.metadata_props.add()
    entry.key, entry.value = key, json.dumps(value, ensure_ascii=False)


def _load(path: Path) -> Any:
    import onnx

    try:
        proto = onnx.load(path)
    except Exception as error:  # protobuf's and the file system's errors share no base class
        raise CheckpointError(f"{path}: not an ONNX file that can be read ({' '.join(str(error).split())[:120]})") from None
    if not proto.graph.node:
        raise CheckpointError(f"{path}: not an ONNX file that can be read (it holds no nodes)")
    return proto


def _save(proto: Any, path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise BuildError(f"{path}: the graph with its new ends is no valid ONNX: {' '.join(str(error).split())[:200]}") from error
    with replacing(path) as temporary:
        onnx.save(proto, temporary)
