"""A training recipe: every number that decides what a training does, checked when it is made."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.errors import ConfigError, choices
from growtas.growth import GrowthSchedule, Subspace, growth_schedule
from growtas.space import SearchSpace

METHODS = ("growtas", "uniform")
AUGMENTS = ("none", "light", "paper")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a supernet is trained.

    Attributes:
        name: what the recipe is called in ``run.json``.
        space: search space, a preset's name or a YAML file.
        data: data set, as ``--data`` takes it.
        method: ``growtas`` (progressive sampling) or ``uniform`` (every subnet at any time, as AutoFormer and SPOS).
        epochs: passes over the training images.
        batch_size: images a step.
        lr: peak learning rate of AdamW.
        min_lr: learning rate at the end of the cosine.
        warmup_epochs: epochs of linear warm-up; fractions are legal.
        warmup_lr: learning rate at the first step of the warm-up.
        weight_decay: of matrices only; biases, norms, cls token, positions and relative tables have none.
        label_smoothing: probability mass spread over all classes.
        mixup: alpha of Mixup's Beta distribution, 0 for none.
        cutmix: alpha of CutMix's Beta distribution, 0 for none; with both, each batch takes either with equal chance.
        drop_path: stochastic depth of the supernet's last block, growing linearly from 0 at the first.
        augment: ``none``; ``light``: images in memory, random shift and flip; ``paper``: timm's transforms, image by image.
        crop_padding: pixels of the random shift of ``light``.
        hflip: probability of a horizontal flip.
        auto_augment: timm's policy name such as ``rand-m9-mstd0.5-inc1``, or null; ``paper`` only.
        random_erasing: probability of erasing a rectangle; ``paper`` only.
        color_jitter: strength of the colour jitter where there is no auto_augment; ``paper`` only.
        repeated_aug: times that a drawn image comes in an epoch of unchanged length, 1 for once; ``paper`` only.
        transitions: T_1 to T_{K-1} of ``growtas`` in epochs, or null for equal stages.
        stages: number K of nested subspaces of ``growtas``, spread over the choices of embed_dim.
        subspaces: caps of A_1 to A_K as [max_embed_dim, max_mlp_ratio] pairs with null for no cap, or null for ``stages``.
        search_images: images of the search split, at most a fifth of the training set.
        monitor_images: images of the search split on which three subnets are measured every epoch, at most 2,000.
        clip_grad: largest norm of the gradient, or null.
        amp: bfloat16 autocast on a GPU; on a CPU training is float32 anyway.
        seed: of initialisation, image order, augmentation and sampling.
        workers: processes that decode images for ``paper``; the number does not change the result.
    """

    name: str = "custom"
    space: str = "micro"
    data: str = "digits"
    method: str = "growtas"
    epochs: int = 30
    batch_size: int = 128
    lr: float = 1e-3
    min_lr: float = 1e-5
    warmup_epochs: float = 1.0
    warmup_lr: float = 1e-6
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    drop_path: float = 0.0
    augment: str = "light"
    crop_padding: int = 2
    hflip: float = 0.5
    auto_augment: str | None = None
    random_erasing: float = 0.0
    color_jitter: float = 0.0
    repeated_aug: int = 1
    transitions: tuple[float, ...] | None = None
    stages: int = 2
    subspaces: tuple[tuple[float | None, float | None], ...] | None = None
    search_images: int = 10_000
    monitor_images: int = 2_000
    clip_grad: float | None = None
    amp: bool = True
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            check, legal = _LEGAL[field.name]
            if not check(value):
                raise ConfigError(f"{field.name} is {value!r}; it must be {legal}")
            if field.name in ("transitions", "subspaces") and value is not None:
                object.__setattr__(self, field.name, _tuples(value))
            elif _is_float(field) and value is not None:
                object.__setattr__(self, field.name, float(value))
        self._check_together()

    def _check_together(self) -> None:
        if self.min_lr > self.lr:
            raise ConfigError(f"min_lr is {self.min_lr:g}, above lr, which is {self.lr:g}")
        if self.warmup_epochs >= self.epochs:
            raise ConfigError(f"warmup_epochs is {self.warmup_epochs:g}; it must be below epochs, which is {self.epochs}")
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ConfigError(f"batch_size is {self.batch_size}; mixup and cutmix pair images and need an even one")
        if self.augment != "paper":
            neutral = {"auto_augment": None, "random_erasing": 0.0, "color_jitter": 0.0, "repeated_aug": 1}
            for key, value in neutral.items():
                if getattr(self, key) != value:
                    raise ConfigError(
                        f"{key} is {getattr(self, key)!r}, which augment: {self.augment} doesn't do; set augment: paper"
                    )
        if self.method != "growtas" and (self.transitions is not None or self.subspaces is not None):
            field = "transitions" if self.transitions is not None else "subspaces"
            raise ConfigError(f"{field} is set, but the method {self.method} has no stages; leave it out or set method: growtas")

    def growth(self, space: SearchSpace) -> GrowthSchedule:
        """The growth schedule in a space.

        Raises:
            ConfigError: transitions, stages and subspaces that don't fit each other or the space.
        """
        subspaces = None
        if self.subspaces is not None:
            caps = [[math.inf if cap is None else cap for cap in pair] for pair in self.subspaces]
            subspaces = [Subspace(dim, ratio) for dim, ratio in caps]
            if subspaces[-1].restrict(space) != space:
                raise ConfigError(f"the last of subspaces must be the whole space: [null, null], not {list(self.subspaces[-1])}")
        return growth_schedule(space, self.epochs, transitions=self.transitions, subspaces=subspaces, stages=self.stages)

    def to_dict(self) -> dict[str, Any]:
        """The JSON and YAML form, read back by :meth:`from_dict`."""
        return {key: _lists(value) for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
        """Build a recipe from a mapping of its fields; those that are absent have their defaults.

        Raises:
            ConfigError: an unknown key (with the nearest known one), or a wrong value.
        """
        check_keys(data, source)
        try:
            return cls(**data)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None

    def override(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with some fields changed.

        What hangs on a changed field goes with it where it isn't given too: warm-up and transitions scale with ``epochs``,
        transitions are reset by ``stages`` or ``subspaces``, and by a method without stages.

        Raises:
            ConfigError: an unknown key or a wrong value.
        """
        changes = dict(changes)
        check_keys(changes, "recipe")
        restaged = any(key in changes and _lists(changes[key]) != _lists(getattr(self, key)) for key in ("stages", "subspaces"))
        if restaged:
            changes.setdefault("transitions", None)
        epochs = changes.get("epochs", self.epochs)
        if _LEGAL["epochs"][0](epochs) and epochs != self.epochs:
            factor = epochs / self.epochs
            changes.setdefault("warmup_epochs", self.warmup_epochs * factor)
            if self.transitions is not None:
                changes.setdefault("transitions", tuple(t * factor for t in self.transitions))
        if changes.get("method", self.method) != "growtas":
            changes.setdefault("transitions", None)
            changes.setdefault("subspaces", None)
        return dataclasses.replace(self, **changes)


def check_keys(data: Any, source: str) -> None:
    """Refuse a mapping with keys that no recipe has.

    Raises:
        ConfigError: naming the key and the nearest known one.
    """
    known = [field.name for field in dataclasses.fields(Recipe)]
    if not isinstance(data, Mapping):
        raise ConfigError(f"{source}: a recipe is a mapping of fields such as epochs, lr and batch_size")
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {choices(known)}"
            raise ConfigError(f"{source}: unknown field {key!r}; {hint}")


def read_config(path: Path) -> dict[str, Any]:
    """The fields that a YAML file sets.

    Raises:
        ConfigError: it can't be read, is not YAML, or has unknown fields.
    """
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the recipe can't be read ({getattr(error, 'strerror', None) or 'not text'})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(f"{path}: not YAML{f' (line {mark.line + 1})' if mark else ''}") from None
    data = {} if data is None else data
    check_keys(data, str(path))
    # YAML 1.1 reads 1e-3 as text; people write learning rates that way.
    floats = {field.name for field in dataclasses.fields(Recipe) if _is_float(field)}
    return {key: _number(value) if key in floats else value for key, value in data.items()}


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _is_float(field: dataclasses.Field[Any]) -> bool:
    return field.type in ("float", "float | None")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


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
    return value is None or (isinstance(value, list | tuple) and all(check(item) for item in value))


def _caps(value: Any) -> bool:
    check = _real(0, above=True, null=True)[0]
    return value is None or (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(pair, list | tuple) and len(pair) == 2 and all(check(cap) for cap in pair) for pair in value)
    )


_LEGAL: dict[str, Check] = {
    "name": _text(),
    "space": _text(),
    "data": _text(),
    "method": _one_of(*METHODS),
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
    "transitions": (_epochs_list, "a list of epochs above zero, or null"),
    "stages": _whole(1),
    "subspaces": (_caps, "a list of [max_embed_dim, max_mlp_ratio] pairs with null for no cap, or null"),
    "search_images": _whole(1),
    "monitor_images": _whole(1, 2_000),
    "clip_grad": _real(0, above=True, null=True),
    "amp": (lambda v: isinstance(v, bool), "true or false"),
    "seed": _whole(0, 2**32 - 1),
    "workers": _whole(0, 256),
}
