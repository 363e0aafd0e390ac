"""Every gate, shown to fail: a fault is planted in what growtas makes or has made, and the command line must refuse it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from growtas.checkpoint import load_supernet, save_supernet
from growtas.data.evaluation import test_set as open_test_set
from growtas.export.graph import pre_post as ends
from growtas.export.graph.pre_post import add_preprocess
from growtas.export.pipeline import standalone
from growtas.export.pipeline import standalone_vit as plainvit
from growtas.export.pipeline.formats import onnx as onnx_format
from growtas.export.verification import reference as references
from growtas.files import sha256
from growtas.nn.extract import extract
from growtas.nn.supernet import Supernet
from growtas.runs import Run
from tests.export_helpers import Cli, add_checkpoint
from tests.verify_helpers import (
    PRECISIONS,
    TWO_BLOCKS,
    doctor,
    export_by_hand,
    in_pixels,
    in_precision,
    knowing_run,
    redescribe,
    swapped_classes,
    swapped_heads,
    wrong_bias,
)

PIXELS = {"name": "pixels", "dtype": "uint8", "layout": "NHWC", "batch": {"checked": [1, 3, 8]}}
Fault = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = knowing_run(tmp_path_factory.mktemp("made"))
    export_by_hand(run)
    return run.path


@pytest.fixture
def run(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return Run(Path(shutil.copytree(exported, Path("runs") / "tiny")))


@pytest.fixture
def artifact(run: Run) -> Path:
    return run.path / "export" / "tiny-subnet.onnx"


@pytest.fixture
def cli(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


def refused(cli: Cli, *arguments: str | Path) -> tuple[dict[str, Any], str]:
    """What ``growtas verify`` found and said; it must have failed."""
    code, out, err = cli("verify", *arguments, "--json")
    assert code == 1, out
    document = json.loads(out)
    assert document["passed"] is False
    (sentence,) = [line for line in err.splitlines() if line.startswith("growtas: ")]
    return document["artifacts"][0], sentence


def test_without_a_fault_everything_passes(cli: Cli, artifact: Path) -> None:
    code, out, err = cli("verify", "--bisect", "--json")
    assert code == 0, err
    for entry in json.loads(out)["artifacts"]:
        assert entry["bisection"]["first"] is None
        assert entry["verification"]["accuracy"] > 0.6


def exporter_with(fault: Fault, good: bytes) -> Callable[..., None]:
    """An exporter that writes the network's file with a fault in it."""

    def export(model: Any, path: Path, **options: Any) -> None:
        proto = onnx.load_from_string(good)
        fault(proto)
        onnx.checker.check_model(proto, full_check=True)
        onnx.save(proto, path)

    return export


