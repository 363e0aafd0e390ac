"""Names and texts from files of strangers: every command shows them complete and as text, and gives them unchanged in JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import onnx
import pytest
from PIL import Image

from growtas.export.artifact import write_manifest
from growtas.files import read_json, write_json
from growtas.latency.modelled.profile import load_profile
from growtas.runs import Run
from tests.export_helpers import Cli, add_search, make_run
from tests.unit.export.serving.helpers import NAMES, SIZE, artifact

NAME = "[red]x[.b]:cat:\x1b[31m\x07\x08\x9b2J\u202egnp $x^$ \u2066end\r\n"
"""A file name that rich, a terminal or matplotlib would take for more than a name."""
SHOWN = r"[red]x[.b]:cat:\x1b[31m\x07\x08\x9b2J\u202egnp $x^$ \u2066end\r\n"
TEXT, TEXT_SHOWN = f"[/]<b>{NAME}", f"[/]<b>{SHOWN}"
"""A text such as a class name; unlike a file name it may hold a slash."""
BYTES, BYTES_SHOWN = os.fsdecode(b"[bold]\xff\xfe\x1b[2J"), r"[bold]\xff\xfe\x1b[2J"
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Growtas:
    """Runs commands; what they print has nothing in it that a terminal obeys."""

    def __init__(self, cli):
        self._cli = cli

    def __call__(self, *arguments, code=0, shows=()):
        got, out, err = self._cli(*arguments)
        assert "Traceback" not in err
        assert got == code, err
        assert not OBEYED.search(out + err)
        # Sentences wrap between words, and typer's frame around a usage error wraps long words too.
        printed = re.sub(r"[\s\u2502]", "", out + err)
        for text in shows:
            assert text.replace(" ", "") in printed
        return out

    def json(self, *arguments, code=0):
        return json.loads(self(*arguments, "--json", code=code))


@pytest.fixture
def growtas(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    return Growtas(Cli(monkeypatch, capsys))


@pytest.fixture
def hostile_run(tmp_path):
    """A run with such a name, classes, recipe, error and metrics."""
    run = make_run(tmp_path / "runs", name=NAME)
    info = read_json(run.path / "run.json")
    lines = [
        {"epoch": epoch, "step": epoch, "stage": 1, "loss": 1.0, "seconds": 1.0, "time": {TEXT: 0.5}, "accuracy": {TEXT: 0.5}}
        for epoch in (1, 2)
    ]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    info = {**info, "state": "failed", "error": TEXT, "class_names": [TEXT, *map(str, range(1, 10))], "method": TEXT}
    write_json(run.path / "run.json", {**info, "recipe": {"name": TEXT, "epochs": 2}, "source": {"file": TEXT}})
    return run.path


@pytest.fixture
def images(tmp_path):
    """Images with such names, in a folder with one."""
    folder = tmp_path / "images" / "x[" / "b]"
    folder.mkdir(parents=True)
    for name in (NAME, "x[final]", "a:cat:b", BYTES):
        Image.new("RGB", (SIZE, SIZE)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def hostile_artifact(tmp_path):
    """An artifact with such a name, classes, producer and manifest."""
    path = artifact(tmp_path / "made", name=NAME, class_names=[TEXT, *NAMES[1:]])
    model = onnx.load(path)
    model.producer_name = model.doc_string = TEXT
    onnx.helper.set_model_props(model, {TEXT: TEXT})
    onnx.save(model, path)
    record = {key: value for key, value in read_json(path.with_name(f"{path.name}.json")).items() if key != "artifact"}
    source = {"run": TEXT, "checkpoint": TEXT}
    write_manifest(path, {**record, "created": TEXT, "source": source, "executed": False, "not_executed_because": TEXT})
    return path


def test_predict(growtas, hostile_artifact, images):
    shown = [f"images/x[/b]/{name}.png" for name in (SHOWN, "x[final]", "a:cat:b", BYTES_SHOWN)]
    growtas("predict", "images/x[/b]", "--model", hostile_artifact, shows=[*shown, TEXT_SHOWN])
    growtas("predict", "images/x[/b]/x[final].png", "--model", hostile_artifact, shows=["images/x[/b]/x[final].png"])
    document = growtas.json("predict", "images/x[/b]", "--model", hostile_artifact)
    assert {answer["file"] for answer in document["images"]} == {
        f"images/x[/b]/{name}.png" for name in (NAME, "x[final]", "a:cat:b", BYTES)
    }
    assert {score["label"] for answer in document["images"] for score in answer["top"]} == {TEXT, *NAMES[1:]}


def test_predict_of_images_that_cannot_be_read(growtas, hostile_artifact, images):
    for name in (NAME, BYTES):
        (images / f"{name}.png").write_bytes(b"no image")
    errors = [f"images/x[/b]/{name}.png" for name in (SHOWN, BYTES_SHOWN)]
    growtas("predict", "images/x[/b]", "--model", hostile_artifact, code=1, shows=errors)
    assert growtas.json("predict", "images/x[/b]", "--model", hostile_artifact, code=1)["unreadable"] == 2
    growtas("predict", f"images/{BYTES}.png", "--model", hostile_artifact, code=2, shows=[f"images/{BYTES_SHOWN}.png"])


def test_lists_and_descriptions_of_runs(growtas, hostile_run, tmp_path):
    growtas("runs", shows=[SHOWN, TEXT_SHOWN])
    assert growtas.json("runs")["runs"][0]["name"] == NAME
    growtas("show", hostile_run, shows=[SHOWN, TEXT_SHOWN])
    assert growtas.json("show", hostile_run)["run"] == str(hostile_run)
    growtas("show", hostile_run, "--png", tmp_path / f"{NAME}.png", shows=[f"written to {tmp_path}/{SHOWN}.png"])
    with Image.open(tmp_path / f"{NAME}.png") as drawn:
        drawn.load()
    growtas("report", hostile_run, shows=[SHOWN])
    page = (hostile_run / "report.html").read_text()
    assert "[/]&lt;b&gt;[red]x" in page
    assert "<b>" not in page
    shutil.copytree(hostile_run, tmp_path / "runs" / BYTES)
    (tmp_path / "runs" / BYTES / "run.json").write_text("{")
    growtas("runs", shows=[BYTES_SHOWN])
    assert {row["name"] for row in growtas.json("runs")["runs"]} == {NAME, BYTES}


def test_export_verify_and_bench(growtas, hostile_run, hostile_artifact):
    info = read_json(hostile_run / "run.json")
    write_json(hostile_run / "run.json", {**info, "state": "finished", "error": None})
    add_search(Run(hostile_run))
    growtas("export", "--format", "onnx", shows=[SHOWN])
    growtas("verify", hostile_run, shows=["tiny-subnet.onnx"])
    growtas("inspect", hostile_run / "export" / "tiny-subnet.onnx", shows=[SHOWN, TEXT_SHOWN])
    bench = ("bench", hostile_artifact, "--seconds", "0.05", "--rounds", "1", "--batch", "1")
    growtas(*bench, shows=[SHOWN])
    assert growtas.json(*bench)["artifacts"][0]["label"] == f"{NAME}.onnx"


def test_inspect(growtas, hostile_artifact):
    growtas("inspect", hostile_artifact, shows=[f"{SHOWN}.onnx", TEXT_SHOWN])
    document = growtas.json("inspect", hostile_artifact)
    assert (document["path"], document["class_names"][0]) == (str(hostile_artifact), TEXT)


def test_devices_with_a_profile_of_a_stranger(growtas, tmp_path, monkeypatch):
    monkeypatch.setenv("GROWTAS_PROFILES", str(tmp_path / "profiles"))
    write_json(tmp_path / "profiles" / "mine.json", {**load_profile("a10").to_dict(), "name": "mine", "description": TEXT})
    growtas("devices", shows=[TEXT_SHOWN])
    assert TEXT in [device["description"] for device in growtas.json("devices")["devices"]]
    write_json(tmp_path / "profiles" / f"{NAME}.json", {"format": TEXT})
    growtas("devices", code=2, shows=[f"{SHOWN}.json"])


def test_a_folder_of_images_and_a_recipe(growtas, tmp_path):
    for split in ("train", "val"):
        for name in (NAME, "dog"):
            for number in range(4):
                path = tmp_path / "pets" / split / name / f"{NAME}{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (number, 9 * len(name), 0)).save(path)
    (tmp_path / "mine.yaml").write_text(json.dumps({"name": TEXT, "space": "micro", "epochs": 1, "batch_size": 4}))
    command = ("train", "--data", "pets", "--config", "mine.yaml")
    growtas(*command, "--dry-run", shows=[SHOWN])
    assert growtas.json(*command, "--dry-run")["recipe"]["name"] == TEXT
    (tmp_path / "pets" / "train" / "dog" / f"{NAME}3.png").write_bytes(b"no image")
    growtas(*command, code=2, shows=[f"{SHOWN}3.png"])


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--recipe", NAME],
        ["train", "--config", NAME],
        ["train", "--data", NAME],
        ["train", "--space", NAME],
        ["train", "--set", f"{NAME}=1"],
        ["train", "--set", f"method={NAME}"],
        ["train", "--resume", NAME],
        ["finetune", NAME],
        ["recipes", NAME],
        ["show", NAME],
        ["report", NAME],
        ["search", NAME],
        ["search", "--device", NAME, "--max-latency", "5ms"],
        ["export", NAME],
        ["verify", NAME],
        ["inspect", NAME],
        ["bench", NAME],
        ["predict", NAME],
        ["serve", NAME],
        ["cost", NAME],
        ["profile", "--device", "cpu", "--space", NAME],
        ["import", "autoformer", NAME, "--space", "micro"],
        ["cost", "one", "two", NAME],
        ["show", f"--{NAME}"],
        [NAME],
    ],
)
def test_a_word_of_the_command_line_in_an_error(growtas, command):
    """Most often it is a name that a shell's pattern matched."""
    growtas(*command, code=2, shows=[SHOWN.removesuffix(r"\r\n")])
    growtas(*(part.replace(NAME, BYTES) for part in command), code=2, shows=["[bold]"])


def test_a_traceback_and_a_warning(tmp_path):
    """The former is asked for with --debug; the latter comes from a library."""
    program = """
import sys, warnings
from growtas.cli import main
warnings.simplefilter("always")
sys.argv = ["growtas", *sys.argv[1:]]
try:
    main()
finally:
    warnings.warn(sys.argv[2])
"""
    command = [sys.executable, "-c", program, "show", NAME, "--debug"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.count(SHOWN.removesuffix(r"\r\n")) == 2
    assert not OBEYED.search(done.stderr)
