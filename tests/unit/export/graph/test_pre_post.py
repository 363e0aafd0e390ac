from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform
from torchvision import transforms

from growtas.data.preprocess import normalise
from growtas.errors import BuildError, CheckpointError, ConfigError, UsageError
from growtas.export.graph import resize as resizing
from growtas.export.graph.pre_post import add_postprocess, add_preprocess, pixels_of
from growtas.export.graph.resize import check_resizing

# Different numbers a channel, so that swapped channels show.
RECORD: dict[str, Any] = {
    "image_size": 16,
    "in_chans": 3,
    "mean": [0.485, 0.456, 0.3],
    "std": [0.229, 0.15, 0.4],
    "interpolation": "bicubic",
    "crop_pct": 1.0,
}


def run(path: Path, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(np.asarray, session.run(names, inputs)), strict=True))


def pixels(count: int, size: int = 16, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), np.uint8)


def write(path: Path, nodes: list[Any], constants: dict[str, np.ndarray], ends: tuple[Any, Any], opset: int = 20) -> Path:
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "hand-made", [ends[0]], [ends[1]], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


def identity(path: Path, *, size: int = 16, channels: int = 3, opset: int = 20) -> Path:
    """A model that gives back the images it is given."""
    shape = ["batch", channels, size, size]
    ends = tuple(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("images", "same"))
    return write(path, [helper.make_node("Identity", ["images"], ["same"])], {}, ends, opset)


@pytest.mark.parametrize("batch", [1, 3])
def test_pixels_give_the_logits_of_the_images_made_from_them(onnx_file: Path, tmp_path: Path, batch: int) -> None:
    told = add_preprocess(onnx_file, tmp_path / "p.onnx", RECORD)
    given_ = pixels(batch)
    usual = transforms.Compose([transforms.ToTensor(), transforms.Normalize(RECORD["mean"], RECORD["std"])])
    images = np.stack([usual(Image.fromarray(image)).numpy() for image in given_])
    want = run(onnx_file, images=images)["logits"]
    got = run(tmp_path / "p.onnx", pixels=given_)["logits"]
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
    assert told["shape"] == ["batch", 16, 16, 3]
    assert (told["name"], told["dtype"], told["layout"], told["color"], told["nodes"]) == ("pixels", "uint8", "NHWC", "RGB", 4)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.lists(st.floats(0.02, 2), min_size=3, max_size=3), st.integers(0, 99))
def test_any_mean_and_std(tmp_path: Path, mean: list[float], std: list[float], seed: int) -> None:
    record = {**RECORD, "mean": mean, "std": std}
    add_preprocess(identity(tmp_path / "i.onnx"), tmp_path / "p.onnx", record)
    given_ = pixels(2, seed=seed)
    got = run(tmp_path / "p.onnx", pixels=given_)["same"]
    want = ((given_ / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert np.abs(got - want).max() <= 3e-7 / min(std)


def test_gray_images(tmp_path: Path) -> None:
    record = {**RECORD, "in_chans": 1, "mean": [0.3], "std": [0.5]}
    told = add_preprocess(identity(tmp_path / "i.onnx", channels=1), tmp_path / "p.onnx", record)
    given_ = pixels(2, channels=1)
    assert told["color"] == "gray"
    want = ((given_ / 255 - 0.3) / 0.5).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(run(tmp_path / "p.onnx", pixels=given_)["same"], want, atol=1e-6)


def test_a_half_precision_file(tmp_path: Path) -> None:
    ends = (
        helper.make_tensor_value_info("images", TensorProto.FLOAT16, ["batch", 3, 16, 16]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT16, ["batch", 768]),
    )
    path = write(tmp_path / "half.onnx", [helper.make_node("Flatten", ["images"], ["logits"])], {}, ends)
    add_preprocess(path, path, RECORD)
    add_postprocess(path, path, softmax=True, top_k=2, class_names=None)
    given_ = pixels(2)
    got = run(path, pixels=given_)
    want = ((given_ / 255 - RECORD["mean"]) / RECORD["std"]).transpose(0, 3, 1, 2).reshape(2, -1)
    assert got["logits"].dtype == np.float16
    assert got["probabilities"].dtype == got["top_scores"].dtype == np.float32
    np.testing.assert_allclose(got["logits"].astype(np.float64), want, atol=2e-3)
    np.testing.assert_allclose(got["probabilities"].sum(1), 1, atol=1e-5)


def test_a_quantised_file_keeps_every_node(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((10, 3, 16, 16)).astype(np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        helper.make_node("Conv", ["dq", "weights"], ["conv"]),
        helper.make_node("Flatten", ["conv"], ["logits"]),
    ]
    ends = (
        helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 16, 16]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10]),
    )
    constants = {"scale": np.array(0.05, np.float32), "zero": np.array(0, np.int8), "weights": weights}
    path = write(tmp_path / "q.onnx", nodes, constants, ends)
    before = onnx.load(path)
    add_preprocess(path, tmp_path / "p.onnx", RECORD)
    add_postprocess(tmp_path / "p.onnx", tmp_path / "p.onnx", softmax=True, top_k=3, class_names=None)
    after = onnx.load(tmp_path / "p.onnx")
    middle = [node for node in after.graph.node if not node.name.startswith(("preprocess.", "postprocess."))]
    assert middle == list(before.graph.node)
    assert list(after.graph.initializer)[:3] == list(before.graph.initializer)
    given_ = pixels(2)
    images = np.stack([transforms.functional.to_tensor(image).numpy() for image in given_])
    images = (images - np.reshape(RECORD["mean"], (3, 1, 1))) / np.reshape(RECORD["std"], (3, 1, 1))
    want = run(path, images=images.astype(np.float32))["logits"]
    got = run(tmp_path / "p.onnx", pixels=given_)["logits"]
    # A value on the edge between two steps may fall on either side: one step of one weight.
    assert np.abs(got - want).max() <= 0.05 * np.abs(weights).max() * 3


