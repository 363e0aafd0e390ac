import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timm.data import create_transform

from growtas.errors import ConfigError
from growtas.growth import Subspace
from growtas.space import PRESETS
from growtas.train.recipe import Recipe
from growtas.train.recipe_file import read_config

MICRO = PRESETS["micro"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be a whole number from 1 to 100,000"),
        ({"epochs": 2.5}, "epochs is 2.5; it must be a whole number"),
        ({"epochs": True}, "epochs is True"),
        ({"lr": 0}, "lr is 0; it must be a number above 0"),
        ({"lr": "fast"}, "lr is 'fast'; it must be a number above 0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"method": "sandwhich"}, "method is 'sandwhich'; it must be growtas, growtas-plus, uniform, sandwich"),
        ({"augment": "heavy"}, "augment is 'heavy'; it must be none, light or paper"),
        (
            {"pixel_range": [4095, 0]},
            r"pixel_range is \[4095, 0\]; it must be null or two numbers, the value of black and the larger value",
        ),
        ({"hflip": 1.5}, "hflip is 1.5; it must be a number from 0 to 1"),
        ({"monitor_images": 5000}, "monitor_images is 5000; it must be a whole number from 1 to 2,000"),
        ({"transitions": [0, 3]}, r"transitions is \[0, 3\]; it must be a list of epochs above zero, auto, or null"),
        ({"transitions": 3}, "transitions is 3; it must be a list"),
        ({"subspaces": [[32]]}, "max_embed_dim, max_mlp_ratio"),
        ({"clip_grad": -1}, "clip_grad is -1; it must be a number above 0, up to 100000 or null"),
        ({"amp": 1}, "amp is 1; it must be auto, fp32, bf16 or fp16"),
        ({"seed": -1}, "seed is -1"),
        ({"teacher": "https://host/t.safetensors"}, "https://host/t.safetensors: this is a URL, and only local files are read"),
        ({"teacher": "test_vit", "teacher_checkpoint": "s3://bucket/t.pth"}, "s3://bucket/t.pth: this is a URL"),
        ({"min_lr": 1.0}, "min_lr is 1, above lr, which is 0.001"),
        ({"warmup_epochs": 30}, "warmup_epochs is 30; it must be below epochs, which is 30"),
        ({"mixup": 0.8, "batch_size": 15}, "batch_size is 15; mixup and cutmix pair images and need an even one"),
        ({"random_erasing": 0.2}, "random_erasing is 0.2, but augment: light does not support it; set augment: paper"),
        ({"method": "uniform", "transitions": [3]}, "transitions is set, but the method uniform has no transitions"),
    ],
)
def test_wrong_values(changes, message):
    with pytest.raises(ConfigError, match=message):
        Recipe(**changes)


NUMBERS = [entry.name for entry in dataclasses.fields(Recipe) if entry.type in ("int", "float", "float | None")]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e300, 10**400, -1])
@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_its_bounds(name, value):
    with pytest.raises(ConfigError, match=f"^{name} is .*; it must be a (whole )?number"):
        Recipe(**{name: value})


@pytest.mark.parametrize("value", [math.inf, math.nan, 10**400])
def test_numbers_in_lists_have_bounds_too(value):
    with pytest.raises(ConfigError, match="^transitions is"):
        Recipe(transitions=(value,))
    with pytest.raises(ConfigError, match="^subspaces is"):
        Recipe(subspaces=((value, None), (None, None)))


POLICIES = (
    "rand", "rand-m9-mstd0.5-inc1", "rand-n3-m10-mstd0.5-inc1", "rand-m9-mstd101-mmax10-p0.5-tweights",
    "augmix", "augmix-m5-w4-d2", "augmix-m3-w3-d1-b1-a1.0-mstd0.5", "original", "originalr-mstd0.5", "v0", "v0r", "3a",
)  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_of_timm(policy):
    recipe = Recipe(augment="paper", auto_augment=policy)
    create_transform((3, 32, 32), is_training=True, auto_augment=recipe.auto_augment)


@pytest.mark.parametrize(
    "policy",
    [
        "", " ", "none", "foo", "Rand-m9", "rand m9", "rand-", "rand-x3", "rand-mfoo", "rand-m1e9", "rand-n0", "rand-n3.5",
        "rand-n100000", "rand-m-5", "rand-w1", "rand-p2", "rand-mstdnan", "rand-mstdinf",
        "rand-tmine", "rand-m9\n", "augmix-w0", "augmix-d-2",
        "augmix-m5-x", "v1", "original-m5", "randaugment", 9, ["rand"], True,
    ],
)  # fmt: skip
def test_a_policy_that_timm_does_not_have(policy):
    with pytest.raises(ConfigError, match="^auto_augment is .*; it must be a policy of timm"):
        Recipe(augment="paper", auto_augment=policy)


def test_an_unknown_field_names_the_nearest():
    with pytest.raises(ConfigError, match="file.yaml: unknown field 'epoch'; did you mean epochs?"):
        Recipe.from_dict({"epoch": 3}, source="file.yaml")
    with pytest.raises(ConfigError, match="unknown field 'xyz'; known are name, space"):
        Recipe().override({"xyz": 3})


