from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from growtas.checkpoint import load_supernet
from growtas.data.evaluation import test_set as open_test_set
from tests.export_helpers import SUBNET, Cli, add_search, make_run
from tests.unit.export.serving.helpers import MAX_BATCH, NAMES, RECORD, SIZE, artifact, reference


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(monkeypatch, capsys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images that need no resizing."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(10):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(folder / f"{seed}.png")
    return folder


def wanted(path: Path) -> np.ndarray:
    values = (np.asarray(Image.open(path), np.float64) / 255 - RECORD["mean"]) / RECORD["std"]
    return reference(values.transpose(2, 0, 1)[None])[0]


def test_an_exported_artifact_answers_as_the_supernet_does_when_the_run_is_gone(cli: Cli, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    add_search(run)
    assert cli("export")[0] == 0
    images = open_test_set(run)
    with torch.no_grad():
        want = load_supernet(run.supernet_file)(images.images(0, 6), SUBNET).numpy()
    from growtas.data.sources import open_data

    data = open_data("digits").test
    for index in range(6):
        data.load(index).save(f"{index}.png")
    code, out, err = cli("predict", *(f"{index}.png" for index in range(6)), "--json")
    assert code == 0, err
    assert "model: runs/tiny/export/tiny-subnet.onnx (of the newest run)" in err
    Path("elsewhere").mkdir()
    for suffix in ("onnx", "onnx.json", "safetensors", "safetensors.json"):
        shutil.move(run.path / "export" / f"tiny-subnet.{suffix}", "elsewhere")
    shutil.rmtree("runs")
    for suffix, runtime in (("onnx", "onnxruntime"), ("safetensors", "torch")):
        code, moved, err = cli("predict", "[0-5].png", "--json", "--model", f"elsewhere/tiny-subnet.{suffix}", "--top", "3")
        assert code == 0, err
        document = json.loads(moved)
        assert document["runtime"].startswith(runtime)
        assert [answer["file"] for answer in document["images"]] == [f"{index}.png" for index in range(6)]
        got = np.array([answer["logits"] for answer in document["images"]])
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
        assert [answer["top"][0]["class"] for answer in document["images"]] == want.argmax(1).tolist()
        assert [answer["top"][0]["label"] for answer in document["images"]] == [str(digit) for digit in want.argmax(1)]
    assert json.loads(out)["images"][0]["logits"] == pytest.approx(want[0].tolist(), abs=1e-3)


def test_a_table_of_the_best_classes(cli: Cli, folder: Path, tmp_path: Path) -> None:
    made = artifact(tmp_path / "made")
    code, out, err = cli("predict", folder, "--model", made, "--top", "2")
    assert (code, err) == (0, "")
    lines = [line for line in out.splitlines() if line.strip()][1:]
    assert len(lines) == 20
    for seed in range(10):
        logits = wanted(folder / f"{seed}.png")
        shares = np.exp(logits) / np.exp(logits).sum()
        best = np.argsort(-logits)[:2]
        assert str(folder / f"{seed}.png") in lines[2 * seed]
        for line, index in zip(lines[2 * seed : 2 * seed + 2], best, strict=True):
            assert NAMES[index] in line
            assert line.rstrip().endswith(f"{shares[index]:.1%}")


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_the_batch_changes_no_answer(cli: Cli, folder: Path, tmp_path: Path, batch: int | None) -> None:
    made = artifact(tmp_path / "made")
    options = ("--batch", str(batch)) if batch else ()
    code, out, _ = cli("predict", folder, "--model", made, "--json", *options)
    assert code == 0
    for answer in json.loads(out)["images"]:
        np.testing.assert_allclose(answer["logits"], wanted(Path(answer["file"])), atol=1e-5)
        assert len(answer["top"]) == 5


def test_broken_images_are_named_and_the_others_answered(cli: Cli, folder: Path, tmp_path: Path) -> None:
    made = artifact(tmp_path / "made")
    (folder / "4.png").write_text("no image")
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:80])
    code, out, err = cli("predict", folder, tmp_path / "none.png", "--model", made, "--json")
    assert code == 1
    answers = json.loads(out)["images"]
    assert json.loads(out)["unreadable"] == 3
    assert ["error" in answer for answer in answers] == [index in (4, 7, 10) for index in range(11)]
    for answer in answers:
        if "error" not in answer:
            np.testing.assert_allclose(answer["logits"], wanted(Path(answer["file"])), atol=1e-5)
    sentences = err.splitlines()
    assert len(sentences) == 3
    assert sentences[0] == f"growtas: {folder / '4.png'}: the image can't be read (Pillow doesn't recognise its format)"
    assert "7.png: the image can't be read" in sentences[1]
    assert "none.png: the image can't be read (No such file or directory)" in sentences[2]
    code, out, err = cli("predict", folder, "--model", made)
    assert code == 1
    assert "8 of 10 images classified" in out
    assert cli.fails("predict", tmp_path / "none.png", "--model", made)[0] == 1


