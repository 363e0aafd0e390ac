from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import onnxslim
import pytest
import torch
from onnx import helper

from growtas.errors import BuildError, ConfigError, OutputError
from growtas.export.graph import exporter
from growtas.export.graph.edit import to_proto
from growtas.export.graph.exporter import export_onnx, slim
from growtas.export.graph.inference_vit import deployable
from growtas.nn.extract import extract
from growtas.nn.vit import VisionTransformer
from growtas.space import load_space
from tests.export_helpers import EXPORT_MODEL, PLAIN_OPSETS, PlainFile, random_supernet


@pytest.fixture(autouse=True)
def _the_exporter_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "export_model", EXPORT_MODEL)


def logits(path: Path, images: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"images": images.numpy()})[0])


def agree(path: Path, model: VisionTransformer, batch: int) -> None:
    size = model.architecture.image_size
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        want = model(images).numpy()
    got = logits(path, images)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("batch", [1, 3, 8, 70])
def test_onnx_runtime_agrees_with_torch_at_every_batch(onnx_file: Path, model: VisionTransformer, batch: int) -> None:
    agree(onnx_file, model, batch)


def test_a_subnet_of_a_preset_agrees(tmp_path: Path) -> None:
    space = load_space("micro").replace(depth=(1, 2))
    model = extract(random_supernet(space), space.smallest)
    export_onnx(model, tmp_path / "micro.onnx")
    for batch in (1, 3, 8):
        agree(tmp_path / "micro.onnx", model, batch)


def test_the_oldest_opset_agrees(model: VisionTransformer, tmp_path: Path) -> None:
    export_onnx(model, tmp_path / "old.onnx", opset=18)
    assert [entry.version for entry in onnx.load(tmp_path / "old.onnx").opset_import] == [18]
    agree(tmp_path / "old.onnx", model, 3)


def test_plain_vits_agree_in_every_opset(plain: PlainFile, request: pytest.FixtureRequest) -> None:
    for batch in (1, 3, 70):
        agree(plain.path, plain.model, batch)
    proto = onnx.load(plain.path)
    operators = [node.op_type for node in proto.graph.node]
    assert operators.count("Shape") <= 1
    assert not {"Range", "Where", "ConstantOfShape", "NonZero", "Loop", "If", "Cast"} & set(operators)
    # Each layer is one product with its bias inside: patches, and in each block q, k, v, projection and MLP, and the head.
    assert operators.count("Gemm") + operators.count("Conv") + operators.count("MatMul") == 2 + 2 * (6 + 2)
    opset = PLAIN_OPSETS[request.node.callspec.params["plain"]]
    assert [entry.version for entry in proto.opset_import] == [opset]


def test_graph_is_plain_and_its_ends_are_named(onnx_file: Path) -> None:
    proto = onnx.load(onnx_file)
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 20)]
    assert not proto.functions
    ends = [*proto.graph.input, *proto.graph.output]
    shapes = [[dim.dim_param or dim.dim_value for dim in end.type.tensor_type.shape.dim] for end in ends]
    assert [end.name for end in ends] == ["images", "logits"]
    assert shapes == [["batch", 3, 16, 16], ["batch", 10]]


def test_nothing_but_the_batch_size_is_computed_from_shapes(onnx_file: Path) -> None:
    operators = [node.op_type for node in onnx.load(onnx_file).graph.node]
    assert operators.count("Shape") <= 1
    assert not {"Range", "Where", "ConstantOfShape", "NonZero", "Loop", "If", "Cast"} & set(operators)


@pytest.mark.slow
def test_tracing_once_gives_what_the_exporters_two_passes_give(tmp_path: Path) -> None:
    space = load_space("micro").replace(depth=(1,))
    model = extract(random_supernet(space), space.largest)
    export_onnx(model, tmp_path / "once.onnx")
    size = space.image_size
    batch = torch.export.Dim("batch", min=1, max=1024)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            deployable(model),
            (torch.zeros(2, 3, size, size),),
            dynamo=True,
            opset_version=20,
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    assert program is not None
    twice = onnxslim.slim(program.model_proto)
    once = onnx.load(tmp_path / "once.onnx")
    assert Counter(node.op_type for node in once.graph.node) == Counter(node.op_type for node in twice.graph.node)


def _sizes(last: list[int], end: int = 1) -> onnx.ModelProto:
    """``b`` as a list of one, made by way of a number; read by an Expand."""
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"], start=0, end=end),
        helper.make_node("Squeeze", ["sizes"], ["number"]),
        helper.make_node("Reshape", ["number", "last"], ["list"]),
        helper.make_node("Expand", ["one", "list"], ["y"]),
    ]
    ends = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None]) for name in "xy")
    given, made = ends
    constants = [onnx.numpy_helper.from_array(np.array(last, np.int64), "last")]
    constants.append(onnx.numpy_helper.from_array(np.ones(1, np.float32), "one"))
    graph = helper.make_graph(nodes, "g", [given], [made], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_a_size_is_no_number_in_between() -> None:
    model = slim(_sizes([-1]))
    assert [(node.op_type, *(value.name for value in node.inputs)) for node in model.graph] == [
        ("Shape", "x"),
        ("Expand", "one", "sizes"),
    ]
    assert list(model.graph.initializers) == ["one"]
    session = onnxruntime.InferenceSession(to_proto(model).SerializeToString())
    assert session.run(None, {"x": np.zeros(5, np.float32)})[0].shape == (5,)


def test_other_shapes_are_left_alone() -> None:
    for proto in (_sizes([1, 1]), _sizes([-1], end=2)):
        assert [node.op_type for node in slim(proto).graph] == [node.op_type for node in proto.graph.node]


def test_the_file_says_nothing_of_the_machine_that_made_it(onnx_file: Path) -> None:
    content = onnx_file.read_bytes()
    for word in (b".py", b"site-packages", str(Path.home()).encode() + b"/", b"stack_trace"):
        assert word not in content


def test_exporting_again_is_silent_and_gives_the_same_bytes(
    onnx_file: Path, model: VisionTransformer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_onnx(model, tmp_path / "again.onnx")
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "again.onnx").read_bytes() == onnx_file.read_bytes()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["again.onnx"]


def test_a_foreign_operator_is_refused(
    onnx_file: Path, model: VisionTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = onnx.load(onnx_file)
    gelu = next(node for node in proto.graph.node if node.op_type == "Gelu")
    gelu.domain = "com.microsoft"
    proto.opset_import.add(domain="com.microsoft", version=1)
    monkeypatch.setattr(exporter, "slim", lambda traced: ir.from_proto(proto))
    with pytest.raises(BuildError, match="not plain ONNX of opset 20: com.microsoft::Gelu"):
        export_onnx(model, tmp_path / "foreign.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("opset", [17, 23])
def test_an_opset_out_of_range_is_refused(model: VisionTransformer, tmp_path: Path, opset: int) -> None:
    with pytest.raises(ConfigError, match=f"opset is {opset}; legal are 18 to 22"):
        export_onnx(model, tmp_path / "m.onnx", opset=opset)


def test_an_exporter_that_fails_is_a_build_error(model: VisionTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("can't trace\nthis")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(BuildError, match="the ONNX exporter failed: can't trace this"):
        export_onnx(model, tmp_path / "m.onnx")


def test_a_place_that_is_no_folder_is_an_output_error(model: VisionTransformer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        export_onnx(model, tmp_path / "file" / "m.onnx")
