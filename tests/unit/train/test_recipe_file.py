import dataclasses
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growtas.errors import ConfigError
from growtas.train.recipe import Recipe
from growtas.train.recipe_file import dump_recipe, parse_settings, read_config
from growtas.train.recipes import RECIPES
from growtas.train.resolve_recipe import resolve_finetune, resolve_recipe


def write(folder, text):
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# --set


def test_settings_are_yaml_values():
    given_text = (
        "epochs=3",
        "lr=1e-3",
        "clip_grad=null",
        "transitions=[1.5]",
        "subspaces=[[32, null], [null, null]]",
        "amp = bf16",
    )
    assert parse_settings(given_text) == {
        "epochs": 3,
        "lr": 0.001,
        "clip_grad": None,
        "transitions": [1.5],
        "subspaces": [[32, None], [None, None]],
        "amp": "bf16",
    }


def test_settings_of_method_options_come_together():
    assert parse_settings(["method_options.random=3", "method_options.rate=1e-2"]) == {
        "method_options": {"random": 3, "rate": 0.01}
    }
    assert parse_settings(["method_options={random: 3}", "method_options.rate=1"]) == {"method_options": {"random": 3, "rate": 1}}
    assert parse_settings(["method_options.rate=1", "method_options={random: 3}"]) == {"method_options": {"rate": 1, "random": 3}}
    assert parse_settings([]) == {}


@pytest.mark.parametrize(
    ("given_text", "message"),
    [
        (["epochs"], "--set 'epochs' must have the form KEY=VALUE, as in warmup_epochs=2"),
        (["=3"], "--set '=3' must have the form KEY=VALUE"),
        (["epoch=3"], "--set: unknown field 'epoch'; did you mean epochs?"),
        (["method_option.random=3"], "--set: unknown field 'method_option.random'; did you mean method_options?"),
        (["method_options.=3"], "--set: unknown field 'method_options.'; did you mean method_options?"),
        (["transitions=[1"], r"--set 'transitions=\[1': not YAML"),
        (["lr=1", "lr=2"], "--set sets lr twice; set it once"),
        (["method_options=3", "method_options.random=3"], "--set sets both method_options to 3 and method_options.random"),
        (["recipe=growtas-t"], "--set: unknown field 'recipe'"),
    ],
)
def test_wrong_settings(given_text, message):
    with pytest.raises(ConfigError, match=message):
        parse_settings(given_text)


# Precedence


def test_fields_go_before_the_file_before_the_recipe(tmp_path):
    path = write(tmp_path, "lr: 0.004\nmin_lr: 0.0001\nweight_decay: 0.1\n")
    recipe = resolve_recipe("digits-demo", {"lr": 0.002, "min_lr": 0.00002}, config=path)
    assert (recipe.lr, recipe.min_lr, recipe.weight_decay, recipe.batch_size) == (0.002, 0.00002, 0.1, 32)


def test_the_command_line_scales_what_the_file_says(tmp_path):
    path = write(tmp_path, "epochs: 10\nwarmup_epochs: 2\ntransitions: [4]\n")
    assert resolve_recipe(config=path).transitions == (4,)
    half = resolve_recipe(None, {"epochs": 5}, config=path)
    assert (half.warmup_epochs, half.transitions) == (1, (2,))
    kept = resolve_recipe(None, {"epochs": 5, "warmup_epochs": 2}, config=path)
    assert (kept.warmup_epochs, kept.transitions) == (2, (2,))


def test_layers_are_checked_when_all_are_in_place(tmp_path):
    path = write(tmp_path, "method: growtas-plus\nlr: 0.1\n")
    assert resolve_recipe(None, {"init": "runs/x"}, config=path).init == "runs/x"
    path.write_text("min_lr: 0.01\n")
    with pytest.raises(ConfigError, match=r"min_lr is 0\.01, above lr, which is 0\.003"):
        resolve_recipe(config=path)
    assert resolve_recipe(None, {"lr": 0.02}, config=path).min_lr == 0.01


def test_a_file_can_go_on_from_a_recipe(tmp_path):
    path = write(tmp_path, "recipe: growtas-s\ndata: /images\nepochs: 100\n")
    recipe = resolve_recipe(config=path)
    assert (recipe.name, recipe.space, recipe.data, recipe.transitions) == ("growtas-s", "autoformer-s", "/images", (45,))
    assert Recipe.from_dict(read_config(path)) == recipe
    assert resolve_recipe("growtas-t", config=path).space == "autoformer-t"
    path.write_text("recipe: growtas-x\n")
    with pytest.raises(ConfigError, match="recipe.yaml: there is no recipe 'growtas-x'; did you mean growtas-"):
        resolve_recipe(config=path)
    path.write_text("recipe: 3\n")
    with pytest.raises(ConfigError, match="recipe.yaml: there is no recipe '3'; the recipes are digits-demo"):
        read_config(path)


