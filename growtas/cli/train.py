"""``growtas train``: from images to a supernet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from growtas.cli.output import JsonOption, console, note, print_json, print_table, progress_console

if TYPE_CHECKING:
    from growtas.train.session import Session


def train(
    run: Annotated[Path | None, typer.Argument(help="With --resume: the run's folder, by default the newest in --out.")] = None,
    space: Annotated[str | None, typer.Option(help="Search space: a preset's name or a YAML file. Default: micro.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Images: digits (embedded, the default), fashion-mnist, a folder, or a timm name such as torch/cifar10."),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data's files.")] = None,
    method: Annotated[str | None, typer.Option(help="growtas (from small to large) or uniform.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images; warm-up and transitions scale along.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    transitions: Annotated[
        str | None, typer.Option(help="Epochs T_1, T_2 ... at which the next subspace opens, as in 10,20.")
    ] = None,
    stages: Annotated[int | None, typer.Option(help="Number K of nested subspaces.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs"),
    name: Annotated[str | None, typer.Option(help="Name of the run's folder.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with recipe fields; options given here go before it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto (a GPU where there is one).")] = "auto",
    workers: Annotated[int | None, typer.Option(help="Processes that decode images (recipes with augment: paper).")] = None,
    json_: JsonOption = False,
) -> None:
    """Train a supernet, from small subnets to large.

    Without options: the micro space on scikit-learn's digits, about a minute on two CPU cores. Every epoch is saved; Ctrl-C
    loses at most the one that is running.

    Example: growtas train --data fashion-mnist
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
    }
    given = {key: value for key, value in options.items() if value is not None}
    folder = str(data_dir) if data_dir else None
    if resume:
        session = _resumed(run, out, name, config, given, folder, device)
    else:
        session = _started(run, out, name, config, given, folder, device, quiet=json_)
    if not json_:
        _announce(session)
    try:
        with _progress(quiet=json_) as (observer, track):
            info = session.train(observer, track)
    except KeyboardInterrupt:
        note(f"growtas: interrupted; continue with: growtas train --resume {session.run.path}")
        raise typer.Exit(130) from None
    if json_:
        keys = ("state", "method", "test_accuracy", "seconds", "data")
        print_json({"run": str(session.run.path), "space": session.run.space.name, **{key: info[key] for key in keys}})
        return
    _show_result(session, info)


def _epoch_list(text: str | None) -> list[float] | None:
    from growtas.errors import ConfigError

    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--transitions {text!r} must be epochs divided by commas, as in 10,20") from None


def _started(
    run: Path | None,
    out: Path,
    name: str | None,
    config: Path | None,
    given: dict[str, Any],
    folder: str | None,
    device: str,
    *,
    quiet: bool,
) -> Session:
    from growtas.errors import UsageError

    if run is not None:
        raise UsageError(f"{run}: a run's folder is only for --resume; where new runs go is said with --out and --name")
    _check_place(out)
    from growtas.train.resolve import resolve_recipe
    from growtas.train.session import start_session

    recipe = resolve_recipe(config, given)
    with _progress(quiet=quiet) as (_, track):
        return start_session(recipe, out=out, name=name, data_dir=folder, device=device, track=track)


def _check_place(out: Path) -> None:
    """Refuse an output folder that can't be written, before torch takes seconds to load; nothing is created yet."""
    from growtas.errors import OutputError
    from growtas.files import ensure_writable

    nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise OutputError(f"{out}: the output folder can't be written ({nearest} is not a folder)")
    ensure_writable(nearest)


def _resumed(
    run: Path | None, out: Path, name: str | None, config: Path | None, given: dict[str, Any], folder: str | None, device: str
) -> Session:
    from growtas.runs import find_run
    from growtas.train.session import resume_session

    found = find_run(run if run is not None else out / name if name else None, out)
    return resume_session(found, config=config, options=given, data_dir=folder, device=device)


def _announce(session: Session) -> None:
    recipe, data = session.recipe, session.data
    done = session.run.checkpoints
    verb = f"continuing after {done[-1].name.replace('-', ' ')}" if done else "training"
    images = f"{data.name} ({len(data.train):,} training, {len(data.test):,} test images, {len(data.class_names)} classes)"
    note(f"{verb}: {session.run.space.name} on {images}, {recipe.method}, {recipe.epochs} epochs, on {session.device}")
    note(f"run: {session.run.path}")


class _Bar:
    """A progress bar over the steps."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._task: Any = None

    def on_start(self, first_step: int, steps: int) -> None:
        self._task = self._progress.add_task("training", total=steps, completed=first_step)

    def on_step(self, step: int, epoch: int, stage: int, loss: float) -> None:
        text = f"epoch {epoch + 1}, stage {stage + 1}, loss {loss:.3f}"
        self._progress.update(self._task, completed=step, description=text)

    def on_epoch(self, metrics: dict[str, Any]) -> None:
        """The bar goes by steps; the accuracies are in metrics.jsonl."""


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[tuple[Any, Any]]:
    """An observer of the training and a tracker of loops, with a bar on stderr where that is a terminal."""
    from growtas.data.images import silent
    from growtas.train.trainer import Silent

    if quiet or not progress_console().is_terminal:
        yield Silent(), silent
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.description}")
    columns = (text, BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(compact=True), TextColumn("left"))
    with Progress(*columns, console=progress_console(), transient=True) as progress:

        def track(items: Sequence[Any], title: str) -> Iterable[Any]:
            yield from progress.track(items, description=title)

        yield _Bar(progress), track


def _show_result(session: Session, info: dict[str, Any]) -> None:
    from rich.table import Table

    from growtas.costs import count_costs
    from growtas.train.trainer import monitored
    from growtas.units import format_count

    space = session.run.space
    table = Table(title=f"{space.name} on {session.data.name}: accuracy on the {len(session.data.test):,} test images")
    for column in ("subnet", "architecture"):
        table.add_column(column)
    for column in ("params", "MACs", "accuracy"):
        table.add_column(column, justify="right")
    for label, subnet in monitored(space).items():
        costs = count_costs(space, subnet)
        accuracy = f"{info['test_accuracy'][label]:.2%}"
        table.add_row(label, str(subnet), format_count(costs.params), format_count(costs.macs), accuracy)
    print_table(table)
    console().print(f"run {session.run.path}   {info['seconds']:.0f} s   next: growtas search", soft_wrap=True)
