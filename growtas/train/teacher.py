"""External teachers for a training: any timm model, or a static ViT of growtas."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from growtas.checkpoint import load_model, load_supernet, read_weights
from growtas.data.seeding import preserved_globals
from growtas.errors import CheckpointError, ConfigError, cause, choices
from growtas.fields import nearest
from growtas.nn.extract import extract
from growtas.runs import Run, read_model_manifest
from growtas.subnet import Subnet
from growtas.train.recipe import Recipe

_OPTION = "--teacher-checkpoint"


TEACHER_RECORD = """``teacher`` in ``run.json``: the model whose soft outputs a training learns from.

Fields:
    model (text): Name of the timm model, or the path of a run or of a model that growtas exported.
    weights (text or null): File of its weights; null for those that timm fetched.
    sha256 (text): Hash of the weights, whatever file they come from.
    input_size (list of whole numbers): Channels, height and width of its images.
    mean (list of numbers): Mean by which it normalises, a number for each channel.
    std (list of numbers): Standard deviation by which it normalises, a number for each channel.
    interpolation (text): How images are resized to its size.
    accuracy (number): Its top-1 accuracy (0 to 1) on images of the search split.
    images (whole number): How many images that is.
    chance (number): Share of the most frequent class among them.
"""


class Teacher(nn.Module):
    """A frozen classifier that accepts the training's images and converts them to its own image size and normalisation.

    Args:
        model: network that maps images to logits.
        config: the model's input, as in timm's data configurations: ``input_size`` (channels, height, width), ``mean``, ``std``
            (one number per channel) and ``interpolation``.
        preprocess: preprocessing of the training's images.
        name: name of the teacher in ``run.json``.
        weights: file of its weights; None for weights that timm downloads.

    Attributes:
        record: the teacher's entry in ``run.json``. Its ``sha256`` is the hash of the weights, not of the file.

    Raises:
        ConfigError: the training's images have another number of channels than the model and are not grey.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Mapping[str, Any],
        preprocess: Mapping[str, Any],
        *,
        name: str = "",
        weights: str | None = None,
    ) -> None:
        super().__init__()
        channels, *size = config["input_size"]
        if preprocess["in_chans"] not in (1, channels):
            raise ConfigError(
                f"the teacher {name} needs images with {channels} channels, but those of this training have "
                f"{preprocess['in_chans']}"
            )
        self.model = model.eval().requires_grad_(False)
        self._size = tuple(size)
        self._mode = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
        mean, std, mean_here, std_here = (
            torch.tensor(source[key], dtype=torch.float32).expand(channels).view(1, -1, 1, 1)
            for source in (config, preprocess)
            for key in ("mean", "std")
        )
        # One scale and shift replaces both normalisations; equal ones give exactly 1 and 0, so no bit changes.
        for buffer, value in {
            "scale": std_here / std, "shift": (mean_here - mean) / std, "black": -mean / std, "white": (1 - mean) / std
        }.items():  # fmt: skip
            self.register_buffer(buffer, value, persistent=False)
        self.record: dict[str, Any] = {
            "model": name,
            "weights": weights,
            "sha256": _digest(model),
            **{key: list(config[key]) for key in ("input_size", "mean", "std")},
            "interpolation": self._mode,
        }

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Maps normalised training images ``(n, C, H, W)`` to logits ``(n, classes)``. Grey images are copied to all channels."""
        x = images * self.get_buffer("scale") + self.get_buffer("shift")
        if x.shape[-2:] != self._size:
            x = F.interpolate(x, self._size, mode=self._mode, antialias=True)
            # Bicubic interpolation can exceed black and white, which the model's training images never did.
            x = x.clamp(self.get_buffer("black"), self.get_buffer("white"))
        logits: Tensor = self.model(x)
        return logits


def check_teacher(recipe: Recipe, classes: int | None = None) -> None:
    """Checks a recipe's teacher before anything is loaded or downloaded.

    Args:
        recipe: the recipe of the training.
        classes: number of classes of the data, if it is known.

    Raises:
        ConfigError: timm does not know the model or its pretrained weights, or they have another number of classes.
        CheckpointError: a file is absent.
    """
    name, checkpoint = recipe.teacher, recipe.teacher_checkpoint
    if name is None:
        return
    if is_run(name):
        if checkpoint is not None:
            raise ConfigError(f"teacher_checkpoint is set, but the run {name} already contains weights; leave out {_OPTION}")
        return
    if name.endswith(".safetensors"):
        if not Path(name).is_file():
            raise CheckpointError(f"{name}: there is no such safetensors file of a teacher")
        if checkpoint is not None:
            raise ConfigError(f"teacher_checkpoint is set, but the file {name} already contains weights; leave out {_OPTION}")
        return
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise CheckpointError(f"{checkpoint}: there is no such file of a teacher's weights")
    # timm looks up a name with a source, such as hf-hub:timm/..., in that source.
    if ":" in name:
        return
    architecture = name.partition(".")[0]
    if not timm.is_model(name):
        hint = nearest(architecture, timm.list_models())
        raise ConfigError(f"teacher is {name!r}; it must be a model of timm{f' ({hint})' if hint else ''} or a model.safetensors")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag
        known = [known for known in timm.list_pretrained(f"{architecture}.*") if known.partition(".")[0] == architecture]
        raise ConfigError(f"teacher is {name!r}; timm's pretrained weights of {architecture} are {choices(known)}") from None
    if checkpoint is not None:
        return
    if config is None or not config.has_weights:
        raise ConfigError(f"timm has no pretrained weights for the teacher {name}; name a file of weights with {_OPTION} FILE")
    if classes is not None:
        _check_classes(f"the pretrained teacher {name}", config.num_classes, classes)


def load_teacher(recipe: Recipe, preprocess: Mapping[str, Any], class_names: Sequence[str]) -> Teacher | None:
    """Loads the recipe's teacher in eval mode; None if the recipe has no teacher.

    Args:
        recipe: the recipe of the training.
        preprocess: preprocessing of the training's images.
        class_names: class names of the data.

    Raises:
        ConfigError: timm does not know the model or can't download its weights, or the teacher needs other channels or classes.
        CheckpointError: the weights can't be read, contain more than tensors, are not finite, or have another number of classes.
    """
    check_teacher(recipe, len(class_names))
    if recipe.teacher is None:
        return None
    with preserved_globals():  # creating a network draws random weights before the real ones are loaded
        if is_run(recipe.teacher) or recipe.teacher.endswith(".safetensors"):
            teacher = _own_model(recipe.teacher, preprocess, class_names)
        else:
            teacher = _timm_model(recipe.teacher, recipe.teacher_checkpoint, preprocess, len(class_names))
    for name, weights in teacher.model.state_dict().items():
        if not weights.isfinite().all():
            source = teacher.record["weights"] or recipe.teacher
            raise CheckpointError(f"{source}: the teacher's {name} contains numbers that are not finite; name other weights")
    return teacher


def check_same_teacher(teacher: Teacher | None, recorded: Mapping[str, Any] | None, where: str) -> None:
    """Checks that a resumed run has the same teacher as before. Runs of earlier versions record no teacher.

    Args:
        teacher: the loaded teacher.
        recorded: the teacher's entry in ``run.json``.
        where: prefix of the message, the run's path.

    Raises:
        CheckpointError: the weights differ.
    """
    if teacher is not None and recorded is not None and teacher.record["sha256"] != recorded["sha256"]:
        now, then = (record["weights"] or record["model"] for record in (teacher.record, recorded))
        raise CheckpointError(
            f"{where}: the run started with the teacher {then}, but the weights in {now} are different; name the original file "
            f"({_OPTION}), or start a new run"
        )


def is_run(name: str) -> bool:
    """Whether a teacher is named by a run's folder: the largest subnet of the run's supernet."""
    return (Path(name).expanduser() / "run.json").is_file()


def absolute_teacher(recipe: Recipe) -> Recipe:
    """Makes the paths of a teacher's files absolute, so that a run that is resumed from another folder finds them."""
    paths: dict[str, Any] = {
        key: str(Path(value).expanduser().absolute())
        for key in ("teacher", "teacher_checkpoint")
        if (value := getattr(recipe, key)) is not None
        and (key == "teacher_checkpoint" or value.endswith(".safetensors") or is_run(value))
    }
    return dataclasses.replace(recipe, **paths)


