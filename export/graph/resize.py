"""The evaluation's resize and crop as ONNX nodes, and their difference from Pillow's results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from growtas.errors import UsageError, choices
from growtas.export.graph.edit import to_proto
from growtas.resources import available_threads

PIXELS = "pixels"
MODES = {"bilinear": "linear", "bicubic": "cubic"}
"""The interpolations of the record that ONNX has, with their ONNX names."""
OPSET = 18
"""The first opset in which Resize can antialias."""
MAX_MEAN_LEVELS, MAX_SHARE_APART = 0.25, 0.01
"""Limits on photographs: the mean difference in levels (0..255), and the share of values that differ by more than one level."""


def to_planes(tape: ir.tape.Tape, pixels: ir.Value) -> ir.Value:
    """Adds the transpose from ``(batch, H, W, C)`` to ``(batch, C, H, W)``, in uint8, which moves a quarter of float32's bytes."""
    return add_node(tape, "Transpose", [pixels], "planes", perm=[0, 3, 1, 2])


def resize_planes(tape: ir.tape.Tape, pixels: ir.Value, planes: ir.Value, record: Mapping[str, Any]) -> ir.Value:
    """Adds nodes and constants that resize and crop planes of any height and width to ``(batch, C, image_size, image_size)``.

    The short side becomes ``image_size / crop_pct`` pixels and the long side keeps the proportion, both rounded down. Then the
    centre is cropped, with its corner rounded half to even, as in torchvision. All nodes work in uint8: ONNX Runtime then rounds
    and clips after each of the two passes, like Pillow. In float, bicubic overshoots differed by up to 8 levels. The Reshapes cost
    nothing and keep ONNX Runtime from moving the Transpose after the Resize, where it expects one size per axis and fails.
    """
    size = record["image_size"]
    short = add_numbers(tape, "short", np.array([math.floor(size / record["crop_pct"])], np.int64))
    square = add_numbers(tape, "size", np.array([size, size], np.int64))
    single = add_numbers(tape, "single", np.array([-1, 1], np.int64))
    shape = add_numbers(tape, "shape", np.array([-1, record["in_chans"], size, size], np.int64))
    axes = add_numbers(tape, "axes", np.array([2, 3], np.int64))
    half = add_numbers(tape, "half", np.array([0.5], np.float32))

    sides = add_node(tape, "Shape", [pixels], "sides", start=1, end=3)
    shorter = add_node(tape, "ReduceMin", [sides], "shorter", keepdims=1)
    product = add_node(tape, "Mul", [sides, short], "product")
    resized_sides = add_node(tape, "Div", [product, shorter], "resized_sides")
    single_shape = add_node(tape, "Concat", [single, sides], "single_shape", axis=0)
    singles = add_node(tape, "Reshape", [planes, single_shape], "singles")
    resized = add_node(
        tape,
        "Resize",
        [singles, None, None, resized_sides],
        "resized",
        mode=MODES[record["interpolation"]],
        antialias=1,
        axes=[2, 3],
        cubic_coeff_a=-0.5,
        exclude_outside=1,
        coordinate_transformation_mode="half_pixel",
    )
    margin = add_node(tape, "Sub", [resized_sides, square], "margin")
    margin_float = add_node(tape, "Cast", [margin], "margin_float", to=int(ir.DataType.FLOAT))
    margin_half = add_node(tape, "Mul", [margin_float, half], "margin_half")
    corner_float = add_node(tape, "Round", [margin_half], "corner_float")
    corner = add_node(tape, "Cast", [corner_float], "corner", to=int(ir.DataType.INT64))
    end = add_node(tape, "Add", [corner, square], "end")
    middle = add_node(tape, "Slice", [resized, corner, end, axes], "middle")
    return add_node(tape, "Reshape", [middle, shape], "cropped")


