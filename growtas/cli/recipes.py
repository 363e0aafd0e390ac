"""``growtas recipes``: lists the recipes that come with growtas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument

from growtas.cli import options
from growtas.cli.output import new_table, print_json, print_table, print_text

if TYPE_CHECKING:
    from growtas.train.recipes.entry import Entry


def recipes(
    name: Annotated[
        str | None, Argument(help="Recipe to show, as YAML for `growtas train --config`. Default: list all recipes.")
    ] = None,
    json_: options.Json = False,
) -> None:
    """List the recipes for `growtas train --recipe`, or show one.

    Example: growtas recipes growtas-t > mine.yaml
    """
    from growtas.train.recipes import RECIPES, find_recipe

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
    print_text("growtas recipes NAME shows one; growtas train --recipe NAME runs it")


def _show(entry: Entry, *, as_json: bool) -> None:
    """Prints one recipe; everything but its fields is a comment, so that the output is a file for --config."""
    from growtas.train.recipe_file import dump_recipe

    if as_json:
        print_json({**_record(entry), "recipe": entry().to_dict()})
        return
    for heading, text in _notes(entry).items():
        typer.echo(f"# {'run' if heading == 'command' else heading}:".ljust(12) + text)
    typer.echo(dump_recipe(entry()), nl=False)


def _record(entry: Entry) -> dict[str, Any]:
    recipe = entry().to_dict()
    return {"name": entry.name, **{key: recipe[key] for key in ("space", "data", "method", "epochs")}, **_notes(entry)}


def _notes(entry: Entry) -> dict[str, str]:
    return {key: getattr(entry, key) for key in ("command", "source", "expected", "measured")}
