"""Teachers whose soft outputs a training learns from: any timm model, or one of growtas' own static ViTs."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from timm.models import load_state_dict
from torch import Tensor, nn

from growtas.checkpoint import load_model
from growtas.data.seeding import preserved_globals
from growtas.errors import CheckpointError, ConfigError, choices
from growtas.fields import nearest
from growtas.files import read_json
from growtas.train.recipe import Recipe

_OPTION = "--teacher-checkpoint"


TEACHER_RECORD = """``teacher`` in ``run.json``: the model whose soft outputs a training learns from.

Fields:
    model (text): Name of the timm model, or the path of a model that growtas exported.
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
    """A frozen classifier that takes the training's images, whatever size and normalisation it was trained with.

    Args:
        model: images -> logits.
        config: what the model takes, as timm's data configurations have it: ``input_size`` (channels, height, width), ``mean``,
            ``std`` (one number a channel) and ``interpolation``.
        preprocess: the training's preprocessing.
        name: what it is called in ``run.json``.
        weights: the file of its weights; None for what timm fetches.

    Attributes:
        record: what ``run.json`` holds of it; ``sha256`` is of its weights, whatever file they come from.

    Raises:
        ConfigError: the training's images have other channels than the model takes, and are not grey.
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
                f"the teacher {name} takes images of {channels} channels, and this training's have {preprocess['in_chans']}"
            )
        self.model = model.eval().requires_grad_(False)
        self._size = tuple(size)
        self._mode = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
        mean, std, mean_here, std_here = (
            torch.tensor(source[key], dtype=torch.float32).expand(channels).view(1, -1, 1, 1)
            for source in (config, preprocess)
            for key in ("mean", "std")
        )
        # Both normalisations in one step, which changes no bit where they are the same; and black and white in the model's.
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
        """Normalised training images ``(n, C, H, W)`` -> logits ``(n, classes)``; grey images fill all of the model's channels."""
        x = images * self.get_buffer("scale") + self.get_buffer("shift")
        if x.shape[-2:] != self._size:
            x = F.interpolate(x, self._size, mode=self._mode, antialias=True)
            # Bicubic curves go beyond black and white; an image's pixels, as the model knows them, do not.
            x = x.clamp(self.get_buffer("black"), self.get_buffer("white"))
        logits: Tensor = self.model(x)
        return logits


def check_teacher(recipe: Recipe, classes: int | None = None) -> None:
    """Refuses a teacher before anything is loaded or fetched: one that is named wrongly, or whose pretrained head does not fit.

    Args:
        classes: of the data, where they are known.

    Raises:
        ConfigError: timm knows no such model or pretrained weights; or they are of another number of classes.
        CheckpointError: a file is absent.
    """
    name, checkpoint = recipe.teacher, recipe.teacher_checkpoint
    if name is None:
        return
    if name.endswith(".safetensors"):
        if not Path(name).is_file():
            raise CheckpointError(f"{name}: no such safetensors file with a teacher")
        if checkpoint is not None:
            raise ConfigError(f"teacher_checkpoint is set, but the teacher {name} has its own weights; leave out {_OPTION}")
        return
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise CheckpointError(f"{checkpoint}: no such file with a teacher's weights")
    # A name with a source, as in hf-hub:timm/..., is looked up there.
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
        raise ConfigError(f"the teacher {name} has no pretrained weights in timm; name a file with some: {_OPTION} FILE")
    if classes is not None:
        _check_classes(f"the pretrained teacher {name}", config.num_classes, classes)


def load_teacher(recipe: Recipe, preprocess: Mapping[str, Any], class_names: Sequence[str]) -> Teacher | None:
    """The recipe's teacher in eval mode, or None where it has none.

    Args:
        preprocess: the training's preprocessing.
        class_names: of the data.

    Raises:
        ConfigError: timm knows no such model, can't fetch its weights, or the teacher takes other channels or classes.
        CheckpointError: the weights can't be read, are no mere tensors, are not finite, or are of another number of classes.
    """
    check_teacher(recipe, len(class_names))
    if recipe.teacher is None:
        return None
    with preserved_globals():  # networks draw weights before they get theirs
        if recipe.teacher.endswith(".safetensors"):
            teacher = _own_model(recipe.teacher, preprocess, class_names)
        else:
            teacher = _timm_model(recipe.teacher, recipe.teacher_checkpoint, preprocess, len(class_names))
    for name, weights in teacher.model.state_dict().items():
        if not weights.isfinite().all():
            source = teacher.record["weights"] or recipe.teacher
            raise CheckpointError(f"{source}: the teacher's {name} holds numbers that are not finite; name other weights")
    return teacher


def check_same_teacher(teacher: Teacher | None, recorded: Mapping[str, Any] | None, where: str) -> None:
    """Refuses to go on with another teacher than the run began with. Runs of earlier versions record none.

    Raises:
        CheckpointError: its weights are others.
    """
    if teacher is not None and recorded is not None and teacher.record["sha256"] != recorded["sha256"]:
        now, then = (record["weights"] or record["model"] for record in (teacher.record, recorded))
        raise CheckpointError(
            f"{where}: the run learns from {then}, and the weights in {now} are not those that it began with; name the file that "
            f"holds them ({_OPTION}), or start a new run"
        )


