"""The preprocessing of images: its record in ``run.json`` and in every artifact's manifest, and the transforms built from it.

The record holds ``image_size``, ``in_chans``, ``mean``, ``std`` (0..1 units, one number a channel), ``interpolation`` and
``crop_pct``: the short side is resized to ``image_size / crop_pct``, the middle is cut out, values are divided by 255 and
normalised. These are timm's evaluation transforms. Its ``decode`` says how a file becomes 8-bit grey or RGB before that
(:mod:`growtas.data.decode`).
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


PREPROCESS = """``preprocess`` in ``run.json`` and in manifests: how an image becomes the network's input, in this order.

Fields:
    decode (object): How a file becomes 8-bit grey or RGB. Absent in runs of the first versions: Pillow's ``convert`` alone.
    decode.version (whole number): Version of these rules. A growtas that does not know it refuses the run or artifact.
    decode.pixel_range (list or null): Values of black and white in images of more than 8 bits a sample; null for the ends of the
        type.
    image_size (whole number): Height and width of the input in pixels. The short side is resized to ``image_size / crop_pct``, and
        the middle is cut out.
    crop_pct (number): See ``image_size``; 1 for no crop.
    interpolation (text): How images are resized: ``bicubic``.
    in_chans (whole number): 1 for grey, 3 for RGB.
    mean (list of numbers): Subtracted from each channel after the division by 255.
    std (list of numbers): The difference is divided by it, channel by channel.
"""


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
        rows, columns = middle(upright.height, upright.width)
        box = (columns.start, rows.start, columns.stop, rows.stop)
        resized: Tensor = transform(upright if box == (0, 0, *upright.size) else upright.crop(box))
        return resized

    return apply


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
