"""The legal values of a recipe's fields, each a check and the words that an error message uses for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from growtas.errors import choices

METHODS = ("growtas", "growtas-plus", "uniform", "sandwich", "shrinking", "prenas", "focusformer")
"""What ``--method`` takes; ``finetune`` is what ``growtas finetune`` does."""
STAGED = ("growtas", "growtas-plus")
"""Methods to which stages, subspaces and transitions mean something."""
AUGMENTS = ("none", "light", "paper")
OPTIMIZERS = ("adamw", "sgd")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

Check = tuple[Callable[[Any], bool], str]


def _whole(low: int, high: float = math.inf) -> Check:
    what = f"a whole number from {low} to {high:g}" if high < math.inf else f"a whole number of {low} or more"
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high, what


def _real(low: float, high: float = math.inf, *, above: bool = False, null: bool = False) -> Check:
    what = (
        f"a number above {low:g}"
        if above
        else f"a number of {low:g} or more"
        if high == math.inf
        else f"a number from {low:g} to {high:g}"
    )

    def check(value: Any) -> bool:
        if value is None:
            return null
        legal = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return legal and low <= value <= high and (value > low or not above)

    return check, what + (" or null" if null else "")


def _one_of(*names: str) -> Check:
    return lambda v: v in names, choices(names)


def _text(null: bool = False) -> Check:
    return lambda v: (v is None and null) or (isinstance(v, str) and bool(v)), "a text" + (" or null" if null else "")


def _epochs_list(value: Any) -> bool:
    check = _real(0, above=True)[0]
    return value is None or value == "auto" or (isinstance(value, list | tuple) and all(check(item) for item in value))


def _caps(value: Any) -> bool:
    check = _real(0, above=True, null=True)[0]
    return value is None or (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(pair, list | tuple) and len(pair) == 2 and all(check(cap) for cap in pair) for pair in value)
    )


LEGAL: dict[str, Check] = {
    "name": _text(),
    "space": _text(),
    "data": _text(),
    "method": _one_of(*METHODS, "finetune"),
    "epochs": _whole(1, 100_000),
    "batch_size": _whole(1),
    "lr": _real(0, above=True),
    "min_lr": _real(0),
    "warmup_epochs": _real(0),
    "warmup_lr": _real(0),
    "weight_decay": _real(0),
    "label_smoothing": _real(0, 0.99),
    "mixup": _real(0),
    "cutmix": _real(0),
    "drop_path": _real(0, 0.99),
    "augment": _one_of(*AUGMENTS),
    "crop_padding": _whole(0),
    "hflip": _real(0, 1),
    "auto_augment": _text(null=True),
    "random_erasing": _real(0, 1),
    "color_jitter": _real(0),
    "repeated_aug": _whole(1),
    "transitions": (_epochs_list, "a list of epochs above zero, auto, or null"),
    "stages": _whole(1),
    "subspaces": (_caps, "a list of [max_embed_dim, max_mlp_ratio] pairs with null for no cap, or null"),
    "search_images": _whole(1),
    "monitor_images": _whole(1, 2_000),
    "clip_grad": _real(0, above=True, null=True),
    "amp": _one_of(*PRECISIONS),
    "method_options": (lambda v: isinstance(v, Mapping), "a mapping of the method's own options"),
    "init": _text(null=True),
    "optimizer": _one_of(*OPTIMIZERS),
    "momentum": _real(0, 0.9999),
    "accumulate": _whole(1),
    "ema_decay": _real(0, 0.999999, null=True),
    "teacher": _text(null=True),
    "teacher_checkpoint": _text(null=True),
    "teacher_weight": _real(0, 1),
    "temperature": _real(0, above=True),
    "keep_checkpoints": _whole(1),
    "save_minutes": _real(0),
    "probe_epochs": _whole(1),
    "seed": _whole(0, 2**32 - 1),
    "workers": _whole(0, 256),
}