def absolute_teacher(recipe: Recipe) -> Recipe:
    """The recipe with the full paths of its teacher's files, by which a run that is continued elsewhere finds them."""
    paths: dict[str, Any] = {
        key: str(Path(value).expanduser().absolute())
        for key in ("teacher", "teacher_checkpoint")
        if (value := getattr(recipe, key)) is not None and (key == "teacher_checkpoint" or value.endswith(".safetensors"))
    }
    return dataclasses.replace(recipe, **paths)


def _own_model(name: str, preprocess: Mapping[str, Any], class_names: Sequence[str]) -> Teacher:
    model, manifest = load_model(name), Path(name + ".json")
    about = read_json(manifest, "manifest") if manifest.is_file() else {}
    if model.num_classes != len(class_names):
        raise CheckpointError(
            f"{name}: the teacher has a head of {model.num_classes} classes, the data {len(class_names)}; "
            f"export one from a run on this data"
        )
    names = about.get("class_names")
    if names is not None and list(names) != list(class_names):
        other, here = next(pair for pair in zip(names, class_names, strict=True) if pair[0] != pair[1])
        raise CheckpointError(f"{name}: the teacher has other classes than the data: {other!r} in the place of {here!r}")
    # A model without its manifest is taken to have been trained on images like these.
    known = about.get("preprocess") or {**preprocess, "in_chans": model.architecture.in_chans}
    size = (known["in_chans"], *[model.architecture.image_size] * 2)
    config = {"input_size": size, **{key: known[key] for key in ("mean", "std", "interpolation")}}
    return Teacher(model, config, preprocess, name=name, weights=name)


def _timm_model(name: str, checkpoint: str | None, preprocess: Mapping[str, Any], classes: int) -> Teacher:
    state = _read_weights(checkpoint) if checkpoint is not None else None
    channels = _channels_of(name, state) if state is not None else None
    try:
        if state is None:
            network = timm.create_model(name, pretrained=True)  # with its own head: another one would be drawn at random
        else:
            network = timm.create_model(name, num_classes=classes, in_chans=channels)
            about: dict[str, Any] = vars(network)["pretrained_cfg"]
            head = _first(about.get("classifier"))
            if (weight := state.get(f"{head}.weight")) is not None:
                _check_classes(f"{checkpoint}: the teacher", len(weight), classes, CheckpointError)
            network.load_state_dict(state)
    except (CheckpointError, ConfigError):
        raise
    except Exception as error:  # timm, its hub and torch each raise their own kinds
        reason = " ".join(str(error).split())[:200]
        where = f"with the weights {checkpoint}" if checkpoint else f"with its pretrained weights (or name a file: {_OPTION})"
        raise ConfigError(f"the teacher {name} can't be made by timm {where}: {reason}") from None
    if state is None:  # a model from a hub says how many classes it has only now
        _check_classes(f"the pretrained teacher {name}", vars(network)["num_classes"], classes)
    config = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    if channels is not None:
        config["input_size"] = (channels, *config["input_size"][1:])
        if channels != len(config["mean"]):  # weights for grey images, of a model that timm has for colour
            config |= {key: [sum(config[key]) / len(config[key])] * channels for key in ("mean", "std")}
    about = vars(network)["pretrained_cfg"]
    full_name = f"{about['architecture']}.{about['tag']}" if about.get("tag") and ":" not in name else name
    return Teacher(network, config, preprocess, name=full_name, weights=checkpoint)


def _read_weights(path: str) -> dict[str, Tensor]:
    """The tensors in a file that timm, or ``torch.save``, wrote, or a safetensors file. Nothing in it is run.

    Raises:
        CheckpointError: it can't be read, or holds more than tensors.
    """
    try:
        state = load_state_dict(path, weights_only=True)
    except (AttributeError, EOFError):  # a list or another value; and an empty file
        state = {}
    except Exception as error:  # safetensors, torch and zipfile each raise their own kinds
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
            reason = "it is no file of weights alone, and others are not loaded because they can run code; save a state_dict"
        else:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path}: the teacher's weights can't be read ({reason})") from None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: the teacher's weights can't be read (it holds no state_dict of a model)")
    return state


def _channels_of(name: str, state: Mapping[str, Tensor]) -> int:
    """Channels of the images that weights are for, by their first convolution; 3 where it can't be told."""
    config = None if ":" in name else timm.get_pretrained_cfg(name)
    weight = state.get(f"{_first(config.first_conv)}.weight") if config is not None else None
    return weight.shape[1] if weight is not None and weight.ndim == 4 else 3


def _first(names: Any) -> Any:
    """timm's configurations name one module, or several."""
    return names[0] if isinstance(names, list | tuple) else names


def _check_classes(who: str, has: int, classes: int, error: type[ConfigError] | type[CheckpointError] = ConfigError) -> None:
    if has != classes:
        raise error(f"{who} has a head of {has} classes, the data {classes}; give weights whose head has {classes}: {_OPTION} FILE")


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
