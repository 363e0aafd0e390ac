"""The preprocessing of images: its record in ``run.json`` and in every artifact's manifest, and the transforms built from it.

The record holds ``image_size`` (pixels), ``in_chans``, ``mean`` and ``std`` (one number per channel, for values from 0 to 1),
``interpolation``, ``crop_pct`` and ``decode``. First a file becomes 8-bit grey or RGB by the rules in ``decode``
(:mod:`growtas.data.decode`). Then timm's evaluation transforms resize the short side to ``image_size / crop_pct``, crop the middle,
divide the values by 255, and normalise them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import auto_augment, create_transform
from torch import Tensor

from growtas.data.decode import DecodeRules, middle
from growtas.data.sources import Data
from growtas.space import SearchSpace

_SMALL_IMAGE = 64


def preprocess_record(space: SearchSpace, data: Data, pixel_range: tuple[float, float] | None = None) -> dict[str, Any]:
    """Makes the preprocessing record for a data set and a search space.

    If the network's input has up to 64 pixels per side, images are not cropped (``crop_pct`` 1); for larger inputs, ``crop_pct`` is
    timm's usual 0.875.

    Args:
        space: the search space, for image size and channels.
        data: the data set, for mean and standard deviation.
        pixel_range: see :class:`growtas.data.decode.DecodeRules`.
    """
    mean, std = data.mean, data.std
    if space.in_chans == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return {
        "image_size": space.image_size,
        "in_chans": space.in_chans,
        "mean": [round(value, 6) for value in mean],
        "std": [round(value, 6) for value in std],
        "interpolation": "bicubic",
        "crop_pct": 1.0 if space.image_size <= _SMALL_IMAGE else 0.875,
        "decode": DecodeRules(pixel_range=pixel_range).to_dict(),
    }


def color_mode(record: Mapping[str, Any]) -> str:
    """Returns Pillow's mode for a record: L for one channel, RGB for three."""
    return "L" if record["in_chans"] == 1 else "RGB"


def geometry(record: Mapping[str, Any], mode: str | None = None) -> Callable[[Image.Image], Tensor]:
    """Builds the preprocessing without normalisation: image -> uint8 ``(C, image_size, image_size)``.

    Args:
        record: the preprocessing record.
        mode: colour mode of the result; by default the record's.
    """
    mode, rules = mode or color_mode(record), DecodeRules.of(record)
    transform = create_transform(**_arguments(record), normalize=False)

    def apply(image: Image.Image) -> Tensor:
        upright = rules.apply(image, mode)
        rows, columns = middle(upright.height, upright.width)
        box = (columns.start, rows.start, columns.stop, rows.stop)
        resized: Tensor = transform(upright if box == (0, 0, *upright.size) else upright.crop(box))
        return resized

    return apply


def normalise(pixels: Tensor, record: Mapping[str, Any]) -> Tensor:
    """Normalises uint8 ``(n, C, H, W)`` to float32 ``(n, in_chans, H, W)``; a single channel is repeated."""
    values = pixels.to(torch.float32).div_(255)
    if values.shape[1] != record["in_chans"]:
        values = values.expand(-1, record["in_chans"], -1, -1)
    shape = (1, -1, 1, 1)
    mean = torch.tensor(record["mean"], device=pixels.device).view(shape)
    return (values - mean).div_(torch.tensor(record["std"], device=pixels.device).view(shape))


def array_normaliser(record: Mapping[str, Any]) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Builds :func:`normalise` for arrays: with bit-identical results, in few passes, and on the calling thread only."""
    channels: int = record["in_chans"]
    mean, std = (np.array(record[key], np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    same_for_all = (mean == mean[:, :1]).all() and (std == std[:, :1]).all()

    def apply(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        values = pixels.astype(np.float32)
        values /= np.float32(255)
        if values.shape[1] == channels:
            values -= mean
            values /= std
            return values
        if not same_for_all:
            return np.divide(values - mean, std)
        # All channels are equal, so only one is computed.
        values -= mean[:, :1]
        values /= std[:, :1]
        return np.repeat(values, channels, 1)

    return apply


def evaluation_transform(record: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    """Builds the whole preprocessing: image of any mode and size -> float32 ``(in_chans, image_size, image_size)``."""
    resize = geometry(record)
    return lambda image: normalise(resize(image)[None], record)[0]


def training_transform(record: Mapping[str, Any], **augmentation: Any) -> Callable[[Image.Image], Tensor]:
    """Builds timm's training transforms, which use the global random generators.

    Args:
        record: the preprocessing record.
        augmentation: options of timm's ``create_transform``, such as ``auto_augment``, ``re_prob``, ``hflip`` and ``color_jitter``.
    """
    arguments = {key: value for key, value in _arguments(record).items() if key != "crop_pct"}
    transform = create_transform(
        **arguments, is_training=True, mean=tuple(record["mean"]), std=tuple(record["std"]), re_mode="pixel", **augmentation
    )
    _limit_posterize(transform)
    mode, rules = color_mode(record), DecodeRules.of(record)

    def apply(image: Image.Image) -> Tensor:
        augmented: Tensor = transform(rules.apply(image, mode))
        return augmented

    return apply


def _limit_posterize(transform: Any) -> None:
    """Makes timm's posterize keep at least one bit.

    At its strongest level, RandAugment asks for zero bits, for which Pillow 13 raises a ValueError.
    """
    for step in transform.transforms:
        ops = [*getattr(step, "ops", ()), *(op for policy in getattr(step, "policy", ()) for op in policy)]
        for op in ops:
            if op.aug_fn is auto_augment.posterize:
                op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    return auto_augment.posterize(image, max(bits, 1), **options)  # type: ignore[no-untyped-call]


def _arguments(record: Mapping[str, Any]) -> dict[str, Any]:
    size = record["image_size"]
    return {
        "input_size": (record["in_chans"], size, size),
        "interpolation": record["interpolation"],
        "crop_pct": record["crop_pct"],
    }
