"""Whole small trainings: the loop, its files, and stopping and continuing."""

import dataclasses
import json
import math
import multiprocessing
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from growtas.checkpoint import load_model, load_supernet, load_tensors, save_model
from growtas.data.evaluation import EvaluationSet, search_set
from growtas.data.evaluation import test_set as open_test_set
from growtas.errors import CheckpointError, ConfigError, DataError, DeviceError, OutputError, TrainingError, UsageError
from growtas.files import read_json, read_json_lines
from growtas.nn.extract import extract
from growtas.progress import Progress
from growtas.space import load_space
from growtas.train import trainer as trainer_module
from growtas.train.events import EpochDone, StepDone, TrainingStarted
from growtas.train.image_loader import make_loader
from growtas.train.recipe import CONTINUING, METHODS
from growtas.train.resolve_recipe import resolve_recipe
from growtas.train.session import pick_device, resume_session, start_session
from growtas.train.strategies import make_strategy
from growtas.train.strategies.base import Pass
from growtas.train.strategies.uniform import Uniform
from tests.reference import count_correct


@pytest.fixture
def begin(tiny, tmp_path):
    """Starts a session in the tiny space on digits."""

    def start(name="run", data_dir=None, **options):
        recipe = resolve_recipe(None, {"space": tiny, "epochs": 3, "batch_size": 64, "warmup_epochs": 0.5, **options})
        return start_session(recipe, out=tmp_path / "runs", name=name, data_dir=data_dir, device="cpu")

    return start


def image_folder(root, count=12, size=10):
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("val", 3)):
        for name, colour in (("blue", 0), ("red", 200)):
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(0, 50, (size, size, 3)) + np.array([colour, 0, 200 - colour])
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.png")
    return root


class Stop(Progress):
    """Presses Ctrl-C at a step, or after an epoch."""

    def __init__(self, step=None, epoch=None):
        self.step, self.epoch, self.first_step = step, epoch, None

    def event(self, event):
        match event:
            case TrainingStarted():
                self.first_step = event.step
            case StepDone(step=self.step):
                raise KeyboardInterrupt
            case EpochDone() if event.metrics["epoch"] == self.epoch:
                raise KeyboardInterrupt


def final_state(run):
    folder = run.checkpoints[-1]
    tensors = {**load_tensors(folder / "supernet.safetensors")[0], **load_tensors(folder / "trainer.safetensors")[0]}
    lines = [
        {k: v for k, v in line.items() if k not in ("time", "seconds", "images_per_s")}
        for line in read_json_lines(run.path / "metrics.jsonl")
    ]
    return tensors, lines, read_json(folder / "state.json"), run.info["test_accuracy"]


def assert_same(one, two):
    assert one[0].keys() == two[0].keys()
    for name, tensor in one[0].items():
        assert torch.equal(tensor, two[0][name]), name
    assert one[1:] == two[1:]


def test_a_run_leaves_what_the_next_steps_need(begin):
    session = begin(transitions=[1.5])
    info = session.train()
    run = session.run
    assert info["state"] == "finished"
    assert (info["method"], info["seed"], info["space"]["num_classes"]) == ("growtas", 0, 10)
    assert info["class_names"] == list("0123456789")
    assert info["data"]["name"] == "digits"
    lines = read_json_lines(run.path / "metrics.jsonl")
    assert [(line["epoch"], line["step"], line["stage"]) for line in lines] == [(1, 17, 1), (2, 34, 2), (3, 51, 2)]
    assert lines[0]["subspace"] == {"max_embed_dim": 8, "max_mlp_ratio": None}
    assert lines[-1]["loss"] < lines[0]["loss"] < math.log(10) + 0.2
    assert all(set(line["accuracy"]) == {"smallest", "middle", "largest"} for line in lines)
    assert all(set(line["time"]) == {"data", "method", "forward", "backward", "optimiser", "evaluate", "save"} for line in lines)
    assert [path.name for path in run.checkpoints] == ["epoch-0002", "epoch-0003"]
    # The accuracies are those of the weights on disk, on images that no step saw.
    supernet, test = load_supernet(run.supernet_file), open_test_set(run)
    correct = count_correct(lambda images: supernet(images, run.space.largest), test)
    assert info["test_accuracy"]["largest"] == correct / len(test)