@pytest.mark.parametrize("fault", [wrong_bias, swapped_heads, swapped_classes])
def test_a_faulty_export_leaves_nothing(cli: Cli, run: Run, artifact: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    good = artifact.read_bytes()
    shutil.rmtree(artifact.parent)
    monkeypatch.setattr(onnx_format, "export_onnx", exporter_with(lambda proto: None, good))
    code, _, err = cli("export", run.path, "--out", "control")
    assert code == 0, err
    monkeypatch.setattr(onnx_format, "export_onnx", exporter_with(fault, good))
    code, sentence = cli.fails("export", run.path)
    assert code == 1
    assert "nothing was exported" in sentence
    assert not artifact.parent.exists()


def export_refuses(cli: Cli, *arguments: str | Path) -> str:
    """The sentence of an export that failed at a gate; it must have left nothing."""
    code, sentence = cli.fails("export", *arguments, "--out", "out")
    assert code == 1
    assert "nothing was exported" in sentence
    assert not Path("out").exists()
    return sentence


def test_an_export_whose_activations_leave_fp16_leaves_nothing(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the logits are right all the same; a conversion that sees the range keeps the layers in fp32."""
    with torch.no_grad():
        run = knowing_run(tmp_path / "scaled", change=scale_a_hidden_layer)
    arguments = (run.path, "--precision", "fp16", "--keep", "none", "--images", "64")
    code, _, err = cli("export", *arguments, "--out", "control")
    assert code == 0, err
    monkeypatch.setattr(sys.modules["growtas.export.quantization.convert"], "HEADROOM", 0.0)
    assert "overflows fp16, which ends at 65504" in export_refuses(cli, *arguments)


def test_an_export_that_forgets_to_normalise_leaves_nothing(cli: Cli, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (run.path, "--preprocess", "--images", "64")
    code, _, err = cli("export", *arguments, "--out", "control")
    assert code == 0, err

    def forgetful(source: Path, out: Path, record: dict[str, Any], **options: Any) -> dict[str, Any]:
        return add_preprocess(source, out, {**record, "mean": [0.0] * 3, "std": [1.0] * 3}, **options)

    monkeypatch.setattr(ends, "add_preprocess", forgetful)
    assert "tiny-subnet.pixels.onnx in ONNX Runtime: logits differ" in export_refuses(cli, *arguments)


def test_an_export_with_class_names_in_a_wrong_order_leaves_nothing(cli: Cli, run: Run) -> None:
    run.update(class_names=list(reversed(run.info["class_names"])))
    assert "the class names are in a wrong order" in export_refuses(cli, run.path)


@pytest.mark.parametrize(
    ("right", "wrong"), [("(1, 0, 1, 0)", "(0, 1, 0, 1)"), ("[None, :] - line[:, None]", "[:, None] - line[None, :]")]
)
def test_a_plain_module_that_computes_something_else_leaves_nothing(
    cli: Cli, run: Run, right: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(plainvit.__file__).read_text()
    assert source.count(right) == 1
    monkeypatch.setattr(standalone.inspect, "getsource", lambda module: source.replace(right, wrong))
    assert "tiny_subnet.py in PyTorch" in export_refuses(cli, run.path, "--format", "torch")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("fault", "layer"), [(wrong_bias, "block 1 MLP"), (swapped_heads, "block 1 attention")])
def test_a_wrong_bias_and_swapped_heads_fail_and_are_found(
    cli: Cli, run: Run, artifact: Path, fault: Fault, layer: str, precision: str
) -> None:
    proto = onnx.load(artifact)
    fault(proto)
    onnx.save(proto, "faulty.onnx")
    in_precision(Path("faulty.onnx"), artifact, precision, open_test_set(run).images(0, 64).numpy())
    redescribe(artifact, precision=precision)
    entry, sentence = refused(cli, artifact, "--bisect")
    assert "tiny-subnet.onnx in onnxruntime: " in sentence
    assert entry["bisection"]["first"]["layer"] == layer


def scale_a_hidden_layer(supernet: Supernet) -> None:
    """Block 0's hidden numbers leave fp16's range; in fp32 the network is as good as any."""
    block: Any = supernet.blocks[0]
    for parameter in (block.fc1.weight, block.fc1.bias):
        parameter *= 5e4
    block.fc2.weight /= 5e4


def test_an_activation_beyond_fp16_fails(cli: Cli, tmp_path: Path) -> None:
    with torch.no_grad():
        run = knowing_run(tmp_path / "scaled", change=scale_a_hidden_layer)
    path = export_by_hand(run)
    assert cli("verify", path)[0] == 0
    in_precision(path, tmp_path / "half.onnx", "fp16", open_test_set(run).images(0, 8).numpy())
    shutil.move(tmp_path / "half.onnx", path)
    redescribe(path, precision="fp16")
    entry, sentence = refused(cli, path)
    assert "overflows fp16, which ends at 65504" in sentence
    assert entry["passed"] is False


def test_a_healthy_network_in_fp16_passes(cli: Cli, run: Run, artifact: Path) -> None:
    in_precision(artifact, Path("half.onnx"), "fp16", open_test_set(run).images(0, 8).numpy())
    shutil.move("half.onnx", artifact)
    redescribe(artifact, precision="fp16")
    code, out, err = cli("verify", artifact, "--json")
    assert code == 0, err
    assert json.loads(out)["artifacts"][0]["half_range"]["tensors"] > 50


def test_a_graph_that_forgot_to_normalise_fails(cli: Cli, artifact: Path) -> None:
    good = artifact.read_bytes()
    doctor(artifact, in_pixels, input=PIXELS)
    assert cli("verify", artifact)[0] == 0
    artifact.write_bytes(good)
    doctor(artifact, lambda proto: in_pixels(proto, normalise=False), input=PIXELS)
    entry, sentence = refused(cli, artifact, "--bisect")
    assert " of the logits is " in sentence
    assert "relative_error" in entry["verification"]["failed"]
    assert entry["bisection"]["first"]["layer"] == "patch embedding"


@pytest.mark.parametrize("missing", [{"mean": [0.0] * 3, "std": [1.0] * 3}, {"mean": [0.4] * 3}])
def test_a_manifest_that_forgot_to_normalise_fails(cli: Cli, run: Run, artifact: Path, missing: dict[str, Any]) -> None:
    redescribe(artifact, preprocess={**run.info["preprocess"], **missing})
    _, sentence = refused(cli, artifact)
    assert "in onnxruntime: " in sentence


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"image_size": 32}, "image_size is 32"),
        ({"crop_pct": 0.9}, "crop_pct is 0.9"),
        ({"mean": "grey"}, "the record of the preprocessing in its manifest has the mean grey"),
    ],
)
def test_a_manifest_with_another_record_fails(cli: Cli, run: Run, artifact: Path, changed: dict[str, Any], said: str) -> None:
    redescribe(artifact, preprocess={**run.info["preprocess"], **changed})
    assert said in refused(cli, artifact)[1]
    redescribe(artifact, preprocess=None)
    assert "the record of the preprocessing in its manifest is absent" in refused(cli, artifact)[1]


def test_a_run_that_was_trained_further_fails(cli: Cli, run: Run, artifact: Path) -> None:
    add_checkpoint(run, epoch=2, seed=5)
    _, sentence = refused(cli, artifact)
    assert "made from checkpoints/epoch-0001/supernet.safetensors" in sentence
    assert "the run's checkpoint is checkpoints/epoch-0002/supernet.safetensors" in sentence


def test_a_checkpoint_that_was_overwritten_fails(cli: Cli, run: Run, artifact: Path) -> None:
    supernet = load_supernet(run.supernet_file)
    with torch.no_grad():
        supernet.norm.bias[0] += 1e-3
    save_supernet(run.supernet_file, supernet)
    for path in (artifact, artifact.with_suffix(".safetensors")):
        assert "export the artifact again" in refused(cli, path)[1]


def test_an_artifact_of_another_checkpoint_fails_whatever_its_manifest_says(cli: Cli, run: Run, artifact: Path) -> None:
    add_checkpoint(run, epoch=2, seed=5)
    newest = {"checkpoint": "checkpoints/epoch-0002/supernet.safetensors", "checkpoint_sha256": sha256(run.supernet_file)}
    redescribe(artifact, source={"run": "tiny", "subnet_file": "subnet.json", **newest})
    entry, sentence = refused(cli, artifact, "--bisect")
    assert "in onnxruntime: " in sentence
    assert entry["bisection"]["first"]["layer"] == "patch embedding"


def test_labels_in_a_wrong_order_fail(cli: Cli, run: Run, artifact: Path) -> None:
    names = run.info["class_names"]
    redescribe(artifact, class_names=[names[1], names[0], *names[2:]])
    entry, sentence = refused(cli, artifact)
    assert "drops by" in sentence or "wrong order" in sentence
    found = entry["verification"]
    assert found["top1_agreement"] == 1.0
    assert found["accuracy"] < found["reference_accuracy"] - 0.1
    assert "accuracy_drop_points" in found["failed"]


def test_labels_in_a_wrong_order_fail_where_the_run_has_them_too(cli: Cli, run: Run, artifact: Path) -> None:
    turned = list(reversed(run.info["class_names"]))
    run.update(class_names=turned)
    redescribe(artifact, class_names=turned)
    entry, sentence = refused(cli, artifact)
    assert "the class names are in a wrong order" in sentence
    assert entry["verification"]["failed"][0] == "class_order"


def test_outputs_in_a_wrong_order_fail(cli: Cli, artifact: Path) -> None:
    doctor(artifact, swapped_classes)
    entry, _ = refused(cli, artifact, "--bisect")
    assert entry["bisection"]["first"]["layer"] == "head"
    assert "accuracy_drop_points" in entry["verification"]["failed"]


def test_the_reference_itself_is_checked(cli: Cli, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_with_a_fault(supernet: Any, subnet: Any) -> Any:
        model = extract(supernet, subnet)
        with torch.no_grad():
            model.blocks[1].fc1.bias.neg_()
        return model

    assert TWO_BLOCKS.depth == 2
    monkeypatch.setattr(references, "extract", cut_with_a_fault)
    assert "the static ViT extracted from it differs from the supernet" in refused(cli, artifact)[1]
