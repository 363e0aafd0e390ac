"""``growtas train`` as people and programs call it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import timm
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from growtas import api
from growtas.checkpoint import load_tensors
from growtas.cli.app import app
from growtas.cli.recipes import recipes
from growtas.errors import CheckpointError, ConfigError, DataError, DeviceError, OutputError, SpaceError, UsageError
from growtas.files import read_json, read_json_lines
from growtas.runs import Run
from growtas.train.recipe import Recipe
from growtas.train.recipe_file import read_config
from growtas.train.recipes import RECIPES
from growtas.train.resolve_recipe import resolve_recipe

TINY = {
    "name": "tiny", "embed_dim": [8, 16], "num_heads": [1, 2], "mlp_ratio": [1, 2], "depth": [1, 2], "head_dim": 8,
    "image_size": 8, "patch_size": 4, "num_classes": 10, "max_relative_position": 1,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with the file of a small space beside it."""
    (tmp_path / "tiny.yaml").write_text(json.dumps(TINY))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def invoke(*arguments, fails=False):
    result = CliRunner().invoke(app, ["train", *map(str, arguments)], catch_exceptions=fails)
    assert fails or result.exit_code == 0, result.output
    return result


def start(*arguments):
    command = [sys.executable, "-m", "growtas", "train", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def weights(run):
    return load_tensors(run.supernet_file)[0]


def test_json_is_one_document_on_stdout(folder):
    done = invoke("--space", "../tiny.yaml", "--epochs", 2, "--transitions", "1", "--name", "r", "--json", "--device", "cpu")
    result = json.loads(done.stdout)
    assert (result["run"], result["state"], result["method"], result["space"]) == ("runs/r", "finished", "growtas", "tiny")
    assert set(result["test_accuracy"]) == {"smallest", "middle", "largest"}
    assert result["warnings"] == read_json(folder / "runs" / "r" / "data.json", "report")["warnings"]
    assert "the whole training has 16 steps, too few to learn much" in result["warnings"][-1]
    assert done.stderr == ""
    run = Run(folder / "runs" / "r")
    assert run.info["recipe"]["transitions"] == [1.0]
    assert len(read_json_lines(run.path / "metrics.jsonl")) == 2


def test_people_get_a_table_and_the_next_command(folder):
    result = invoke(
        "--space", "../tiny.yaml", "--epochs", 1, "--method", "uniform", "--out", "here", "--batch-size", 128, "--lr", 0.002
    )
    for text in ("smallest", "middle", "largest", "embed 8, depth 1", "accuracy", "growtas search", "359 test images"):
        assert text in result.stdout
    (run,) = (folder / "here").iterdir()
    assert str(run.relative_to(folder)) in result.stdout
    info = Run(run).info
    assert (info["method"], info["recipe"]["batch_size"], info["recipe"]["lr"]) == ("uniform", 128, 0.002)
    assert "training: tiny on digits (1,438 training, 359 test images, 10 classes), uniform, 1 epoch, on" in result.stderr


def test_ctrl_c_and_resume(folder):
    arguments = ("--space", "../tiny.yaml", "--epochs", 6, "--device", "cpu")
    process = start(*arguments, "--name", "stopped")
    metrics = folder / "runs" / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while (
        not list(metrics.parent.glob("checkpoints/epoch-*/state.json")) and process.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "growtas: interrupted; continue with: growtas train --resume runs/stopped" in err
    assert "Traceback" not in err
    run = Run(folder / "runs" / "stopped")
    assert run.info["state"] == "interrupted"
    assert run.checkpoints
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the process had: sums depend on the number of threads
    try:
        result = invoke("--resume")
        assert "continuing after epoch" in result.stderr
        invoke(*arguments, "--name", "whole")
    finally:
        torch.set_num_threads(threads)
    assert run.info["state"] == "finished"
    assert [line["epoch"] for line in read_json_lines(metrics)] == list(range(1, 7))
    whole = weights(Run(folder / "runs" / "whole"))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(run).items())


def test_an_unwritable_folder_is_found_before_torch_is_loaded(folder):
    (folder / "file").touch()
    code = (
        "import sys\n"
        "sys.argv = ['growtas', 'train', '--out', 'file/runs']\n"
        "from growtas.cli import main\n"
        "try:\n    main()\nfinally:\n    sys.stdout.write(str('torch' in sys.modules))\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stdout == "False"
    assert "file/runs: the output folder can't be written" in process.stderr


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--epochs", 0], ConfigError, "epochs is 0; it must be a whole number from 1"),
        (["--transitions", "1,x"], ConfigError, "--transitions '1,x' must be epochs separated by commas, as in 10,20, or auto"),
        (["--transitions", "3,2", "--stages", 3], ConfigError, "transitions (3, 2) must ascend"),
        (["--method", "grow"], ConfigError, "method is 'grow'; it must be growtas, growtas-plus, uniform"),
        (["--config", "no.yaml"], ConfigError, "no.yaml: the recipe can't be read"),
        (["runs/x"], UsageError, "a run's folder is only legal with --resume"),
        (["--recipe", "growtas-q"], ConfigError, "there is no recipe 'growtas-q'; did you mean growtas-"),
        (["--recipe", "transfer-cars"], ConfigError, "run it with `growtas finetune`"),
        (["--set", "epochs"], ConfigError, "--set 'epochs' must have the form KEY=VALUE, as in warmup_epochs=2"),
        (["--set", "method_options.randon=1", "--method", "sandwich"], ConfigError, "no option 'randon'; did you mean random?"),
        (["--set", "epoch=3", "--dry-run"], ConfigError, "--set: unknown field 'epoch'; did you mean epochs?"),
        (["--method", "growtas-plus", "--init", "none", "--dry-run"], CheckpointError, "none: --init must name a run folder"),
        (["--dry-run", "--resume"], UsageError, "--dry-run only describes a new training"),
        (["--dry-run", "--data", "nowhere"], DataError, "'nowhere' is neither a known data set nor a folder"),
        (["--dry-run", "--device", "tpu"], DeviceError, "unknown device 'tpu'"),
        (["--ema", 2], ConfigError, "ema_decay is 2.0; it must be a number from 0 to 0.999999 or null"),
        (["--accumulate", 3, "--dry-run"], ConfigError, "batch_size is 32, which can't be cut into 3 parts"),
        (["--resume"], UsageError, "no run in runs/; make one with `growtas train`"),
        (["runs/x", "--resume"], UsageError, "runs/x: no run here"),
        (["--teacher", "nope"], ConfigError, "teacher is 'nope'; it must be a model of timm"),
        (["--teacher", "nope", "--dry-run"], ConfigError, "teacher is 'nope'; it must be a model of timm"),
        (["runs/x", "--resume", "--name", "y"], UsageError, "--name y and the run's folder runs/x can't be combined"),
        (["--image-size", 0], ConfigError, "image_size is 0; it must be a whole number of 1 or more or null"),
        (
            ["--image-size", 101],
            SpaceError,
            "image_size is 101, but micro needs a size that can be divided into 7 to 14 patches per side, such as",
        ),
        (["--data-dir", "."], DataError, "digits is embedded and takes no --data-dir"),
        (
            ["--data", ".", "--data-dir", "."],
            DataError,
            "--data '.' takes no --data-dir; to use a folder of images",
        ),
        (["--data", "file"], DataError, "file: this is a file, not a folder of images; unpack it if it is an archive"),
        (["--method", "uniform", "--stages", 3], ConfigError, "stages is set, but the method uniform has no stages"),
        (["--set", "momentum=0.5"], ConfigError, "momentum is set, but the optimizer adamw has no such setting"),
        (["--set", "teacher_weight=0.7"], ConfigError, "teacher_weight is set, but there is no teacher"),
        (["--set", "augment=none", "--set", "hflip=0.4"], ConfigError, "hflip is set, but augment: none does not flip images"),
        (
            ["--set", "augment=none", "--set", "crop_padding=4"],
            ConfigError,
            "crop_padding is set, but only augment: light shifts",
        ),
        *(
            (
                ["--teacher", "test_vit", *more],
                ConfigError,
                "test_vit has a head of 1000 classes, but the data has 10; name weights whose head",
            )
            for more in ([], ["--dry-run"])
        ),
        (["--teacher", "test_vit.mine"], ConfigError, "timm's pretrained weights of test_vit are test_vit.r160_in1k"),
        (["--teacher", "test_vit", "--teacher-checkpoint", "no.pth"], CheckpointError, "no.pth: there is no such file of a"),
        (["--teacher-checkpoint", "no.pth"], ConfigError, "teacher_checkpoint is set without a teacher"),
        (["--name", "../x", "--dry-run"], UsageError, "the run's name '../x' must be a plain folder name"),
        (["--transitions", "3", "--stages", 3], ConfigError, "transitions has 1 epochs (3); a training of 3 stages has 2"),
        (["--out", "file/runs"], OutputError, "can't be written"),
    ],
)
def test_one_sentence_and_nothing_left(folder, arguments, error, message):
    (folder / "file").touch()
    result = invoke(*arguments, fails=True)
    assert isinstance(result.exception, error)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_teacher_that_cannot_be_loaded_leaves_no_run(folder):
    (folder / "bad.safetensors").write_bytes(b"x" * 100)
    arguments = ["--space", "../tiny.yaml", "--teacher", "test_vit", "--set", "teacher_checkpoint=bad.safetensors", "--epochs", 1]
    assert "bad.safetensors: the teacher's weights can't be read" in str(invoke(*arguments, fails=True).exception)
    assert [path.name for path in folder.iterdir()] == ["bad.safetensors"]