@pytest.mark.parametrize(("size", "crop_pct"), [(224, 0.875), (32, 1.0), (30, 0.95)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_and_cropping_follow_timm(tmp_path: Path, size: int, crop_pct: float, interpolation: str) -> None:
    record = {**RECORD, "image_size": size, "crop_pct": crop_pct, "interpolation": interpolation}
    told = add_preprocess(identity(tmp_path / "i.onnx", size=size), tmp_path / "p.onnx", record, resize=True)
    assert told["shape"] == ["batch", "height", "width", 3]
    assert told["resize_error"]["share_apart"] <= resizing.MAX_SHARE_APART
    session = onnxruntime.InferenceSession(str(tmp_path / "p.onnx"), providers=["CPUExecutionProvider"])
    usual = create_transform(
        input_size=(3, size, size),
        interpolation=interpolation,
        crop_pct=crop_pct,
        mean=tuple(RECORD["mean"]),
        std=tuple(RECORD["std"]),
    )
    level = 1 / 255 / np.reshape(RECORD["std"], (3, 1, 1))
    photograph = load_sample_images().images[0]
    for top, left, height, width in ((0, 0, 427, 640), (10, 300, 400, 251), (100, 100, 61, 90), (200, 200, 37, 21)):
        image = np.ascontiguousarray(photograph[top : top + height, left : left + width])
        (got,) = session.run(None, {"pixels": image[None]})
        apart = np.abs(got[0] - usual(Image.fromarray(image)).numpy()) / level
        assert apart.mean() <= 0.25
        assert (apart > 1.01).mean() <= 0.01


def test_several_images_of_one_size_are_resized_like_each_alone(onnx_file: Path, tmp_path: Path) -> None:
    add_preprocess(onnx_file, tmp_path / "p.onnx", RECORD, resize=True)
    given_ = np.random.default_rng(0).integers(0, 256, (3, 40, 23, 3), np.uint8)
    together = run(tmp_path / "p.onnx", pixels=given_)["logits"]
    alone = np.concatenate([run(tmp_path / "p.onnx", pixels=image[None])["logits"] for image in given_])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_a_resizing_that_onnx_lacks_is_refused(onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="resizes by lanczos, which ONNX can't reproduce"):
        add_preprocess(onnx_file, tmp_path / "p.onnx", {**RECORD, "interpolation": "lanczos"}, resize=True)
    old = identity(tmp_path / "old.onnx", opset=17)
    with pytest.raises(UsageError, match=r"needs opset 18 or newer, and the file is of opset 17"):
        add_preprocess(old, tmp_path / "p.onnx", RECORD, resize=True)
    # A graph that resizes in another way than the evaluation does.
    monkeypatch.setitem(resizing.MODES, "bicubic", "linear")
    with pytest.raises(UsageError, match="images differ from the evaluation's"):
        add_preprocess(onnx_file, tmp_path / "p.onnx", RECORD, resize=True)
    assert not (tmp_path / "p.onnx").exists()


def test_the_measured_error_is_that_of_the_nodes(tmp_path: Path) -> None:
    error = check_resizing({**RECORD, "image_size": 224, "crop_pct": 0.875}, 20, tmp_path)
    assert error["max_levels"] <= 2
    assert error["mean_levels"] < 0.01
    assert error["share_apart"] < 1e-3


def test_probabilities_and_best_classes(onnx_file: Path, tmp_path: Path) -> None:
    names = [f"class {index}" for index in range(10)]
    told = add_postprocess(onnx_file, tmp_path / "p.onnx", softmax=True, top_k=3, class_names=names)
    images = np.random.default_rng(0).standard_normal((5, 3, 16, 16)).astype(np.float32)
    logits = run(onnx_file, images=images)["logits"]
    got = run(tmp_path / "p.onnx", images=images)
    assert list(got) == told["outputs"] == ["logits", "probabilities", "top_scores", "top_classes"]
    exponents = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    probabilities = exponents / exponents.sum(1, keepdims=True)
    order = np.argsort(-logits, axis=1)[:, :3]
    np.testing.assert_array_equal(got["logits"], logits)
    np.testing.assert_allclose(got["probabilities"], probabilities, atol=1e-6)
    np.testing.assert_array_equal(got["top_classes"], order)
    np.testing.assert_allclose(got["top_scores"], np.take_along_axis(probabilities, order, 1), atol=1e-6)
    metadata = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "p.onnx").metadata_props}
    assert metadata["class_names"] == names


