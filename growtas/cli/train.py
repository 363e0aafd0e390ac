"""``growtas train``: from images to a supernet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from growtas.cli.output import JsonOption, console, note, print_json, print_table
from growtas.cli.train_progress import training_progress

if TYPE_CHECKING:
    from growtas.train.recipe import Recipe
    from growtas.train.session import Session


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
    options: dict[str, Any] = {
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
    chosen = Chosen(recipe, config, settings or [], {key: value for key, value in options.items() if value is not None})
    folder = str(data_dir) if data_dir else None
    if dry_run:
        _show_plan(run, out, name, chosen, folder, device, resume=resume, as_json=json_)
        return
    if resume:
        session = _resumed(run, out, name, chosen, folder, device)
    else:
        session = _started(run, out, name, chosen, folder, device, quiet=json_)
    if not json_:
        _announce(session)
    try:
        with training_progress(quiet=json_) as (observer, track):
            info = session.train(observer, track, tensorboard=tensorboard, note=_silence if json_ else note)
    except KeyboardInterrupt:
        note(f"growtas: interrupted; continue with: growtas train --resume {session.run.path}")
        raise typer.Exit(130) from None
    if json_:
        keys = ("state", "method", "test_accuracy", "seconds", "data")
        print_json({"run": str(session.run.path), "space": session.run.space.name, **{key: info[key] for key in keys}})
        return
    _show_result(session, info)


@dataclass(frozen=True)
class Chosen:
    """What the command line says of the recipe.

    Attributes:
        recipe: its name.
        config: a YAML file.
        settings: ``KEY=VALUE`` each.
        options: fields that have an option of their own.
    """

    recipe: str | None
    config: Path | None
    settings: Sequence[str]
    options: Mapping[str, Any]

    def resolve(self) -> Recipe:
        """The recipe.

        Raises:
            ConfigError, SpaceError: see :func:`growtas.train.resolve_recipe.resolve_recipe`.
        """
        from growtas.train.recipe_file import parse_settings
        from growtas.train.resolve_recipe import resolve_recipe

        return resolve_recipe(self.config, self.options, recipe=self.recipe, settings=parse_settings(self.settings))


def _silence(text: str) -> None:
    del text


def _epoch_list(text: str | None) -> list[float] | str | None:
    from growtas.errors import ConfigError

    if text is None or text == "auto":
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--transitions {text!r} must be epochs divided by commas, as in 10,20, or auto") from None


def _show_plan(
    run: Path | None,
    out: Path,
    name: str | None,
    chosen: Chosen,
    folder: str | None,
    device: str,
    *,
    resume: bool,
    as_json: bool,
) -> None:
    from growtas.cli.plan_view import show_plan
    from growtas.errors import UsageError
    from growtas.runs import check_run_name

    if resume or run is not None:
        raise UsageError("--dry-run is about a new training; leave out the run's folder and --resume")
    check_run_name(out, name)
    show_plan(chosen.resolve(), folder, device, as_json=as_json)


def _started(
    run: Path | None,
    out: Path,
    name: str | None,
    chosen: Chosen,
    folder: str | None,
    device: str,
    *,
    quiet: bool,
) -> Session:
    from growtas.errors import UsageError

    if run is not None:
        raise UsageError(f"{run}: a run's folder is only for --resume; where new runs go is said with --out and --name")
    _check_place(out)
    from growtas.train.session import start_session

    recipe = chosen.resolve()
    with training_progress(quiet=quiet) as (_, track):
        return start_session(recipe, out=out, name=name, data_dir=folder, device=device, track=track)


def _check_place(out: Path) -> None:
    """Refuse an output folder that can't be written, before torch takes seconds to load; nothing is created yet."""
    from growtas.errors import OutputError
    from growtas.files import ensure_writable

    nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise OutputError(f"{out}: the output folder can't be written ({nearest} is not a folder)")
    ensure_writable(nearest)


def _resumed(run: Path | None, out: Path, name: str | None, chosen: Chosen, folder: str | None, device: str) -> Session:
    from growtas.errors import UsageError
    from growtas.runs import find_run
    from growtas.train.recipe_file import parse_settings
    from growtas.train.session import resume_session

    found = find_run(run if run is not None else out / name if name else None, out)
    if chosen.recipe is not None:
        raise UsageError(
            f"{found.path}: a run is continued with its own recipe; leave out --recipe, or start a new run without --resume"
        )
    given = {**parse_settings(chosen.settings), **chosen.options}
    return resume_session(found, config=chosen.config, options=given, data_dir=folder, device=device)


def _announce(session: Session) -> None:
    recipe, data = session.recipe, session.data
    done = session.run.checkpoints
    verb = f"continuing after {done[-1].name.replace('-', ' ')}" if done else "training"
    images = f"{data.name} ({len(data.train):,} training, {len(data.test):,} test images, {len(data.class_names)} classes)"
    where = str(session.device) + (f", {session.world.size} processes" if session.world.size > 1 else "")
    note(f"{verb}: {session.run.space.name} on {images}, {recipe.method}, {recipe.epochs} epochs, on {where}")
    for label, value in session.report.rows()[1:] if session.report else ():
        note(f"  {label:<13} {value}")
    note(f"run: {session.run.path}")


def _show_result(session: Session, info: dict[str, Any]) -> None:
    from rich.table import Table

    from growtas.costs import count_costs
    from growtas.train.strategies import make_strategy
    from growtas.units import format_count

    space = session.run.space
    table = Table(title=f"{space.name} on {session.data.name}: accuracy on the {len(session.data.test):,} test images")
    for column in ("subnet", "architecture"):
        table.add_column(column)
    for column in ("params", "MACs", "accuracy"):
        table.add_column(column, justify="right")
    followed = make_strategy(session.recipe, space).followed()
    for label, subnet in followed.items():
        costs = count_costs(space, subnet)
        accuracy = f"{info['test_accuracy'][label]:.2%}"
        table.add_row(label, str(subnet), format_count(costs.params), format_count(costs.macs), accuracy)
        if len(set(followed.values())) == 1:
            break
    print_table(table)
    step = "export" if session.recipe.method == "finetune" else "search"
    console().print(f"run {session.run.path}   {info['seconds']:.0f} s   next: growtas {step}", soft_wrap=True)