def _own_model(name: str, preprocess: Mapping[str, Any], class_names: Sequence[str]) -> Teacher:
    if is_run(name):
        run = Run(Path(name))
        supernet, about = load_supernet(run.supernet_file), run.info
        alone = about["recipe"]["method_options"]["subnet"] if about.get("method") == "single" else None
        model = extract(supernet, supernet.space.largest if alone is None else Subnet.from_dict(alone, source=name))
    else:
        model, about = load_model(name), read_model_manifest(Path(name))
    if model.num_classes != len(class_names):
        raise CheckpointError(
            f"{name}: the teacher has a head of {model.num_classes} classes, but the data has {len(class_names)}; "
            f"export a teacher from a run on this data"
        )
    names = about.get("class_names")
    if names is not None and list(names) != list(class_names):
        other, here = next(pair for pair in zip(names, class_names, strict=True) if pair[0] != pair[1])
        raise CheckpointError(f"{name}: the teacher has other classes than the data: {other!r} instead of {here!r}")
    # A model without a manifest is assumed to have been trained on images like these.
    known = about.get("preprocess") or {**preprocess, "in_chans": model.architecture.in_chans}
    size = (known["in_chans"], *[model.architecture.image_size] * 2)
    config = {"input_size": size, **{key: known[key] for key in ("mean", "std", "interpolation")}}
    return Teacher(model, config, preprocess, name=name, weights=name)