def test_where_there_is_no_terminal_every_epoch_is_a_line(folder):
    (folder / "recipe.yaml").write_text("space: ../tiny.yaml\nepochs: 2\n")
    lines = invoke("--config", "recipe.yaml", "--name", "r").stderr.splitlines()
    first, second = (line for line in lines if line.startswith("epoch "))
    metrics = read_json_lines(folder / "runs" / "r" / "metrics.jsonl")
    assert first.startswith(f"epoch 1, stage 1, loss {metrics[0]['loss']:.3f}, accuracy ")
    assert first.endswith(" left")
    assert (second.startswith("epoch 2, stage 2"), "left" in second) == (True, False)


def test_a_config_file(folder):
    (folder / "recipe.yaml").write_text("space: ../tiny.yaml\nepochs: 1\nlr: 2e-3\nsubspaces: [[8, 1], [null, null]]\nstages: 2\n")
    invoke("--config", "recipe.yaml", "--name", "r", "--seed", 7)
    recipe = Run(folder / "runs" / "r").info["recipe"]
    assert (recipe["lr"], recipe["epochs"], recipe["seed"], recipe["subspaces"]) == (2e-3, 1, 7, [[8, 1], [None, None]])


def test_options_go_before_set_before_the_file_before_the_recipe(folder):
    (folder / "mine.yaml").write_text("recipe: digits-demo\nspace: ../tiny.yaml\nlr: 0.004\nmin_lr: 0.0002\nbatch_size: 64\n")
    result = invoke(
        "--config", "mine.yaml", "--set", "lr=5e-3", "--set", "min_lr=1e-4", "--set", "epochs=4", "--lr", 0.002,
        "--dry-run", "--json",
    )  # fmt: skip
    recipe = json.loads(result.stdout)["recipe"]
    assert (recipe["lr"], recipe["min_lr"], recipe["batch_size"], recipe["epochs"]) == (0.002, 0.0001, 64, 4)
    assert (recipe["name"], recipe["crop_padding"]) == ("digits-demo", 1)
    assert recipe["transitions"] == [pytest.approx(20 * 4 / 36)]


