"""Teachers whose soft outputs a training learns from: any timm model, or one of growtas' own static ViTs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growtas.checkpoint import load_model
from growtas.errors import CheckpointError, ConfigError
from growtas.fields import nearest
from growtas.train.recipe import Recipe


class Teacher(nn.Module):
    """A frozen classifier that takes the training's images, whatever size and normalisation it was trained with.

    Args:
        model: images -> logits.
        size: height and width that the model wants, or None where it takes any.
        scale, shift: per channel, from the training's normalisation to the model's: ``images * scale + shift``.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int] | None, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.model, self.size = model.eval().requires_grad_(False), size
        self.register_buffer("scale", scale.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(1, -1, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Normalised training images ``(n, C, H, W)`` -> logits ``(n, classes)``."""
        x = images * self.get_buffer("scale") + self.get_buffer("shift")
        if self.size is not None and x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode="bicubic", antialias=True)
        logits: Tensor = self.model(x)
        return logits


def check_teacher(recipe: Recipe) -> None:
    """Refuse a teacher that is named wrongly, before anything is opened; nothing is loaded.

    Raises:
        ConfigError: timm knows no such model.
        CheckpointError: a file is absent.
    """
    name, checkpoint = recipe.teacher, recipe.teacher_checkpoint
    if name is None:
        return
    if name.endswith(".safetensors"):
        if not Path(name).is_file():
            raise CheckpointError(f"{name}: no such safetensors file with a teacher")
        return
    if checkpoint is not None and not (checkpoint.endswith(".safetensors") and Path(checkpoint).is_file()):
        raise CheckpointError(f"{checkpoint}: no such safetensors file with a teacher's weights")
    # A name with a source, as in hf-hub:timm/..., is looked up there.
    if ":" not in name and not timm.is_model(name):
        hint = nearest(name.partition(".")[0], timm.list_models())
        raise ConfigError(f"teacher is {name!r}; it must be a model of timm{f' ({hint})' if hint else ''} or a model.safetensors")


def load_teacher(recipe: Recipe, record: Mapping[str, Any], classes: int) -> Teacher | None:
    """The recipe's teacher in eval mode, or None where it has none.

    Args:
        record: the training's preprocessing.
        classes: what the data has.

    Raises:
        ConfigError: timm knows no such model, or has no weights for it.
        CheckpointError: the weights can't be read, or are of another number of classes.
    """
    channels = record["in_chans"]
    if recipe.teacher is None:
        return None
    if recipe.teacher.endswith(".safetensors"):
        model = load_model(recipe.teacher)
        if model.num_classes != classes:
            raise CheckpointError(f"{recipe.teacher}: the teacher has {model.num_classes} classes, the data {classes}")
        side = model.architecture.image_size
        return Teacher(model, (side, side), torch.ones(channels), torch.zeros(channels))
    check_teacher(recipe)
    checkpoint = recipe.teacher_checkpoint
    try:
        network = timm.create_model(
            recipe.teacher, checkpoint is None, checkpoint_path=checkpoint or "", num_classes=classes, in_chans=channels
        )
    except Exception as error:  # timm, its hub and torch each raise their own kinds
        reason = " ".join(str(error).split())[:200]
        where = f"with the weights {checkpoint}" if checkpoint else "with its pretrained weights (or name some: teacher_checkpoint)"
        raise ConfigError(f"the teacher {recipe.teacher} can't be made by timm {where}: {reason}") from None
    config: Mapping[str, Any] = getattr(network, "pretrained_cfg")  # noqa: B009 (nn.Module's attributes are tensors or modules to mypy)
    mean, std = (_channels(config.get(key, 0.5), channels) for key in ("mean", "std"))
    data_mean, data_std = (_channels(record[key], channels) for key in ("mean", "std"))
    size = tuple(config["input_size"][-2:]) if config.get("fixed_input_size") else None
    return Teacher(network, size, data_std / std, (data_mean - mean) / std)


def _channels(values: Any, count: int) -> Tensor:
    tensor = torch.tensor(values, dtype=torch.float32).reshape(-1)
    return tensor if len(tensor) == count else tensor.mean().expand(count).clone()
