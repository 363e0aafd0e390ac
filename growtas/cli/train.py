"""``growtas train``: trains a supernet on images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument

from growtas.cli import options
from growtas.cli.options import COMPUTING, DATA, METHOD, RECIPE, RUN
from growtas.cli.output import command_line, print_json
from growtas.units import standard_error

_TRANSITIONS = "epochs separated by commas, as in 10,20, or auto"


def train(
    run: Annotated[Path | None, Argument(help="Run folder to continue, only with --resume. Default: the newest in --out.")] = None,
    recipe: Annotated[
        str | None,
        RECIPE(help="Name of a recipe; `growtas recipes` lists them. Default: the one that fits space, data and method."),
    ] = None,
    config: options.Config = None,
    settings: options.Settings = None,
    epochs: Annotated[
        int | None, RECIPE(help="Passes over the training images; warm-up and transitions scale with them. Default: the recipe's.")
    ] = None,
    batch_size: Annotated[int | None, RECIPE(help="Images per step, summed over all processes. Default: the recipe's.")] = None,
    lr: options.LearningRate = None,
    ema: Annotated[
        float | None, RECIPE(help="Decay of a moving average of the weights, as in 0.999; the average is the result.")
    ] = None,
    teacher: Annotated[
        str | None, RECIPE(help="Teacher for distillation: a timm model's name, or a model.safetensors of growtas.")
    ] = None,
    teacher_checkpoint: Annotated[
        str | None,
        RECIPE(help="Weights of the timm teacher, whose head has the data's classes: safetensors, or a state_dict of torch."),
    ] = None,
    init: Annotated[
        str | None, RECIPE(help="Weights to start from: a run, or a supernet.safetensors. Default: random weights.")
    ] = None,
    seed: options.Seed = None,
    data: Annotated[
        str | None,
        DATA(help="Data set: digits (embedded, the default), fashion-mnist, a folder, or a timm name such as torch/cifar10."),
    ] = None,
    data_dir: options.DataDir = None,
    pixel_range: options.PixelRange = None,
    space: Annotated[str | None, METHOD(help="Search space: the name of a preset, or a YAML file. Default: micro.")] = None,
    image_size: Annotated[
        int | None, METHOD(help="Side of the network's input in pixels; the patch size is adapted. Default: the space's.")
    ] = None,
    method: Annotated[
        str | None,
        METHOD(
            help="Training method: growtas (from small to large subnets, the default), growtas-plus, uniform, sandwich, shrinking, "
            "prenas, focusformer, dynas, greedynas, shiftnas, vitas, tas-lora or single. --set method_options.NAME=VALUE sets a "
            "method's own options."
        ),
    ] = None,
    transitions: Annotated[
        str | None, METHOD(help="Epochs T_1, T_2, ... after which the next larger subspace is trained, as in 10,20; or auto.")
    ] = None,
    stages: Annotated[int | None, METHOD(help="Number K of nested subspaces. Default: the recipe's.")] = None,
    device: options.Device = "auto",
    amp: Annotated[
        str | None, COMPUTING(help="Precision of training: fp32, bf16, fp16, or auto (bf16 on a GPU that has it; the default).")
    ] = None,
    accumulate: Annotated[
        int | None, COMPUTING(help="Number of parts into which a batch is split to save memory; gradients add up. Default: 1.")
    ] = None,
    workers: Annotated[
        int | None, COMPUTING(help="Processes that decode images, for recipes with augment: paper; at most the number of CPUs.")
    ] = None,
    out: options.Out = Path("runs"),
    name: options.Name = None,
    resume: Annotated[bool, RUN("--resume", help="Continue a stopped run from its last saved step.")] = False,
    keep: Annotated[int | None, RUN(help="Number of newest checkpoints to keep, besides the best one.")] = None,
    tensorboard: options.TensorBoard = False,
    dry_run: Annotated[bool, RUN("--dry-run", help="Show stages, steps, compute, memory and time, and write nothing.")] = False,
    json_: options.Json = False,
) -> None:
    """Train a supernet, from small subnets to large ones.

    Without options, it trains the micro space on scikit-learn's digits, in about a minute on two CPU cores. Every epoch is saved.
    Ctrl-C finishes and saves the running step, and --resume continues from there. An option overrides --set, --set overrides
    --config, and --config overrides the recipe.

    `growtas recipes --fields` lists every field that --set and --config take, with its meaning; `growtas recipes NAME` shows those
    of one recipe. The same tables: https://github.com/growtas/growtas/tree/main/docs/reference/recipe.md

    Example: growtas train --data fashion-mnist --set label_smoothing=0.1 --dry-run
    """
    from growtas import api
    from growtas.errors import UsageError
    from growtas.runs import check_run_name
    from growtas.train.recipe_file import parse_settings

    fields: api.RecipeOptions = {
        "space": space,
        "image_size": image_size,
        "data": data,
        "pixel_range": options.parse_pixel_range(pixel_range),
        "method": method,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "transitions": transitions if transitions == "auto" else options.parse_numbers("--transitions", _TRANSITIONS, transitions),
        "stages": stages,
        "workers": workers,
        "init": init,
        "accumulate": accumulate,
        "ema_decay": ema,
        "amp": amp,
        "teacher": teacher,
        "teacher_checkpoint": teacher_checkpoint,
        "keep_checkpoints": keep,
    }
    if dry_run and (resume or run is not None):
        raise UsageError("--dry-run only describes a new training; leave out the run's folder and --resume")
    if run is not None and not resume:
        raise UsageError(f"{run}: a run's folder is only legal with --resume; --out and --name say where a new run goes")
    overrides = parse_settings(settings or [])
    if dry_run:
        from growtas.cli.plan_view import show_plan

        check_run_name(out, name)
        show_plan(api.plan_training(recipe, config=config, settings=overrides, data_dir=data_dir, device=device, **fields), json_)
        return
    from growtas.cli.training_view import TrainingView, data_warnings, show_result

    if run is not None and name is not None:
        raise UsageError(f"--name {name} and the run's folder {run} can't be combined; give one of them")
    # The run records the other options, and the data folder that it began with.
    moved = data_dir if resume else None
    processor = None if device == "auto" else device
    again = {"data_dir": moved, "device": processor, "workers": workers, "keep": keep, "tensorboard": tensorboard}
    with TrainingView(quiet=json_, **again) as view:
        if resume:
            stopped = api.load_run(run or (out / name if name else None), root=out)
            if recipe is not None:
                raise UsageError(
                    f"{stopped.path}: a stopped run continues with its own recipe; leave out --recipe, "
                    f"or start a new run without --resume"
                )
            trained = api.resume(
                stopped,
                config=config,
                settings=overrides,
                data_dir=data_dir,
                device=device,
                tensorboard=tensorboard,
                progress=view,
                **fields,
            )
        else:
            trained = api.train(
                recipe,
                config=config,
                settings=overrides,
                data_dir=data_dir,
                out=out,
                name=name,
                device=device,
                tensorboard=tensorboard,
                progress=view,
                **fields,
            )
    if json_:
        info = trained.info
        keys = ("state", "method", "test_accuracy", "seconds", "data", "teacher")
        tested, count = info["test_accuracy"], info["data"]["test_size"]
        errors = {name: standard_error(accuracy, count) for name, accuracy in tested.items()}
        content = {key: info.get(key) for key in keys} | {
            "test_accuracy_standard_error": errors,
            "warnings": data_warnings(trained),
        }
        print_json({"run": str(trained.path), "space": trained.space.name, **content})
        return
    from growtas.runs import ONE_SUBNET
    from growtas.train.strategies import make_strategy

    subnets = make_strategy(trained.recipe, trained.space).followed()
    accuracies = trained.info["test_accuracy"]
    alone = trained.recipe.method in ONE_SUBNET
    step = command_line("export" if alone else "search", trained.path, data_dir=moved)
    show_result(trained, {label: (subnet, accuracies[label]) for label, subnet in subnets.items()}, step)
