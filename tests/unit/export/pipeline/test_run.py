from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from growtas.checkpoint import load_model, load_supernet
from growtas.costs import count_costs
from growtas.errors import BuildError, ConfigError, ParityError, SubnetError
from growtas.export.artifact import read_manifest
from growtas.export.graph.exporter import export_onnx
from growtas.export.open import open_session
from growtas.export.pipeline import run as pipeline
from growtas.export.pipeline.formats import onnx as onnx_format
from growtas.export.pipeline.formats import tensorrt as tensorrt_format
from growtas.export.pipeline.formats import torch as torch_format
from growtas.export.pipeline.options import ExportOptions
from growtas.export.pipeline.run import export_subnet
from growtas.export.verification.images import noise
from growtas.files import sha256, write_json
from growtas.nn.extract import extract
from growtas.nn.vit import VisionTransformer
from growtas.progress import Progress
from growtas.runs import Run
from growtas.subnet import Subnet
from tests.export_helpers import SUBNET, TINY, Recorder, add_checkpoint, make_run, random_supernet
from tests.fake_runtime import FakePlanBuilder


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")} if folder.exists() else set()


def corrupt(change: Callable[[onnx.ModelProto], None]) -> Callable[..., None]:
    """An exporter that writes a valid ONNX file with a fault in it."""

    def export(model: VisionTransformer, path: Path, **options: Any) -> None:
        export_onnx(model, path, **options)
        proto = onnx.load(path)
        change(proto)
        onnx.checker.check_model(proto, full_check=True)
        onnx.save(proto, path)

    return export


def flip_a_bias(proto: onnx.ModelProto) -> None:
    edit(proto, "fc1.bias", lambda bias: -bias)


def swap_two_classes(proto: onnx.ModelProto) -> None:
    for name in ("head.weight", "head.bias"):
        edit(proto, name, lambda rows: rows[[1, 0, *range(2, len(rows))]])


def edit(proto: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    found = [tensor for tensor in proto.graph.initializer if tensor.name.endswith(name)]
    assert len(found) == 1, [tensor.name for tensor in proto.graph.initializer]
    found[0].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(numpy_helper.to_array(found[0]))), found[0].name))


def export_another_checkpoint(model: VisionTransformer, path: Path, **options: Any) -> None:
    export_onnx(extract(random_supernet(seed=9), SUBNET), path, **options)


