"""The Python API as its users call it."""

import json
import subprocess
import sys

import pytest
import torch

from growtas import api
from growtas.checkpoint import load_supernet
from growtas.errors import ConfigError, OutputError, UsageError
from growtas.subnet import Subnet
from growtas.train.events import EpochDone, RunReady, StepDone, TrainingStarted

TINY = {
    "name": "tiny", "embed_dim": [8, 16], "num_heads": [1, 2], "mlp_ratio": [1, 2], "depth": [1, 2], "head_dim": 8,
    "image_size": 8, "patch_size": 4, "num_classes": 10, "max_relative_position": 1,
}  # fmt: skip
SUBNET = Subnet(8, (1, 1), (1.0, 2.0))


class Recorder(api.Progress):
    """Keeps what it is told; stops the training after so many steps."""

    def __init__(self, stop_after=None):
        self.stages, self.events, self.stop_after = [], [], stop_after

    def stage(self, name, total=None):
        self.stages.append((name, total))

    def event(self, event):
        self.events.append(event)
        if isinstance(event, StepDone) and event.step == self.stop_after:
            raise KeyboardInterrupt

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Options of a training that takes a second, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(TINY))
    return {"space": str(path), "epochs": 2, "batch_size": 64, "device": "cpu", "settings": {"warmup_epochs": 0}}


def test_importing_the_api_loads_nothing_heavy():
    code = (
        "import sys, growtas.api\n"
        "growtas.api.load_run, growtas.api.train\n"
        "names = ('torch', 'timm', 'numpy', 'onnx', 'onnxruntime', 'sklearn', 'matplotlib', 'rich', 'typer')\n"
        "sys.exit(f'imported {[name for name in names if name in sys.modules]}' if any(n in sys.modules for n in names) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_public_names_are_there_and_documented():
    for name in api.__all__:
        assert getattr(api, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = api.Nothing


def test_a_named_recipe_with_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = api.train(recipe="digits-demo", epochs=1, batch_size=400)
    assert run.path.parent.name == "runs"
    assert (run.space.name, run.space.num_classes) == ("micro", 10)
    assert (run.recipe.name, run.recipe.epochs, run.recipe.batch_size) == ("digits-demo", 1, 400)
    assert set(run.info["test_accuracy"]) == {"smallest", "middle", "largest"}
    supernet = run.supernet()
    assert not supernet.training
    with torch.no_grad():
        assert supernet(torch.zeros(2, 3, 28, 28), run.space.smallest).shape == (2, 10)
    saved = load_supernet(run.supernet_file).state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in supernet.state_dict().items())


def test_progress_of_a_training(tiny):
    progress = Recorder()
    run = api.train(**tiny, name="r", progress=progress)
    kinds = [type(event) for event in progress.events]
    assert kinds == [RunReady, TrainingStarted, *[*[StepDone] * 17, EpochDone] * 2]
    (ready,) = progress.of(RunReady)
    assert (ready.run.path, ready.data.name, ready.device, ready.processes) == (run.path, "digits", "cpu", 1)
    assert progress.of(TrainingStarted) == [TrainingStarted(0, 34)]
    assert [event.metrics["epoch"] for event in progress.of(EpochDone)] == [1, 2]
    assert ("looking at train images", 200) in progress.stages


def test_stopped_and_resumed(tiny):
    with pytest.raises(KeyboardInterrupt):
        api.train(**tiny, name="stopped", progress=Recorder(stop_after=20))
    assert api.load_run().info["state"] == "interrupted"
    with pytest.raises(ConfigError, match="epochs is 2 in this run and can't be changed to 3"):
        api.resume("runs/stopped", epochs=3)
    progress = Recorder()
    resumed = api.resume(device="cpu", keep_checkpoints=1, tensorboard=True, progress=progress)
    assert resumed.path.name == "stopped"
    assert progress.of(TrainingStarted) == [TrainingStarted(20, 34)]
    assert list(resumed.path.glob("tensorboard/*"))
    assert len(resumed.checkpoints) == 1
    whole = api.train(**tiny, name="whole").supernet().state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.supernet().state_dict().items())
    with pytest.raises(UsageError, match="the run is finished"):
        api.resume(resumed)


def test_a_recipe_is_a_value(tiny):
    recipe = api.Recipe(space=tiny["space"], epochs=3, batch_size=64, method="uniform")
    plan = api.plan_training(recipe, epochs=6, settings={"epochs": 9, "lr": 0.002}, device="cpu")
    assert (plan.recipe.method, plan.recipe.epochs, plan.recipe.lr, plan.recipe.warmup_epochs) == ("uniform", 6, 0.002, 2.0)
    assert (plan.steps, plan.data.name, plan.space.num_classes) == (6 * 17, "digits", 10)
    assert plan.to_dict()["data"]["classes"] == 10
    with pytest.raises(ConfigError, match="unknown field 'epoch'; did you mean epochs?"):
        api.plan_training(recipe, epoch=3)


def test_finetuning_a_run(tiny):
    run = api.train(**tiny, name="first")
    with pytest.raises(UsageError, match="no subnet was searched yet"):
        api.finetune(run, data="digits")
    settings = {"warmup_epochs": 0}
    tuned = api.finetune(run, subnet=SUBNET, data="digits", epochs=1, image_size=12, settings=settings, device="cpu")
    changes = tuned.info["finetune"]
    assert Subnet.from_dict(changes["subnet"]) == SUBNET
    assert (changes["image_size"], tuned.space.image_size) == ([8, 12], 12)
    assert 0 <= changes["test_accuracy"] <= 1
    assert tuned.recipe.method == "finetune"


def test_wrong_arguments_make_no_run(tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file/runs: the output folder can't be written"):
        api.train(**tiny, out="file/runs")
    with pytest.raises(ConfigError, match="there is no recipe 'growtas-tt'"):
        api.train("growtas-tt")
    with pytest.raises(UsageError, match="no run in runs/"):
        api.load_run()
    assert not (tmp_path / "runs").exists()