def test_the_search_split_is_not_trained_on(begin):
    session = begin(search_images=100)
    split = read_json(session.run.path / "split.json")
    loader = make_loader(session.data, split, session.run.info["preprocess"], session.recipe, session.device)
    assert len(loader.labels) == len(session.data.train) - len(split["search"])
    search = search_set(session.run)
    assert len(search) == 100
    trained = {bytes(image) for image in loader.pixels.numpy()}
    held_out = {bytes(search._pixels.take(np.array([i])).numpy()) for i in range(100)}
    test = EvaluationSet(session.data.test, session.run.info["preprocess"], session.data.class_names)
    tested = {bytes(test._pixels.take(np.array([i])).numpy()) for i in range(len(test))}
    # At 8 x 8 every digit of the set is a different image.
    assert len(trained) == len(loader.labels)
    assert not trained & held_out
    assert not trained & tested
    assert not held_out & tested


AUGMENTED = {
    "light": {"drop_path": 0.2, "mixup": 0.5, "cutmix": 0.5, "crop_padding": 1, "clip_grad": 1.0, "batch_size": 400},
    "paper": {
        "augment": "paper",
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "random_erasing": 0.25,
        "repeated_aug": 3,
        "batch_size": 16,
    },
}


@pytest.mark.parametrize("augment", ["light", "paper"])
@pytest.mark.parametrize("stop", [{"epoch": 1}, {"epoch": 2}, {"step": 1}, {"step": 6}])
def test_stopped_and_continued_is_bit_identical(begin, tmp_path, stop, augment):
    options = {**AUGMENTED[augment], "transitions": [1.2]}
    if augment == "paper":
        options["data"] = str(image_folder(tmp_path / "colours", count=24))
    whole = begin("whole", **options)
    whole.train()
    session = begin("part", **options)
    with pytest.raises(KeyboardInterrupt):
        session.train(Stop(**stop))
    assert session.run.info["state"] == "interrupted"
    resumed, progress = resume_session(session.run, device="cpu"), Stop()
    assert resumed.train(progress)["state"] == "finished"
    assert progress.first_step == stop.get("step", 2 * stop.get("epoch", 0))
    assert_same(final_state(session.run), final_state(whole.run))


def test_another_seed_gives_other_weights(begin):
    states = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        session = begin(name, seed=seed, epochs=1)
        session.train()
        states.append(final_state(session.run))
    assert_same(states[0], states[1])
    assert any(not torch.equal(tensor, states[2][0][name]) for name, tensor in states[0][0].items())


def test_global_generators_are_left_alone(begin):
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    want = (random.random(), np.random.rand(), float(torch.rand(1)))
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    begin(epochs=1, drop_path=0.1, mixup=0.5).train()
    assert (random.random(), np.random.rand(), float(torch.rand(1))) == want


def test_a_line_without_its_checkpoint_is_dropped(begin, monkeypatch):
    session = begin()
    save = trainer_module.save_checkpoint
    killed = []

    def killed_once(run, training, place, strategy, keep):
        if place.epoch == 2 and not killed:
            killed.append(place.epoch)
            raise KeyboardInterrupt
        return save(run, training, place, strategy, keep)

    monkeypatch.setattr(trainer_module, "save_checkpoint", killed_once)
    with pytest.raises(KeyboardInterrupt):
        session.train()
    assert len(read_json_lines(session.run.path / "metrics.jsonl")) == 2
    resume_session(session.run, device="cpu").train()
    assert [line["epoch"] for line in read_json_lines(session.run.path / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 4}, "epochs is 3 in this run and can't be changed to 4; start a new run"),
        ({"lr": 0.5}, r"lr is 0.001 in this run and can't be changed to 0.5"),
        ({"seed": 1}, "seed is 0 in this run"),
        ({"method": "uniform"}, "method is growtas in this run and can't be changed to uniform"),
        ({"stages": 1}, "stages is 2 in this run"),
        ({"transitions": [1]}, "transitions is unset in this run"),
        ({"data": "fashion-mnist"}, "data is digits in this run"),
    ],
)
def test_what_would_change_the_result_is_refused_on_resuming(begin, options, message):
    session = begin()
    with pytest.raises(ConfigError, match=message):
        resume_session(session.run, options=options, device="cpu")


