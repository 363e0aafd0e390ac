"""Artifacts with the preprocessing in their graph are measured on pixels, in their own layout and type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from growtas.errors import BuildError, CheckpointError
from growtas.export.artifact import write_manifest
from growtas.export.benchmark import run as bench_module
from growtas.export.benchmark.inputs import ImageInput, image_input
from growtas.export.benchmark.run import BenchOptions
from growtas.export.graph.pre_post import add_preprocess
from growtas.export.open import open_session
from growtas.export.runtimes.base import is_installed
from growtas.export.runtimes.onnxruntime import OnnxRuntimeSession
from growtas.export.verification.images import noise
from tests.bench_helpers import bench
from tests.export_helpers import DIGITS_PREPROCESS

QUICK = BenchOptions(batches=(1, 3), threads=1, rounds=1, seconds=0.01, roofline=False)
RECORD = {**DIGITS_PREPROCESS, "crop_pct": 0.875}

needs_openvino = pytest.mark.skipif(not is_installed("openvino"), reason="openvino is not installed")


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "probe", lambda path, **options: {"load_ms": 1.0, "peak_rss_bytes": 2, **options})


def pixels(onnx_file: Path, out: Path, *, resize: bool = False, manifest: bool = True, **changes: Any) -> Path:
    """A file that takes pixels, with the manifest that an export writes beside it."""
    entry = add_preprocess(onnx_file, out, RECORD, resize=resize)
    if manifest:
        write_manifest(out, {"precision": "fp32", "input": entry, "preprocess": {**RECORD, **changes}})
    return out


@pytest.mark.parametrize("manifest", [True, False])
def test_pixels_are_fed_as_the_graph_takes_them(onnx_file: Path, tmp_path: Path, no_probe: None, manifest: bool) -> None:
    files = [
        pixels(onnx_file, tmp_path / "one.onnx", manifest=manifest),
        pixels(onnx_file, tmp_path / "any.onnx", resize=True, manifest=manifest),
    ]
    notes: list[str] = []
    report = bench([onnx_file, *files], QUICK, note=notes.append)
    keys = ("image_shape", "image_layout", "input_dtype", "any_image_size")
    found = [tuple(artifact[key] for key in keys) for artifact in report["artifacts"]]
    assert found == [
        ([3, 16, 16], "NCHW", "float32", False),
        ([16, 16, 3], "NHWC", "uint8", False),
        ([16, 16, 3], "NHWC", "uint8", True),
    ]
    for artifact in report["artifacts"]:
        assert [result["batch"] for result in artifact["results"]] == [1, 3]
        assert all(result["p50_ms"] > 0 for result in artifact["results"])
    told = [text for text in notes if "measured on images" in text]
    assert told == [
        "one.onnx: measured on images 16x16x3 uint8 (NHWC)",
        "any.onnx: measured on images 16x16x3 uint8 (NHWC, its height and width are free)",
    ]


def test_a_free_size_is_the_one_of_the_manifest(onnx_file: Path, tmp_path: Path, no_probe: None) -> None:
    file = pixels(onnx_file, tmp_path / "any.onnx", resize=True, image_size=20)
    (artifact,) = bench([file], QUICK)["artifacts"]
    assert artifact["image_shape"] == [20, 20, 3]
    assert len(artifact["results"]) == 2


def test_the_memory_of_a_file_that_resizes_is_measured(onnx_file: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    (artifact,) = bench([pixels(onnx_file, tmp_path / "any.onnx", resize=True)], QUICK, note=notes.append)["artifacts"]
    assert not [text for text in notes if "memory" in text]
    assert artifact["memory"]["first_run_ms"] > 0


@needs_openvino
def test_openvino_takes_pixels_of_one_size(onnx_file: Path, tmp_path: Path, no_probe: None) -> None:
    from growtas.export.runtimes.openvino import write_ir

    one = pixels(onnx_file, tmp_path / "one.onnx")
    resized = pixels(onnx_file, tmp_path / "any.onnx", resize=True)
    write_ir(one, tmp_path / "one.xml")
    options = BenchOptions(batches=(2,), threads=1, rounds=1, seconds=0.01, roofline=False, runtimes=("onnxruntime", "openvino"))
    report = bench([one, tmp_path / "one.xml", resized], options)
    found = {artifact["label"]: (artifact["runnable"], artifact["input_dtype"]) for artifact in report["artifacts"]}
    assert found == {
        "one.onnx in onnxruntime": (True, "uint8"),
        "one.onnx in openvino": (True, "uint8"),
        "one.xml": (True, "uint8"),
        "any.onnx in onnxruntime": (True, "uint8"),
        "any.onnx in openvino": (False, "uint8"),
    }
    assert "of one image size" in report["artifacts"][-1]["not_runnable_because"]


def test_a_session_s_timer_runs_pixels_as_they_are(onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime as ort

    bound: list[np.ndarray] = []
    place = ort.OrtValue.ortvalue_from_numpy

    def placed(array: np.ndarray, *where: Any) -> Any:
        bound.append(array)
        return place(array, *where)

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", placed)
    images = np.random.default_rng(0).integers(0, 256, (2, 20, 18, 3), dtype=np.uint8)
    with open_session(pixels(onnx_file, tmp_path / "any.onnx", resize=True), threads=1) as session:
        assert session.image_shape == (16, 16, 3)
        assert session.timer(images)() > 0  # type: ignore[arg-type]
    np.testing.assert_array_equal(bound[0], images)
    assert bound[0].dtype == np.uint8


def as_half(onnx_file: Path, out: Path) -> Path:
    """The same network behind an input of float16."""
    proto = onnx.load(onnx_file)
    (given,) = proto.graph.input
    cast = onnx.helper.make_node("Cast", ["half"], [given.name], to=onnx.TensorProto.FLOAT)
    shape = [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim]
    proto.graph.input.pop()
    proto.graph.input.append(onnx.helper.make_tensor_value_info("half", onnx.TensorProto.FLOAT16, shape))
    proto.graph.node.insert(0, cast)
    onnx.save(proto, out)
    return out


def test_an_input_of_float16_is_fed_float16(onnx_file: Path, tmp_path: Path, no_probe: None) -> None:
    (artifact,) = bench([as_half(onnx_file, tmp_path / "half.onnx")], QUICK)["artifacts"]
    assert (artifact["input_dtype"], len(artifact["results"])) == ("float16", 2)


def test_a_size_that_nothing_tells_is_refused(onnx_file: Path, tmp_path: Path) -> None:
    file = pixels(onnx_file, tmp_path / "any.onnx", resize=True, manifest=False)
    proto = onnx.load(file)
    proto.ClearField("metadata_props")
    onnx.save(proto, file)
    with OnnxRuntimeSession(file, threads=1) as session, pytest.raises(CheckpointError, match="the size of its images is unknown"):
        image_input(file, None, session)
    with pytest.raises(CheckpointError, match=r"any\.onnx: its input is \['batch', 'height', 'width', 3\], and the size of"):
        bench([file], QUICK)


def test_other_types_are_refused(tmp_path: Path) -> None:
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Cast", ["tokens"], ["logits"], to=onnx.TensorProto.FLOAT)],
            "tokens",
            [onnx.helper.make_tensor_value_info("tokens", onnx.TensorProto.INT64, ["batch", 3, 4, 4])],
            [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 3, 4, 4])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(proto, tmp_path / "tokens.onnx")
    with pytest.raises(CheckpointError, match=r"tokens\.onnx: its input is of type int64; legal are float32, float16, float64 or"):
        bench([tmp_path / "tokens.onnx"], QUICK)
    with (
        OnnxRuntimeSession(tmp_path / "tokens.onnx") as session,
        pytest.raises(CheckpointError, match=r"its input is tensor\(int64\)"),
    ):
        session.timer(noise(1, (3, 4, 4)))


def test_a_run_that_fails_is_one_sentence(onnx_file: Path) -> None:
    with OnnxRuntimeSession(onnx_file, threads=1) as session:
        timer = session.timer(noise(2, (3, 8, 8)))
        with pytest.raises(BuildError, match=r"tiny\.onnx: ONNX Runtime can't run it \(") as caught:
            timer()
    assert "\n" not in str(caught.value)


def test_what_is_fed_is_always_the_same() -> None:
    fed = ImageInput(dtype="uint8", shape=(4, 5, 3), layout="NHWC")
    np.testing.assert_array_equal(fed.images(2), fed.images(2))
    assert (fed.images(2).dtype, fed.images(2).shape, str(fed)) == (np.uint8, (2, 4, 5, 3), "4x5x3 uint8 (NHWC)")
