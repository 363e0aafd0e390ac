"""The evaluation's resize and crop as ONNX nodes, and how close they come to Pillow's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.errors import UsageError, choices

PIXELS, PLANES, CROPPED = "pixels", "preprocess.planes", "preprocess.cropped"
MODES = {"bilinear": "linear", "bicubic": "cubic"}
"""The record's interpolations that ONNX has, and their names there."""
OPSET = 18
"""Resize has had antialias since this one."""
MAX_MEAN_LEVELS, MAX_SHARE_APART = 0.25, 0.01
"""What passes on photographs: mean difference in levels of 0..255, and share of values that are more than one level apart."""
_INT64, _FLOAT, _UINT8 = 7, 1, 2  # onnx.TensorProto's numbers


def to_planes() -> Any:
    """The node from ``pixels`` ``(batch, H, W, C)`` to ``(batch, C, H, W)``, still uint8: a quarter of the bytes to move."""
    from onnx import helper

    return helper.make_node("Transpose", [PIXELS], [PLANES], perm=[0, 3, 1, 2])


def resize_nodes(record: Mapping[str, Any]) -> tuple[list[Any], dict[str, NDArray[Any]]]:
    """Nodes from :data:`PLANES` of any height and width to :data:`CROPPED`, ``image_size`` x ``image_size``, and their constants.

    The short side becomes ``image_size / crop_pct`` pixels, the long one what keeps the proportion, both rounded down; then the
    middle is cut out, its corner rounded half to even (torchvision's arithmetic). All in uint8, where ONNX Runtime rounds and clips
    after each of the two passes, as Pillow does; in float, bicubic overshoots were up to 8 levels apart. The Reshapes cost nothing
    and keep ONNX Runtime from moving the Transpose behind the Resize, where it takes ``sizes`` for one number an axis and fails.
    """
    from onnx import helper

    p, size = "preprocess.", record["image_size"]
    nodes = [
        helper.make_node("Shape", [PIXELS], [p + "sides"], start=1, end=3),
        helper.make_node("ReduceMin", [p + "sides"], [p + "shorter"], keepdims=1),
        helper.make_node("Mul", [p + "sides", p + "short"], [p + "product"]),
        helper.make_node("Div", [p + "product", p + "shorter"], [p + "resized_sides"]),
        helper.make_node("Concat", [p + "single", p + "sides"], [p + "single_shape"], axis=0),
        helper.make_node("Reshape", [PLANES, p + "single_shape"], [p + "singles"]),
        helper.make_node(
            "Resize",
            [p + "singles", "", "", p + "resized_sides"],
            [p + "resized"],
            mode=MODES[record["interpolation"]],
            antialias=1,
            axes=[2, 3],
            cubic_coeff_a=-0.5,
            exclude_outside=1,
            coordinate_transformation_mode="half_pixel",
        ),
        helper.make_node("Sub", [p + "resized_sides", p + "size"], [p + "margin"]),
        helper.make_node("Cast", [p + "margin"], [p + "margin_float"], to=_FLOAT),
        helper.make_node("Mul", [p + "margin_float", p + "half"], [p + "margin_half"]),
        helper.make_node("Round", [p + "margin_half"], [p + "corner_float"]),
        helper.make_node("Cast", [p + "corner_float"], [p + "corner"], to=_INT64),
        helper.make_node("Add", [p + "corner", p + "size"], [p + "end"]),
        helper.make_node("Slice", [p + "resized", p + "corner", p + "end", p + "axes"], [p + "middle"]),
        helper.make_node("Reshape", [p + "middle", p + "shape"], [CROPPED]),
    ]
    constants: dict[str, NDArray[Any]] = {
        p + "short": np.array([math.floor(size / record["crop_pct"])], np.int64),
        p + "size": np.array([size, size], np.int64),
        p + "single": np.array([-1, 1], np.int64),
        p + "shape": np.array([-1, record["in_chans"], size, size], np.int64),
        p + "axes": np.array([2, 3], np.int64),
        p + "half": np.array([0.5], np.float32),
    }
    return nodes, constants


def check_resizing(record: Mapping[str, Any], opset: int, path: Path) -> dict[str, Any]:
    """Run the resizing in ONNX Runtime on photographs, and compare it with the record's own evaluation transform.

    Returns:
        For the manifest: ``max_levels`` and ``mean_levels`` (of 0..255), ``share_apart`` (of values more than one level apart) and
        ``images``.

    Raises:
        UsageError: an interpolation that ONNX doesn't have, an old opset, or a difference above :data:`MAX_MEAN_LEVELS` or
            :data:`MAX_SHARE_APART`.
    """
    interpolation = record["interpolation"]
    if interpolation not in MODES:
        raise UsageError(
            f"{path}: the evaluation resizes by {interpolation}, which ONNX can't reproduce; resize outside the graph "
            f"(legal inside are {choices(MODES)})"
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
            f"and by more than one at {error['share_apart']:.2%} of values (at most {MAX_MEAN_LEVELS} and {MAX_SHARE_APART:.0%}); "
            "resize outside the graph"
        )
    return error


def _differences(record: Mapping[str, Any], opset: int) -> list[NDArray[Any]]:
    """Levels between both ways, an array a photograph: one landscape, one portrait, one near the model's size, one tiny."""
    import onnxruntime as ort
    from onnx import helper, numpy_helper
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from growtas.data.preprocess import color_mode, geometry

    nodes, constants = resize_nodes(record)
    size, channels = record["image_size"], record["in_chans"]
    graph = helper.make_graph(
        [to_planes(), *nodes],
        "resizing",
        [helper.make_tensor_value_info(PIXELS, _UINT8, ["batch", "height", "width", channels])],
        [helper.make_tensor_value_info(CROPPED, _UINT8, ["batch", channels, size, size])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    first, second = load_sample_images().images
    transform, found = geometry(record), []
    for photograph in (first, second[:, 200:420], first[100 : 100 + size + 5, 100 : 100 + size + 9], second[200:220, 300:317]):
        image = Image.fromarray(photograph).convert(color_mode(record))
        pixels = np.asarray(image).reshape(1, image.height, image.width, channels)
        (got,) = session.run(None, {PIXELS: pixels})
        found.append(np.abs(got[0].astype(int) - transform(image).numpy().astype(int)).ravel())
    return found
