"""``growtas import``: turns other projects' checkpoints into runs."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from typer import Argument, Option

from growtas.cli import options
from growtas.cli.output import ProgressBar, print_json, print_line

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


@import_app.command("timm")
def timm(
    model: Annotated[
        str, Argument(help="A plain ViT of timm, as in deit_small_patch16_224, or a name with a source (hf-hub:...).")
    ],
    weights: Annotated[
        str, Option(help="File of weights (.safetensors, .pth), pretrained for timm's own, or random.")
    ] = "pretrained",
    data: Annotated[
        str | None,
        options.DATA(
            help="Data set that the model was fine-tuned on, as for `growtas train`. It gives the importance of each part."
        ),
    ] = None,
    data_dir: options.DataDir = None,
    space: Annotated[
        str | None, Option(help="YAML file with the choices of the subnets. Default: down to about a quarter of the MACs.")
    ] = None,
    order: Annotated[
        str | None,
        Option(help="Order of the parts: principal, taylor, magnitude or none. Default: principal with --data, else magnitude."),
    ] = None,
    images: Annotated[int, Option(help="Number of training images that give the importance.", min=1)] = 512,
    model_kwargs: Annotated[
        list[str] | None,
        Option("--model-kwargs", metavar="KEY=VALUE", help="Argument of timm's create_model, as in num_heads=4; repeatable."),
    ] = None,
    out: options.Out = Path("runs"),
    name: options.Name = None,
    json_: options.Json = False,
) -> None:
    """Import a Vision Transformer of timm, and make it elastic.

    The result is a run whose largest subnet is the model. `growtas search` finds smaller ones at once, and `growtas train --init`
    trains them.

    Example: growtas import timm deit_small_patch16_224 --weights fine-tuned.safetensors --data photos/
    """
    from growtas.costs import count_costs
    from growtas.timm_vit import import_timm
    from growtas.train.recipe_file import parse_pairs
    from growtas.units import format_count

    with ProgressBar(hidden=json_) as progress:
        run = import_timm(
            model,
            weights,
            data=data,
            data_dir=data_dir,
            space=space,
            order=order,
            images=images,
            options=parse_pairs(model_kwargs or [], "--model-kwargs", "num_heads=4"),
            out=out,
            run_name=name,
            progress=progress,
        )
    sizes = {which: count_costs(run.space, getattr(run.space, which)) for which in ("smallest", "largest")}
    if json_:
        costs = {which: {"params": size.params, "macs": size.macs} for which, size in sizes.items()}
        print_json({"run": str(run.path), "space": run.space.to_dict(), "checkpoint": str(run.supernet_file), "costs": costs})
        return
    print_line(f"{model} -> {run.path}  ({run.space.size:.3g} subnets, {run.space.num_classes} classes)")
    lines = (f"{which} {format_count(size.params)} parameters, {format_count(size.macs)} MACs" for which, size in sizes.items())
    print_line("; ".join(lines))
    more = "" if data is not None else " --data DATA"
    print_line(f"next: growtas search {quote(str(run.path))}{more} --max-macs {format_count(sizes['largest'].macs // 2)}")