@pytest.mark.parametrize("classes", [2, 3])
def test_a_model_of_fewer_than_five_classes_shows_them_all(cli: Cli, folder: Path, tmp_path: Path, classes: int) -> None:
    made = artifact(tmp_path / "made", classes=classes)
    code, out, err = cli("predict", folder / "0.png", "--model", made, "--json")
    assert (code, err) == (0, "")
    (answer,) = json.loads(out)["images"]
    want = wanted(folder / "0.png")[:classes]
    assert [score["label"] for score in answer["top"]] == [NAMES[index] for index in np.argsort(-want)]
    assert (
        f"the artifact has {classes} classes, so it must be from 1 to {classes}"
        in cli.fails("predict", folder / "0.png", "--model", made, "--top", "5")[1]
    )


def test_files_of_a_folder_that_are_no_images_are_said_and_hidden_ones_left(cli: Cli, folder: Path, tmp_path: Path) -> None:
    for name in ("notes.txt", "table.h5", ".hidden.png", "._0.png"):
        (folder / name).write_bytes(b"")
    code, out, err = cli("predict", folder, "--model", artifact(tmp_path / "made"), "--json")
    assert (code, len(json.loads(out)["images"])) == (0, 10)
    assert f"{folder}: 2 files are left out, because this Pillow doesn't decode such files (.txt 1, .h5 1)" in err


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", r"\xdcber-Hemd"), ("utf-8", "Über-Hemd")])
def test_names_that_the_output_cannot_show_are_escaped(
    cli: Cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str
) -> None:
    name = "caf\udce9.png"  # a file name of Latin-1
    (folder / "0.png").rename(folder / name)
    made = artifact(tmp_path / "made")
    outputs = []
    for options in ((), ("--json",)):
        stream = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding))
        code, _, err = cli("predict", folder / name, "--model", made, *options)
        assert (code, err) == (0, "")
        outputs.append(stream.getvalue())
    table, document = outputs[0].decode(encoding), json.loads(outputs[1].decode("utf-8"))
    assert shown in table
    assert r"caf\xe9.png" in table
    (answer,) = document["images"]
    assert answer["file"] == str(folder / name)
    assert {score["label"] for score in answer["top"]} == set(NAMES)


def test_an_artifact_of_before_the_rules_says_what_it_does_not_heed(cli: Cli, folder: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(folder / "0.png").save(folder / "0.png", exif=exif)
    code, out, err = cli("predict", folder, "--model", artifact(tmp_path / "made"), "--json")
    assert code == 0
    assert "1 of the images have an EXIF orientation or more than 8 bits per sample. An older growtas made this artifact" in err
    np.testing.assert_allclose(json.loads(out)["images"][0]["logits"], wanted(folder / "0.png"), atol=1e-5)
    record = {**RECORD, "decode": {"version": 1, "pixel_range": None}}
    code, out, err = cli("predict", folder, "--model", artifact(tmp_path / "made", preprocess=record), "--json")
    assert (code, err) == (0, "")
    assert not np.allclose(json.loads(out)["images"][0]["logits"], wanted(folder / "0.png"), atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("https://example.org/shoe.png",), "https://example.org/shoe.png: this is a URL, and only local files"),
        (("images", "--model", "https://example.org/net.onnx"), "this is a URL, and only local files are read"),
        (("*.gif",), "*.gif: no file matches this pattern"),
        (("images", "--top", "6"), "--top is 6; the artifact has 5 classes"),
        (("images", "--top", "0"), "--top is 0"),
        (("images", "--batch", str(MAX_BATCH + 1)), "--batch is 5; the artifact was exported for batches from 1 to 4"),
        (("images", "--model", "none.onnx"), "none.onnx: no such artifact"),
    ],
)
def test_wrong_input_is_exit_code_two(cli: Cli, folder: Path, tmp_path: Path, arguments: tuple[str, ...], match: str) -> None:
    made = artifact(tmp_path / "made")
    model = () if "--model" in arguments else ("--model", made)
    code, sentence = cli.fails("predict", *arguments, *model)
    assert code == 2
    assert match in sentence


def test_without_a_run_or_an_export(cli: Cli, folder: Path, tmp_path: Path) -> None:
    assert "make one with `growtas train`" in cli.fails("predict", folder)[1]
    make_run(tmp_path / "runs")
    code, sentence = cli.fails("predict", folder)
    assert code == 2
    assert "runs/tiny/export: no artifact here; make one with `growtas export`" in sentence
