"""The preprocessing of images: its record in ``run.json`` and in every artifact's manifest, and the transforms built from it.

The record holds ``image_size``, ``in_chans``, ``mean``, ``std`` (0..1 units, one number a channel), ``interpolation`` and
``crop_pct``: the short side is resized to ``image_size / crop_pct``, the middle is cut out, values are divided by 255 and
normalised. These are timm's evaluation transforms. Its ``decode`` says how a file becomes 8-bit grey or RGB before that
(:mod:`growtas.data.decode`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import auto_augment, create_transform
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from growtas.data.decode import DecodeRules
from growtas.data.sources import Data
from growtas.space import SearchSpace

_SMALL_IMAGE = 64
LONGEST = 32
"""How many times its short side the long side of an image may be that is resized whole; of a longer one only the middle is."""


def preprocess_record(space: SearchSpace, data: Data, pixel_range: tuple[float, float] | None = None) -> dict[str, Any]:
    """The record for a data set in a space.

    Images of up to 64 pixels are not cropped (``crop_pct`` 1), larger ones by timm's usual 0.875.

    Args:
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
    """Pillow's mode for a record: L for one channel, RGB for three."""
    return "L" if record["in_chans"] == 1 else "RGB"


def geometry(record: Mapping[str, Any], mode: str | None = None) -> Callable[[Image.Image], Tensor]:
    """Decode rules, resize and crop, without normalisation: image -> uint8 ``(C, image_size, image_size)``.

    Args:
        mode: colour mode to convert to, by default the record's.
    """
    mode, rules = mode or color_mode(record), DecodeRules.of(record)
    transform = create_transform(**_arguments(record), normalize=False)

    def apply(image: Image.Image) -> Tensor:
        upright = rules.apply(image, mode)
        if max(upright.size) > LONGEST * min(upright.size):
            return pil_to_tensor(_resized_middle(upright, record))
        resized: Tensor = transform(upright)
        return resized

    return apply


def _resized_middle(image: Image.Image, record: Mapping[str, Any]) -> Image.Image:
    """What the evaluation's resize and crop make of a very long image, without the whole of it in the new size.

    An image of 30,000 x 1 pixels would be 7.7 million pixels long where the short side becomes 256.
    """
    size, short = record["image_size"], math.floor(record["image_size"] / record["crop_pct"])
    box, cut = [], []
    for side in image.size:
        resized = short * side // min(image.size)
        scale = side / resized
        low = round((resized - size) / 2) * scale
        high = low + size * scale
        # Pillow's numbers are float32: near the cut's beginning they are exact enough. Bicubic reads two (new) pixels around.
        margin = math.ceil(3 * max(scale, 1))
        cut.append((max(math.floor(low) - margin, 0), min(math.ceil(high) + margin, side)))
        box.append((low - cut[-1][0], min(high, side) - cut[-1][0]))
    (left, right), (top, bottom) = cut
    (x0, x1), (y0, y1) = box
    part = image.crop((left, top, right, bottom))
    return part.resize((size, size), Image.Resampling[record["interpolation"].upper()], (x0, y0, x1, y1))


def normalise(pixels: Tensor, record: Mapping[str, Any]) -> Tensor:
    """uint8 ``(n, C, H, W)`` -> float32, normalised; one channel becomes ``in_chans`` channels."""
    values = pixels.to(torch.float32).div_(255)
    if values.shape[1] != record["in_chans"]:
        values = values.expand(-1, record["in_chans"], -1, -1)
    shape = (1, -1, 1, 1)
    mean = torch.tensor(record["mean"], device=pixels.device).view(shape)
    return (values - mean).div_(torch.tensor(record["std"], device=pixels.device).view(shape))


def array_normaliser(record: Mapping[str, Any]) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """:func:`normalise` for arrays, to the last bit, in few passes, and on the calling thread alone."""
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
        # The channels stay copies of one another: one is computed.
        values -= mean[:, :1]
        values /= std[:, :1]
        return np.repeat(values, channels, 1)

    return apply


def evaluation_transform(record: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    """The whole preprocessing: image of any mode and size -> float32 ``(in_chans, image_size, image_size)``."""
    resize = geometry(record)
    return lambda image: normalise(resize(image)[None], record)[0]


def training_transform(record: Mapping[str, Any], **augmentation: Any) -> Callable[[Image.Image], Tensor]:
    """timm's training transforms, which draw from the global random generators.

    Args:
        augmentation: ``auto_augment``, ``re_prob``, ``hflip``, ``color_jitter`` and the like of timm's ``create_transform``.
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
    """Let timm's posterize keep one bit at least.

    RandAugment asks for zero bits at the strongest level, which Pillow 13 refuses with a ValueError.
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
