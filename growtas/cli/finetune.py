"""``growtas finetune``: an extracted model on another data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from growtas.cli.output import JsonOption, console, note, print_json, print_table
from growtas.cli.train import _announce, _check_place
from growtas.cli.train_progress import training_progress

if TYPE_CHECKING:
    from growtas.train.session import Session


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
    _check_place(out)
    from growtas.train.finetune import finetuned_accuracy, load_start, resolve_finetune, start_finetune
    from growtas.train.recipe_file import parse_settings

    options = {"data": data, "epochs": epochs, "lr": lr, "batch_size": batch_size, "seed": seed}
    given = {key: value for key, value in options.items() if value is not None}
    start = load_start(model, subnet)
    size = start.model.architecture.image_size if image_size is None else image_size
    chosen = resolve_finetune(size, config, given, recipe=recipe, settings=parse_settings(settings or []))
    with training_progress(quiet=json_) as (_, track):
        session = start_finetune(
            start,
            chosen,
            out=out,
            name=name,
            data_dir=str(data_dir) if data_dir else None,
            device=device,
            track=track,
            image_size=image_size,
            in_chans=in_chans,
        )
    if not json_:
        _announce(session)
        _say_changes(session.run.info["finetune"])
    try:
        with training_progress(quiet=json_) as (observer, track):
            info = session.train(observer, track, tensorboard=tensorboard, note=(lambda text: None) if json_ else note)
    except KeyboardInterrupt:
        note(f"growtas: interrupted; continue with: growtas train --resume {session.run.path}")
        raise typer.Exit(130) from None
    accuracy = finetuned_accuracy(session)
    if json_:
        keys = ("state", "seconds", "data")
        content = {key: info[key] for key in keys}
        print_json(
            {"run": str(session.run.path), "space": session.run.space.name, "finetune": session.run.info["finetune"], **content}
        )
        return
    _show_result(session, accuracy, info["seconds"])


def _say_changes(record: dict[str, Any]) -> None:
    """What was made of the model, where it is more than a new head."""
    what = {"image_size": "image size", "max_relative_position": "longest relative distance", "in_chans": "channels"}
    changes = [f"{words} {old} -> {new}" for key, words in what.items() for old, new in [record[key]] if old != new]
    note(f"model: {record['weights']} ({'; '.join([*changes, record['head'] + ' head'])})")


def _show_result(session: Session, accuracy: float, seconds: float) -> None:
    from rich.table import Table

    from growtas.costs import count_costs
    from growtas.subnet import Subnet
    from growtas.units import format_count

    run = session.run
    subnet = Subnet.from_dict(run.info["finetune"]["subnet"])
    costs = count_costs(run.space, subnet)
    table = Table(title=f"{run.space.name} on {session.data.name}: accuracy on the {len(session.data.test):,} test images")
    table.add_column("architecture")
    for column in ("params", "MACs", "accuracy"):
        table.add_column(column, justify="right")
    table.add_row(str(subnet), format_count(costs.params), format_count(costs.macs), f"{accuracy:.2%}")
    print_table(table)
    console().print(f"run {run.path}   {seconds:.0f} s   next: growtas export {run.path}", soft_wrap=True)