def test_every_option_reaches_its_field(folder):
    torch.save(timm.create_model("test_resnet", num_classes=10).state_dict(), "t.pth")
    result = invoke(
        "--space", "../tiny.yaml", "--transitions", "auto", "--accumulate", 2, "--ema", 0.99, "--amp", "bf16",
        "--teacher", "test_resnet", "--teacher-checkpoint", "t.pth",
        "--keep", 5, "--workers", 1, "--batch-size", 64, "--epochs", 4, "--seed", 3,
        "--stages", 2, "--dry-run", "--json",
    )  # fmt: skip
    content = json.loads(result.stdout)
    wanted = {
        "space": "../tiny.yaml", "transitions": "auto", "accumulate": 2, "ema_decay": 0.99, "amp": "bf16", "teacher": "test_resnet",
        "teacher_checkpoint": "t.pth",
        "keep_checkpoints": 5, "workers": 1, "batch_size": 64, "epochs": 4, "seed": 3, "stages": 2,
    }  # fmt: skip
    assert {key: content["recipe"][key] for key in wanted} == wanted
    assert len(content["remarks"]) == 2


def test_a_dry_run_writes_nothing(folder):
    result = invoke("--space", "../tiny.yaml", "--epochs", 4, "--set", "transitions=[1]", "--out", "new/runs", "--dry-run")
    assert list(folder.iterdir()) == []
    for text in (
        "growtas on tiny, digits: 1,151 training images, 2 stages",
        "embed_dim <= 8",
        "32 (8 per epoch) of 128 images; 4,096 in total",
        "0 to 1",
        "1 to 4",
    ):
        assert text in result.stdout
    assert "estimated from 9 timed passes of 32 images on this machine" in result.stdout
    # Everything after the heading is a file for --config.
    written = folder.parent / "shown.yaml"
    written.write_text(result.stdout.partition("# the recipe, as a file for --config")[2])
    again = json.loads(invoke("--config", written, "--dry-run", "--json").stdout)
    assert again["recipe"]["transitions"] == [1.0]
    assert [stage["steps"] for stage in again["stages"]] == [8, 24]


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_dry_run_for_cuda_needs_no_gpu(folder):
    result = invoke("--space", "../tiny.yaml", "--dry-run", "--device", "cuda")
    assert "per process on cuda" in result.stdout
    assert "no time is estimated" in result.stdout
    assert "timed passes" not in result.stdout