def test_method_options_are_checked_before_any_data_is_opened(tmp_path):
    assert resolve_recipe(None, {"method": "sandwich", "method_options": {"random": 3}}).method_options == {"random": 3}
    with pytest.raises(ConfigError, match="the method sandwich has no option 'randon'; did you mean random?"):
        resolve_recipe(None, {"method": "sandwich", "method_options": {"randon": 3}})
    with pytest.raises(ConfigError, match="the method uniform has no option 'random'; it has no options"):
        resolve_recipe(config=write(tmp_path, "method: uniform\nmethod_options: {random: 1}\n"))


def test_method_options_add_up_but_not_over_methods(tmp_path):
    path = write(tmp_path, "method: focusformer\nmethod_options: {budgets: 3, every: 7}\n")
    assert resolve_recipe(None, {"method_options": {"every": 9}}, config=path).method_options == {"budgets": 3, "every": 9}
    assert resolve_recipe(None, {"method": "uniform"}, config=path).method_options == {}


def test_transitions_may_be_auto():
    recipe = resolve_recipe(None, {"transitions": "auto", "epochs": 10})
    assert recipe.transitions == "auto"
    with pytest.raises(ConfigError, match="transitions is set, but the method uniform has no transitions"):
        resolve_recipe(None, {"transitions": "auto", "method": "uniform"})


def test_which_methods_are_legal():
    with pytest.raises(ConfigError, match="method is 'finetune'; it must be growtas"):
        resolve_recipe(None, {"method": "finetune"})
    with pytest.raises(ConfigError, match="the recipe transfer-cars has the method finetune; run it with `growtas finetune`"):
        resolve_recipe("transfer-cars")
    with pytest.raises(ConfigError, match="the recipe growtas-t has the method growtas; run it with `growtas train`"):
        resolve_finetune(224, "growtas-t")
    assert resolve_finetune(224, "transfer-cars").optimizer == "sgd"
    assert resolve_finetune(224, None, {"data": "digits"}).method == "finetune"


def test_an_unknown_recipe():
    with pytest.raises(ConfigError, match="there is no recipe 'growtas-tt'; did you mean growtas-t?"):
        resolve_recipe("growtas-tt")


# A recipe as a file


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_read_back(tmp_path, name):
    recipe = RECIPES[name]()
    path = write(tmp_path, dump_recipe(recipe))
    assert Recipe.from_dict(read_config(path)) == recipe
    resolve = partial(resolve_finetune, 224) if recipe.method == "finetune" else resolve_recipe
    assert resolve(config=path) == recipe


@settings(deadline=None)  # a file is written
@given(
    lr=st.floats(1e-30, 1000),
    decay=st.none() | st.floats(0, 0.999999),
    transitions=st.none() | st.just("auto") | st.lists(st.floats(1e-9, 29), max_size=3),
    name=st.text(min_size=1),
    options=st.dictionaries(
        st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.text()
    ),
)
def test_any_recipe_is_read_back(tmp_path_factory, lr, decay, transitions, name, options):
    recipe = Recipe(lr=lr, min_lr=0, ema_decay=decay, transitions=transitions, name=name, method_options=options)
    path = write(tmp_path_factory.mktemp("recipe"), dump_recipe(recipe))
    assert Recipe.from_dict(read_config(path)) == recipe


def test_the_file_has_every_field_in_order():
    lines = [line for line in dump_recipe(Recipe()).splitlines() if not line.startswith(" ")]
    assert [line.partition(":")[0] for line in lines] == [field.name for field in dataclasses.fields(Recipe)]


@pytest.mark.parametrize(
    ("text", "key"),
    [("epochs: 2\nlr: 1\nepochs: 3\n", "epochs"), ("method_options:\n  random: 1\n  random: 2\n", "method_options.random")],
)
def test_a_key_that_is_given_twice(tmp_path, text, key):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"r.yaml: the key {key} occurs twice; set it once"):
        read_config(tmp_path / "r.yaml")


@pytest.mark.parametrize("text", ["epochs: 7\n", "# as saved by an editor\nepochs: 7\n", '{"epochs": 7}'])
def test_a_byte_order_mark_is_skipped_and_utf_16_is_named(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8-sig")
    assert read_config(path) == {"epochs": 7}
    path.write_text(text, encoding="utf-16")
    with pytest.raises(ConfigError, match=r"recipe\.yaml: the recipe can't be read \(it is not text in UTF-8\); save it as UTF-8$"):
        read_config(path)
