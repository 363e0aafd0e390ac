"""``growtas import``: turns other projects' checkpoints into runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from growtas.cli import options
from growtas.cli.output import print_json, print_line

import_app = typer.Typer(
    help="Turn another project's checkpoint into a run.",
    epilog="Example: growtas import autoformer supernet-tiny.pth --space autoformer-t",
    no_args_is_help=True,
)


@import_app.command("autoformer")
def autoformer(
    checkpoint: Annotated[Path, Argument(help="A published AutoFormer supernet (.pth or .safetensors).")],
    space: Annotated[str, Option(help="Search space that it was trained on: the name of a preset, or a YAML file.")],
    out: options.Out = Path("runs"),
    name: options.Name = None,
    json_: options.Json = False,
) -> None:
    """Import a published AutoFormer checkpoint, without running code from it.

    The result is a run that `growtas search` and `growtas export` accept.

    Example: growtas import autoformer supernet-tiny.pth --space autoformer-t
    """
    from growtas.autoformer import import_autoformer
    from growtas.space import load_space

    run = import_autoformer(checkpoint, load_space(space), out, name)
    if json_:
        print_json({"run": str(run.path), "space": run.space.to_dict(), "checkpoint": str(run.supernet_file)})
        return
    print_line(f"{checkpoint} -> {run.path}  ({run.space.name}, {run.space.num_classes} classes)")