def test_a_dry_run_under_torchrun_shares_the_batch(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    content = json.loads(invoke("--space", "../tiny.yaml", "--dry-run", "--json").stdout)
    assert (content["processes"], content["batch_images"]) == (4, 128)


def test_growtas_plus_goes_on_from_a_run(folder):
    invoke("--space", "../tiny.yaml", "--epochs", 2, "--name", "first", "--set", "subspaces=[[8, 1], [null, null]]")
    arguments = ("--space", "../tiny.yaml", "--method", "growtas-plus", "--init", "runs/first", "--epochs", 1)
    planned = json.loads(invoke(*arguments, "--dry-run", "--json").stdout)
    assert planned["recipe"]["subspaces"] == [[8, 1], [None, None]]
    invoke(*arguments, "--name", "second")
    run = Run(folder / "runs" / "second")
    assert run.info["recipe"] == planned["recipe"]
    assert Recipe.from_dict(read_config(run.path / "recipe.yaml")).to_dict() == planned["recipe"]
    assert planned["data"] == read_json(run.path / "data.json", "report")


def test_another_image_size(folder):
    arguments = ("--space", "../tiny.yaml", "--epochs", 1, "--device", "cpu")
    planned = json.loads(invoke(*arguments, "--set", "image_size=24", "--dry-run", "--json").stdout)
    assert (planned["space"], planned["recipe"]["space"], planned["data"]["image_size"]) == ("tiny-24px", "../tiny.yaml", 24)
    invoke(*arguments, "--image-size", 24, "--name", "r")
    run = Run(folder / "runs" / "r")
    assert run.info["recipe"] == planned["recipe"]
    # 2 x 2 patches as in the space, of 12 pixels.
    assert (run.space.name, run.space.image_size, run.space.patch_size) == ("tiny-24px", 24, 12)
    assert run.info["preprocess"]["image_size"] == 24
    assert weights(run)["patch_embed.weight"].shape[-1] == 12
    # A training from its weights has its image size; at another one they don't fit.
    assert json.loads(invoke("--init", "runs/r", "--dry-run", "--json").stdout)["space"] == "tiny-24px"
    result = invoke("--init", "runs/r", "--image-size", 16, fails=True)
    assert "the supernet has the space tiny-24px, not tiny-16px" in str(result.exception)
    run.update(state="interrupted")
    result = invoke("--resume", "--image-size", 16, fails=True)
    assert "image_size is 24 in this run and can't be changed to 16" in str(result.exception)


def test_a_moved_folder_of_images(folder):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "pets" / name).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(folder / "pets" / name / f"{number}.png")
    result = invoke("--space", "../tiny.yaml", "--data", "pets", "--epochs", 1, "--name", "r")
    assert f"training: tiny on {folder}/pets (16 training, 4 test images, 2 classes)" in result.stderr
    assert f"tiny on {folder}/pets: accuracy on the 4 test images" in " ".join(result.stdout.split())
    run = Run(folder / "runs" / "r")
    run.update(state="interrupted")
    (folder / "pets").rename(folder / "animals")
    message = str(invoke("--resume", fails=True).exception)
    assert message.startswith(f"{folder}/pets: the folder of the run's images does not exist; if it was moved, name its new place")
    (folder / "animals" / "cat" / "0.png").rename(folder / "animals" / "dog" / "10.png")
    message = str(invoke("--resume", "--data-dir", "animals", fails=True).exception)
    assert message.startswith(f"{folder}/animals: the images have changed since the run was started (it had 16 training and 4")
    assert f"in {folder}/pets" in message
    (folder / "animals" / "dog" / "10.png").rename(folder / "animals" / "cat" / "0.png")
    assert invoke("--resume", "--data-dir", "animals").exit_code == 0
    # A search names the place where it read the images.
    shutil.copytree("animals", "zoo")
    found = api.search(run, data_dir="zoo", generations=1, population=2).report
    assert (found["data"]["name"], found["data"]["data_dir"]) == ("folder", f"{folder}/zoo")


