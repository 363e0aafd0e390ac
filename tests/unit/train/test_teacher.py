import os
import pickle

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config, resolve_model_data_config

from growtas.checkpoint import save_model
from growtas.errors import CheckpointError, ConfigError
from growtas.files import write_json
from growtas.nn.extract import extract
from growtas.nn.supernet import Supernet
from growtas.space import load_space
from growtas.train.recipe import Recipe
from growtas.train.teacher import Teacher, check_teacher, load_teacher

RECORD = {"image_size": 8, "in_chans": 3, "mean": [0.3, 0.4, 0.5], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"}
GREY = {**RECORD, "in_chans": 1, "mean": [0.4], "std": [0.3]}
NAMES = [str(number) for number in range(10)]


def timm_model(name="test_resnet", **options):
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, **{"num_classes": 10, **options}).eval()


@pytest.fixture
def saved(tmp_path):
    """Saves a model's weights; the recipe that learns from them."""

    def save(model, name="test_resnet", file="teacher.safetensors", wrap=None):
        path = tmp_path / file
        if file.endswith(".safetensors"):
            save_file(model.state_dict(), path)
        else:
            torch.save(wrap(model.state_dict()) if wrap else model.state_dict(), path)
        return Recipe(teacher=name, teacher_checkpoint=str(path))

    return save


def normalised(pixels, record):
    """uint8 ``(n, H, W, C)`` as the training has them."""
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    return (values - torch.tensor(record["mean"]).view(1, -1, 1, 1)) / torch.tensor(record["std"]).view(1, -1, 1, 1)


def smooth(channels, size=40):
    """Photograph-like images: their resized pixels do not hang on the last bit of a filter."""
    low = np.random.default_rng(0).integers(0, 256, (3, 5, 5, channels), np.uint8)
    large = [Image.fromarray(image.squeeze()).resize((size, size), Image.Resampling.BICUBIC) for image in low]
    return np.stack([np.asarray(image).reshape(size, size, channels) for image in large])


def test_none():
    assert load_teacher(Recipe(), RECORD, NAMES) is None


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "vgg11", "mixer_s32_224", "inception_v3"])
@pytest.mark.parametrize(("record", "mode"), [(RECORD, "RGB"), (GREY, "L")])
def test_a_timm_model_sees_images_as_its_own_configuration_says(name, record, mode):
    # Different sizes, means, deviations and filters; what timm's own evaluation makes of the same images is what counts.
    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    pixels = smooth(len(mode))
    transform = create_transform(**{**config, "crop_pct": 1.0})
    wanted = torch.stack([transform(Image.fromarray(image.squeeze()).convert("RGB")) for image in pixels])
    seen = Teacher(torch.nn.Identity(), config, record)(normalised(pixels, record))
    # timm rounds to 255 levels before it normalises.
    torch.testing.assert_close(seen, wanted, atol=2.5 / 255 / min(config["std"]), rtol=0)
    assert (seen - wanted).abs().mean() < 0.5 / 255 / min(config["std"])


