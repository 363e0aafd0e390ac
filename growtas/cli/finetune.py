"""``growtas finetune``: an extracted model on another data set."""

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
        Path, Argument(help="A run (its searched subnet), or a model: the .safetensors file of `growtas export`, or its folder.")
    ],
    data: Annotated[str | None, DATA(help="Images: a folder, digits, fashion-mnist, or a timm name such as torch/cifar10.")] = None,
    data_dir: options.DataDir = None,
    pixel_range: options.PixelRange = None,
    image_size: Annotated[int | None, Option(help="Pixels a side, a multiple of the patch size; by default the model's.")] = None,
    in_chans: Annotated[int | None, Option(help="Channels: 1 (grey) or 3 (RGB); by default the model's.")] = None,
    subnet: Annotated[Path | None, Option(help="For a run: a subnet file; by default what `growtas search` chose.")] = None,
    recipe: Annotated[str | None, RECIPE(help="A recipe by its name, such as transfer-cifar10.")] = None,
    epochs: Annotated[int | None, RECIPE(help="Passes over the training images.")] = None,
    lr: options.LearningRate = None,
    batch_size: Annotated[int | None, RECIPE(help="Images a step.")] = None,
    seed: options.Seed = None,
    config: options.Config = None,
    settings: options.Settings = None,
    out: options.Out = Path("runs"),
    name: options.Name = None,
    device: options.Device = "auto",
    tensorboard: options.TensorBoard = False,
    json_: options.Json = False,
) -> None:
    """Go on training an extracted model, on another data set and at another resolution if need be.

    The head is made anew for the data's classes; positions and relative tables are interpolated for another --image-size. The
    result is a run like any other: export and bench it, and continue it with `growtas train --resume` where it was stopped.

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
