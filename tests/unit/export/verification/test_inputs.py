"""What artifacts are fed, judged by what a graph makes of it: images in, the same images out, in float64 by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from growtas.export.artifact import Manifest
from growtas.export.graph.pre_post import add_preprocess
from growtas.export.verification.inputs import ArtifactInput, artifact_input

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def record(size: int, crop_pct: float) -> dict[str, Any]:
    return {
        "image_size": size,
        "in_chans": 3,
        "mean": list(MEAN),
        "std": list(STD),
        "interpolation": "bicubic",
        "crop_pct": crop_pct,
    }


def resizing(folder: Path, preprocess: dict[str, Any]) -> tuple[onnxruntime.InferenceSession, ArtifactInput]:
    """A graph that resizes, crops and normalises pixels, and gives just that; and what feeds it."""
    shape = ["batch", 3, preprocess["image_size"], preprocess["image_size"]]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("images", "seen")]
    graph = helper.make_graph([helper.make_node("Identity", ["images"], ["seen"])], "net", ends[:1], ends[1:])
    path = folder / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    entry = add_preprocess(path, path, preprocess, resize=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session, artifact_input(path, Manifest.from_dict({"preprocess": preprocess, "input": entry}), preprocess)


@pytest.mark.parametrize(
    ("size", "crop_pct", "odd"),
    [
        (80, 0.875, True),
        (96, 0.875, True),
        (176, 0.875, True),
        (208, 0.875, True),
        (288, 0.875, True),
        (26, 0.9, False),
        (20, 0.95, True),
        (112, 0.875, False),
        (224, 0.875, False),
        (32, 1.0, False),
    ],
)
def test_a_graph_that_resizes_sees_the_very_images(tmp_path: Path, size: int, crop_pct: float, odd: bool) -> None:
    assert (math.floor(size / crop_pct) - size) % 2 == odd
    session, takes = resizing(tmp_path, record(size, crop_pct))
    # Noise has no neighbours that are alike: resampled or moved by a pixel, it would be far off.
    levels = np.random.default_rng(0).integers(0, 256, (2, 3, size, size)).astype(np.float64)
    mean, std = (np.reshape(values, (1, 3, 1, 1)) for values in (MEAN, STD))
    want = (levels / 255 - mean) / std
    pixels = takes.convert(want.astype(np.float32))
    assert pixels.shape == (2, *[math.floor(size / crop_pct)] * 2, 3)
    (seen,) = session.run(None, {"pixels": pixels})
    np.testing.assert_allclose(seen, want, atol=1e-5)


def test_a_graph_that_does_not_resize_gets_no_margin(tmp_path: Path) -> None:
    preprocess = record(80, 0.875)
    manifest = Manifest.from_dict({"preprocess": preprocess, "input": {"dtype": "uint8"}})
    takes = artifact_input(tmp_path / "net.onnx", manifest, preprocess)
    assert takes.convert(np.zeros((1, 3, 80, 80), np.float32)).shape == (1, 80, 80, 3)
