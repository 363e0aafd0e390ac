"""The recipes that come with growtas, and which one a space and a data set get by default.

A docstring gives the command, where the numbers come from, and the accuracy to expect, saying who measured it.
"""

from __future__ import annotations

from growtas.errors import ConfigError, choices
from growtas.train.recipe import Recipe

_PAPER_SPACES = {"autoformer-t": (250, 2e-5), "autoformer-s": (225, 2e-5), "autoformer-b": (200, 2e-7)}
"""T_1 in epochs of 500, and the last learning rate."""


def digits_demo() -> Recipe:
    """``growtas train``: the micro space on scikit-learn's digits.

    Chosen by trials. Measured (seed 0, 359 test images): smallest subnet 95.0 %, middle 95.8 %, largest 95.5 %, in 65 s on two CPU
    cores.
    """
    return Recipe(
        name="digits-demo",
        space="micro",
        data="digits",
        epochs=36,
        batch_size=32,
        lr=3e-3,
        min_lr=1e-5,
        warmup_epochs=1,
        crop_padding=1,
        hflip=0.0,
        label_smoothing=0.0,
        monitor_images=150,
        transitions=(20,),
    )


def fashion_mnist_micro() -> Recipe:
    """``growtas train --data fashion-mnist``: the micro space on Fashion-MNIST.

    Chosen by trials. Measured (seed 0, 10,000 test images): smallest subnet 84.6 %, middle 87.4 %, largest 87.3 %, in 11 minutes on
    two CPU cores that were partly busy with other work; the run was stopped and continued once.
    """
    return Recipe(
        name="fashion-mnist-micro",
        space="micro",
        data="fashion-mnist",
        epochs=9,
        batch_size=32,
        lr=3e-3,
        min_lr=1e-5,
        warmup_epochs=0.2,
        crop_padding=1,
        hflip=0.5,
        label_smoothing=0.0,
        monitor_images=1_000,
        transitions=(5,),
    )


def small_images(space: str, data: str) -> Recipe:
    """``growtas train --data FOLDER``: any space on images small enough to be held in memory.

    A starting point, not tuned for any set; no accuracy is claimed.
    """
    return Recipe(name="small-images", space=space, data=data, hflip=0.0 if data == "digits" else 0.5)


def paper(space: str, data: str = "imagenet") -> Recipe:
    """``growtas train --space autoformer-t --data FOLDER``: the paper's training on ImageNet.

    Numbers: the paper, Section 4.1.2; those it doesn't give (warm-up, weight decay, drop path, random erasing, and the strengths of
    Mixup, CutMix and smoothing) are AutoFormer's. The paper's batch is 128 on each of 8 GPUs; this is one process with 1,024
    images a step.

    The paper reports, after the search: T 75.2 % at 5.9 M, S 81.6 % at 22.9 M, B 82.6 % at 53.2 M parameters (Table 2). Not
    measured with growtas.

    Raises:
        ConfigError: not one of AutoFormer's spaces.
    """
    if space not in _PAPER_SPACES:
        raise ConfigError(f"the paper has no recipe for the space {space}; it has them for {choices(_PAPER_SPACES)}")
    transition, min_lr = _PAPER_SPACES[space]
    return Recipe(
        name=f"paper-{space}",
        space=space,
        data=data,
        epochs=500,
        batch_size=1_024,
        lr=1e-3,
        min_lr=min_lr,
        warmup_epochs=20,
        weight_decay=0.05,
        label_smoothing=0.1,
        mixup=0.8,
        cutmix=1.0,
        drop_path=0.1,
        augment="paper",
        auto_augment="rand-m9-mstd0.5-inc1",
        random_erasing=0.25,
        repeated_aug=3,
        transitions=(transition,),
        workers=8,
    )


def default_recipe(space: str, data: str) -> Recipe:
    """The recipe for a space and a data set, named as ``--space`` and ``--data`` take them."""
    if (space, data) == ("micro", "digits"):
        return digits_demo()
    if (space, data) == ("micro", "fashion-mnist"):
        return fashion_mnist_micro()
    if space in _PAPER_SPACES and data not in ("digits", "fashion-mnist"):
        return paper(space, data)
    return small_images(space, data)
