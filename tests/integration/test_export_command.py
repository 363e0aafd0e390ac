from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from growtas.checkpoint import load_supernet
from growtas.data.evaluation import test_set as open_test_set
from growtas.files import sha256, write_json
from growtas.runs import Run
from growtas.subnet import Subnet
from tests.export_helpers import SUBNET, Cli, add_checkpoint, add_search, make_run, needs_rtx, without_gpu


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(monkeypatch, capsys)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = make_run(tmp_path / "runs")
    add_search(run, device="a10")
    return run


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": images})[0])


@needs_rtx
@without_gpu
def test_the_line_as_typed(cli: Cli, run: Run) -> None:
    code, out, err = cli("export", "--format", "trt")
    assert code == 0, err
    folder = run.path / "export"
    # The search's 5 ms are for fp16, so that is what the plan is in.
    names = ["tiny-subnet.safetensors", "tiny-subnet.onnx", "tiny-subnet.fp16.onnx", "tiny-subnet.fp16.plan"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["README.md", "tiny_subnet.py", *names, *(f"{name}.json" for name in names)]
    )
    for name in names:
        assert name in out
    assert "runs/tiny (the newest)" in err
    assert "sm86" in out
    assert "tiny-subnet.fp16.plan was built but not run: no NVIDIA GPU with a driver on this machine" in out
    assert max(map(len, out.splitlines())) < 200
    manifest = json.loads((folder / "tiny-subnet.fp16.plan.json").read_text())
    assert manifest["kind"] == "plan"
    assert manifest["artifact"]["sha256"] == sha256(folder / "tiny-subnet.fp16.plan")
    assert manifest["plan"]["runtime"] == "tensorrt-rtx"
    assert manifest["plan"]["targets"] == ["sm86"]
    assert manifest["plan"]["activation_memory_bytes"] > 0
    assert (manifest["executed"], manifest["parity"]) == (False, None)
    assert manifest["precision"] == "fp16"
    assert manifest["plan"]["inspection"]["products"].keys() == {"fp16"}
    assert manifest["plan"]["compiled_from"]["verification"]["passed"] is True
    assert manifest["plan"]["compiled_from"]["arranged"]["parity"]["passed"] is True
    # The ONNX file computes what the supernet computes, on the run's own test images.
    images = open_test_set(run).images(0, 8)
    with torch.no_grad():
        want = load_supernet(run.supernet_file)(images, SUBNET).numpy()
    for batch in (1, 3, 8):
        got = logits(folder / "tiny-subnet.onnx", images[:batch].numpy())
        assert np.abs(got - want[:batch]).max() <= 1e-4 * np.abs(want[:batch]).max()