def test_resuming_takes_no_recipe(folder):
    invoke("--space", "../tiny.yaml", "--epochs", 1, "--name", "r")
    run = Run(folder / "runs" / "r")
    run.update(state="interrupted")
    result = invoke("--resume", "--recipe", "digits-demo", fails=True)
    assert "a stopped run continues with its own recipe" in str(result.exception)
    result = invoke("--resume", "--set", "lr=1", fails=True)
    assert "lr is 0.001 in this run and can't be changed to 1.0" in str(result.exception)


def recipes_command(*arguments, fails=False):
    application = typer.Typer()
    application.command()(recipes)
    result = CliRunner().invoke(application, [*map(str, arguments)], catch_exceptions=fails)
    assert fails or result.exit_code == 0, result.output
    return result


def test_the_list_of_recipes():
    listed = json.loads(recipes_command("--json").stdout)["recipes"]
    assert [entry["name"] for entry in listed] == list(RECIPES)
    table = recipes_command().stdout
    for entry in listed:
        (line,) = [line for line in table.splitlines() if line.split()[:1] == [entry["name"]]]
        assert line.split()[1:5] == [entry["space"], entry["data"], entry["method"], str(entry["epochs"])]
        assert line.rstrip().endswith(entry["source"])


def test_a_shown_recipe_is_a_file_for_config(folder):
    shown = recipes_command("sandwich-s").stdout
    assert "# measured: not measured with growtas" in shown
    (folder / "mine.yaml").write_text(shown)
    assert resolve_recipe(config=folder / "mine.yaml") == RECIPES["sandwich-s"]()
    assert json.loads(recipes_command("sandwich-s", "--json").stdout)["recipe"] == RECIPES["sandwich-s"]().to_dict()
    assert "did you mean sandwich-" in str(recipes_command("sandwich-x", fails=True).exception)