def test_json_and_back():
    recipe = Recipe(transitions=[3, 7.5], subspaces=[[32, None], [48, 3], [None, None]], clip_grad=1)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.to_dict()["subspaces"] == [[32, None], [48, 3], [None, None]]
    assert hash(recipe) == hash(Recipe.from_dict(recipe.to_dict()))


@given(st.integers(1, 500), st.integers(1, 500))
def test_transitions_and_warm_up_scale_with_epochs(epochs, other):
    recipe = Recipe(epochs=epochs, warmup_epochs=epochs / 10, transitions=[epochs / 2])
    scaled = recipe.override({"epochs": other})
    assert scaled.warmup_epochs == pytest.approx(other / 10)
    assert scaled.transitions == (pytest.approx(other / 2),)
    assert scaled.growth(MICRO).transitions == scaled.transitions


def test_what_is_given_is_not_scaled():
    recipe = Recipe(epochs=30, transitions=[15]).override({"epochs": 60, "transitions": [10], "warmup_epochs": 3})
    assert (recipe.transitions, recipe.warmup_epochs) == ((10.0,), 3.0)


def test_stages_reset_transitions():
    recipe = Recipe(epochs=30, transitions=[20])
    assert recipe.override({"stages": 3}).growth(MICRO).transitions == (10, 20)
    assert recipe.override({"stages": 3, "epochs": 60}).growth(MICRO).transitions == (20, 40)
    assert recipe.override({"stages": 3, "transitions": [5, 6]}).growth(MICRO).transitions == (5, 6)
    assert recipe.override({"stages": 2}).transitions == (20,)


def test_uniform_drops_the_stages():
    assert Recipe(epochs=30, transitions=[20]).override({"method": "uniform"}).transitions is None
    with pytest.raises(ConfigError, match="the method uniform has no transitions"):
        Recipe(epochs=30, transitions=[20]).override({"method": "uniform", "transitions": [3]})


def test_caps_become_subspaces():
    growth = Recipe(epochs=9, subspaces=[[32, 3], [None, None]]).growth(MICRO)
    assert growth.subspaces == (Subspace(32, 3), Subspace())
    with pytest.raises(ConfigError, match=r"the last of subspaces must be the whole space: \[null, null\], not \[48, None\]"):
        Recipe(epochs=9, subspaces=[[32, 3], [48, None]]).growth(MICRO)


def test_a_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("lr: 5e-4\nepochs: 3\ntransitions: [1.5]\nclip_grad: null\n")
    assert Recipe.from_dict(read_config(path)) == Recipe(lr=5e-4, epochs=3, transitions=[1.5])
    path.write_text("")
    assert read_config(path) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: [", r"recipe.yaml: not YAML \(line 2\)"),
        ("- 3", "recipe.yaml: a recipe must be a mapping"),
        ("learning_rate: 3", "recipe.yaml: unknown field 'learning_rate'"),
    ],
)
def test_a_wrong_file(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text + "\n")
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "recipe.yaml")


def test_an_absent_file(tmp_path):
    with pytest.raises(ConfigError, match="the recipe can't be read"):
        read_config(tmp_path / "no.yaml")


def test_layers_follow_each_other():
    base = Recipe(epochs=30, warmup_epochs=3, transitions=[20])
    both = base.override({"epochs": 60, "warmup_epochs": 9}, {"epochs": 20})
    assert both == base.override({"epochs": 60, "warmup_epochs": 9}).override({"epochs": 20})
    assert (both.warmup_epochs, both.transitions) == (3, (pytest.approx(40 / 3),))


def test_only_the_outcome_of_layers_must_be_legal():
    assert Recipe().override({"lr": 1e-9}, {"min_lr": 0}).lr == 1e-9
    assert Recipe().override({"epochs": "many", "warmup_epochs": "few"}, {"epochs": 3, "warmup_epochs": 1}).epochs == 3
    with pytest.raises(ConfigError, match="epochs is 'many'; it must be a whole number"):
        Recipe().override({"epochs": "many"}, {"lr": 1})
    with pytest.raises(ConfigError, match="recipe: unknown field 'epoch'"):
        Recipe().override({}, {"epoch": 3})


def test_a_method_without_transitions_drops_them_whatever_else_changes():
    recipe = Recipe(epochs=30, transitions=[20], subspaces=[[32, None], [None, None]])
    plus = recipe.override({"method": "growtas-plus", "init": "x", "epochs": 10})
    assert (plus.transitions, plus.subspaces) == (None, recipe.subspaces)
    assert recipe.override({"method": "sandwich", "epochs": 10}).subspaces is None


def test_method_options_add_up_within_a_method():
    recipe = Recipe(method="focusformer", method_options={"every": 3, "budgets": 2})
    assert recipe.override({"method_options": {"every": 4}}).method_options == {"every": 4, "budgets": 2}
    assert recipe.override({"method": "sandwich", "method_options": {"random": 1}}).method_options == {"random": 1}
    assert recipe.override({"method": "sandwich"}).method_options == {}
    with pytest.raises(ConfigError, match="method_options is 3; it must be a mapping"):
        recipe.override({"method_options": 3})