def _timm_model(name: str, checkpoint: str | None, preprocess: Mapping[str, Any], classes: int) -> Teacher:
    state = read_weights(checkpoint, "the teacher's weights") if checkpoint is not None else None
    channels = _channels_of(name, state) if state is not None else None
    try:
        if state is None:
            network = timm.create_model(name, pretrained=True)  # with its original head; a new one would be random
        else:
            network = timm.create_model(name, num_classes=classes, in_chans=channels)
            about: dict[str, Any] = vars(network)["pretrained_cfg"]
            head = _first(about.get("classifier"))
            if (weight := state.get(f"{head}.weight")) is not None:
                _check_classes(f"{checkpoint}: the teacher", len(weight), classes, CheckpointError)
            network.load_state_dict(state)
    except (CheckpointError, ConfigError):
        raise
    except Exception as error:  # timm, its hub and torch raise different exceptions
        where = f"with the weights {checkpoint}" if checkpoint else f"with its pretrained weights (or name a file: {_OPTION})"
        raise ConfigError(f"timm can't create the teacher {name} {where}: {cause(error)}") from None
    if state is None:  # the number of classes of a model from a hub is known only after loading
        _check_classes(f"the pretrained teacher {name}", vars(network)["num_classes"], classes)
    config = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    if channels is not None:
        config["input_size"] = (channels, *config["input_size"][1:])
        if channels != len(config["mean"]):  # weights for grey images, while timm's configuration is for colour
            config |= {key: [sum(config[key]) / len(config[key])] * channels for key in ("mean", "std")}
    about = vars(network)["pretrained_cfg"]
    full_name = f"{about['architecture']}.{about['tag']}" if about.get("tag") and ":" not in name else name
    return Teacher(network, config, preprocess, name=full_name, weights=checkpoint)


def _channels_of(name: str, state: Mapping[str, Tensor]) -> int:
    """Returns the number of image channels, read from the first convolution of the weights; 3 if it can't be found."""
    config = None if ":" in name else timm.get_pretrained_cfg(name)
    weight = state.get(f"{_first(config.first_conv)}.weight") if config is not None else None
    return weight.shape[1] if weight is not None and weight.ndim == 4 else 3


def _first(names: Any) -> Any:
    """Returns the first name: timm's configurations contain one module name or several."""
    return names[0] if isinstance(names, list | tuple) else names


def _check_classes(who: str, has: int, classes: int, error: type[ConfigError] | type[CheckpointError] = ConfigError) -> None:
    if has != classes:
        raise error(
            f"{who} has a head of {has} classes, but the data has {classes}; name weights whose head has {classes}: {_OPTION} FILE"
        )


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