def add_node(tape: ir.tape.Tape, operator: str, inputs: Sequence[ir.Value | None], output: str, **attributes: Any) -> ir.Value:
    """Adds a node of the preprocessing; its output is named ``preprocess.OUTPUT``."""
    return tape.op(operator, inputs, dict(sorted(attributes.items())), output=ir.Value(name=f"preprocess.{output}"))


def add_numbers(tape: ir.tape.Tape, name: str, values: NDArray[Any]) -> ir.Value:
    """Adds a constant of the preprocessing, named ``preprocess.NAME``."""
    return tape.initializer(ir.Tensor(values, name=f"preprocess.{name}"))


def check_resizing(record: Mapping[str, Any], opset: int, path: Path) -> dict[str, Any]:
    """Runs the resizing in ONNX Runtime on photographs, and compares it with the evaluation's resizing.

    Returns:
        For the manifest: the largest and the mean difference in levels of 0..255 (``max_levels``, ``mean_levels``), the share of
        values that differ by more than one level (``share_apart``), and a description of the ``images``.

    Raises:
        UsageError: ONNX lacks the interpolation, the opset is too old, or a difference is above :data:`MAX_MEAN_LEVELS` or
            :data:`MAX_SHARE_APART`.
    """
    interpolation = record["interpolation"]
    if interpolation not in MODES:
        raise UsageError(
            f"{path}: the evaluation resizes by {interpolation}, which ONNX can't reproduce; resize outside the graph "
            f"(legal in the graph are {choices(MODES)})"
        )
    if opset < OPSET:
        raise UsageError(f"{path}: resizing in the graph needs opset {OPSET} or newer, and the file is of opset {opset}")
    differences = np.concatenate(_differences(record, opset))
    error: dict[str, Any] = {
        "max_levels": int(differences.max()),
        "mean_levels": round(float(differences.mean()), 4),
        "share_apart": round(float((differences > 1).mean()), 6),
        "images": "4 crops of scikit-learn's sample photographs",
    }
    if error["mean_levels"] > MAX_MEAN_LEVELS or error["share_apart"] > MAX_SHARE_APART:
        raise UsageError(
            f"{path}: resized in the graph, images differ from the evaluation's by {error['mean_levels']} of 255 levels on average "
            f"and {error['share_apart']:.2%} of the values by more than one level (legal are at most {MAX_MEAN_LEVELS} levels and "
            f"{MAX_SHARE_APART:.0%}); resize outside the graph"
        )
    return error


def _differences(record: Mapping[str, Any], opset: int) -> list[NDArray[Any]]:
    """The differences in levels, one array per photograph: a landscape, a portrait, one near the model's size, and a tiny one."""
    import onnxruntime as ort
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from growtas.data.preprocess import color_mode, geometry

    size, channels = record["image_size"], record["in_chans"]
    tape = ir.tape.Tape()
    entry = ir.val(PIXELS, ir.DataType.UINT8, ["batch", "height", "width", channels])
    cropped = resize_planes(tape, entry, to_planes(tape, entry), record)
    cropped.type, cropped.shape = ir.TensorType(ir.DataType.UINT8), ir.Shape(["batch", channels, size, size])
    graph = ir.Graph(
        [entry], [cropped], nodes=tape.nodes, initializers=tape.initializers, opset_imports={"": opset}, name="resizing"
    )
    model = to_proto(ir.Model(graph, ir_version=10))
    options = ort.SessionOptions()
    options.intra_op_num_threads = available_threads()
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    first, second = load_sample_images().images
    transform, differences = geometry(record), []
    for photograph in (first, second[:, 200:420], first[100 : 100 + size + 5, 100 : 100 + size + 9], second[200:220, 300:317]):
        image = Image.fromarray(photograph).convert(color_mode(record))
        pixels = np.asarray(image).reshape(1, image.height, image.width, channels)
        (resized,) = session.run(None, {PIXELS: pixels})
        differences.append(np.abs(resized[0].astype(int) - transform(image).numpy().astype(int)).ravel())
    return differences
