from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from growtas.checkpoint import load_supernet
from growtas.data.evaluation import test_set as open_test_set
from growtas.export.artifact import manifest_path, read_manifest, write_manifest
from growtas.export.graph.pre_post import add_preprocess
from growtas.runs import Run
from tests.export_helpers import Cli, without_gpu
from tests.verify_helpers import TWO_BLOCKS, doctor, export_by_hand, in_pixels, in_precision, knowing_run, redescribe, wrong_bias


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its ONNX and safetensors files; to be copied."""
    run = knowing_run(tmp_path_factory.mktemp("made"))
    export_by_hand(run)
    return run.path


@pytest.fixture
def run(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return Run(Path(shutil.copytree(exported, Path("runs") / "tiny")))


@pytest.fixture
def cli(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


ONNX = "runs/tiny/export/tiny-subnet.onnx"


def verified(cli: Cli, *arguments: str | Path) -> tuple[int, dict[str, Any], str]:
    code, out, err = cli("verify", *arguments, "--json")
    return code, json.loads(out), err


def test_the_line_as_typed(cli: Cli, run: Run) -> None:
    code, out, err = cli("verify")
    assert code == 0, err
    assert "run: runs/tiny (the newest)" in err
    rows = [line.split() for line in out.splitlines() if line.startswith("tiny-subnet")]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("tiny-subnet.onnx", "fp32", "passed"),
        ("tiny-subnet.safetensors", "fp32", "passed"),
    ]
    assert f"of {len(open_test_set(run))} test images of digits, batches of 1, 3, 8" in out


def test_the_numbers_are_the_artifact_s(cli: Cli, run: Run) -> None:
    """Accuracy and agreement counted by hand: ONNX Runtime and the supernet on the whole test set."""
    code, document, _ = verified(cli, ONNX, "--images", "100000")
    assert code == 0
    (entry,) = document["artifacts"]
    found = entry["verification"]
    test = open_test_set(run)
    images = test.images(0, len(test))
    session = onnxruntime.InferenceSession(ONNX, providers=["CPUExecutionProvider"])
    got = session.run(None, {"images": images.numpy()})[0]
    with torch.no_grad():
        want = load_supernet(run.supernet_file)(images, TWO_BLOCKS).numpy()
    labels = test.labels.numpy()
    assert found["count"] == len(test)
    assert found["accuracy"] == pytest.approx((got.argmax(1) == labels).mean())
    assert found["reference_accuracy"] == pytest.approx((want.argmax(1) == labels).mean())
    assert found["reference_accuracy"] > 0.6
    assert found["top1_agreement"] == (got.argmax(1) == want.argmax(1)).mean()
    assert found["relative_error"] == pytest.approx(np.abs(got - want).max() / np.abs(want).max(), abs=1e-5)
    assert document["passed"] is True
    assert entry["passed"] is True
    assert found["thresholds"]["relative_error"] == 1e-4


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_have_their_own_thresholds(cli: Cli, run: Run, precision: str) -> None:
    images = open_test_set(run).images(0, 64).numpy()
    path = run.path / "export" / f"{precision}.onnx"
    in_precision(Path(ONNX), path, precision, images)
    old = read_manifest(ONNX)
    assert old is not None
    fixed = ("format", "created", "artifact", "kind", "versions")
    content = {key: value for key, value in old.to_dict().items() if key not in fixed}
    write_manifest(path, {**content, "precision": precision})
    code, document, err = verified(cli, path, "--max-accuracy-drop", "5")
    assert code == 0, err
    (entry,) = document["artifacts"]
    assert 1e-4 < entry["verification"]["relative_error"] < entry["verification"]["thresholds"]["relative_error"]
    assert entry["verification"]["thresholds"]["accuracy_drop_points"] == 5
    assert (entry["half_range"]["tensors"] > 50) == (precision == "fp16")
    # The same file that says it is fp32 does not pass as such.
    write_manifest(path, content)
    code, _, err = verified(cli, path)
    assert code == 1
    assert f"{precision}.onnx in onnxruntime: " in err


@pytest.mark.parametrize(
    ("option", "value", "measure"),
    [
        ("--max-error", "0", "the relative error of the logits is"),
        ("--min-cosine", "1", "the worst cosine of the logits is"),
    ],
)
def test_thresholds_can_be_replaced(cli: Cli, option: str, value: str, measure: str) -> None:
    code, document, err = verified(cli, ONNX, option, value, "--images", "50")
    assert code == 1
    assert measure in err
    assert document["artifacts"][0]["passed"] is False


def test_a_failure_prints_the_table_and_one_sentence(cli: Cli) -> None:
    doctor(Path(ONNX), wrong_bias)
    code, out, err = cli("verify", ONNX, "--bisect")
    assert code == 1
    assert [line for line in err.splitlines() if line.startswith("growtas: ")] == err.splitlines()[-1:]
    (row,) = [line.split() for line in out.splitlines() if line.startswith("tiny-subnet.onnx ")]
    assert row[-1] == "failed"
    marked = [line for line in out.splitlines() if "<- the first" in line]
    assert len(marked) == 1
    assert marked[0].startswith("block 1 MLP")
    assert "the first layer that differs from the static ViT is block 1 MLP" in out


def test_one_bad_artifact_does_not_hide_the_others(cli: Cli) -> None:
    doctor(Path(ONNX), wrong_bias)
    code, document, err = verified(cli)
    assert code == 1
    assert {Path(entry["path"]).suffix: entry["passed"] for entry in document["artifacts"]} == {
        ".onnx": False,
        ".safetensors": True,
    }
    assert document["passed"] is False
    Path("runs/tiny/export/tiny-subnet.safetensors").write_bytes(b"nothing")
    code, _, err = verified(cli)
    assert code == 1
    assert "2 of 2 artifacts failed; " in err


def test_a_file_that_is_not_its_manifest_s(cli: Cli) -> None:
    with open(ONNX, "ab") as file:
        file.write(b" ")
    code, document, err = verified(cli, ONNX)
    assert code == 1
    assert "SHA-256 differs" in err
    assert document["artifacts"][0]["verification"] is None


def test_against_another_artifact(cli: Cli, run: Run) -> None:
    safetensors = run.path / "export" / "tiny-subnet.safetensors"
    code, document, err = verified(cli, ONNX, "--against", safetensors, "--bisect")
    assert code == 0, err
    assert document["artifacts"][0]["verification"]["reference"] == "tiny-subnet.safetensors"
    assert len(document["artifacts"][0]["bisection"]["layers"]) == 7
    # Two ONNX files, none of them with a run or a manifest.
    shutil.copy(ONNX, "good.onnx")
    proto = onnx.load(ONNX)
    wrong_bias(proto)
    onnx.save(proto, "bad.onnx")
    code, document, err = verified(cli, "bad.onnx", "--against", "good.onnx", "--bisect", "--run", run.path)
    assert code == 1
    fc1 = next(node for node in proto.graph.node if any(name.endswith("blocks.1.fc1.bias") for name in node.input))
    assert document["artifacts"][0]["bisection"]["first"]["tensor"] == fc1.output[0]
    code, _, err = cli("verify", "bad.onnx", "--against", "good.onnx")
    assert code == 2
    assert "the preprocessing of its images is not recorded; name the run with --run" in err


def test_without_the_run_there_are_photographs_and_no_labels(cli: Cli) -> None:
    for name in ("tiny-subnet.onnx", "tiny-subnet.safetensors"):
        shutil.copy(f"runs/tiny/export/{name}", name)
        shutil.copy(f"runs/tiny/export/{name}.json", f"{name}.json")
    shutil.rmtree("runs")
    code, out, err = cli("verify", "tiny-subnet.onnx", "--against", "tiny-subnet.safetensors", "--images", "20")
    assert code == 0, err
    assert "on 20 crops of scikit-learn's sample photographs without labels (no run was named)" in out
    assert "no labels" in out
    code, _, err = cli("verify", "tiny-subnet.onnx", "--against", "tiny-subnet.safetensors", "--data", "digits")
    assert code == 2
    assert "--data and --data-dir replace a run's images, but there is no run here; name it with --run" in err
    code, _, err = cli("verify", "tiny-subnet.onnx")
    assert code == 2
    assert "name its run with --run, or another artifact with --against" in err


def test_a_graph_that_takes_pixels(cli: Cli) -> None:
    doctor(Path(ONNX), in_pixels, input={"name": "pixels", "dtype": "uint8", "layout": "NHWC", "batch": {"checked": [1, 3]}})
    code, document, err = verified(cli, ONNX, "--bisect", "--images", "60")
    assert code == 0, err
    assert document["artifacts"][0]["verification"]["batches"] == [1, 3]
    assert document["artifacts"][0]["bisection"]["first"] is None


# Of 16 pixels, 4 and 5 lie around the crop.
@pytest.mark.parametrize("crop_pct", [0.8, 0.75])
@pytest.mark.parametrize("resize", [False, True])
def test_pixels_of_a_graph_that_crops(cli: Cli, run: Run, resize: bool, crop_pct: float) -> None:
    """What lies around the crop is cut off again: the artifact sees what the reference sees."""
    record = {**run.info["preprocess"], "crop_pct": crop_pct}
    run.update(preprocess=record)
    entry = add_preprocess(Path(ONNX), Path(ONNX), record, resize=resize)
    redescribe(Path(ONNX), preprocess=record, input={**entry, "batch": {"checked": [1, 3]}})
    code, _, err = verified(cli, ONNX, "--images", "60", "--bisect")
    assert code == 0, err


@without_gpu
def test_a_plan_without_a_gpu_is_said_to_be_not_run(cli: Cli, run: Run) -> None:
    plan = run.path / "export" / "tiny-subnet.plan"
    plan.write_bytes(b"a plan")
    manifest = read_manifest(ONNX)
    assert manifest is not None
    fixed = ("format", "created", "artifact", "kind", "versions")
    content = {key: value for key, value in manifest.to_dict().items() if key not in fixed}
    built = {"runtime": "tensorrt-rtx", "runtime_version": "1.0", "targets": ["sm86"], "max_batch": 8, "settings": {}}
    write_manifest(plan, {**content, "runtime": "tensorrt-rtx", "plan": built})
    code, document, err = verified(cli)
    assert code == 0, err
    entry = next(entry for entry in document["artifacts"] if entry["path"].endswith(".plan"))
    assert entry["passed"] is None
    assert entry["not_run_because"]
    code, out, err = cli("verify", plan)
    assert code == 2
    assert "nothing was verified: tiny-subnet.plan can't be run here" in err
    assert "not run" in out
    (line,) = [line for line in out.splitlines() if " was not run: " in line]
    assert line.count(".plan") == 1
    # Its hash is checked all the same.
    plan.write_bytes(b"another")
    code, _, err = cli("verify", plan)
    assert code == 1
    assert "SHA-256 differs" in err


def test_wrong_input_is_exit_code_two(cli: Cli, run: Run) -> None:
    shutil.copy(ONNX, "alone.onnx")
    Path("runs/empty").mkdir()
    (Path("runs/empty") / "run.json").write_text((run.path / "run.json").read_text())
    for arguments, sentence in (
        (("nowhere.onnx", "--run", "runs/tiny"), "nowhere.onnx: no such artifact"),
        (("nowhere.onnx",), "nowhere.onnx: no such artifact"),
        (("alone.onnx", "--run", "runs/tiny"), "no manifest beside it"),
        (("--run", "runs/empty"), "no artifacts here"),
        (("--run", "runs/none"), "no run here"),
        ((ONNX, "--images", "0"), "--images is 0"),
        ((ONNX, "--min-agreement", "95"), "--min-agreement is 95; it must be a number from 0 to 1"),
        ((ONNX, "--data", "no-such-data"), "no-such-data"),
    ):
        code, said = cli.fails("verify", *arguments)
        assert code == 2, said
        assert sentence in said


def test_a_manifest_that_names_no_source(cli: Cli) -> None:
    redescribe(Path(ONNX), source=None)
    code, said = cli.fails("verify", ONNX)
    assert code == 2
    assert f"{manifest_path(ONNX)}: it lacks the source or the subnet" in said


def test_help_has_an_example_and_the_exit_codes(cli: Cli) -> None:
    code, out, _ = cli("verify", "--help")
    assert code == 0
    text = " ".join(out.split())
    assert "growtas verify" in text
    assert "Exit code 0" in text
    assert "Example" in text


def test_a_run_and_a_folder_stand_for_their_artifacts(cli: Cli, run: Run, tmp_path: Path) -> None:
    names = ["tiny-subnet.onnx", "tiny-subnet.safetensors"]
    for place in ("runs/tiny", "runs/tiny/export"):
        code, document, err = verified(cli, place)
        assert code == 0, err
        assert [Path(entry["path"]).name for entry in document["artifacts"]] == names
        assert document["run"] == "runs/tiny"
    shutil.copytree("runs/tiny/export", "elsewhere")
    code, document, err = verified(cli, "elsewhere", "--run", "runs/tiny")
    assert (code, [entry["passed"] for entry in document["artifacts"]]) == (0, [True, True]), err
    doctor(Path("elsewhere/tiny-subnet.onnx"), wrong_bias)
    assert verified(cli, "elsewhere", "--run", "runs/tiny")[0] == 1
    shutil.copytree("runs/tiny", "runs/second")
    code, said = cli.fails("verify", "runs/tiny", "runs/second")
    assert code == 2
    assert "several runs, runs/tiny or runs/second" in said
    Path("empty").mkdir()
    assert cli.fails("verify", "empty", "--run", "runs/tiny")[0] == 2


def test_a_run_without_preprocessing_is_one_sentence(cli: Cli, run: Run) -> None:
    file = run.path / "run.json"
    info = json.loads(file.read_text())
    for damaged in (None, {"image_size": 8}, {**info["preprocess"], "mean": "grey"}):
        file.write_text(json.dumps({**info, "preprocess": damaged}))
        for command in (("verify",), ("export", "--subnet", manifest_path(ONNX))):
            code, said = cli.fails(*command)
            assert code == 2
            assert "run.json: preprocess" in said or "run.json: the record of the preprocessing (preprocess)" in said
