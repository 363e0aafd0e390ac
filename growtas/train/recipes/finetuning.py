"""Recipes for fine-tuning a model on another data set: a general starting point, and the paper's (Section 4.1.2 and Table 3)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from growtas.errors import ConfigError, choices
from growtas.train.recipe import Recipe
from growtas.train.recipes.entry import Entry

_SMALL_IMAGE = 64
"""Largest image size in pixels for which images are kept in memory."""
_TARGETS = {
    "cifar10": ("torch/cifar10", 98.95),
    "cifar100": ("torch/cifar100", 91.04),
    "flowers": ("flowers-102", 98.21),
    "cars": ("stanford-cars", 92.38),
    "inat19": ("inat-2019", 77.94),
}
"""Default of ``--data``, and the accuracy that the paper reports. timm's create_dataset has no name for the last three (its
``torch/inaturalist`` is the data set of 2021), so they are folders: ``train/CLASS/image.jpg`` and ``val/CLASS/image.jpg``."""


def transfer(target: str) -> Recipe:
    """``growtas finetune RUN --recipe transfer-cifar10 --data-dir FOLDER``; also cifar100, flowers, cars and inat19.

    Numbers from the paper: SGD, 1,000 epochs, learning rate 0.01, weight decay 1e-4 (CIFAR-10, CIFAR-100, Flowers, Cars); AdamW,
    360 epochs, 7.5e-5 and 5e-2 (iNat-19). The paper follows "the standard protocol", which is DeiT's. DeiT's author describes the
    rest (github.com/facebookresearch/deit, issues 45 and 105): 768 images per step; no random erasing and no drop path with SGD;
    erasing 0.1 and drop path 0.1 on iNat; 5 epochs of warm-up; augmentation and smoothing as on ImageNet. Momentum 0.9 is DeiT's
    default. The paper does not state the image size; 224 pixels are assumed. Not measured with growtas.

    Args:
        target: ``cifar10``, ``cifar100``, ``flowers``, ``cars`` or ``inat19``.

    Raises:
        ConfigError: there is no recipe for the data set.
    """
    if target not in _TARGETS:
        raise ConfigError(f"there is no transfer recipe for {target!r}; legal are {choices(_TARGETS)}")
    large = target == "inat19"
    return Recipe(
        name=f"transfer-{target}",
        space="autoformer-s",
        data=_TARGETS[target][0],
        method="finetune",
        epochs=360 if large else 1_000,
        batch_size=768,
        optimizer="adamw" if large else "sgd",
        lr=7.5e-5 if large else 0.01,
        min_lr=1e-5,
        warmup_epochs=5,
        weight_decay=0.05 if large else 1e-4,
        label_smoothing=0.1,
        mixup=0.8,
        cutmix=1.0,
        drop_path=0.1 if large else 0.0,
        augment="paper",
        auto_augment="rand-m9-mstd0.5-inc1",
        random_erasing=0.1 if large else 0.0,
        repeated_aug=3,
        workers=8,
    )


def finetune_recipe(data: str, image_size: int) -> Recipe:
    """``growtas finetune MODEL --data FOLDER``: a starting point for a data set of a few thousand images.

    AdamW with little regularisation. Images of up to 64 pixels are kept in memory, shifted and flipped; the learning rate is a
    third of that for ``micro``. Larger images get timm's transforms and a tenth of the usual rate. A starting point: the
    only trial so far is in docs/notes/finetune.md. The paper's own recipes are those called transfer-....
    """
    small = image_size <= _SMALL_IMAGE
    return Recipe(
        name="finetune",
        space="finetune",
        data=data,
        method="finetune",
        epochs=20,
        batch_size=64,
        lr=1e-3 if small else 1e-4,
        min_lr=1e-6,
        warmup_epochs=1,
        weight_decay=0.05,
        label_smoothing=0.1,
        augment="light" if small else "paper",
        hflip=0.0 if data == "digits" else 0.5,
        auto_augment=None if small else "rand-m9-mstd0.5-inc1",
        workers=0 if small else 4,
    )


ELASTIC_METHOD = "growtas"
"""Default method of the elastic training of an imported model; docs/notes/imported.md compares it with others."""


def elastic_recipe(space: str, data: str, image_size: int) -> Recipe:
    """``growtas train --init RUN`` for a run of ``growtas import timm``: a short training of all subnets at once.

    The imported model is the teacher. The learning rate is a fifth of that of a fine-tuning: the weights are trained already, and
    at higher rates the large subnets lose more than the small ones gain. One small model was tried (docs/notes/imported.md).

    Args:
        space: the imported run's folder.
        data: as for ``--data``.
        image_size: height and width of the images in pixels.
    """
    recipe = finetune_recipe(data, image_size)
    return replace(
        recipe,
        name="elastic",
        lr=recipe.lr / 5,
        space=space,
        method=ELASTIC_METHOD,
        epochs=10,
        warmup_epochs=0.5,
        label_smoothing=0.0,
        teacher_weight=0.9,
        patience=3,
    )


ENTRIES = tuple(
    Entry(
        f"transfer-{target}",
        partial(transfer, target),
        "the paper, Section 4.1.2; what it leaves open from DeiT (its issues 45 and 105)",
        f"the paper (Table 3): {reported:.2f} % for a subnet of 22.4 M parameters from GrowTAS-S",
    )
    for target, (_, reported) in _TARGETS.items()
)
