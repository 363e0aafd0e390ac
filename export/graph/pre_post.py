"""Adds pre- and post-processing to an ONNX graph: pixels as the input, probabilities or the best classes as outputs.

Nodes are added only at the ends of a graph. So fp32, fp16 and int8 (Q/DQ) files are treated alike, and the verified part of the
graph does not change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from growtas.errors import ConfigError, UsageError
from growtas.export.graph.edit import describe, load_model, save_model
from growtas.export.graph.resize import PIXELS, add_node, add_numbers, check_resizing, resize_planes, to_planes
from growtas.export.signature import PROBABILITIES, TOP_CLASSES, TOP_SCORES, check_preprocess

_SUBJECT = "the graph with pre- or post-processing"


def add_preprocess(onnx_in: Path, onnx_out: Path, preprocess: Mapping[str, Any] | None, *, resize: bool = False) -> dict[str, Any]:
    """Adds the preprocessing to a model: it turns uint8 ``pixels`` ``(batch, H, W, C)`` into the model's normalised images.

    Args:
        onnx_in: a model whose only input is ``(batch, C, image_size, image_size)``, float32 or float16.
        onnx_out: path of the new model; may be the same file.
        preprocess: the run's preprocessing record (:mod:`growtas.data.preprocess`).
        resize: accept pixels of any height and width, and resize and crop them as the evaluation did. Otherwise
            ``H = W = image_size``.

    Returns:
        A description of the new input for the manifest: ``name``, ``dtype``, ``layout``, ``shape``, ``color``, ``resize``,
        ``resize_error`` (:func:`growtas.export.graph.resize.check_resizing`; None without ``resize``) and ``nodes`` (how many).

    Raises:
        BuildError: the new graph is not valid.
        CheckpointError: the file is not readable ONNX.
        ConfigError: the record is absent or incomplete, or does not match the model.
        UsageError: the input is not one batch of float images, or the evaluation's resizing can't be reproduced.
    """
    model = load_model(onnx_in)
    graph = model.graph
    if preprocess is None:
        raise ConfigError(f"{onnx_in}: its run has no preprocessing record, so --preprocess can't add it to the graph")
    record = check_preprocess(preprocess, f"{onnx_in}: the preprocessing record", ConfigError)
    images = _image_input(graph, record, onnx_in)
    size, channels, error = record["image_size"], record["in_chans"], None
    shape: list[int | str] = [_dims(images)[0], *(("height", "width") if resize else (size, size)), channels]
    pixels = ir.val(PIXELS, ir.DataType.UINT8, shape)
    tape = ir.tape.Tape()
    planes = to_planes(tape, pixels)
    if resize:
        error = check_resizing(record, model.opset_imports.get("", 0), onnx_in)
        planes = resize_planes(tape, pixels, planes, record)
    scale, shift = (add_numbers(tape, *named) for named in _affine(record).items())
    numbers = add_node(tape, "Cast", [planes], "float", to=int(ir.DataType.FLOAT))
    normalised = add_node(tape, "Add", [add_node(tape, "Mul", [numbers, scale], "scaled"), shift], "normalised")
    if images.dtype == ir.DataType.FLOAT16:
        normalised = add_node(tape, "Cast", [normalised], "images", to=int(images.dtype))
    normalised.name = images.name
    images.replace_all_uses_with(normalised)
    graph.inputs[0] = pixels
    _add(graph, tape, graph[0], "preprocess")
    describe(model, preprocess=record)
    save_model(model, onnx_out, _SUBJECT)
    return {
        "name": PIXELS,
        "dtype": "uint8",
        "layout": "NHWC",
        "shape": shape,
        "color": "gray" if channels == 1 else "RGB",
        "resize": resize,
        "resize_error": error,
        "nodes": len(tape.nodes),
    }


def add_postprocess(
    onnx_in: Path, onnx_out: Path, *, softmax: bool, top_k: int | None, class_names: Sequence[str] | None
) -> dict[str, Any]:
    """Adds outputs to a model. The logits stay the first output, so that the file can be verified and measured as before.

    Args:
        onnx_in: a model whose only output is ``(batch, num_classes)``, float32 or float16.
        onnx_out: path of the new model; may be the same file.
        softmax: add ``probabilities``, float32 ``(batch, num_classes)``.
        top_k: add ``top_scores`` (float32) and ``top_classes`` (int64), both ``(batch, top_k)``, best first. The scores are
            probabilities with ``softmax``, and logits without.
        class_names: written to the file's metadata as JSON, under ``class_names``.

    Returns:
        A description for the manifest: ``outputs`` (all names), ``softmax``, ``top_k`` and ``nodes`` (how many were added).

    Raises:
        BuildError: the new graph is not valid.
        CheckpointError: the file is not readable ONNX.
        ConfigError: neither output was requested, or ``top_k`` or the number of names does not match the classes.
        UsageError: the model has other outputs than logits.
    """
    model = load_model(onnx_in)
    graph = model.graph
    if not softmax and top_k is None:
        raise ConfigError("there is nothing to add after the logits; legal are --softmax, --top-k or both")
    batch, classes = _logits_shape(graph, onnx_in)
    if top_k is not None and not 1 <= top_k <= classes:
        raise ConfigError(f"--top-k is {top_k}; the model has {classes} classes, so it must be from 1 to {classes}")
    if class_names is not None and len(class_names) != classes:
        raise ConfigError(f"there are {len(class_names)} class names, and the model has {classes} classes")
    tape = ir.tape.Tape()
    scores = graph.outputs[0]
    if scores.dtype != ir.DataType.FLOAT:
        scores = tape.op("Cast", [scores], {"to": int(ir.DataType.FLOAT)}, output=ir.val("postprocess.logits"))
    if softmax:
        scores = tape.op("Softmax", [scores], {"axis": -1}, output=ir.val(PROBABILITIES, ir.DataType.FLOAT, [batch, classes]))
        graph.outputs.append(scores)
    if top_k is not None:
        k = tape.initializer(ir.Tensor(np.array([top_k], np.int64), name="postprocess.k"))
        names = {TOP_SCORES: ir.DataType.FLOAT, TOP_CLASSES: ir.DataType.INT64}
        best = [ir.val(name, dtype, [batch, top_k]) for name, dtype in names.items()]
        graph.outputs.extend(tape.op_multi_out("TopK", [scores, k], {"axis": -1}, outputs=best))
    _add(graph, tape, None, "postprocess")
    describe(model, class_names=class_names)
    save_model(model, onnx_out, _SUBJECT)
    return {
        "outputs": [output.name for output in graph.outputs],
        "softmax": softmax,
        "top_k": top_k,
        "nodes": len(tape.nodes),
    }


def pixels_of(images: NDArray[np.float32], preprocess: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Returns the nearest uint8 pixels ``(batch, H, W, C)`` of normalised images ``(batch, C, H, W)``."""
    mean, std = (np.asarray(preprocess[key], np.float64).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    values = np.rint((images.astype(np.float64) * std + mean) * 255).clip(0, 255)
    return np.ascontiguousarray(values.astype(np.uint8).transpose(0, 2, 3, 1))


def _affine(record: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Scale and shift, ``(1, C, 1, 1)`` each, so that ``(pixel / 255 - mean) / std`` is ``pixel * scale + shift``."""
    mean, std = (np.asarray(record[key], np.float64).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    return {"scale": (1 / (255 * std)).astype(np.float32), "shift": (-mean / std).astype(np.float32)}


def _image_input(graph: ir.Graph, record: Mapping[str, Any], path: Path) -> ir.Value:
    """The only input of a model, which must match the preprocessing record."""
    images = graph.inputs[0] if len(graph.inputs) == 1 else None
    if images is None or len(_dims(images)) != 4 or images.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        raise UsageError(f"{path}: its input is not one batch of float images; is the preprocessing in the graph already?")
    expected = (record["in_chans"], record["image_size"], record["image_size"])
    if tuple(_dims(images)[1:]) != expected:
        raise ConfigError(f"{path}: it takes images {tuple(_dims(images)[1:])}, and the preprocessing record makes {expected}")
    return images


def _logits_shape(graph: ir.Graph, path: Path) -> tuple[int | str, int]:
    """The batch and the number of classes of a model's only output."""
    dims = _dims(graph.outputs[0]) if len(graph.outputs) == 1 else []
    if len(dims) != 2 or not isinstance(dims[1], int):
        raise UsageError(f"{path}: its output is not one batch of logits; is the postprocessing in the graph already?")
    return dims[0], dims[1]


def _dims(value: ir.Value) -> list[int | str]:
    return [dim if isinstance(dim, int) else dim.value or 0 for dim in value.shape or ()]


def _add(graph: ir.Graph, tape: ir.tape.Tape, place: ir.Node | None, part: str) -> None:
    """Adds nodes, named after their part of the graph, and constants: before a node, or at the end."""
    for index, node in enumerate(tape.nodes):
        node.name = f"{part}.{index}.{node.op_type}"
    if place is None:
        graph.extend(tape.nodes)
    else:
        graph.insert_before(place, tape.nodes)
    for value in tape.initializers:
        graph.register_initializer(value)