@pytest.mark.parametrize("exporter", [corrupt(flip_a_bias), corrupt(swap_two_classes), export_another_checkpoint])
@pytest.mark.parametrize("exported_before", [False, True])
def test_a_faulty_onnx_never_gets_into_place(
    run: Run, exporter: Callable[..., None], exported_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run.path / "export"
    if exported_before:
        export_subnet(run, ExportOptions(formats=("torch",)))
    before = {path.name: path.read_bytes() for path in folder.glob("*")}
    monkeypatch.setattr(onnx_format, "export_onnx", exporter)
    with pytest.raises(ParityError, match=r"tiny-subnet\.onnx in ONNX Runtime: logits differ .* nothing was exported"):
        export_subnet(run, ExportOptions(formats=("trt",), precision="fp32"))
    assert {path.name: path.read_bytes() for path in folder.glob("*")} == before
    assert folder.exists() == exported_before


def test_a_wrongly_cut_subnet_never_gets_into_place(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_without_the_interleaving(supernet: Any, subnet: Subnet) -> VisionTransformer:
        model = extract(supernet, subnet)
        with torch.no_grad():
            weight = model.blocks[0].attn.qkv.weight
            weight.copy_(supernet.blocks[0].attn.qkv.weight[: weight.shape[0], : weight.shape[1]])
        return model

    monkeypatch.setattr(torch_format, "extract", cut_without_the_interleaving)
    with pytest.raises(ParityError, match="differ from the supernet's"):
        export_subnet(run, ExportOptions(formats=("torch",)))
    assert not (run.path / "export").exists()


def test_a_plan_that_fails_to_build_leaves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: FakePlanBuilder, onnx: Path, targets: tuple[str, ...], **settings: Any) -> None:
        raise BuildError("no")

    monkeypatch.setattr(FakePlanBuilder, "build", fail)
    with pytest.raises(BuildError):
        export_subnet(run, ExportOptions(formats=("trt",), precision="fp32"))
    assert not (run.path / "export").exists()


def test_an_interrupt_leaves_nothing(run: Run) -> None:
    class Interrupted(Progress):
        def stage(self, name: str, total: int | None = None) -> None:
            if name.startswith("compiling"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_subnet(run, ExportOptions(formats=("trt",), precision="fp32"), progress=Interrupted())
    assert not (run.path / "export").exists()


@pytest.mark.parametrize(("precision", "said"), [("fp16", True), ("fp32", False)])
def test_a_plan_in_another_precision_than_the_searchs_is_said(run: Run, precision: str, said: bool) -> None:
    path = run.path / "search" / "subnet.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "latency": {**found["latency"], "precision": precision}}))
    notes: list[str] = []
    export_subnet(run, ExportOptions(formats=("trt",), precision="fp32"), progress=Recorder(notes=notes))
    assert any(f"is for {precision}; this plan is fp32" in note for note in notes) is said


def test_a_plan_in_the_precision_of_its_own_device_is_not_said(run: Run) -> None:
    path = run.path / "search" / "subnet.json"
    found = json.loads(path.read_text())
    on_a10, on_cpu = found["latency"], {**found["latency"], "device": "cpu", "precision": "int8"}
    latencies = [{"device": latency["device"], "predicted": latency, "measured": None} for latency in (on_cpu, on_a10)]
    path.write_text(json.dumps({**found, "device": "cpu", "latency": on_cpu, "latencies": latencies}))
    notes: list[str] = []
    made = export_subnet(run, ExportOptions(formats=("trt",), device="a10"), progress=Recorder(notes=notes))
    assert made[-1].manifest.precision == on_a10["precision"]
    assert not any("this plan is" in note for note in notes)


def test_formats_cumulate_and_every_file_has_its_manifest(run: Run) -> None:
    stages: list[str] = []
    made = export_subnet(run, ExportOptions(formats=("trt",), precision="fp32", max_batch=4), progress=Recorder(stages=stages))
    names = ["tiny-subnet.safetensors", "tiny-subnet.onnx", "tiny-subnet.plan"]
    assert [artifact.path.name for artifact in made] == names
    assert files(run.path / "export") == {*names, *(f"{name}.json" for name in names), "tiny_subnet.py"}
    assert len(stages) >= 4
    costs, digest = count_costs(TINY, SUBNET), sha256(run.supernet_file)
    for artifact in made:
        stored = read_manifest(artifact.path)
        assert stored is not None
        manifest = stored.to_dict()
        assert stored == artifact.manifest
        assert manifest == json.loads(artifact.path.with_name(artifact.path.name + ".json").read_text())
        assert (manifest["params"], manifest["macs"]) == (costs.params, costs.macs)
        assert Subnet.from_dict(manifest["subnet"]) == SUBNET
        assert manifest["input"]["shape"] == ["batch", 3, 16, 16]
        assert manifest["input"]["batch"] == {"min": 1, "max": 4, "checked": [1, 3, 4]}
        assert manifest["class_names"] == [str(digit) for digit in range(10)]
        assert manifest["preprocess"] == run.info["preprocess"]
        assert manifest["source"]["checkpoint_sha256"] == digest
        assert manifest["source"]["checkpoint"] == "checkpoints/epoch-0001/supernet.safetensors"
        assert manifest["search"]["latency"]["kind"] == "modelled"
        assert str(run.path.parent) not in json.dumps(manifest)
    by_torch, by_onnx, plan = (artifact.manifest.to_dict() for artifact in made)
    assert {entry["against"] for entry in by_torch["parity"]["comparisons"]} == {"supernet"}
    assert {(entry["against"], entry["batch"]) for entry in by_onnx["parity"]["comparisons"]} == {
        (against, batch) for against in ("static ViT", "supernet") for batch in (1, 3, 4)
    }
    assert by_onnx["parity"]["images"] == "8 test images of digits"
    assert (by_onnx["executed"], plan["executed"], plan["parity"]) == (True, False, None)
    assert plan["not_executed_because"] == "a fake plan can't be executed"
    assert plan["plan"]["compiled_from"]["sha256"] == by_onnx["artifact"]["sha256"]
    assert plan["plan"]["compiled_from"]["parity"] == by_onnx["parity"]
    assert (plan["plan"]["targets"], plan["plan"]["activation_memory_bytes"]) == (["sm86"], 4_000_000)


def test_the_artifacts_compute_the_subnet(run: Run) -> None:
    in_torch, in_onnx = export_subnet(run, ExportOptions(formats=("onnx",)))
    images = noise(5, (3, 16, 16))
    with torch.no_grad():
        want = load_supernet(run.supernet_file)(torch.from_numpy(images), SUBNET).numpy()
        got = load_model(in_torch.path)(torch.from_numpy(images)).numpy()
    with open_session(in_onnx.path) as session:
        np.testing.assert_allclose(session.run(images), want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_plan_that_can_run_goes_through_the_gate(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakePlanBuilder, "why_not_runnable", lambda self, targets: None)
    opened: list[str] = []

    class Wrong:
        def __enter__(self) -> Wrong:
            return self

        def __exit__(self, *exception: object) -> None: ...

        def run(self, images: np.ndarray) -> np.ndarray:
            return np.zeros((len(images), 10), np.float32)

    def open_plan(path: Path, **options: Any) -> Any:
        if path.suffix != ".plan":
            return open_session(path, **options)
        opened.append(path.name)
        return Wrong()

    monkeypatch.setattr(tensorrt_format, "open_session", open_plan)
    with pytest.raises(ParityError, match=r"tiny-subnet\.plan in tensorrt-rtx"):
        export_subnet(run, ExportOptions(formats=("trt",), precision="fp32"))
    assert opened == ["tiny-subnet.plan"]
    assert not (run.path / "export").exists()


def test_a_subnet_of_an_older_checkpoint_is_noted(run: Run) -> None:
    newest = add_checkpoint(run, epoch=2, seed=5)
    notes: list[str] = []
    (artifact,) = export_subnet(run, ExportOptions(formats=("torch",)), progress=Recorder(notes=notes))
    assert any("searched on another checkpoint" in text for text in notes)
    assert artifact.manifest.to_dict()["source"]["checkpoint_sha256"] == sha256(newest)
    assert artifact.manifest.to_dict()["search"]["checkpoint_sha256"] != sha256(newest)


def test_a_fresh_search_is_not_noted(run: Run) -> None:
    notes: list[str] = []
    export_subnet(run, ExportOptions(formats=("torch",)), progress=Recorder(notes=notes))
    assert notes == []


def test_files_left_from_another_export_are_noted(run: Run, tmp_path: Path) -> None:
    export_subnet(run, ExportOptions(formats=("onnx",)))
    write_json(tmp_path / "other.json", TINY.smallest.to_dict())
    notes: list[str] = []
    export_subnet(run, ExportOptions(formats=("torch",), subnet=tmp_path / "other.json"), progress=Recorder(notes=notes))
    assert [text for text in notes if "left from an earlier export" in text and "tiny-subnet.onnx" in text]


def test_a_named_subnet_goes_before_the_searched_one(run: Run, tmp_path: Path) -> None:
    other = Subnet(24, (1, 2), (2.0, 2.0))
    write_json(tmp_path / "mine.json", other.to_dict())
    (artifact,) = export_subnet(
        run, ExportOptions(formats=("torch",), subnet=tmp_path / "mine.json", name="mine", out=tmp_path / "o")
    )
    assert artifact.path == tmp_path / "o" / "mine.safetensors"
    assert load_model(artifact.path).architecture.subnet == other
    assert artifact.manifest.to_dict()["search"] is None
    assert not (run.path / "export").exists()


def test_without_a_search_the_message_says_what_to_do(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with pytest.raises(SubnetError, match=r"no subnet was searched yet; run `growtas search .*`, or name one with --subnet"):
        export_subnet(run, ExportOptions())


def test_a_subnet_beyond_the_space_is_refused(run: Run, tmp_path: Path) -> None:
    write_json(tmp_path / "big.json", Subnet(16, (3,), (2.0,)).to_dict())
    with pytest.raises(SubnetError, match="num_heads of block 0 is 3"):
        export_subnet(run, ExportOptions(subnet=tmp_path / "big.json"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"formats": ("tflite",)}, "--format is 'tflite'; legal are torch, program, onnx, openvino or trt"),
        ({"opset": 23}, "--opset is 23; legal are 18 to 22"),
        ({"max_batch": 0}, "--max-batch is 0"),
        ({"target": "sm86"}, "add --format trt"),
        ({"device": "a10", "formats": ("torch",)}, "add --format trt"),
        ({"name": "../up"}, "--name is '../up'"),
        ({"name": ".hidden"}, "--name is '.hidden'"),
        ({"precision": "fp12"}, "--precision is 'fp12'; legal are fp32, fp16, bf16, int8 or fp8"),
        ({"precision": "int8", "formats": ("torch",)}, "--precision is for ONNX files"),
        ({"precision": "fp8", "formats": ("openvino",)}, "--precision fp8 does not go with OpenVINO"),
        ({"preprocess": True, "formats": ("program",)}, "--preprocess is for ONNX files"),
        ({"top_k": 3, "formats": ("torch",)}, "--top-k is for ONNX files"),
        ({"opset": 18, "formats": ("torch",)}, "--opset is for ONNX files"),
        ({"opt_batch": 4}, "--opt-batch is for a plan; add --format trt"),
        ({"keep": "none"}, "--keep is for precisions below fp32"),
        ({"calibration_images": 16}, "--calibration-images is for precisions below fp32"),
        ({"calibration_method": "entropy", "precision": "fp16"}, "--calibration-method is for int8 and fp8"),
        ({"top_k": 0}, "--top-k is 0; it must be 1 or more"),
        ({"top_k": 11}, "--top-k is 11; the model has 10 classes"),
        ({"name": ""}, "--name is ''; it must be a file name without folders"),
        ({"resize": True}, "--resize needs --preprocess"),
        ({"resize": True, "preprocess": True, "formats": ("openvino",)}, "--resize is for ONNX only"),
        ({"calibration_images": 0}, "--calibration-images is 0"),
        ({"calibration_method": "mean"}, "--calibration-method is 'mean'; legal are minmax, percentile or entropy"),
        ({"opt_batch": 9}, "--opt-batch is 9; it must be from 1 to --max-batch"),
        ({"min_cosine": 2.0}, "--min-cosine is 2"),
        ({"ir_version": 8}, "--ir-version is 8; legal are 9 to"),
        ({"ir_version": 9, "precision": "bf16"}, r"legal are 10 to \d+ \(opset 22, which bf16 needs"),
        ({"ir_version": 9, "formats": ("torch",)}, "--ir-version is for ONNX files"),
        ({"precision": "int8", "opset": 21}, "--opset is 21 with --precision int8; legal are 18 to 20"),
    ],
)
def test_wrong_options_are_found_before_any_work(run: Run, options: dict[str, Any], match: str) -> None:
    stages: list[str] = []
    with pytest.raises(ConfigError, match=match):
        export_subnet(run, ExportOptions(**options), progress=Recorder(stages=stages))
    assert stages == []


@pytest.mark.parametrize(("measured", "device", "precision"), [(None, None, "fp16"), ("fp32", None, "fp32"), (None, "l4", "fp16")])
def test_a_plan_is_in_what_its_devices_limit_was_for(
    run: Run, measured: str | None, device: str | None, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search writes a list with an entry a device, whose conditions lie in what was predicted and measured."""
    path = run.path / "search" / "subnet.json"
    found = json.loads(path.read_text())
    latency = {**found["latency"], "precision": "fp16"}
    entry = {"device": "a10", "predicted": latency, "measured": measured and {**latency, "precision": measured}}
    path.write_text(json.dumps({**found, "latency": latency, "latencies": [entry]}))
    asked: list[str] = []

    def choose(**options: Any) -> Any:
        asked.append(options["precision"])
        raise BuildError("enough")

    monkeypatch.setattr(pipeline, "choose_builder", choose)
    with pytest.raises(BuildError, match="enough"):
        export_subnet(run, ExportOptions(formats=("trt",), device=device))
    assert asked == [precision]


def test_a_file_says_what_it_is_without_its_manifest(run: Run) -> None:
    artifacts = export_subnet(run, ExportOptions(precision="fp16", preprocess=True, softmax=True, ir_version=10))
    files = [artifact for artifact in artifacts if artifact.path.suffix == ".onnx"]
    assert len(files) == 3
    for artifact in files:
        proto = onnx.load(artifact.path)
        metadata = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
        assert metadata == {"preprocess": run.info["preprocess"], "class_names": run.info["class_names"]}
        recorded = artifact.manifest.to_dict()["onnx"]
        assert (recorded["opset"], recorded["ir_version"], recorded["oldest_onnxruntime"]) == (20, 10, "1.17.0")
        assert proto.ir_version == 10


def test_the_plain_module_lies_beside_its_weights(run: Run) -> None:
    (artifact,) = export_subnet(run, ExportOptions(formats=("torch",)))
    module = artifact.manifest.to_dict()["module"]
    path = artifact.path.with_name("tiny_subnet.py")
    assert (module["file"], module["sha256"]) == (path.name, sha256(path))
    assert module["parity"]["relative_error"] < 1e-4
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "tiny-subnet.safetensors",
        "tiny-subnet.safetensors.json",
        "tiny_subnet.py",
    ]
