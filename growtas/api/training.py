"""Training a supernet, fine-tuning a subnet, and the runs that they leave."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from growtas import runs
from growtas.errors import UsageError
from growtas.files import check_output_folder
from growtas.progress import SILENT, Progress
from growtas.resources import limited_torch

if TYPE_CHECKING:
    from growtas.nn.supernet import Supernet
    from growtas.subnet import Subnet
    from growtas.train.plan import TrainingPlan
    from growtas.train.recipe import Recipe
    from growtas.train.session import Session

# Nothing here loads torch before a function is called: a wrong output folder is refused at once.


class Run(runs.Run):
    """A run folder with its recipe and its supernet."""

    @property
    def recipe(self) -> Recipe:
        """The recipe that the run was trained with.

        Raises:
            UsageError: the run was imported.
            CheckpointError: ``run.json`` can't be read.
        """
        from growtas.train.recipe import Recipe

        fields = self.info.get("recipe")
        if fields is None:
            raise UsageError(f"{self.path}: the run was imported and has no recipe")
        return Recipe.from_dict(fields, source=str(self.path / "run.json"))

    def supernet(self) -> Supernet:
        """The supernet with the newest checkpoint's weights, on the CPU, in eval mode; ``supernet(images, subnet)`` gives logits.

        Raises:
            CheckpointError: there is no checkpoint, or it can't be read.
        """
        from growtas.checkpoint import load_supernet

        return load_supernet(self.supernet_file)


class RecipeOptions(TypedDict, total=False):
    """Recipe fields that training functions take by name; the others go into ``settings``. None is as if it were not given.

    They are described, with units and defaults, at :class:`growtas.train.recipe.Recipe`.
    """

    data: str | None
    pixel_range: Sequence[float] | None
    space: str | None
    image_size: int | None
    method: str | None
    init: str | None
    epochs: int | None
    batch_size: int | None
    accumulate: int | None
    lr: float | None
    transitions: list[float] | str | None
    stages: int | None
    amp: str | None
    ema_decay: float | None
    teacher: str | None
    teacher_checkpoint: str | None
    keep_checkpoints: int | None
    seed: int | None
    workers: int | None


def train(
    recipe: str | Recipe | None = None,
    *,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
    out: str | Path = "runs",
    name: str | None = None,
    device: str = "auto",
    tensorboard: bool = False,
    progress: Progress = SILENT,
    **options: Unpack[RecipeOptions],
) -> Run:
    """Trains a supernet, from small subnets to large.

    Without arguments: the micro space on scikit-learn's digits. Every epoch is saved; a training that was stopped is continued
    by :func:`resume`. Options override ``settings``, these override ``config``, and ``config`` the recipe.

    Args:
        recipe: a recipe or its name; by default chosen by space, data and method.
        config: YAML file with recipe fields.
        settings: recipe fields by their names.
        data_dir: folder of the data's files.
        out: folder for the runs.
        name: of the run's folder; by default the time and the space's name.
        device: ``cpu``, ``cuda``, or ``auto`` for a GPU where there is one.
        tensorboard: write the metrics for TensorBoard too.
        progress: receives stages, and the events of :mod:`growtas.train.events`.
        options: recipe fields such as ``epochs=2``, see :class:`RecipeOptions`.

    Returns:
        The finished run; ``run.info["test_accuracy"]`` has the accuracies (0..1) of its smallest, middle and largest subnet.

    Raises:
        OutputError: ``out`` can't be written.
        ConfigError, SpaceError: an unknown recipe, field or space, or a wrong value.
        DataError, DeviceError, CheckpointError, UsageError: see :func:`growtas.train.session.start_session`.
        TrainingError: a loss or a weight is not finite.
        KeyboardInterrupt: stopped; what was trained is saved.
    """
    check_output_folder(out)
    from growtas.train.resolve_recipe import resolve_recipe
    from growtas.train.session import start_session

    resolved = resolve_recipe(recipe, _given(settings, options), config=_path(config))
    folder = _text(data_dir)
    session = start_session(resolved, out=Path(out), name=name, data_dir=folder, device=device, progress=progress)
    return _trained(session, progress, tensorboard=tensorboard)


def resume(
    run: runs.Run | str | Path | None = None,
    *,
    root: str | Path = "runs",
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    tensorboard: bool = False,
    progress: Progress = SILENT,
    **options: Unpack[RecipeOptions],
) -> Run:
    """Continues a run that was interrupted or killed, with its own recipe.

    Args:
        run: the run, by default the newest in ``root``.
        config, settings, options: recipe fields given again; they must be the run's own, but for ``workers``,
            ``keep_checkpoints`` and ``save_minutes``, and for the path of a teacher's weights that were moved.
        data_dir: folder of the data's files, where they are not where they were.
        device, tensorboard, progress: as for :func:`train`.

    Raises:
        ConfigError: a field differs from the run's.
        CheckpointError: the teacher's file is absent, or holds other weights than it did.
        UsageError: there is no such run, it is finished, or another process is training it.
        DataError: the images are absent or changed.
        TrainingError, KeyboardInterrupt: as for :func:`train`.
    """
    stopped = load_run(run, root=root)
    from growtas.train.session import resume_session

    fields, folder = _given(settings, options), _text(data_dir)
    session = resume_session(stopped, config=_path(config), options=fields, data_dir=folder, device=device)
    return _trained(session, progress, tensorboard=tensorboard)


def finetune(
    model: runs.Run | str | Path,
    *,
    data: str | None = None,
    data_dir: str | Path | None = None,
    pixel_range: Sequence[float] | None = None,
    image_size: int | None = None,
    in_chans: int | None = None,
    subnet: Subnet | str | Path | None = None,
    recipe: str | Recipe | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path = "runs",
    name: str | None = None,
    device: str = "auto",
    tensorboard: bool = False,
    progress: Progress = SILENT,
) -> Run:
    """Goes on training an extracted model, on another data set and at another resolution if need be.

    Args:
        model: a run (its searched subnet is cut out), a model that was exported, or its folder.
        data: images, as for :func:`train`; the recipe or the file may name them.
        pixel_range: values of black and white in images of more than 8 bits a sample; by default the model's.
        image_size: pixels a side, a multiple of the model's patch size; by default the model's.
        in_chans: 1 (grey) or 3 (RGB); by default the model's.
        subnet: of a run: a subnet, or the file of one; by default the one that the search chose.
        recipe: a recipe of method ``finetune``, or its name.
        epochs, lr, batch_size, seed: recipe fields like ``image_size``; all override ``settings``, these ``config``, and ``config``
            the recipe.
        config, settings, data_dir, out, name, device, tensorboard, progress: as for :func:`train`.

    Returns:
        The finished run; its space holds the model alone. ``run.info["finetune"]`` has its ``test_accuracy`` (0..1), and what was
        changed of the model.

    Raises:
        CheckpointError: nothing that can be fine-tuned.
        SubnetError: the run's space does not hold the subnet.
        ConfigError, DataError, DeviceError, OutputError, UsageError, TrainingError, KeyboardInterrupt: as for :func:`train`.
    """
    check_output_folder(out)
    from growtas.export.formats import SUFFIXES
    from growtas.train.finetune import load_pretrained, start_finetune
    from growtas.train.resolve_recipe import resolve_finetune

    chosen = Path(subnet) if isinstance(subnet, str) else subnet
    pretrained = load_pretrained(model.path if isinstance(model, runs.Run) else model, chosen, suffixes=SUFFIXES)
    options = {
        "data": data,
        "pixel_range": pixel_range,
        "image_size": image_size,
        "epochs": epochs,
        "lr": lr,
        "batch_size": batch_size,
        "seed": seed,
    }
    size = pretrained.model.architecture.image_size
    session = start_finetune(
        pretrained,
        resolve_finetune(size, recipe, _given(settings, options), config=_path(config)),
        out=Path(out),
        name=name,
        data_dir=_text(data_dir),
        device=device,
        progress=progress,
        in_chans=in_chans,
    )
    return _trained(session, progress, tensorboard=tensorboard)


def plan_training(
    recipe: str | Recipe | None = None,
    *,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
    **options: Unpack[RecipeOptions],
) -> TrainingPlan:
    """What :func:`train` would do with the same arguments: stages, steps, compute, memory and time. Nothing is written.

    Raises:
        ConfigError, SpaceError, DataError, DeviceError, CheckpointError: as for :func:`train`.
    """
    from growtas.train import plan
    from growtas.train.resolve_recipe import resolve_recipe

    resolved = resolve_recipe(recipe, _given(settings, options), config=_path(config))
    with limited_torch():
        return plan.plan_training(resolved, data_dir=_text(data_dir), device=device, progress=progress)


def load_run(run: runs.Run | str | Path | None = None, *, root: str | Path = "runs") -> Run:
    """A run by its folder, or the newest in ``root``.

    Raises:
        UsageError: there is none.
    """
    return Run(run.path if isinstance(run, runs.Run) else runs.find_run(run, Path(root)).path)


def _trained(session: Session, progress: Progress, *, tensorboard: bool) -> Run:
    """Trains a session to its end."""
    with contextlib.ExitStack() as stack:
        if tensorboard:
            from growtas.watch.tensorboard import TensorBoardProgress

            progress = stack.enter_context(contextlib.closing(TensorBoardProgress(progress)))
        stack.enter_context(limited_torch())
        session.train(progress)
    return Run(session.run.path)


def _given(settings: Mapping[str, Any] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    return {**(settings or {}), **{key: value for key, value in options.items() if value is not None}}


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)
