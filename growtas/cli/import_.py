"""``growtas import``: other projects' checkpoints as growtas runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from growtas.cli.output import JsonOption, console, print_json

import_app = typer.Typer(help="Turn another project's checkpoint into a run.", no_args_is_help=True)


@import_app.command("autoformer")
def autoformer(
    checkpoint: Annotated[Path, typer.Argument(help="A published AutoFormer supernet (.pth or .safetensors).")],
    space: Annotated[str, typer.Option(help="The space it was trained on: a preset's name or a YAML file.")],
    out: Annotated[Path, typer.Option(help="Folder for the run.")] = Path("runs"),
    name: Annotated[str | None, typer.Option(help="Name of the run's folder.")] = None,
    json_: JsonOption = False,
) -> None:
    """Load a published AutoFormer checkpoint, without running any code in it.

    The result is a run like a trained one: search it, export from it.

    Example: growtas import autoformer supernet-tiny.pth --space autoformer-t
    """
    from growtas.autoformer import import_autoformer
    from growtas.space import load_space

    run = import_autoformer(checkpoint, load_space(space), out, name)
    if json_:
        print_json({"run": str(run.path), "space": run.space.to_dict(), "checkpoint": str(run.supernet_file)})
        return
    console().print(f"{checkpoint} -> {run.path}  ({run.space.name}, {run.space.num_classes} classes)")
