"""``train``, ``resume`` and ``finetune``: train a supernet or fine-tune a subnet. The result of each is a run."""

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

# Torch is imported inside the functions, so that a wrong output folder raises at once.


class Run(runs.Run):
    """A run folder, with access to its recipe and its supernet."""

    @property
    def recipe(self) -> Recipe:
        """The recipe that the run was trained with.

        Raises:
            UsageError: The run was imported and has no recipe.
            CheckpointError: ``run.json`` can't be read.
        """
        from growtas.train.recipe import Recipe

        fields = self.info.get("recipe")
        if fields is None:
            raise UsageError(f"{self.path}: the run was imported and has no recipe")
        return Recipe.from_dict(fields, source=str(self.path / "run.json"))

    def supernet(self) -> Supernet:
        """Loads the supernet with the newest checkpoint's weights, on the CPU and in eval mode.

        ``supernet(images, subnet)`` returns the logits, ``(batch, classes)``.

        Raises:
            CheckpointError: There is no checkpoint, or it can't be read.
        """
        from growtas.checkpoint import load_supernet

        return load_supernet(self.supernet_file)


class RecipeOptions(TypedDict, total=False):
    """Recipe fields that are keyword arguments of the training functions; other fields go into ``settings``. None means not given.

    :class:`growtas.train.recipe.Recipe` describes them with units and defaults.
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
    """Trains a supernet, from small subnets to large ones.

    Without arguments, it trains the micro space on scikit-learn's digits. Every epoch is saved; :func:`resume` continues a
    stopped training. Options override ``settings``, ``settings`` override ``config``, and ``config`` overrides the recipe.

    Args:
        recipe: a recipe or its name; by default the recipe that fits space, data and method.
        config: YAML file with recipe fields.
        settings: values of recipe fields by name.
        data_dir: folder that holds the data set's files.
        out: folder in which the run's folder is created.
        name: name of the run's folder; by default date, time and the space's name.
        device: ``cpu``, ``cuda``, or ``auto`` (a GPU if there is one).
        tensorboard: also write the metrics for TensorBoard.
        progress: receives stages, and the events of :mod:`growtas.train.events`.
        options: recipe fields such as ``epochs=2``; see :class:`RecipeOptions`.

    Returns:
        The finished run. ``run.info["test_accuracy"]`` holds the top-1 accuracies (0 to 1) of the smallest, the middle and the
        largest subnet on the test images.

    Raises:
        OutputError: ``out`` can't be written.
        ConfigError, SpaceError: A recipe, field or space is unknown, or a value is wrong.
        DataError, DeviceError, CheckpointError, UsageError: See :func:`growtas.train.session.start_session`.
        TrainingError: A loss or a weight is not finite.
        KeyboardInterrupt: The training was stopped; its state is saved.
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
    """Continues an interrupted or killed run with its own recipe.

    Args:
        run: the run or its folder; by default the newest in ``root``.
        root: folder of the runs.
        config, settings, options: recipe fields. They must equal the run's, except ``workers``, ``keep_checkpoints``,
            ``save_minutes`` and the path of moved teacher weights.
        data_dir: new folder of the data set's files, if they were moved.
        device, tensorboard, progress: as for :func:`train`.

    Raises:
        ConfigError: A field differs from the run's.
        CheckpointError: The teacher's file is missing, or its weights have changed.
        UsageError: There is no such run, the run is finished, or another process is training it.
        DataError: The images are missing or have changed.
        TrainingError, KeyboardInterrupt: As for :func:`train`.
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
    """Fine-tunes an extracted model on another data set, if wanted at another resolution.

    Args:
        model: a run (its searched subnet is extracted), an exported model, or the model's folder.
        data: data set as for :func:`train`; ``recipe`` or ``config`` may name it instead.
        pixel_range: values of black and white in images with more than 8 bits per sample; by default the model's.
        image_size: side of the input in pixels, a multiple of the model's patch size; by default the model's.
        in_chans: input channels, 1 (grey) or 3 (RGB); by default the model's.
        subnet: if ``model`` is a run: a subnet or its file; by default the subnet that the search chose.
        recipe: a recipe of method ``finetune``, or its name.
        epochs, lr, batch_size, seed: recipe fields, as is ``image_size``. They override ``settings``, ``settings`` override
            ``config``, and ``config`` overrides the recipe.
        config, settings, data_dir, out, name, device, tensorboard, progress: as for :func:`train`.

    Returns:
        The finished run; its space holds only the model. ``run.info["finetune"]`` holds the ``test_accuracy`` (0 to 1) and the
        changes to the model.

    Raises:
        CheckpointError: The model can't be fine-tuned or read.
        SubnetError: The run's space does not contain the subnet.
        ConfigError, DataError, DeviceError, OutputError, UsageError, TrainingError, KeyboardInterrupt: As for :func:`train`.
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
    """Plans the training that :func:`train` would do with the same arguments, and writes nothing.

    Returns:
        The plan: stages, steps, compute, memory and time.

    Raises:
        ConfigError, SpaceError, DataError, DeviceError, CheckpointError: As for :func:`train`.
    """
    from growtas.train import plan
    from growtas.train.resolve_recipe import resolve_recipe

    resolved = resolve_recipe(recipe, _given(settings, options), config=_path(config))
    with limited_torch():
        return plan.plan_training(resolved, data_dir=_text(data_dir), device=device, progress=progress)


def load_run(run: runs.Run | str | Path | None = None, *, root: str | Path = "runs") -> Run:
    """Returns the run in a folder, or the newest run in ``root``.

    Raises:
        UsageError: There is no such run.
    """
    return Run(run.path if isinstance(run, runs.Run) else runs.find_run(run, Path(root)).path)


def _trained(session: Session, progress: Progress, *, tensorboard: bool) -> Run:
    """Runs a session to its end and returns the run."""
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
