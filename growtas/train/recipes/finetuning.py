"""Fine-tuning a model on another data set: a starting point for any set, and the paper's recipes (Section 4.1.2 and Table 3)."""

from __future__ import annotations

from functools import partial

from growtas.errors import ConfigError, choices
from growtas.train.recipe import Recipe
from growtas.train.recipes.entry import Entry

_SMALL_IMAGE = 64
"""Pixels a side up to which images are held in memory."""
_TARGETS = {
    "cifar10": ("torch/cifar10", 98.95),
    "cifar100": ("torch/cifar100", 91.04),
    "flowers": ("flowers-102", 98.21),
    "cars": ("stanford-cars", 92.38),
    "inat19": ("inat-2019", 77.94),
}
"""What ``--data`` is by default, and the accuracy that the paper reports. timm's create_dataset has no name for the last three (its
``torch/inaturalist`` is the set of 2021), so they are folders: ``train/CLASS/image.jpg`` and ``val/CLASS/image.jpg``."""


def transfer(target: str) -> Recipe:
    """``growtas finetune RUN --recipe transfer-cifar10 --data-dir FOLDER``; also cifar100, flowers, cars and inat19.

    The paper gives: SGD, 1,000 epochs, learning rate 0.01, weight decay 1e-4 (CIFAR-10, CIFAR-100, Flowers, Cars); AdamW, 360
    epochs, 7.5e-5 and 5e-2 (iNat-19). It follows "the standard protocol", which is DeiT's. From there, as DeiT's author wrote it
    (github.com/facebookresearch/deit, issues 45 and 105), is the rest: 768 images a step; no random erasing and no drop path with
    SGD; erasing 0.1 and drop path 0.1 on iNat; 5 epochs of warm-up, augmentation and smoothing as on ImageNet. Momentum 0.9 is
    DeiT's default. 224 pixels: the paper doesn't say. Not measured with growtas.

    Raises:
        ConfigError: another data set.
    """
    if target not in _TARGETS:
        raise ConfigError(f"no transfer recipe for {target!r}; there are some for {choices(_TARGETS)}")
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
    """``growtas finetune MODEL --data FOLDER``: a starting point for a model on a set of some thousand images.

    AdamW with little regularisation. Up to 64 pixels images are held in memory, shifted and flipped, and the learning rate is a
    third of what ``micro`` is trained with; larger ones get timm's transforms and a tenth of the usual rate. A starting point: the
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


ENTRIES = tuple(
    Entry(
        f"transfer-{target}",
        partial(transfer, target),
        "the paper, Section 4.1.2; what it leaves open from DeiT (its issues 45 and 105)",
        f"the paper (Table 3): {reported:.2f} % for a subnet of 22.4 M parameters from GrowTAS-S",
    )
    for target, (_, reported) in _TARGETS.items()
)
