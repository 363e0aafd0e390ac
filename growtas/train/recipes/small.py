"""Recipes for small images and one CPU."""

from __future__ import annotations

from dataclasses import replace

from growtas.train.recipe import Recipe
from growtas.train.recipes.entry import Entry


def digits_demo() -> Recipe:
    """``growtas train``: the micro space on scikit-learn's digits.

    The training is short and its learning rate is high, so accuracies vary by several percentage points between seeds.
    :data:`ENTRIES` contains the measured accuracies.
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
    """``growtas train --data fashion-mnist``: the micro space on Fashion-MNIST; :data:`ENTRIES` has the measured accuracies."""
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
    """``growtas train --data FOLDER``: any space on images that fit in memory.

    A starting point that is not tuned for any data set; no accuracy is claimed.
    """
    return Recipe(name="small-images", space=space, data=data, hflip=0.0 if data == "digits" else 0.5)


ENTRIES = (
    Entry(
        "digits-demo",
        digits_demo,
        "chosen by trials",
        measured="359 test images, seed 0 and seed 1: smallest 93.0 and 89.7 %, middle 93.3 and 93.0 %, "
        "largest 91.9 and 93.6 %, in 70 to 120 s on two CPU cores",
    ),
    Entry(
        "fashion-mnist-micro",
        fashion_mnist_micro,
        "chosen by trials",
        measured="seed 0, 10,000 test images: smallest 84.6 %, middle 87.4 %, largest 87.3 %, "
        "in 11 minutes on two CPU cores partly busy with other work",
    ),
)


def with_experts(first: Recipe) -> Recipe:
    """``growtas train --method tas-lora --init RUN``: experts after a training with another recipe.

    The experts' learning rate rises to the paper's in the first tenth of the epochs, in which the router does not learn. The number
    of epochs, a fifth of that recipe's, is not tuned; no accuracy is claimed.

    Args:
        first: the recipe of the first training, or the default recipe for its space and data.
    """
    epochs = max(2, round(first.epochs / 5))
    return replace(
        first,
        name=f"{first.name}-lora",
        method="tas-lora",
        init="RUN",
        epochs=epochs,
        optimizer="adamw",
        lr=5e-4,
        min_lr=1e-5,
        warmup_lr=1e-5,
        warmup_epochs=epochs / 10,
        transitions=None,
        subspaces=None,
    )


def small_plus(first: Recipe) -> Recipe:
    """``growtas train --method growtas-plus --init RUN``: GrowTAS+ after a training with a small recipe.

    The proportions are the paper's (Section 4.1.2): 1/25 of the first training's epochs, and a learning rate that falls from 1/20
    to 1/100 of the first training's, without warm-up. A starting point that is not tuned; no accuracy is claimed.

    Args:
        first: the recipe of the first training, or the default recipe for its space and data.
    """
    return replace(
        first,
        name=f"{first.name}-plus",
        method="growtas-plus",
        init="RUN",
        epochs=max(1, round(first.epochs / 25)),
        lr=first.lr / 20,
        min_lr=first.lr / 100,
        warmup_epochs=0.0,
        transitions=None,
    )