def test_what_stays_the_same_may_be_said_again(begin, tiny):
    session = begin()
    options = {"space": tiny, "epochs": 3, "seed": 0, "workers": 3}
    assert resume_session(session.run, options=options, device="cpu").recipe == dataclasses.replace(session.recipe, workers=3)


def test_a_finished_run_is_not_resumed(begin):
    session = begin(epochs=1)
    session.train()
    with pytest.raises(UsageError, match="the run is finished, so there is nothing to resume"):
        resume_session(session.run)


def test_a_loss_that_is_not_finite(begin, monkeypatch):
    session = begin()
    forward, calls = trainer_module.Supernet.forward, []

    def broken(self, images, subnet):
        calls.append(subnet)
        logits = forward(self, images, subnet)
        return logits * float("nan") if self.training and len(calls) > 30 else logits

    monkeypatch.setattr(trainer_module.Supernet, "forward", broken)
    with pytest.raises(
        TrainingError, match=r"^step \d+: the loss is nan for the subnet \(embed \d+, depth .*\); lower lr"
    ) as caught:
        session.train()
    run = session.run
    assert run.info["state"] == "interrupted"
    assert [path.name for path in run.checkpoints] == ["epoch-0001"]
    step = int(re.search(r"step (\d+)", str(caught.value))[1]) - 1
    assert str(make_strategy(session.recipe, run.space).draw(step, step / 17)[0].subnet) in str(caught.value)
    monkeypatch.undo()
    assert resume_session(run, device="cpu").train()["state"] == "finished"


def test_weights_that_are_not_finite_are_not_saved(begin, monkeypatch):
    session = begin()
    monkeypatch.setattr(trainer_module, "all_finite", lambda supernet: False)
    with pytest.raises(TrainingError, match="epoch 1: a weight is no longer finite"):
        session.train()
    assert session.run.checkpoints == []


@pytest.mark.parametrize("method", [method for method in METHODS if method not in CONTINUING])
def test_a_space_of_one_subnet(begin, tmp_path, method):
    space = {"name": "one", "embed_dim": [16], "num_heads": [2], "mlp_ratio": [2], "depth": [2], "head_dim": 8, "image_size": 8}
    (tmp_path / "one.yaml").write_text(json.dumps({**space, "patch_size": 4, "max_relative_position": 1}))
    session = begin(space=str(tmp_path / "one.yaml"), method=method, epochs=1, batch_size=256)
    assert session.train()["state"] == "finished"
    assert len(set(session.run.info["test_accuracy"].values())) == 1


def test_one_width_has_one_stage_unless_more_are_asked_for(tiny, tmp_path):
    content = yaml.safe_load(Path(tiny).read_text())
    (tmp_path / "narrow.yaml").write_text(yaml.safe_dump({**content, "embed_dim": [8]}))
    narrow = str(tmp_path / "narrow.yaml")
    for recipe in (None, "digits-demo"):
        assert resolve_recipe(recipe, {"space": narrow}).stages == 1
        assert resolve_recipe(recipe, {"space": tiny}).stages == 2
    with pytest.raises(ConfigError, match="stages is 2; .* has 1 choices of embed_dim"):
        resolve_recipe(None, {"space": narrow, "stages": 2})
    with pytest.raises(ConfigError, match="growtas-plus trains the subnets outside A_1"):
        resolve_recipe(None, {"space": narrow, "method": "growtas-plus", "init": "any"})
    capped = resolve_recipe(None, {"space": narrow, "subspaces": [[None, 1], [None, None]], "transitions": [3]})
    assert len(capped.growth(load_space(narrow)).subspaces) == 2


