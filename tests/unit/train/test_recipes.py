import dataclasses
import re
from pathlib import Path

import pytest
from timm.data import create_dataset
from timm.data.auto_augment import rand_augment_transform

from growtas.docstrings import descriptions
from growtas.errors import ConfigError
from growtas.fields import rule_of
from growtas.space import PRESETS, load_space
from growtas.train.recipe import Recipe
from growtas.train.recipes import RECIPES, default_recipe
from growtas.train.recipes.entry import NOT_MEASURED
from growtas.train.recipes.finetuning import transfer
from growtas.train.recipes.imagenet import BASELINES, paper, paper_dagger, paper_plus
from growtas.train.resolve_recipe import resolve_recipe
from growtas.train.strategies import make_strategy


@pytest.mark.parametrize(
    ("space", "transition", "min_lr"), [("autoformer-t", 250, 2e-5), ("autoformer-s", 225, 2e-5), ("autoformer-b", 200, 2e-7)]
)
def test_the_paper_s_numbers(space, transition, min_lr):
    recipe = paper(space)
    assert (recipe.epochs, recipe.lr, recipe.min_lr, recipe.transitions) == (500, 1e-3, min_lr, (transition,))
    assert recipe.batch_size == 8 * 128
    assert (recipe.mixup, recipe.cutmix, recipe.label_smoothing, recipe.random_erasing, recipe.drop_path) == (
        0.8,
        1.0,
        0.1,
        0.25,
        0.1,
    )
    assert recipe.growth(PRESETS[space]).subspaces[0].max_embed_dim == PRESETS[space].embed_dim[0]


def test_which_recipe_is_the_default():
    assert default_recipe("micro", "digits").name == "digits-demo"
    assert default_recipe("micro", "fashion-mnist").name == "fashion-mnist-micro"
    assert default_recipe("autoformer-s", "/data/imagenet").name == "growtas-s"
    other = default_recipe("autoformer-t", "digits")
    assert (other.name, other.space, other.data, other.hflip) == ("small-images", "autoformer-t", "digits", 0.0)
    with pytest.raises(ConfigError, match="no recipe for the space micro, only for autoformer-t"):
        paper("micro")
    assert default_recipe("autoformer-b", "/data/imagenet", "growtas-plus") == paper_plus("autoformer-b", "/data/imagenet")
    assert default_recipe("autoformer-b", "/data/imagenet", "sandwich").name == "growtas-b"


@pytest.mark.parametrize(
    ("space", "epochs", "lr", "min_lr"),
    [("autoformer-t", 20, 5e-5, 1e-5), ("autoformer-s", 20, 5e-5, 1e-5), ("autoformer-b", 10, 2e-7, 1e-7)],
)
def test_growtas_plus_changes_only_what_the_paper_says(space, epochs, lr, min_lr):
    recipe = paper_plus(space, init="runs/mine")
    assert (recipe.epochs, recipe.lr, recipe.min_lr, recipe.warmup_epochs) == (epochs, lr, min_lr, 0)
    assert (recipe.method, recipe.init, recipe.transitions) == ("growtas-plus", "runs/mine", None)
    changed = {key for key, value in recipe.to_dict().items() if value != paper(space).to_dict()[key]}
    assert changed == {"name", "method", "init", "epochs", "lr", "min_lr", "warmup_epochs", "transitions"}


def test_the_dagger_row_has_prenas_augmentation():
    recipe = paper_dagger()
    changed = {key: value for key, value in recipe.to_dict().items() if value != paper("autoformer-t").to_dict()[key]}
    assert changed == {"name": "growtas-t-dagger", "auto_augment": "rand-n3-m10-mstd0.5-inc1", "min_lr": 1e-7}
    policy = rand_augment_transform(recipe.auto_augment, {})
    assert (policy.num_layers, {op.magnitude for op in policy.ops}) == (3, {10})


def test_baselines_differ_in_the_method_alone():
    for method in BASELINES:
        ours, theirs = (entry().to_dict() for entry in (RECIPES["growtas-s"], RECIPES[f"{method}-s"]))
        changed = {key for key in ours if ours[key] != theirs[key]}
        assert changed == {"name", "method", "transitions"}
        assert theirs["method"] == method
        resolve_recipe(f"{method}-s")


def test_transfer_has_the_paper_s_numbers():
    for target in ("cifar10", "cifar100", "flowers", "cars"):
        recipe = transfer(target)
        assert (recipe.optimizer, recipe.epochs, recipe.lr, recipe.weight_decay) == ("sgd", 1000, 0.01, 1e-4)
    recipe = transfer("inat19")
    assert (recipe.optimizer, recipe.epochs, recipe.lr, recipe.weight_decay) == ("adamw", 360, 7.5e-5, 5e-2)
    with pytest.raises(ConfigError, match="no transfer recipe for 'pets'; legal are cifar10, cifar100, flowers, cars or inat19"):
        transfer("pets")


def test_timm_opens_the_names_of_the_transfer_sets(tmp_path):
    names = {target: transfer(target).data for target in ("cifar10", "cifar100")}
    for name in names.values():
        with pytest.raises(RuntimeError, match="Dataset not found"):
            create_dataset(name, root=str(tmp_path), split="train")
    for absent in ("flowers102", "stanfordcars", "stanford_cars"):
        with pytest.raises(AssertionError, match="Unknown torchvision dataset"):
            create_dataset(f"torch/{absent}", root=str(tmp_path), split="train")


@pytest.mark.parametrize("name", RECIPES)
def test_the_registry(name):
    entry = RECIPES[name]
    recipe = entry()
    assert recipe.name == entry.name == name
    assert entry.source
    assert f"--recipe {name}" in entry.command
    assert entry.measured == NOT_MEASURED or recipe.space == "micro"  # no big training was ever run
    doc = getattr(entry.build, "func", entry.build).__doc__
    assert "easured" in doc
    space = load_space(recipe.space)
    make_strategy(recipe, space)


def test_every_field_has_its_line_and_its_check():
    documented = descriptions(Recipe)
    names = [field.name for field in dataclasses.fields(Recipe)]
    assert [name for name in names if name not in documented] == []
    assert all(rule_of(Recipe, name).legal for name in names)


DOCS = Path(__file__).parents[3] / "docs"
TABLES = (DOCS / "notes" / "recipes.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RECIPES)
def test_the_page_says_what_the_registry_says(name):
    entry = RECIPES[name]
    assert f"| {name} | `{entry.command}` | {entry.source} | {entry.expected} | {entry.measured} |" in TABLES.splitlines()


def test_the_page_names_no_other_recipes():
    rows = re.findall(r"^\| ([\w-]+) \| `growtas", TABLES, re.MULTILINE)
    assert sorted(rows) == sorted(RECIPES)


def test_the_guide_s_example_is_a_recipe(tmp_path):
    guide = (DOCS / "guide" / "training.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```yaml\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    path = tmp_path / "recipe.yaml"
    path.write_text(example)
    recipe = resolve_recipe(config=path)
    assert (recipe.warmup_epochs, recipe.transitions) == (4, (50,))  # as the page says below
    assert (recipe.lr, recipe.batch_size, recipe.ema_decay, recipe.auto_augment) == (5e-4, 512, 0.9998, "rand-m9-mstd0.5-inc1")
    assert resolve_recipe(None, {"epochs": 50}, config=path).warmup_epochs == 2
    assert resolve_recipe(None, {"epochs": 50, "warmup_epochs": 4}, config=path).warmup_epochs == 4
