"""``growtas import``: other projects' checkpoints as growtas runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from growtas.cli import options
from growtas.cli.output import print_json, print_line

import_app = typer.Typer(help="Turn another project's checkpoint into a run.", no_args_is_help=True)


@import_app.command("autoformer")
def autoformer(
    checkpoint: Annotated[Path, Argument(help="A published AutoFormer supernet (.pth or .safetensors).")],
    space: Annotated[str, Option(help="The space it was trained on: a preset's name or a YAML file.")],
    out: options.Out = Path("runs"),
    name: options.Name = None,
    json_: options.Json = False,
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
    print_line(f"{checkpoint} -> {run.path}  ({run.space.name}, {run.space.num_classes} classes)")