class Told(Progress):
    """Keeps the notes, and how many there were before the first step."""

    def __init__(self):
        self.notes, self.before = [], None

    def note(self, text):
        self.notes.append(text)

    def event(self, event):
        if isinstance(event, StepDone) and self.before is None:
            self.before = len(self.notes)


def save_own(session, path):
    """The largest subnet of a session's run as a file to learn from."""
    save_model(path, extract(load_supernet(session.run.supernet_file), session.run.space.largest))
    return str(path)


def test_the_teachers_accuracy_is_told_before_the_first_step(begin, tmp_path):
    first = begin("first", method="uniform", epochs=6, batch_size=32, lr=2e-2, augment="none", label_smoothing=0.0)
    first.train()
    path, told = save_own(first, tmp_path / "model.safetensors"), Told()
    session = begin("second", teacher=path, search_images=200, monitor_images=150)
    session.train(told)
    record, model = session.run.info["teacher"], load_model(path)
    images = search_set(session.run).subset(150)
    assert (record["weights"], record["images"]) == (path, 150)
    assert record["accuracy"] == count_correct(model, images) / 150 > 0.3
    assert f"teacher: {path}, accuracy {record['accuracy']:.1%} on 150 images of the search split" in told.notes[: told.before]
    assert not any("chance" in note for note in told.notes)


def test_a_teacher_that_knows_nothing_is_warned_of(begin, tmp_path):
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=10).state_dict(), tmp_path / "t.pth")
    told = Told()
    options = {"teacher": "test_resnet", "teacher_checkpoint": str(tmp_path / "t.pth"), "epochs": 1, "batch_size": 64}
    begin(search_images=1300, monitor_images=50, **options).train(told)
    assert any(note.startswith("warning: the teacher is not better than chance") for note in told.notes[: told.before])


def test_few_images_tell_a_good_teacher_not_from_chance(begin, tmp_path):
    first = begin("first", method="uniform", epochs=6, batch_size=32, lr=2e-2, augment="none", label_smoothing=0.0)
    first.train()
    told = Told()
    session = begin("second", teacher=save_own(first, tmp_path / "model.safetensors"), search_images=10, monitor_images=2, epochs=1)
    session.train(told)
    record = session.run.info["teacher"]
    words = "is not clearly better than chance" if record["accuracy"] > record["chance"] else "is not better than chance"
    (warning,) = [note for note in told.notes if note.startswith("warning: the teacher")]
    chance = f"{record['chance']:.1%}"
    assert warning.startswith(f"warning: the teacher {words} (the most frequent class has {chance} of these 2 images)")


