"""``growtas train``: from images to a supernet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from growtas.cli.output import JsonOption, print_json
from growtas.cli.training_view import show_result, training_view

_RECIPE, _DATA, _METHOD, _COMPUTE, _RUN = "Recipe", "Data", "Method", "Computing", "Run"
"""Panels of ``--help``."""


def train(
    run: Annotated[Path | None, typer.Argument(help="With --resume: the run's folder, by default the newest in --out.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A recipe by its name, as `growtas recipes` lists them; by default chosen by space, data and method.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with recipe fields; it overrides the recipe.", rich_help_panel=_RECIPE)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A recipe field, as in warmup_epochs=2; any number of them. Goes before --config.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Passes over the training images; warm-up and transitions scale along.", rich_help_panel=_RECIPE),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step, over all processes.", rich_help_panel=_RECIPE)] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.", rich_help_panel=_RECIPE)] = None,
    ema: Annotated[
        float | None,
        typer.Option(help="Decay of a moving average of the weights, which is then the result: 0.999.", rich_help_panel=_RECIPE),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="Learn from a timm model, or a model.safetensors of growtas, too.", rich_help_panel=_RECIPE),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="Start from the weights of a run, or of a supernet.safetensors.", rich_help_panel=_RECIPE),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.", rich_help_panel=_RECIPE)] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Images: digits (embedded, the default), fashion-mnist, a folder, or a timm name such as torch/cifar10.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data's files.", rich_help_panel=_DATA)] = None,
    space: Annotated[
        str | None, typer.Option(help="Search space: a preset's name or a YAML file. Default: micro.", rich_help_panel=_METHOD)
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="growtas (from small to large), growtas-plus, uniform, sandwich, shrinking, prenas or focusformer; "
            "its own options are set with --set method_options.NAME=VALUE.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    transitions: Annotated[
        str | None,
        typer.Option(help="Epochs T_1, T_2 ... at which the next subspace opens, as in 10,20; or auto.", rich_help_panel=_METHOD),
    ] = None,
    stages: Annotated[int | None, typer.Option(help="Number K of nested subspaces.", rich_help_panel=_METHOD)] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto (a GPU where there is one).", rich_help_panel=_COMPUTE)] = "auto",
    amp: Annotated[
        str | None,
        typer.Option(help="fp32, bf16, fp16, or auto (bf16 on a GPU that has it, the default).", rich_help_panel=_COMPUTE),
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(
            help="Parts that a batch is worked through in, one after the other, to save memory.", rich_help_panel=_COMPUTE
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that decode images (recipes with augment: paper).", rich_help_panel=_COMPUTE),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the runs.", rich_help_panel=_RUN)] = Path("runs"),
    name: Annotated[str | None, typer.Option(help="Name of the run's folder.", rich_help_panel=_RUN)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.", rich_help_panel=_RUN)] = False,
    keep: Annotated[int | None, typer.Option(help="Newest checkpoints to keep, besides the best.", rich_help_panel=_RUN)] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the metrics for TensorBoard too.", rich_help_panel=_RUN)
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only show stages, steps, compute, memory and time; write nothing.", rich_help_panel=_RUN),
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Train a supernet, from small subnets to large.

    Without options: the micro space on scikit-learn's digits, about a minute on two CPU cores. Every epoch is saved; Ctrl-C
    finishes the running step and saves it, and --resume goes on from there. An option overrides --set, --set overrides --config,
    and --config the recipe.

    Example: growtas train --data fashion-mnist --set label_smoothing=0.1 --dry-run
    """
    from growtas import api
    from growtas.errors import UsageError
    from growtas.runs import check_run_name
    from growtas.train.recipe_file import parse_settings

    options: api.RecipeOptions = {
        "space": space,
        "data": data,
        "method": method,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "transitions": _epoch_list(transitions),
        "stages": stages,
        "workers": workers,
        "init": init,
        "accumulate": accumulate,
        "ema_decay": ema,
        "amp": amp,
        "teacher": teacher,
        "keep_checkpoints": keep,
    }
    if dry_run and (resume or run is not None):
        raise UsageError("--dry-run is about a new training; leave out the run's folder and --resume")
    if run is not None and not resume:
        raise UsageError(f"{run}: a run's folder is only for --resume; where new runs go is said with --out and --name")
    fields = parse_settings(settings or [])
    if dry_run:
        from growtas.cli.plan_view import show_plan

        check_run_name(out, name)
        show_plan(api.plan_training(recipe, config=config, settings=fields, data_dir=data_dir, device=device, **options), json_)
        return
    with training_view(quiet=json_) as progress:
        if resume:
            stopped = api.load_run(run or (out / name if name else None), root=out)
            if recipe is not None:
                raise UsageError(
                    f"{stopped.path}: a run is continued with its own recipe; leave out --recipe, "
                    f"or start a new run without --resume"
                )
            trained = api.resume(
                stopped,
                config=config,
                settings=fields,
                data_dir=data_dir,
                device=device,
                tensorboard=tensorboard,
                progress=progress,
                **options,
            )
        else:
            trained = api.train(
                recipe,
                config=config,
                settings=fields,
                data_dir=data_dir,
                out=out,
                name=name,
                device=device,
                tensorboard=tensorboard,
                progress=progress,
                **options,
            )
    if json_:
        info = trained.info
        keys = ("state", "method", "test_accuracy", "seconds", "data")
        print_json({"run": str(trained.path), "space": trained.space.name, **{key: info[key] for key in keys}})
        return
    from growtas.train.strategies import make_strategy

    subnets = make_strategy(trained.recipe, trained.space).followed()
    accuracies = trained.info["test_accuracy"]
    step = "export" if trained.recipe.method == "finetune" else "search"
    show_result(trained, {label: (subnet, accuracies[label]) for label, subnet in subnets.items()}, step)


def _epoch_list(text: str | None) -> list[float] | str | None:
    from growtas.errors import ConfigError

    if text is None or text == "auto":
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--transitions {text!r} must be epochs divided by commas, as in 10,20, or auto") from None
