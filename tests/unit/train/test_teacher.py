import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.transforms.functional import InterpolationMode, resize

from growtas.checkpoint import save_model
from growtas.errors import CheckpointError, ConfigError
from growtas.nn.extract import extract
from growtas.nn.supernet import Supernet
from growtas.space import load_space
from growtas.train.recipe import Recipe
from growtas.train.teacher import check_teacher, load_teacher

RECORD = {"image_size": 8, "in_chans": 3, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def test_none():
    assert load_teacher(Recipe(), RECORD, 10) is None


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_timm_model_sees_images_as_it_was_trained(name, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=10).eval()
    save_file(model.state_dict(), tmp_path / "teacher.safetensors")
    recipe = Recipe(teacher=name, teacher_checkpoint=str(tmp_path / "teacher.safetensors"))
    teacher = load_teacher(recipe, RECORD, 10)
    raw = torch.rand(2, 3, 32, 32)  # 0..1, as no network sees it
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    size = config["input_size"][-2:]
    wanted = resize(raw, size, InterpolationMode.BICUBIC, antialias=True) if config.get("fixed_input_size") else raw
    with torch.no_grad():
        torch.testing.assert_close(teacher((raw - 0.5) / 0.5), model((wanted - mean) / std), atol=1e-4, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_one_of_our_own(tiny, tmp_path):
    torch.manual_seed(0)
    space = load_space(tiny)
    model = extract(Supernet(space), space.largest)
    save_model(tmp_path / "model.safetensors", model)
    recipe = Recipe(teacher=str(tmp_path / "model.safetensors"))
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(load_teacher(recipe, RECORD, 10)(images), model(images))
    with pytest.raises(CheckpointError, match="the teacher has 10 classes, the data 4"):
        load_teacher(recipe, RECORD, 4)


def test_wrong_teachers(tmp_path):
    with pytest.raises(CheckpointError, match="no such safetensors file with a teacher's weights"):
        load_teacher(Recipe(teacher="test_vit", teacher_checkpoint=str(tmp_path / "no.safetensors")), RECORD, 10)
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ConfigError, match="the teacher test_vit can't be made by timm with the weights"):
        load_teacher(Recipe(teacher="test_vit", teacher_checkpoint=str(tmp_path / "bad.safetensors")), RECORD, 10)
    (tmp_path / "any.safetensors").write_bytes(b"x" * 100)
    recipe = Recipe(teacher="deit_tyny_patch16_224", teacher_checkpoint=str(tmp_path / "any.safetensors"))
    for check in (lambda: load_teacher(recipe, RECORD, 10), lambda: check_teacher(recipe)):
        with pytest.raises(
            ConfigError, match=r"teacher is 'deit_tyny.*must be a model of timm \(did you mean deit_tiny_patch16_224\?\)"
        ):
            check()
    with pytest.raises(CheckpointError, match="no such safetensors file with a teacher"):
        check_teacher(Recipe(teacher=str(tmp_path / "no.safetensors")))
    for fine in (None, "hf-hub:timm/any", "deit_tiny_patch16_224.fb_in1k", str(tmp_path / "any.safetensors")):
        check_teacher(Recipe(teacher=fine))
