"""The repository is read back as Triton reads it: by the protobuf messages that its client ships."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2

from growtas.errors import CheckpointError, ConfigError, OutputError, UsageError
from growtas.export.artifact import Artifact, Manifest, load_artifact, write_manifest
from growtas.export.pipeline import triton
from growtas.export.pipeline.triton import check_triton, write_triton
from growtas.files import sha256
from tests.unit.export.serving.helpers import CLASSES, MAX_BATCH, NAMES, RECORD, artifact


def parsed(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def changed(path: Path, **changes: Any) -> Artifact:
    """An artifact as its file is now, with another manifest than the one beside it."""
    record = load_artifact(path, verify=False).manifest.to_dict()
    record["artifact"]["sha256"] = sha256(path)
    return Artifact(path=path, manifest=Manifest.from_dict({**record, **changes}))


def plan(folder: Path, runtime: str = "tensorrt") -> Path:
    path = folder / "net.plan"
    path.write_bytes(b"a plan")
    like = load_artifact(artifact(folder)).manifest.to_dict()
    kept = {key: like[key] for key in ("input", "output", "preprocess", "class_names", "precision")}
    write_manifest(path, {**kept, "runtime": runtime, "plan": {"runtime": runtime, "max_batch": 2}})
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_an_onnx_file_as_a_model(tmp_path):
    made = artifact(tmp_path)
    folder = write_triton(tmp_path / "repo", load_artifact(made))
    assert folder == tmp_path / "repo" / "net"
    assert names(folder) == ["1/model.onnx", "README.md", "config.pbtxt", "labels.txt", "manifest.json"]
    config = parsed(folder)
    assert (config.name, config.platform, config.max_batch_size) == ("net", "onnxruntime_onnx", MAX_BATCH)
    (given,) = config.input
    assert (given.name, given.data_type, list(given.dims)) == ("images", model_config_pb2.TYPE_FP32, [3, 8, 8])
    (output,) = config.output
    assert (output.name, output.data_type, list(output.dims)) == ("logits", model_config_pb2.TYPE_FP32, [CLASSES])
    assert (folder / output.label_filename).read_text(encoding="utf-8").splitlines() == NAMES
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert list(config.dynamic_batching.preferred_batch_size) == []
    assert [(warm.batch_size, dict(warm.inputs).keys()) for warm in config.model_warmup] == [(1, {"images"}), (4, {"images"})]
    zeros = config.model_warmup[0].inputs["images"]
    assert (zeros.data_type, list(zeros.dims), zeros.zero_data) == (model_config_pb2.TYPE_FP32, [3, 8, 8], True)
    assert list(config.version_policy.specific.versions) == [1]
    # Nothing is left for Triton to complete or to overwrite, and the file is the artifact to the last byte.
    assert sha256(folder / "1" / "model.onnx") == sha256(made)
    assert json.loads((folder / "manifest.json").read_text()) == load_artifact(made).manifest.to_dict()
    readme = (folder / "README.md").read_text()
    assert "NOT in the graph: clients must do it" in readme
    assert str(RECORD["mean"]) in readme
    assert str(RECORD["std"]) in readme


def test_pixels_and_further_outputs_are_as_the_graph_has_them(tmp_path):
    made = artifact(tmp_path, pixels=True)
    proto = onnx.load(made)
    proto.graph.node.append(helper.make_node("TopK", ["logits", "two"], ["top_scores", "top_classes"]))
    proto.graph.initializer.append(helper.make_tensor("two", TensorProto.INT64, [1], [2]))
    proto.graph.output.append(helper.make_tensor_value_info("top_scores", TensorProto.FLOAT, ["batch", 2]))
    proto.graph.output.append(helper.make_tensor_value_info("top_classes", TensorProto.INT64, ["batch", 2]))
    onnx.save(proto, made)
    folder = write_triton(tmp_path / "repo", changed(made), instances=3)
    config = parsed(folder)
    assert config.name == folder.name == "net"
    assert (config.input[0].name, config.input[0].data_type) == ("pixels", model_config_pb2.TYPE_UINT8)
    assert list(config.input[0].dims) == [8, 8, 3]
    assert [(each.name, each.data_type, list(each.dims), each.label_filename) for each in config.output] == [
        ("logits", model_config_pb2.TYPE_FP32, [CLASSES], "labels.txt"),
        ("top_scores", model_config_pb2.TYPE_FP32, [2], ""),
        ("top_classes", model_config_pb2.TYPE_INT64, [2], ""),
    ]
    assert (config.instance_group[0].count, config.instance_group[0].kind) == (3, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    assert list(config.dynamic_batching.preferred_batch_size) == []
    said = (folder / "README.md").read_text()
    assert "clients send decoded pixels, channels last, 0 to 255, of exactly this size" in said
    for output in ("Output `top_scores`: FP32, (batch, 2).", "Output `top_classes`: INT64, (batch, 2)."):
        assert output in said.splitlines()


def test_any_size_in_the_graph(tmp_path):
    made = artifact(tmp_path, pixels=True)
    proto = onnx.load(made)
    shape = proto.graph.input[0].type.tensor_type.shape
    shape.dim[1].dim_param, shape.dim[2].dim_param = "height", "width"
    onnx.save(proto, made)
    images = load_artifact(made, verify=False).manifest.to_dict()["input"]
    free = changed(made, input={**images, "shape": ["batch", "height", "width", 3]})
    config = parsed(write_triton(tmp_path / "repo", free))
    assert list(config.input[0].dims) == [-1, -1, 3]
    assert list(config.model_warmup[0].inputs["pixels"].dims) == [8, 8, 3]


def test_a_plan(tmp_path):
    made = plan(tmp_path)
    folder = write_triton(tmp_path / "repo", load_artifact(made), max_delay_us=0)
    config = parsed(folder)
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 2)
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert config.HasField("dynamic_batching")
    assert (folder / "1" / "model.plan").read_bytes() == b"a plan"


def test_a_plan_gives_what_its_manifest_says(tmp_path):
    made = plan(tmp_path)
    record = {"outputs": ["probabilities", "top_scores", "top_classes"], "top_k": 2}
    folder = write_triton(tmp_path / "repo", changed(made, postprocess=record))
    # Triton finds a label by a score's place, which is the class in the first two, and the rank in the others.
    assert [(each.name, each.data_type, list(each.dims), each.label_filename) for each in parsed(folder).output] == [
        ("logits", model_config_pb2.TYPE_FP32, [CLASSES], "labels.txt"),
        ("probabilities", model_config_pb2.TYPE_FP32, [CLASSES], "labels.txt"),
        ("top_scores", model_config_pb2.TYPE_FP32, [2], ""),
        ("top_classes", model_config_pb2.TYPE_INT64, [2], ""),
    ]


def test_a_plan_of_another_runtime_is_refused(tmp_path):
    made = plan(tmp_path, "tensorrt-rtx")
    with pytest.raises(UsageError, match="only plans of tensorrt, and this plan is of tensorrt-rtx; serve the ONNX file"):
        write_triton(tmp_path / "repo", load_artifact(made))
    assert not (tmp_path / "repo").exists()


def test_classes_without_names_and_names_of_several_lines(tmp_path):
    made = artifact(tmp_path, class_names=None)
    folder = write_triton(tmp_path / "repo", load_artifact(made))
    assert "labels.txt" not in names(folder)
    assert parsed(folder).output[0].label_filename == ""
    made = artifact(tmp_path, class_names=["a\nb", *NAMES[1:]])
    folder = write_triton(tmp_path / "repo", load_artifact(made))
    assert (folder / "labels.txt").read_text(encoding="utf-8").splitlines() == ["a b", *NAMES[1:]]


def test_a_model_is_replaced_whole_and_nothing_else_is_touched(tmp_path):
    repo = tmp_path / "repo"
    made = artifact(tmp_path)
    folder = write_triton(repo, load_artifact(made))
    (folder / "2").mkdir()
    write_triton(repo, load_artifact(artifact(tmp_path, name="second")))
    write_triton(repo, load_artifact(made), instances=2)
    assert parsed(folder).instance_group[0].count == 2
    assert not (folder / "2").exists()
    assert sorted(path.name for path in repo.iterdir()) == ["net", "second"]
    (repo / "mine").mkdir()
    (repo / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="the folder is not a Triton model"):
        write_triton(repo, load_artifact(artifact(tmp_path, name="mine")))
    assert names(repo / "mine") == ["thesis.txt"]


def test_a_failure_on_the_way_leaves_what_was_there(tmp_path, monkeypatch):
    repo = tmp_path / "repo"
    made = artifact(tmp_path)
    folder = write_triton(repo, load_artifact(made))
    before = (folder / "config.pbtxt").read_bytes()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(triton, "write_json", full)  # the last thing written
    with pytest.raises(OutputError, match="No space left"):
        write_triton(repo, load_artifact(made), instances=5)
    with pytest.raises(OutputError, match="No space left"):
        write_triton(repo, load_artifact(artifact(tmp_path, name="other")))
    assert (folder / "config.pbtxt").read_bytes() == before
    assert [path.name for path in repo.iterdir()] == ["net"]


@pytest.mark.parametrize(
    ("options", "match"), [({"instances": 0}, "instances is 0"), ({"max_delay_us": -1}, "--max-delay-us is -1")]
)
def test_options_out_of_range(tmp_path, options, match):
    made = artifact(tmp_path)
    with pytest.raises(ConfigError, match=match):
        write_triton(tmp_path / "repo", load_artifact(made), **options)
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize("name", ["../up", ".hidden", "é", ""])
def test_names_that_are_no_models(name):
    with pytest.raises(ConfigError, match=f"the model's name is {name!r}"):
        check_triton(name=name, instances=1, max_delay_us=0, precision=None, plan_runtime=None)


def test_artifacts_that_are_not_what_their_manifest_says(tmp_path):
    made = artifact(tmp_path)
    described = load_artifact(made)
    other = changed(made, input={**described.manifest.to_dict()["input"], "name": "pictures"})
    with pytest.raises(CheckpointError, match="names the input pictures and the output logits, but its graph has other ones"):
        write_triton(tmp_path / "repo", other)
    made.write_bytes(made.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match="not the one that its manifest describes"):
        write_triton(tmp_path / "repo", described)
    made.unlink()
    with pytest.raises(CheckpointError, match="no such artifact"):
        write_triton(tmp_path / "repo", described)
    weights = Artifact(path=made.with_suffix(".safetensors"), manifest=described.manifest)
    with pytest.raises(UsageError, match=r"legal are files that end in .onnx or .plan"):
        write_triton(tmp_path / "repo", weights)
    assert not (tmp_path / "repo").exists()