@pytest.mark.parametrize("record", [RECORD, GREY])
def test_weights_from_a_file(saved, record):
    model = timm_model()
    teacher = load_teacher(saved(model), record, NAMES)
    config, pixels = resolve_model_data_config(model), smooth(len(record["mean"]), 160)
    raw = torch.from_numpy(pixels).permute(0, 3, 1, 2).expand(-1, 3, -1, -1) / 255
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(teacher(normalised(pixels, record)), model((raw - mean) / std), atol=1e-4, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.model.training


def test_weights_for_grey_images(saved):
    recipe = saved(timm_model(in_chans=1))
    assert load_teacher(recipe, GREY, NAMES)(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(
        ConfigError, match="the teacher test_resnet.* needs images with 1 channels, but those of this training have 3"
    ):
        load_teacher(recipe, RECORD, NAMES)


@pytest.mark.parametrize(
    "wrap",
    [
        None,
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {"state_dict": {key: value * 0 for key, value in state.items()}, "state_dict_ema": state},
    ],
)
def test_what_torch_and_timm_save(saved, wrap):
    model, images = timm_model(), torch.randn(2, 3, 8, 8)
    one, two = load_teacher(saved(model), RECORD, NAMES), load_teacher(saved(model, file="t.pth", wrap=wrap), RECORD, NAMES)
    assert torch.equal(one(images), two(images))
    assert one.record["sha256"] == two.record["sha256"]


@pytest.mark.parametrize("file", ["teacher.safetensors", "teacher.pth"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "deit_tiny_distilled_patch16_224"])
def test_a_head_of_other_classes_is_refused(saved, name, file):
    recipe = saved(timm_model(name, num_classes=7), name, file)
    message = "the teacher has a head of 7 classes, but the data has 10; name weights whose head has 10: --teacher-checkpoint FILE"
    with pytest.raises(CheckpointError, match=message):
        load_teacher(recipe, RECORD, NAMES)


def test_pretrained_weights_with_another_head_are_refused_before_they_are_fetched(monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *arguments, **options: pytest.fail("nothing is to be made"))
    for name, classes in (("resnet18", 1000), ("resnet18.a1_in1k", 1000), ("vit_small_patch14_dinov2", 0)):
        with pytest.raises(
            ConfigError, match=f"the pretrained teacher {name} has a head of {classes} classes, but the data has 10; name"
        ):
            load_teacher(Recipe(teacher=name), RECORD, NAMES)


def test_pretrained_weights_keep_their_head_and_say_which_they_are(monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **options: create(name, **options))
    teacher = load_teacher(Recipe(teacher="test_resnet"), RECORD, [str(number) for number in range(1000)])
    assert teacher.record["model"] == "test_resnet.r160_in1k"
    assert teacher(torch.randn(1, 3, 8, 8)).shape == (1, 1000)


def test_weights_that_cannot_be_fetched_are_a_sentence(monkeypatch):
    def offline(*arguments, **options):
        raise OSError("We couldn't connect to 'https://huggingface.co'\nto load the files")

    monkeypatch.setattr(timm, "create_model", offline)
    for name in ("test_vit", "hf-hub:timm/test_vit.r160_in1k"):
        with pytest.raises(ConfigError) as caught:
            load_teacher(Recipe(teacher=name), RECORD, [str(number) for number in range(1000)])
        assert str(caught.value) == (
            f"timm can't create the teacher {name} with its pretrained weights (or name a file: --teacher-checkpoint): "
            "We couldn't connect to 'https://huggingface.co' to load the files"
        )


class _Runs:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_nothing_in_a_file_is_run(tmp_path, saved):
    state = {**timm_model().state_dict(), "more": _Runs(tmp_path / "made")}
    torch.save(state, tmp_path / "bad.pth")
    (tmp_path / "bad.bin").write_bytes(pickle.dumps(_Runs(tmp_path / "made")))
    torch.save(timm_model(), tmp_path / "module.pt")
    for name in ("bad.pth", "bad.bin", "module.pt"):
        recipe = Recipe(teacher="test_resnet", teacher_checkpoint=str(tmp_path / name))
        with pytest.raises(CheckpointError, match=f"{name}: the teacher's weights can't be read \\(it contains more than weights"):
            load_teacher(recipe, RECORD, NAMES)
    assert not (tmp_path / "made").exists()


def test_files_that_hold_something_else(tmp_path, saved):
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "empty.pth").touch()
    no_state = "the file contains no state_dict of a model"
    for name, reason in {"epoch.pth": no_state, "list.pth": no_state, "bad.safetensors": "[^\n]+", "empty.pth": no_state}.items():
        recipe = Recipe(teacher="test_resnet", teacher_checkpoint=str(tmp_path / name))
        with pytest.raises(CheckpointError, match=rf"^[^\n]*{name}: the teacher's weights can't be read \({reason}\)$"):
            load_teacher(recipe, RECORD, NAMES)
    with pytest.raises(ConfigError, match="timm can't create the teacher test_vit with the weights"):
        load_teacher(saved(timm_model(), "test_vit"), RECORD, NAMES)


def test_weights_that_are_not_finite_are_refused(saved):
    model = timm_model()
    with torch.no_grad():
        next(model.parameters()).view(-1)[3] = float("nan")
    with pytest.raises(
        CheckpointError, match=r"teacher\.safetensors: the teacher's [a-z0-9._]+ contains numbers that are not finite"
    ):
        load_teacher(saved(model), RECORD, NAMES)


def test_the_record_tells_weights_apart(saved):
    model = timm_model()
    first = load_teacher(saved(model), RECORD, NAMES).record
    assert (first["model"], first["input_size"]) == ("test_resnet.r160_in1k", [3, 160, 160])
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    assert load_teacher(saved(model, file="other.safetensors"), RECORD, NAMES).record["sha256"] != first["sha256"]


def test_global_generators_stay_as_they_are(saved):
    recipe = saved(timm_model())
    before = torch.get_rng_state()
    load_teacher(recipe, RECORD, NAMES)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_of_our_own(tiny, tmp_path):
    torch.manual_seed(0)
    space = load_space(tiny)
    model, path = extract(Supernet(space), space.largest), tmp_path / "model.safetensors"
    save_model(path, model)
    recipe = Recipe(teacher=str(path))
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(load_teacher(recipe, RECORD, NAMES)(images), model(images))
    with pytest.raises(
        CheckpointError, match="the teacher has a head of 10 classes, but the data has 4; export a teacher from a run on this"
    ):
        load_teacher(recipe, RECORD, NAMES[:4])
    # Its manifest says what it was trained on.
    manifest = {"preprocess": {**RECORD, "mean": [0.5] * 3, "std": [0.5] * 3}, "class_names": NAMES}
    write_json(tmp_path / "model.safetensors.json", manifest)
    pixels = smooth(3, 8)
    seen = load_teacher(recipe, RECORD, NAMES)(normalised(pixels, RECORD))
    torch.testing.assert_close(seen, model(normalised(pixels, manifest["preprocess"])), atol=1e-4, rtol=1e-4)
    write_json(tmp_path / "model.safetensors.json", {**manifest, "class_names": [*NAMES[:8], "9", "8"]})
    with pytest.raises(CheckpointError, match="the teacher has other classes than the data: '9' instead of '8'"):
        load_teacher(recipe, RECORD, NAMES)
    with pytest.raises(ConfigError, match=r"the file .*model.safetensors already contains weights; leave out --teacher-checkpoint"):
        check_teacher(Recipe(teacher=str(path), teacher_checkpoint=str(path)))


def test_wrong_teachers(tmp_path):
    with pytest.raises(CheckpointError, match=r"no\.safetensors: there is no such file of a teacher's weights"):
        load_teacher(Recipe(teacher="test_vit", teacher_checkpoint=str(tmp_path / "no.safetensors")), RECORD, NAMES)
    (tmp_path / "any.safetensors").write_bytes(b"x" * 100)
    recipe = Recipe(teacher="deit_tyny_patch16_224", teacher_checkpoint=str(tmp_path / "any.safetensors"))
    for check in (lambda: load_teacher(recipe, RECORD, NAMES), lambda: check_teacher(recipe)):
        with pytest.raises(
            ConfigError, match=r"teacher is 'deit_tyny.*must be a model of timm \(did you mean deit_tiny_patch16_224\?\)"
        ):
            check()
    with pytest.raises(
        ConfigError, match=r"teacher is 'test_vit\.in22k'; timm's pretrained weights of test_vit are test_vit\.r160_in1k"
    ):
        check_teacher(Recipe(teacher="test_vit.in22k"))
    with pytest.raises(CheckpointError, match="there is no such safetensors file of a teacher"):
        check_teacher(Recipe(teacher=str(tmp_path / "no.safetensors")))
    for fine in (None, "hf-hub:timm/any", "deit_tiny_patch16_224.fb_in1k", str(tmp_path / "any.safetensors")):
        check_teacher(Recipe(teacher=fine))
