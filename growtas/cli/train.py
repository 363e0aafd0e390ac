"""``growtas train``: from images to a supernet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument

from growtas.cli import options
from growtas.cli.options import COMPUTING, DATA, METHOD, RECIPE, RUN
from growtas.cli.output import command_line, print_json
from growtas.units import standard_error

_TRANSITIONS = "epochs divided by commas, as in 10,20, or auto"


def train(
    run: Annotated[Path | None, Argument(help="With --resume: the run's folder, by default the newest in --out.")] = None,
    recipe: Annotated[
        str | None,
        RECIPE(help="A recipe by its name, as `growtas recipes` lists them; by default chosen by space, data and method."),
    ] = None,
    config: options.Config = None,
    settings: options.Settings = None,
    epochs: Annotated[int | None, RECIPE(help="Passes over the training images; warm-up and transitions scale along.")] = None,
    batch_size: Annotated[int | None, RECIPE(help="Images a step, over all processes.")] = None,
    lr: options.LearningRate = None,
    ema: Annotated[float | None, RECIPE(help="Decay of a moving average of the weights, which is then the result: 0.999.")] = None,
    teacher: Annotated[str | None, RECIPE(help="Learn from a timm model, or a model.safetensors of growtas, too.")] = None,
    teacher_checkpoint: Annotated[
        str | None,
        RECIPE(
            help="File with the timm teacher's weights, whose head has the data's classes: safetensors, or a state_dict of torch."
        ),
    ] = None,
    init: Annotated[str | None, RECIPE(help="Start from the weights of a run, or of a supernet.safetensors.")] = None,
    seed: options.Seed = None,
    data: Annotated[
        str | None,
        DATA(help="Images: digits (embedded, the default), fashion-mnist, a folder, or a timm name such as torch/cifar10."),
    ] = None,
    data_dir: options.DataDir = None,
    pixel_range: options.PixelRange = None,
    space: Annotated[str | None, METHOD(help="Search space: a preset's name or a YAML file. Default: micro.")] = None,
    image_size: Annotated[
        int | None, METHOD(help="Pixels a side that the network sees; the space's patches are adapted. Default: the space's own.")
    ] = None,
    method: Annotated[
        str | None,
        METHOD(
            help="growtas (from small to large), growtas-plus, uniform, sandwich, shrinking, prenas or focusformer; "
            "its own options are set with --set method_options.NAME=VALUE."
        ),
    ] = None,
    transitions: Annotated[
        str | None, METHOD(help="Epochs T_1, T_2 ... at which the next subspace opens, as in 10,20; or auto.")
    ] = None,
    stages: Annotated[int | None, METHOD(help="Number K of nested subspaces.")] = None,
    device: options.Device = "auto",
    amp: Annotated[str | None, COMPUTING(help="fp32, bf16, fp16, or auto (bf16 on a GPU that has it, the default).")] = None,
    accumulate: Annotated[
        int | None, COMPUTING(help="Parts that a batch is worked through in, one after the other, to save memory.")
    ] = None,
    workers: Annotated[
        int | None, COMPUTING(help="Processes that decode images (recipes with augment: paper), at most as many as there are CPUs.")
    ] = None,
    out: options.Out = Path("runs"),
    name: options.Name = None,
    resume: Annotated[bool, RUN("--resume", help="Continue a run that was stopped.")] = False,
    keep: Annotated[int | None, RUN(help="Newest checkpoints to keep, besides the best.")] = None,
    tensorboard: options.TensorBoard = False,
    dry_run: Annotated[bool, RUN("--dry-run", help="Only show stages, steps, compute, memory and time; write nothing.")] = False,
    json_: options.Json = False,
) -> None:
    """Train a supernet, from small subnets to large.

    Without options: the micro space on scikit-learn's digits, about a minute on two CPU cores. Every epoch is saved; Ctrl-C
    finishes the running step and saves it, and --resume goes on from there. An option overrides --set, --set overrides --config,
    and --config the recipe.

    `growtas recipes --fields` lists every field that --set and --config take, with its meaning; `growtas recipes NAME` shows those of
    one recipe. The same tables: https://github.com/growtas/growtas/tree/main/docs/reference/recipe.md

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
        raise UsageError("--dry-run is about a new training; leave out the run's folder and --resume")
    if run is not None and not resume:
        raise UsageError(f"{run}: a run's folder is only for --resume; where new runs go is said with --out and --name")
    overrides = parse_settings(settings or [])
    if dry_run:
        from growtas.cli.plan_view import show_plan

        check_run_name(out, name)
        show_plan(api.plan_training(recipe, config=config, settings=overrides, data_dir=data_dir, device=device, **fields), json_)
        return
    from growtas.cli.training_view import TrainingView, data_warnings, show_result

    if run is not None and name is not None:
        raise UsageError(f"--name {name} says nothing beside the run's folder, {run}; give one of them")
    # The rest is recorded in the run, the data's folder that it began with too.
    moved = data_dir if resume else None
    processor = None if device == "auto" else device
    again = {"data_dir": moved, "device": processor, "workers": workers, "keep": keep, "tensorboard": tensorboard}
    with TrainingView(quiet=json_, **again) as view:
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
    from growtas.train.strategies import make_strategy

    subnets = make_strategy(trained.recipe, trained.space).followed()
    accuracies = trained.info["test_accuracy"]
    tuned = trained.recipe.method == "finetune"
    step = command_line("export" if tuned else "search", trained.path, data_dir=moved)
    show_result(trained, {label: (subnet, accuracies[label]) for label, subnet in subnets.items()}, step)