def test_best_classes_without_softmax_have_logits_as_scores(onnx_file: Path, tmp_path: Path) -> None:
    told = add_postprocess(onnx_file, tmp_path / "p.onnx", softmax=False, top_k=1, class_names=None)
    images = np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)
    got = run(tmp_path / "p.onnx", images=images)
    assert told["outputs"] == ["logits", "top_scores", "top_classes"]
    np.testing.assert_array_equal(got["top_scores"][:, 0], got["logits"].max(1))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"softmax": False, "top_k": None, "class_names": None}, "nothing to add"),
        ({"softmax": True, "top_k": 11, "class_names": None}, "top-k is 11; the model has 10 classes, so it must be from 1 to 10"),
        ({"softmax": True, "top_k": 0, "class_names": None}, "top-k is 0"),
        ({"softmax": True, "top_k": None, "class_names": ["a", "b"]}, "2 class names, and the model has 10 classes"),
    ],
)
def test_wrong_postprocessing_is_refused(onnx_file: Path, tmp_path: Path, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        add_postprocess(onnx_file, tmp_path / "p.onnx", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("record", "match"),
    [
        (None, "has no preprocessing record"),
        ({"image_size": 16}, "lacks in_chans, interpolation, crop_pct, mean or std"),
        ({**RECORD, "image_size": 32}, r"it takes images \(3, 16, 16\), and the preprocessing record makes \(3, 32, 32\)"),
        ({**RECORD, "std": [0.1, 0.0, 0.1]}, "must be a list of 3 numbers above zero"),
        ({**RECORD, "mean": [0.5]}, "one for each channel"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(onnx_file: Path, tmp_path: Path, record: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        add_preprocess(onnx_file, tmp_path / "p.onnx", record)
    assert not list(tmp_path.iterdir())


def test_ends_are_added_once(onnx_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.onnx"
    add_preprocess(onnx_file, path, RECORD)
    with pytest.raises(UsageError, match="is the preprocessing in the graph already"):
        add_preprocess(path, path, RECORD)
    add_postprocess(path, path, softmax=True, top_k=None, class_names=None)
    with pytest.raises(UsageError, match="is the postprocessing in the graph already"):
        add_postprocess(path, path, softmax=True, top_k=None, class_names=None)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "not a readable .onnx file"), (b"nonsense", "not a readable .onnx file"), (None, "No such file")]
)
def test_what_is_no_onnx_file_is_one_sentence(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"broken\.onnx: .*{reason}"):
        add_preprocess(path, tmp_path / "p.onnx", RECORD)


def test_a_graph_that_turns_out_invalid_is_not_written(onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = onnx.load(onnx_file)
    proto.graph.node[0].output[0] = "preprocess.planes"
    onnx.save(proto, tmp_path / "clash.onnx")
    with pytest.raises(BuildError, match="the graph with pre- or post-processing is not valid ONNX"):
        add_preprocess(tmp_path / "clash.onnx", tmp_path / "p.onnx", RECORD)
    assert not (tmp_path / "p.onnx").exists()


def test_pixels_come_back_from_normalised_images() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    import torch

    images = normalise(torch.from_numpy(every).permute(0, 3, 1, 2), RECORD).numpy()
    np.testing.assert_array_equal(pixels_of(images, RECORD), every)
