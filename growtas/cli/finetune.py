"""``growtas finetune``: trains an extracted model on another data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from growtas.cli import options
from growtas.cli.options import DATA, RECIPE
from growtas.cli.output import command_line, print_json
from growtas.units import standard_error


def finetune(
    model: Annotated[
        Path, Argument(help="A run (its searched subnet is used), or a .safetensors file of `growtas export`, or its folder.")
    ],
    data: Annotated[
        str | None, DATA(help="Data set: a folder, digits, fashion-mnist, or a timm name such as torch/cifar10.")
    ] = None,
    data_dir: options.DataDir = None,
    pixel_range: options.PixelRange = None,
    image_size: Annotated[
        int | None, Option(help="Side of the input in pixels, a multiple of the patch size. Default: the model's.")
    ] = None,
    in_chans: Annotated[int | None, Option(help="Input channels: 1 (grey) or 3 (RGB). Default: the model's.")] = None,
    subnet: Annotated[
        Path | None, Option(help="Subnet file, if MODEL is a run. Default: the subnet that `growtas search` chose.")
    ] = None,
    recipe: Annotated[str | None, RECIPE(help="Name of a recipe, such as transfer-cifar10.")] = None,
    epochs: Annotated[int | None, RECIPE(help="Passes over the training images. Default: the recipe's.")] = None,
    lr: options.LearningRate = None,
    batch_size: Annotated[int | None, RECIPE(help="Images per step. Default: the recipe's.")] = None,
    seed: options.Seed = None,
    config: options.Config = None,
    settings: options.Settings = None,
    out: options.Out = Path("runs"),
    name: options.Name = None,
    device: options.Device = "auto",
    tensorboard: options.TensorBoard = False,
    json_: options.Json = False,
) -> None:
    """Fine-tune an extracted model on another data set, if wanted at another resolution.

    The model gets a new head for the data's classes. For another --image-size, position embeddings and relative tables are
    interpolated. The result is a run that `growtas export` and `growtas bench` accept; after a stop, `growtas train --resume`
    continues it.

    Example: growtas finetune runs/RUN --data photos/ --image-size 56
    """
    from growtas import api
    from growtas.cli.training_view import TrainingView, data_warnings, show_result
    from growtas.subnet import Subnet
    from growtas.train.recipe_file import parse_settings

    with TrainingView(quiet=json_, device=None if device == "auto" else device, tensorboard=tensorboard) as view:
        run = api.finetune(
            model,
            data=data,
            data_dir=data_dir,
            pixel_range=options.parse_pixel_range(pixel_range),
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
            progress=view,
        )
    info = run.info
    if json_:
        content = {key: info.get(key) for key in ("finetune", "state", "seconds", "data", "teacher")}
        error = standard_error(info["finetune"]["test_accuracy"], info["data"]["test_size"])
        content |= {"test_accuracy_standard_error": error, "warnings": data_warnings(run)}
        print_json({"run": str(run.path), "space": run.space.name, **content})
        return
    changes = info["finetune"]
    show_result(run, {"": (Subnet.from_dict(changes["subnet"]), changes["test_accuracy"])}, command_line("export", run.path))
