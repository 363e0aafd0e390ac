"""``growtas recipes``: the recipes that come with growtas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from growtas.cli.output import JsonOption, console, print_json, print_table

if TYPE_CHECKING:
    from growtas.train.recipes.entry import Entry


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this recipe as YAML that --config takes.")] = None,
    json_: JsonOption = False,
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
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("recipe", "space", "data", "method"):
        table.add_column(heading, no_wrap=True)
    table.add_column("epochs", justify="right")
    table.add_column("source")
    for entry in RECIPES.values():
        recipe = entry()
        table.add_row(entry.name, recipe.space, recipe.data, recipe.method, str(recipe.epochs), entry.source)
    print_table(table)
    console().print("growtas recipes NAME shows one; growtas train --recipe NAME runs it", soft_wrap=True)


def _show(entry: Entry, *, as_json: bool) -> None:
    """One recipe; everything but its fields is a comment, so that the output is a file for --config."""
    from growtas.train.recipe_file import dump_recipe

    if as_json:
        print_json({**_record(entry), "recipe": entry().to_dict()})
        return
    for heading, text in (
        ("run", entry.command),
        ("source", entry.source),
        ("expected", entry.expected),
        ("measured", entry.measured),
    ):
        typer.echo(f"# {heading + ':':9} {text}")
    typer.echo(dump_recipe(entry()), nl=False)


def _record(entry: Entry) -> dict[str, Any]:
    recipe = entry()
    return {
        "name": entry.name,
        "space": recipe.space,
        "data": recipe.data,
        "method": recipe.method,
        "epochs": recipe.epochs,
        "command": entry.command,
        "source": entry.source,
        "expected": entry.expected,
        "measured": entry.measured,
    }
