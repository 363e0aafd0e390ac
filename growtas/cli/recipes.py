"""``growtas recipes``: lists the recipes that come with growtas, and describes the fields that a recipe can set."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from growtas.cli import options
from growtas.cli.output import new_table, print_json, print_line, print_lines, print_table, print_text

if TYPE_CHECKING:
    from growtas.train.recipe_fields import FieldDescription
    from growtas.train.recipes.entry import Entry


def recipes(
    name: Annotated[
        str | None, Argument(help="Recipe to show, as YAML for `growtas train --config`. Default: list all recipes.")
    ] = None,
    fields: Annotated[
        bool, Option("--fields", help="List every field that a recipe can set, with its default, its legal values and its meaning.")
    ] = False,
    json_: options.Json = False,
) -> None:
    """List the recipes for `growtas train --recipe`, show one, or list the fields that a recipe can set.

    Example: growtas recipes growtas-t > mine.yaml

    Example: growtas recipes --fields
    """
    from growtas.errors import UsageError
    from growtas.train.recipes import RECIPES, find_recipe

    if fields:
        if name is not None:
            raise UsageError(f"--fields lists the fields of every recipe; leave out {name}, or --fields to see that recipe")
        _show_fields(as_json=json_)
        return
    if name is not None:
        _show(find_recipe(name), as_json=json_)
        return
    if json_:
        print_json({"recipes": [_record(entry) for entry in RECIPES.values()]})
        return
    table = new_table("recipe", "space", "data", "method", "epochs", "source", right=("epochs",), fold="source")
    for entry in RECIPES.values():
        recipe = entry()
        table.add_row(entry.name, recipe.space, recipe.data, recipe.method, str(recipe.epochs), entry.source)
    print_table(table)
    print_text("growtas recipes NAME shows one; growtas train --recipe NAME runs it; growtas recipes --fields explains the fields")


def _show_fields(*, as_json: bool) -> None:
    """All fields of a recipe, and all options of the training methods."""
    from growtas import api

    described = api.recipe_fields()
    if as_json:
        print_json(described.to_dict())
        return
    table = new_table("field", "default", "legal", "meaning", fold="meaning")
    _add_rows(table, "", described.fields)
    for method, method_options in described.method_options.items():
        table.add_section()
        table.add_row(f"method: {method}", "", "", "")
        _add_rows(table, "method_options.", method_options)
    print_table(table)
    print_text("a field is set with --set NAME=VALUE, or in a YAML file for --config")


def _add_rows(table: Any, prefix: str, described: tuple[FieldDescription, ...]) -> None:
    for field in described:
        table.add_row(prefix + field.name, json.dumps(field.default), field.legal, field.meaning)


def _show(entry: Entry, *, as_json: bool) -> None:
    """Prints one recipe; everything but its fields is a comment, so that the output is a file for --config."""
    from growtas.train.recipe_file import dump_recipe

    if as_json:
        print_json({**_record(entry), "recipe": entry().to_dict()})
        return
    for heading, text in _notes(entry).items():
        print_line(f"# {'run' if heading == 'command' else heading}:".ljust(12) + text)
    print_lines(dump_recipe(entry()))


def _record(entry: Entry) -> dict[str, Any]:
    recipe = entry().to_dict()
    return {"name": entry.name, **{key: recipe[key] for key in ("space", "data", "method", "epochs")}, **_notes(entry)}


def _notes(entry: Entry) -> dict[str, str]:
    return {key: getattr(entry, key) for key in ("command", "source", "expected", "measured")}
