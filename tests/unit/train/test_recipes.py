import dataclasses
import re

import pytest

from growtas.errors import ConfigError
from growtas.space import PRESETS
from growtas.train import recipes
from growtas.train.recipe import Recipe


@pytest.mark.parametrize(
    ("space", "transition", "min_lr"), [("autoformer-t", 250, 2e-5), ("autoformer-s", 225, 2e-5), ("autoformer-b", 200, 2e-7)]
)
def test_the_paper_s_numbers(space, transition, min_lr):
    recipe = recipes.paper(space)
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
    assert recipes.default_recipe("micro", "digits").name == "digits-demo"
    assert recipes.default_recipe("micro", "fashion-mnist").name == "fashion-mnist-micro"
    assert recipes.default_recipe("autoformer-s", "/data/imagenet").name == "paper-autoformer-s"
    other = recipes.default_recipe("autoformer-t", "digits")
    assert (other.name, other.space, other.data, other.hflip) == ("small-images", "autoformer-t", "digits", 0.0)
    with pytest.raises(ConfigError, match="no recipe for the space micro; it has them for autoformer-t"):
        recipes.paper("micro")


def test_every_field_has_its_line_and_its_check():
    documented = re.findall(r"^        (\w+): ", Recipe.__doc__, re.MULTILINE)
    names = [field.name for field in dataclasses.fields(Recipe)]
    assert [name for name in names if name not in documented] == []
    from growtas.train.legal import LEGAL

    assert set(LEGAL) == set(names)