def test_a_run_goes_on_with_the_teacher_that_it_began_with(begin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = begin("first", epochs=1)
    first.train()
    save_own(first, tmp_path / "model.safetensors")
    whole = begin("whole", teacher="model.safetensors")
    whole.train()
    session = begin("stopped", teacher="model.safetensors")
    with pytest.raises(KeyboardInterrupt):
        session.train(Stop(epoch=1))
    accuracy = session.run.info["teacher"]["accuracy"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # the path was relative to the folder before
    resume_session(session.run)
    (tmp_path / "model.safetensors").rename(tmp_path / "moved.safetensors")
    with pytest.raises(CheckpointError, match="model.safetensors: there is no such safetensors file of a teacher"):
        resume_session(session.run)
    other = begin("other", epochs=1, seed=1)
    other.train()
    save_own(other, tmp_path / "model.safetensors")
    message = r"but the weights in .*model\.safetensors are different; name the original file"
    with pytest.raises(CheckpointError, match=message):
        resume_session(session.run)
    resumed, told = resume_session(session.run, options={"teacher": "../moved.safetensors"}), Told()
    resumed.train(told)
    assert session.run.info["teacher"]["accuracy"] == accuracy
    assert any("accuracy" in note for note in told.notes[: told.before])
    one, two = (load_tensors(item.run.supernet_file)[0] for item in (whole, session))
    assert all(torch.equal(two[name], tensor) for name, tensor in one.items())


@pytest.mark.parametrize("augment", ["none", "light", "paper"])
def test_a_folder_is_trained_on(begin, tmp_path, augment):
    folder = image_folder(tmp_path / "colours")
    session = begin(data=str(folder), augment=augment, epochs=12, batch_size=8, lr=5e-3, label_smoothing=0.0)
    info = session.train()
    assert info["class_names"] == ["blue", "red"]
    assert info["data"]["name"] == "folder"
    assert info["data"]["data_dir"] == str(folder)
    assert info["test_accuracy"]["smallest"] == 1.0


def test_the_declared_range_is_recorded_and_inherited(begin, tmp_path):
    first = begin("first", pixel_range=[0, 4095], epochs=1, warmup_epochs=0)
    first.train()
    second = begin("second", init=str(first.run.path))
    other = begin("other", init=str(first.run.path), pixel_range=[0, 1023])
    ranges = [session.run.info["preprocess"]["decode"] for session in (first, second, other, begin())]
    assert ranges == [{"version": 1, "pixel_range": value} for value in ([0, 4095], [0, 4095], [0, 1023], None)]
    assert second.run.info["recipe"]["pixel_range"] == [0, 4095]


def test_images_that_the_rules_refuse_make_no_run(begin, tmp_path):
    folder = image_folder(tmp_path / "colours")
    for name in ("blue", "red"):
        Image.fromarray(np.ones((9, 9), np.float32)).save(folder / "train" / name / "height.tif")
    with pytest.raises(DataError, match=r"2 images can't be read; .*height.tif \(its values are floating-point"):
        begin(data=str(folder), name="refused")
    assert not list(tmp_path.rglob("refused"))
    assert begin(data=str(folder), pixel_range=[0, 1], epochs=1, warmup_epochs=0).train()["state"] == "finished"


def test_no_more_processes_decode_than_there_are_cpus(begin, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    session = begin(data=str(image_folder(tmp_path / "colours")), augment="paper", batch_size=4, workers=3)
    before, split = set(multiprocessing.active_children()), read_json(session.run.path / "split.json", "search split")
    loader = make_loader(session.data, split, session.run.info["preprocess"], session.recipe, session.device)
    batches = loader.batches(0)
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 1


def test_an_image_that_breaks_during_the_training(begin, tmp_path):
    folder = image_folder(tmp_path / "colours")
    session = begin(data=str(folder), augment="paper", epochs=2, batch_size=4, workers=1)
    for path in folder.glob("train/red/*.png"):
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"^[^\n]*train/red/\d+\.png: the image can't be read \([^\n]*\)$"):
        session.train()
    assert session.run.info["state"] == "interrupted"


def test_changed_images_are_noticed_on_resuming(begin, tmp_path):
    folder = image_folder(tmp_path / "colours")
    session = begin(data=str(folder))
    (folder / "train" / "red" / "0.png").unlink()
    with pytest.raises(DataError, match="the images have changed since the run was started"):
        resume_session(session.run)


def test_nothing_is_left_of_a_start_that_failed(begin, tmp_path):
    with pytest.raises(DataError):
        begin(data=str(tmp_path / "nowhere"))
    assert not (tmp_path / "runs").exists()


def test_too_large_for_memory(begin, tmp_path, monkeypatch):
    from growtas.train import image_loader

    monkeypatch.setattr(image_loader, "MEMORY_LIMIT", 1000)
    with pytest.raises(DataError, match="keeps at most 1e-06 GB in memory; set augment: paper"):
        begin(data=str(image_folder(tmp_path / "colours")))


def test_where_a_run_goes(begin, tiny, tmp_path):
    begin("one")
    with pytest.raises(UsageError, match=r"runs/one: a run of this name exists"):
        begin("one")
    for name in ("a/b", "..", ""):
        with pytest.raises(UsageError, match="must be a plain folder name"):
            begin(name)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file/runs: the output folder can't be written"):
        start_session(resolve_recipe(None, {"space": tiny}), out=tmp_path / "file" / "runs")


def test_resolving(tmp_path, tiny):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"space": tiny, "epochs": 7, "lr": 0.01}))
    recipe = resolve_recipe(None, {"lr": 0.02}, config=path)
    assert (recipe.name, recipe.space, recipe.epochs, recipe.lr) == ("small-images", tiny, 7, 0.02)
    assert resolve_recipe().name == "digits-demo"
    with pytest.raises(ConfigError, match=r"stages is 5; micro has 3 choices"):
        resolve_recipe(None, {"stages": 5})
    with pytest.raises(ConfigError, match=r"transitions \(99\) must lie inside the training of 36 epochs"):
        resolve_recipe(None, {"transitions": [99]})


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match="unknown device 'tpu'; a training needs auto, cpu or cuda"):
        pick_device("tpu")
    if not torch.cuda.is_available():
        assert pick_device("auto") == torch.device("cpu")
        with pytest.raises(DeviceError, match="no CUDA device"):
            pick_device("cuda")


