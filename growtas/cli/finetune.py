"""``growtas finetune``: an extracted model on another data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from growtas.cli.output import JsonOption, print_json
from growtas.cli.training_view import show_result, training_view


def finetune(
    model: Annotated[
        Path,
        typer.Argument(help="A run (its searched subnet), or a model: the .safetensors file of `growtas export`, or its folder."),
    ],
    data: Annotated[
        str | None, typer.Option(help="Images: a folder, digits, fashion-mnist, or a timm name such as torch/cifar10.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data's files.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Pixels a side, a multiple of the patch size; by default the model's.")
    ] = None,
    in_chans: Annotated[int | None, typer.Option(help="Channels: 1 (grey) or 3 (RGB); by default the model's.")] = None,
    subnet: Annotated[Path | None, typer.Option(help="For a run: a subnet file; by default what `growtas search` chose.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe by its name, such as transfer-cifar10.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with recipe fields; options given here go before it.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A recipe field, as in warmup_epochs=2; any number of them."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs"),
    name: Annotated[str | None, typer.Option(help="Name of the run's folder.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto (a GPU where there is one).")] = "auto",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write the metrics for TensorBoard too.")] = False,
    json_: JsonOption = False,
) -> None:
    """Go on training an extracted model, on another data set and at another resolution if need be.

    The head is made anew for the data's classes; positions and relative tables are interpolated for another --image-size. The
    result is a run like any other: export and bench it, and continue it with `growtas train --resume` where it was stopped.

    Example: growtas finetune runs/RUN --data photos/ --image-size 56
    """
    from growtas import api
    from growtas.train.recipe_file import parse_settings

    with training_view(quiet=json_) as progress:
        run = api.finetune(
            model,
            data=data,
            data_dir=data_dir,
            image_size=image_size,
            in_chans=in_chans,
            subnet=subnet,
            recipe=recipe,
            epochs=epochs,
            lr=lr,
            batch_size=batch_size,
            seed=seed,
            config=config,
            settings=parse_settings(settings or []),
            out=out,
            name=name,
            device=device,
            tensorboard=tensorboard,
            progress=progress,
        )
    info = run.info
    if json_:
        content = {key: info[key] for key in ("finetune", "state", "seconds", "data")}
        print_json({"run": str(run.path), "space": run.space.name, **content})
        return
    from growtas.subnet import Subnet

    changes = info["finetune"]
    show_result(run, {"": (Subnet.from_dict(changes["subnet"]), changes["test_accuracy"])}, f"export {run.path}")
