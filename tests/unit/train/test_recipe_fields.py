from __future__ import annotations

import dataclasses

import pytest

from growtas.errors import ConfigError
from growtas.space import load_space
from growtas.train.recipe import CONTINUING, METHODS, Recipe
from growtas.train.recipe_fields import recipe_fields, type_words
from growtas.train.strategies import make_strategy


def test_every_field_is_described_with_the_default_that_a_recipe_has():
    described = {field.name: field for field in recipe_fields().fields}
    assert list(described) == [field.name for field in dataclasses.fields(Recipe)]
    for name, field in described.items():
        assert field.default == getattr(Recipe(), name), name
        assert all((field.meaning, field.legal, field.type)), name


def test_the_legal_values_are_those_that_the_error_names():
    described = {field.name: field for field in recipe_fields().fields}
    for name in ("epochs", "lr", "amp", "hflip", "stages"):
        with pytest.raises(ConfigError) as refused:
            Recipe.from_dict({name: "nonsense"})
        assert described[name].legal in str(refused.value)


def test_every_option_of_every_method_is_described_with_its_default():
    space, described = load_space("micro"), recipe_fields().method_options
    for method in (*METHODS, "finetune"):
        changes = {"init": "run"} if method in CONTINUING else {"transitions": "auto"} if method == "growtas" else {}
        options = make_strategy(Recipe(method=method, **changes), space).options
        assert dataclasses.asdict(options) == {option.name: option.default for option in described.get(method, ())}
        assert all(option.meaning and option.legal for option in described.get(method, ()))


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ("int", "whole number"),
        ("float | None", "number or null"),
        ("tuple[tuple[float | None, float | None], ...] | None", "list or null"),
        ("tuple[float, ...] | str | None", "list of numbers or text or null"),
        ("tuple[float, float] | None", "list of numbers or null"),
        ("dict[str, float | None] | None", "mapping or null"),
        ("Mapping[str, Any]", "mapping"),
    ],
)
def test_types_are_in_the_words_of_a_yaml_file(annotation, words):
    assert type_words(annotation) == words
