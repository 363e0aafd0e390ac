"""``growtas finetune``, from a trained run over another data set to a benched artifact."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from growtas.checkpoint import load_model, load_supernet
from growtas.data.evaluation import test_set as open_test_set
from growtas.files import write_json
from growtas.nn.extract import extract
from growtas.runs import Run
from growtas.subnet import Subnet
from tests.export_helpers import Cli
from tests.reference import count_correct

TINY = {
    "name": "tiny", "embed_dim": [8, 16], "num_heads": [1, 2], "mlp_ratio": [1, 2], "depth": [1, 2], "head_dim": 8,
    "image_size": 8, "patch_size": 4, "num_classes": 10, "max_relative_position": 1,
}  # fmt: skip
MIXED = Subnet(16, (1, 2), (2.0, 1.0))


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(monkeypatch, capsys)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three classes, told apart by the colour of a square."""
    rng = np.random.default_rng(0)
    for label in range(3):
        folder = tmp_path / "images" / f"class{label}"
        folder.mkdir(parents=True)
        for index in range(15):
            pixels = rng.integers(0, 60, (20, 20, 3), dtype=np.uint8)
            pixels[4:14, 4:14, label] = 255
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "images"


def test_from_a_trained_run_to_a_benched_artifact(cli: Cli, images: Path, no_probe: None) -> None:
    Path("tiny.yaml").write_text(json.dumps(TINY))
    common = ("--device", "cpu", "--batch-size", "32")
    code, _, err = cli("train", "--space", "tiny.yaml", "--method", "uniform", "--epochs", "1", "--name", "base", *common)
    assert code == 0, err
    write_json("runs/base/search/subnet.json", MIXED.to_dict())
    code, _, err = cli("export", "runs/base", "--format", "torch", "--name", "net")
    assert code == 0, err

    # From the artifact to another number of classes and four times as many patches.
    arguments = ("runs/base/export/net.safetensors", "--data", images, "--image-size", "16", "--epochs", "8", "--lr", "0.01")
    code, out, err = cli("finetune", *arguments, "--name", "tuned", "--device", "cpu", "--set", "batch_size=8")
    assert code == 0, err
    assert f"training: tiny-finetuned on {images} (36 training, 9 test images, 3 classes), finetune, 8 epochs, on cpu" in err
    assert "image size 8 -> 16; longest relative distance 1 -> 2; new head" in err
    assert str(MIXED) in out
    assert "next: growtas export runs/tuned" in out
    run = Run(Path("runs/tuned"))
    model = extract(load_supernet(run.supernet_file), MIXED)
    test = open_test_set(run)
    accuracy = count_correct(model, test) / len(test)
    error = math.sqrt(accuracy * (1 - accuracy) / 9) if accuracy < 1 else 1 / 20
    assert f"{100 * accuracy:.1f} ± {100 * error:.1f} %" in out
    assert accuracy == run.info["finetune"]["test_accuracy"]
    assert accuracy > 0.8

    # Export and bench take the run as it is.
    code, out, err = cli("export", "runs/tuned", "--name", "small", "--json")
    assert code == 0, err
    assert [artifact["kind"] for artifact in json.loads(out)["artifacts"]] == ["torch", "onnx"]
    manifest = json.loads((run.path / "export" / "small.onnx.json").read_text())
    assert manifest["input"]["shape"] == ["batch", 3, 16, 16]
    assert manifest["class_names"] == ["class0", "class1", "class2"]
    pixels = test.images(0, 4)
    session = onnxruntime.InferenceSession(str(run.path / "export" / "small.onnx"), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"images": pixels.numpy()})[0], model(pixels).numpy(), rtol=1e-3, atol=1e-4)
    code, out, err = cli("bench", "runs/tuned/export/small.onnx", "--rounds", "1", "--seconds", "0.05", "--json")
    assert code == 0, err
    assert "small.onnx" in out
    assert Path(json.loads(out)["run"]).name == "tuned"
    assert (run.path / "bench" / "bench.json").is_file()

    # Its accuracies are the one subnet's, and there is nothing to search.
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert all(len(set(line["accuracy"].values())) == 1 for line in lines)
    assert set(run.info["test_accuracy"].values()) == {run.info["finetune"]["test_accuracy"]}
    code, said = cli.fails("search", "runs/tuned", "--max-params", "1M")
    assert code == 2
    assert "the run has a single trained subnet" in said

    # And the exported model of that run can be fine-tuned further; its classes are the data's, so its head stays.
    arguments = ("runs/tuned/export/small.onnx", "--data", images, "--epochs", "1", "--name", "again", "--device", "cpu", "--json")
    code, out, err = cli("finetune", *arguments)
    assert code == 0, err
    document = json.loads(out)
    assert (document["run"], document["space"], document["state"]) == ("runs/again", "tiny-finetuned", "finished")
    assert document["finetune"]["head"] == "kept"
    assert 0 <= document["finetune"]["test_accuracy"] <= 1
    first = extract(load_supernet(Path("runs/again/init.safetensors")), MIXED)
    want = load_model(run.path / "export" / "small.safetensors").state_dict()
    assert all(torch.equal(value, want[name]) for name, value in first.state_dict().items())


def test_help_has_an_example_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['growtas', 'finetune', '--help']\n"
        "from growtas.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit([name for name in ('torch', 'timm', 'numpy', 'safetensors') if name in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Example: growtas finetune" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("absent", "--data", "digits"), "absent: no such run, model or artifact"),
        ((".", "--data", "digits"), "neither a run nor a model in this folder"),
        (("net.safetensors",), "name a data set with --data"),
        (("net.safetensors", "--data", "digits", "--image-size", "9"), "image_size is 9; it must be a multiple"),
        (("net.safetensors", "--data", "digits", "--set", "method=uniform"), "the method finetune"),
        (("net.safetensors", "--data", "digits", "--recipe", "digits-demo"), "run it with `growtas train`"),
        (("net.safetensors", "--data", "digits", "--out", "net.safetensors"), "not a folder"),
    ],
)
def test_what_is_refused_is_refused_in_a_sentence(cli: Cli, arguments: tuple[str, ...], sentence: str) -> None:
    if arguments[0] == "net.safetensors":
        from growtas import Architecture, VisionTransformer
        from growtas.checkpoint import save_model
        from growtas.space import SearchSpace

        save_model("net.safetensors", VisionTransformer(Architecture.of(SearchSpace.from_dict(TINY), MIXED)))
    code, said = cli.fails("finetune", *arguments)
    assert code == 2
    assert sentence in said
    assert not Path("runs").exists()