@needs_rtx
def test_several_targets_in_one_plan(cli: Cli, run: Run) -> None:
    code, out, err = cli("export", run.path, "--format", "trt", "--target", "sm86,sm89", "--max-batch", "2", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert [artifact["kind"] for artifact in document["artifacts"]] == ["torch", "onnx", "plan"]
    plan = document["artifacts"][2]
    assert plan["plan"]["targets"] == ["sm86", "sm89"]
    assert plan["input"]["batch"]["checked"] == [1, 2]
    assert Path(plan["path"]).is_file()


def test_onnx_is_the_default(cli: Cli, run: Run) -> None:
    code, out, err = cli("export", run.path, "--name", "net", "--out", "made")
    assert code == 0, err
    assert sorted(path.name for path in Path("made").iterdir()) == [
        "README.md",
        "net.onnx",
        "net.onnx.json",
        "net.py",
        "net.safetensors",
        "net.safetensors.json",
    ]
    assert "checked on 359 of 359" in out
    assert "% (+0.00)" in out
    assert "to the network that the file was made from, on the same images" in out
    assert not (run.path / "export").exists()


def test_a_run_without_data_says_which_images_it_was_checked_on(cli: Cli, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", data=False)
    add_search(run)
    code, out, err = cli("export", "--format", "torch")
    assert code == 0, err
    assert "crops of scikit-learn's sample photographs: the run has no data of its own" in err
    code, out, err = cli("export", "--format", "torch", "--data", "digits")
    assert code == 0, err
    assert "checked on 359 of 359" in out
    assert "photographs" not in out + err


def test_a_newer_checkpoint_than_the_searched_one_is_noted(cli: Cli, run: Run) -> None:
    add_checkpoint(run, epoch=2, seed=4)
    code, _, err = cli("export", "--format", "torch")
    assert code == 0
    assert "searched on another checkpoint" in err


def test_a_fault_is_exit_code_one_and_leaves_nothing(cli: Cli, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from growtas.export.pipeline.formats import torch as torch_format

    def other_weights(supernet: Any, subnet: Subnet) -> Any:
        from growtas.nn.extract import extract
        from tests.export_helpers import random_supernet

        return extract(random_supernet(seed=3), subnet)

    monkeypatch.setattr(torch_format, "extract", other_weights)
    code, sentence = cli.fails("export", "--format", "onnx")
    assert code == 1
    assert "differ from the supernet's" in sentence
    assert not (run.path / "export").exists()


def test_a_truncated_checkpoint(cli: Cli, run: Run) -> None:
    path = run.supernet_file
    path.write_bytes(path.read_bytes()[:-100])
    code, sentence = cli.fails("export")
    assert code == 2
    assert "supernet.safetensors: the supernet checkpoint is truncated" in sentence
    assert not (run.path / "export").exists()


def test_no_search_yet(cli: Cli, tmp_path: Path) -> None:
    make_run(tmp_path / "runs")
    code, sentence = cli.fails("export")
    assert code == 2
    assert "run `growtas search" in sentence
    assert "--subnet" in sentence


def test_no_run(cli: Cli) -> None:
    code, sentence = cli.fails("export")
    assert code == 2
    assert "growtas train" in sentence


@pytest.mark.parametrize(
    ("written", "match"),
    [
        (Subnet(16, (3,), (2.0,)).to_dict(), "num_heads of block 0 is 3; the choices of tiny are 1 or 2"),
        ({"embed_dim": 16}, "num_heads is missing"),
        ({**SUBNET.to_dict(), "depth": 9}, "depth is 9"),
    ],
)
def test_a_subnet_that_the_space_does_not_hold(cli: Cli, run: Run, written: dict[str, Any], match: str) -> None:
    write_json("odd.json", written)
    code, sentence = cli.fails("export", "--subnet", "odd.json")
    assert code == 2
    assert match in sentence


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--target", "sm87"), "sm87 (Jetson Orin)"),
        (("--target", "sm75"), "no fp32 matrix products for sm75"),
        (("--target", "gpu"), "'gpu' is not a compute capability"),
        (("--device", "a11"), "a10"),
        (("--device", "h100"), "sm90 (H100)"),
        (("--device", "cpu"), "cpu can't run TensorRT plans"),
        (("--device", "a10", "--target", "sm86"), "give one of them"),
    ],
)
def test_a_target_that_cannot_be_built(cli: Cli, run: Run, arguments: tuple[str, ...], match: str) -> None:
    code, sentence = cli.fails("export", "--format", "trt", *arguments)
    assert code == 2
    assert match in sentence
    assert not (run.path / "export").exists()


@without_gpu
def test_a_plan_without_any_target(cli: Cli, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    add_search(run, device="cpu")
    code, sentence = cli.fails("export", "--format", "trt")
    assert code == 2
    assert "a plan needs a target GPU" in sentence


def test_a_missing_package_is_named(cli: Cli, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from growtas.export.tensorrt import library

    monkeypatch.setattr(library, "is_installed", lambda module: False)
    code, sentence = cli.fails("export", "--format", "trt", "--target", "sm86")
    assert code == 1
    assert "pip install 'growtas[trt-rtx]'" in sentence


def test_an_output_place_that_cannot_be_written(cli: Cli, run: Run) -> None:
    Path("file").write_text("")
    code, sentence = cli.fails("export", "--out", "file/folder")
    assert code == 2
    assert "can't be written" in sentence


def test_other_wrong_options(cli: Cli, run: Run) -> None:
    for arguments, match in (
        (("--format", "tflite"), "legal are torch, program, onnx, openvino or trt"),
        (("--opset", "23"), "legal are 18 to 22"),
        (("--max-batch", "0"), "from 1 to 1024"),
        (("--tolerance", "0"), "--tolerance is 0"),
        (("--target", "sm86"), "add --format trt"),
    ):
        code, sentence = cli.fails("export", *arguments)
        assert code == 2
        assert match in sentence