def test_a_block_that_no_drawn_subnet_has_stays(begin, monkeypatch):
    from growtas.train import session as session_module

    class LargestFirst(Uniform):
        def draw(self, step, epoch):
            return (Pass(self.space.smallest if step else self.space.largest),)

    monkeypatch.setattr(session_module, "make_strategy", lambda recipe, space: LargestFirst(space, recipe))
    session = begin(epochs=2, batch_size=1151, weight_decay=0.5)
    session.train()
    first, second = (load_tensors(folder / "supernet.safetensors")[0] for folder in session.run.checkpoints)
    # One step an epoch: the second leaves the second block out, momentum and weight decay included.
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]) == name.startswith("blocks.1."), name


class Noted(Progress):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_a_training_whose_subnets_do_not_gain_ends_after_its_patience(begin):
    # At this learning rate no answer changes, so the first epoch is the best one.
    still = {"epochs": 6, "lr": 1e-12, "min_lr": 1e-12, "warmup_lr": 1e-12, "method": "uniform", "patience": 2}
    progress = Noted()
    session = begin(**still)
    info = session.train(progress)
    assert [line["epoch"] for line in read_json_lines(session.run.path / "metrics.jsonl")] == [1, 2, 3]
    assert info["state"] == "finished"
    assert "the subnets have not gained since epoch 1; the training ends after epoch 3" in progress.notes


def test_patience_begins_with_the_last_stage(begin):
    still = {"epochs": 6, "lr": 1e-12, "min_lr": 1e-12, "warmup_lr": 1e-12, "method": "growtas", "transitions": [3], "patience": 1}
    progress = Noted()
    session = begin(**still)
    session.train(progress)
    assert [line["epoch"] for line in read_json_lines(session.run.path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert "the subnets have not gained since epoch 4; the training ends after epoch 5" in progress.notes


def test_a_resumed_training_keeps_its_patience(begin):
    still = {"epochs": 6, "lr": 1e-12, "min_lr": 1e-12, "warmup_lr": 1e-12, "method": "uniform", "patience": 2}
    session = begin(**still)
    with pytest.raises(KeyboardInterrupt):
        session.train(Stop(epoch=2))
    resume_session(session.run, device="cpu").train()
    assert [line["epoch"] for line in read_json_lines(session.run.path / "metrics.jsonl")] == [1, 2, 3]
