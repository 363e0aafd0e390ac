"""Graphs that plans are built from compute what the file computes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from growtas.export.graph.edit import load_typed_model, to_proto
from growtas.export.graph.pre_post import add_preprocess
from growtas.export.quantization.convert import convert
from growtas.export.tensorrt.optimize import gather_values, numbers_first, patches_as_rows, plan_graphs
from tests.export_helpers import PlainFile, needs_rtx
from tests.unit.export.graph.test_attention_fusion import exported, run

BLOCKS = [(3, 2.0), (2, 1.0)]
RECORD = {"image_size": 16, "in_chans": 3, "mean": [0.4] * 3, "std": [0.3] * 3, "interpolation": "bicubic", "crop_pct": 1.0}


def operators(graph: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(graph).graph.node)


@pytest.mark.parametrize("size", [8, 16, 40])
@pytest.mark.parametrize(("precision", "rest", "graphs"), [("fp32", "fp32", 1), ("fp16", "fp32", 2), ("int8", "fp16", 2)])
def test_they_are_exact(tmp_path: Path, size: int, precision: str, rest: str, graphs: int) -> None:
    source = exported(tmp_path, BLOCKS, size=size)
    images = np.random.default_rng(0).standard_normal((3, 3, size, size)).astype(np.float32)
    path = tmp_path / "low.onnx"
    convert(source, path, precision, calibration=images, calibration_are="noise", rest=rest)
    # In half precision the order of sums shows, and quantised numbers may then fall on the next step.
    tolerance = {"fp32": 1e-5, "fp16": 3e-3, "int8": 2e-2}[precision]
    made = plan_graphs(path)
    assert len(made) == graphs
    for graph in made:
        proto = onnx.load_from_string(graph)
        onnx.checker.check_model(proto, full_check=True)
        for count in (1, 3):
            want = run(onnx.load(path), images[:count])
            np.testing.assert_allclose(run(proto, images[:count]), want, rtol=tolerance, atol=tolerance * np.abs(want).max())


def test_the_form(tmp_path: Path) -> None:
    source = exported(tmp_path, BLOCKS)
    (fp32,) = plan_graphs(source)
    assert {"Conv", "GatherElements", "Expand"} & set(operators(fp32)) <= {"Expand"}
    # What is left is the cls token's.
    assert operators(fp32)["Expand"] == operators(source.read_bytes())["Expand"] - 6
    low = tmp_path / "low.onnx"
    convert(source, low, "fp16")
    cut, gathered = map(operators, plan_graphs(low))
    assert cut["Slice"] - gathered["Slice"] == gathered["Gather"] - cut["Gather"] == len(BLOCKS)
    assert cut["Conv"] == gathered["Conv"] == 0


def test_other_files_stay_as_they_are(tmp_path: Path) -> None:
    # timm's models are baselines.
    timms = onnx.load(exported(tmp_path, [(2, 2.0)], distance=None))
    for entry in timms.graph.initializer:
        entry.name = entry.name.replace("patch_embed.", "patch_embed.proj.")
    for node in timms.graph.node:
        node.input[:] = [name.replace("patch_embed.", "patch_embed.proj.") for name in node.input]
    onnx.save(timms, tmp_path / "timm.onnx")
    assert plan_graphs(tmp_path / "timm.onnx") == [timms.SerializeToString()]
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    assert plan_graphs(broken) == [b"no graph"]


def test_what_has_no_values_to_gather_stays_as_it_is(tmp_path: Path) -> None:
    model = load_typed_model(exported(tmp_path, BLOCKS))
    before = to_proto(model).SerializeToString()
    assert gather_values(model) == 0
    assert to_proto(model).SerializeToString() == before


@pytest.mark.parametrize(
    ("attributes", "rows"),
    [
        ({"strides": [4, 4]}, 1),
        ({"strides": [4, 4], "pads": [0, 0, 0, 0], "group": 1, "dilations": [1, 1]}, 1),
        ({"strides": [2, 2]}, 0),
        ({"strides": [4, 4], "pads": [2, 2, 2, 2]}, 0),
        ({"strides": [4, 4], "auto_pad": "SAME_UPPER"}, 0),
        ({}, 0),
    ],
)
def test_only_patches_become_rows(attributes: dict[str, object], rows: int) -> None:
    make, rng = onnx.helper, np.random.default_rng(0)
    weight = onnx.numpy_helper.from_array(rng.standard_normal((5, 3, 4, 4)).astype(np.float32), "weight")
    bias = onnx.numpy_helper.from_array(rng.standard_normal(5).astype(np.float32), "bias")
    conv = make.make_node("Conv", ["images", "weight", "bias"], ["out"], name="conv", **attributes)
    value, kind = make.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = make.make_graph(
        [conv], "net", [value("images", kind, ["batch", 3, 8, 12])], [value("out", kind, None)], initializer=[weight, bias]
    )
    proto = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9)
    images = rng.standard_normal((2, 3, 8, 12)).astype(np.float32)
    want = run(proto, images)
    model = ir.from_proto(proto)
    assert patches_as_rows(model) == rows
    assert ("Conv" in {node.op_type for node in model.graph}) == (not rows)
    np.testing.assert_allclose(run(to_proto(model), images), want, rtol=1e-5, atol=1e-5)


@needs_rtx
def test_plans_of_plain_vits_take_pixels(plain: PlainFile, tmp_path: Path) -> None:
    from growtas.export.tensorrt.builder import Shapes, TensorRTRTXBuilder

    low, pixels = tmp_path / "low.onnx", tmp_path / "pixels.onnx"
    convert(plain.path, low, "fp16")
    add_preprocess(low, pixels, RECORD)
    plan = TensorRTRTXBuilder().build(pixels, ("sm86",), batches=Shapes(opt=1, max=8), precision="fp16")
    assert plan.inspection["products"].keys() == {"fp16"}
    assert [plan.graph] == plan_graphs(pixels)
    assert operators(plan.graph)["Conv"] == 0


@needs_rtx
def test_the_plan_that_needs_less_memory_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from growtas.export.tensorrt import builder
    from growtas.export.tensorrt.builder import Shapes, TensorRTRTXBuilder

    low = tmp_path / "low.onnx"
    convert(exported(tmp_path, BLOCKS, size=56, distance=14, head_dim=64, dim=64), low, "fp16")
    graphs = plan_graphs(low)

    def needed(chosen: list[bytes]) -> int:
        monkeypatch.setattr(builder, "plan_graphs", lambda path: chosen)
        plan = TensorRTRTXBuilder().build(low, ("sm86",), batches=Shapes(opt=1, max=64), precision="fp16")
        assert plan.activation_memory_bytes is not None
        return plan.activation_memory_bytes

    assert needed(graphs) == min(needed([graph]) for graph in graphs)


def test_pixels_become_numbers_before_they_are_moved(onnx_file: Path, tmp_path: Path) -> None:
    add_preprocess(onnx_file, tmp_path / "pixels.onnx", RECORD)
    model = ir.load(tmp_path / "pixels.onnx")
    assert numbers_first(model) == 1
    assert [node.op_type for node in model.graph][:2] == ["Cast", "Transpose"]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    graphs = [(tmp_path / "pixels.onnx").read_bytes(), to_proto(model).SerializeToString(), *plan_graphs(tmp_path / "pixels.onnx")]
    sessions = [onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]) for graph in graphs]
    want, *others = (np.asarray(session.run(["logits"], {"pixels": pixels})[0]) for session in sessions)
    assert len(others) == 2
    for got in others:
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    # Where there are no pixels there is nothing to do.
    assert numbers_first(ir.load(onnx_file)) == 0
