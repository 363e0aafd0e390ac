"""A training recipe: all settings of a training, checked when the recipe is created."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from growtas.data.decode import PIXEL_RANGE
from growtas.errors import ConfigError
from growtas.fields import RULE, Rule, check_fields, check_keys, checked, list_of, one_of, real, rule_of, text, text_like, whole
from growtas.files import refuse_url
from growtas.growth import GrowthSchedule, Subspace, growth_schedule
from growtas.space import SearchSpace, load_space

METHODS = (
    "growtas", "growtas-plus", "uniform", "sandwich", "shrinking", "prenas", "focusformer",
    "dynas", "greedynas", "shiftnas", "vitas", "tas-lora", "single",
)  # fmt: skip
"""Legal values of ``--method``. ``growtas finetune`` uses the method ``finetune``, which is not among them."""
CONTINUING = ("growtas-plus", "tas-lora")
"""Methods that continue from a trained supernet."""
STAGED = ("growtas", "growtas-plus")
"""Methods that train in stages and therefore use ``stages`` and ``subspaces``."""


# Checked here because timm ignores sections that it does not know and accepts any number.
_RAND = r"rand(-(m\d{1,2}|n[1-9]\d?|mstd\d{1,3}(\.\d+)?|mmax\d{1,2}|p(0(\.\d+)?|1(\.0*)?)|inc[01]|t(weights|3a|3aw)))*"
_AUGMIX = r"augmix(-(m\d{1,2}|w[1-9]|d[1-9]|a\d{1,2}(\.\d+)?|b[01]|mstd\d{1,3}(\.\d+)?))*"
_POLICY = text_like(
    rf"{_RAND}|{_AUGMIX}|(original|originalr|v0|v0r|3a)(-mstd\d{{1,3}}(\.\d+)?)?",
    "a policy of timm (rand or augmix with sections, as in rand-m9-mstd0.5-inc1, original, originalr, v0, v0r, 3a)",
)
_EPOCHS = list_of(real(0, above=True), "a list of epochs above zero", empty=True)
_CAP = real(0, 1e6, above=True).or_null()
_CAPS = Rule(lambda value: isinstance(value, list | tuple) and len(value) == 2 and all(map(_CAP.accepts, value)), "two caps")
_SUBSPACES = list_of(_CAPS, "a list of [max_embed_dim, max_mlp_ratio] pairs with null for no cap")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a training.

    Attributes:
        name: name of the recipe, recorded in ``run.json``.
        space: search space: the name of a preset, or a YAML file.
        image_size: height and width of the network's images in pixels; the space is adapted to it. Null keeps the space's size.
        data: data set, in the same form as the option ``--data``.
        method: training method, which chooses the subnets of each step: one of ``growtas``, ``growtas-plus``, ``uniform``,
            ``sandwich``, ``shrinking``, ``prenas``, ``focusformer``, ``dynas``, ``greedynas``, ``shiftnas``, ``vitas``,
            ``tas-lora``, ``single``; ``growtas finetune`` sets ``finetune``.
        method_options: mapping of settings that belong to the chosen method alone.
        init: a run folder or a ``supernet.safetensors`` file whose weights the training starts from; ``growtas-plus`` and
            ``tas-lora`` need one. Null starts from random weights.
        epochs: number of passes over the training images.
        batch_size: images per optimiser step, summed over all processes and parts.
        accumulate: number of parts into which each process splits its share of a batch. It computes them one after the other to
            save memory.
        optimizer: ``adamw``, or ``sgd`` with Nesterov momentum.
        momentum: momentum of ``sgd``; ``adamw`` ignores it.
        lr: peak learning rate.
        min_lr: learning rate at the end of the cosine schedule.
        warmup_epochs: length of the linear warm-up in epochs; fractions are legal.
        warmup_lr: learning rate at the first step of the warm-up.
        weight_decay: weight decay of the weight matrices. Biases, norms, cls token, position embeddings and relative position
            tables have none.
        label_smoothing: probability mass that is taken from the true class and spread evenly over all classes.
        mixup: alpha of Mixup's Beta distribution; 0 disables Mixup.
        cutmix: alpha of CutMix's Beta distribution; 0 disables CutMix. With both enabled, each batch uses one of them, chosen at
            random with equal probability.
        drop_path: drop path rate (stochastic depth) of the supernet's last block; it grows linearly from 0 at the first block.
        pixel_range: pixel values of black and white in images with more than 8 bits per sample, such as [0, 4095]. Null takes the
            limits of the image's data type.
        augment: augmentation. ``none``; ``light`` keeps the images in memory and applies a random shift and flip; ``paper`` decodes
            each image when it is needed and applies timm's training transforms.
        crop_padding: largest random shift in pixels; ``light`` only.
        hflip: probability of a horizontal flip.
        auto_augment: name of a timm policy such as ``rand-m9-mstd0.5-inc1``, or null for no policy; ``paper`` only.
        random_erasing: probability that a rectangle of an image is erased; ``paper`` only.
        color_jitter: strength of the colour jitter, which is used when ``auto_augment`` is null; ``paper`` only.
        repeated_aug: how often each drawn image appears in an epoch. The length of the epoch does not change; 1 disables the
            repetition; ``paper`` only.
        transitions: epochs T_1 to T_{K-1} at which ``growtas`` opens the next subspace. ``auto`` opens it when the current subspace
            has converged; null makes all stages equally long.
        stages: number K of nested subspaces of ``growtas``. Their caps are spread evenly over the choices of embed_dim.
        subspaces: caps of the subspaces A_1 to A_K as [max_embed_dim, max_mlp_ratio] pairs, where null means no cap. Null derives
            the caps from ``stages``.
        search_images: number of images in the search split; at most a fifth of the training set is used.
        monitor_images: number of images of the search split on which three subnets are measured after every epoch.
        clip_grad: largest norm of the gradient; larger gradients are scaled down to it. Null disables clipping.
        amp: precision of the training: ``fp32``, ``bf16`` or ``fp16`` autocast (``fp16`` uses a loss scaler). ``auto`` means bf16
            on a GPU that supports it, else fp32.
        ema_decay: decay of an exponential moving average of the weights; the supernet of a checkpoint then holds the average. Null
            disables the average.
        teacher: name of a timm model, a ``model.safetensors`` file of growtas, or a run (the largest subnet of its supernet), whose
            soft outputs are a second target of the training. Null trains without a teacher.
        teacher_checkpoint: file with the weights of a timm teacher; its head must have the data's classes. Null lets timm fetch its
            pretrained weights.
        teacher_weight: share of the loss that compares with the teacher, 0 to 1; the loss against the labels has the rest.
        temperature: number by which the logits of teacher and student are divided before the softmax.
        keep_checkpoints: number of newest checkpoints that are kept, in addition to the best one.
        save_minutes: longest time between two checkpoints within an epoch, in minutes; 0 saves only at the end of an epoch.
        patience: number of epochs without a higher mean accuracy of the monitored subnets after which the training ends early; only
            epochs of the last stage count. Null trains for all epochs.
        probe_epochs: interval, in epochs, at which the probe subnets are measured.
        seed: seed of initialisation, image order, augmentation and subnet sampling.
        workers: number of processes that decode images, at most one per available CPU. The number does not change the result;
            ``paper`` only.
    """

    name: str = checked("custom", text())
    space: str = checked("micro", text())
    image_size: int | None = checked(None, whole(1).or_null())
    data: str = checked("digits", text())
    method: str = checked("growtas", one_of(*METHODS, "finetune"))
    method_options: Mapping[str, Any] = field(
        default_factory=dict,
        hash=False,
        metadata={RULE: Rule(lambda value: isinstance(value, Mapping), "a mapping of the method's own options")},
    )
    init: str | None = checked(None, text().or_null())
    epochs: int = checked(30, whole(1, 100_000))
    batch_size: int = checked(128, whole(1, 10_000_000))
    accumulate: int = checked(1, whole(1, 100_000))
    optimizer: str = checked("adamw", one_of("adamw", "sgd"))
    momentum: float = checked(0.9, real(0, 0.9999))
    lr: float = checked(1e-3, real(0, 1000, above=True))
    min_lr: float = checked(1e-5, real(0, 1000))
    warmup_epochs: float = checked(1.0, real(0, 100_000))
    warmup_lr: float = checked(1e-6, real(0, 1000))
    weight_decay: float = checked(0.05, real(0, 1000))
    label_smoothing: float = checked(0.1, real(0, 0.99))
    mixup: float = checked(0.0, real(0, 1000))
    cutmix: float = checked(0.0, real(0, 1000))
    drop_path: float = checked(0.0, real(0, 0.99))
    pixel_range: tuple[float, float] | None = checked(None, PIXEL_RANGE)
    augment: str = checked("light", one_of("none", "light", "paper"))
    crop_padding: int = checked(2, whole(0, 1000))
    hflip: float = checked(0.5, real(0, 1))
    auto_augment: str | None = checked(None, _POLICY.or_null())
    random_erasing: float = checked(0.0, real(0, 1))
    color_jitter: float = checked(0.0, real(0, 10))
    repeated_aug: int = checked(1, whole(1, 1000))
    transitions: tuple[float, ...] | str | None = checked(
        None, Rule(lambda value: value in (None, "auto") or _EPOCHS.accepts(value), "a list of epochs above zero, auto, or null")
    )
    stages: int = checked(2, whole(1, 1000))
    subspaces: tuple[tuple[float | None, float | None], ...] | None = checked(None, _SUBSPACES.or_null())
    search_images: int = checked(10_000, whole(1, 100_000_000))
    monitor_images: int = checked(2_000, whole(1, 2_000))
    clip_grad: float | None = checked(None, real(0, 100_000, above=True).or_null())
    amp: str = checked("auto", one_of("auto", "fp32", "bf16", "fp16"))
    ema_decay: float | None = checked(None, real(0, 0.999999).or_null())
    teacher: str | None = checked(None, text().or_null())
    teacher_checkpoint: str | None = checked(None, text().or_null())
    teacher_weight: float = checked(0.5, real(0, 1))
    temperature: float = checked(1.0, real(0, 1000, above=True))
    keep_checkpoints: int = checked(2, whole(1, 100_000))
    save_minutes: float = checked(15.0, real(0, 500_000))
    patience: int | None = checked(None, whole(1, 100_000).or_null())
    probe_epochs: int = checked(1, whole(1, 100_000))
    seed: int = checked(0, whole(0, 2**32 - 1))
    workers: int = checked(0, whole(0, 256))

    def __post_init__(self) -> None:
        check_fields(self)
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if entry.name in ("transitions", "subspaces", "pixel_range") and value is not None:
                object.__setattr__(self, entry.name, _tuples(value))
            elif is_float(entry) and value is not None:
                object.__setattr__(self, entry.name, float(value))
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
                        f"{key} is {getattr(self, key)!r}, but augment: {self.augment} does not support it; set augment: paper"
                    )
        if self.subspaces is not None and self.method not in STAGED:
            raise ConfigError(f"subspaces is set, but the method {self.method} has no stages; leave it out or set method: growtas")
        if self.transitions is not None and self.method != "growtas":
            raise ConfigError(
                f"transitions is set, but the method {self.method} has no transitions; leave it out or set method: growtas"
            )
        if self.method in CONTINUING and self.init is None:
            raise ConfigError(f"{self.method} continues from a trained supernet; name its run with init (--init RUN)")
        for source in (self.teacher, self.teacher_checkpoint):
            if source is not None and "://" in source:  # timm's own local-dir:/FOLDER has one slash
                refuse_url(source, ConfigError)
        if self.teacher_checkpoint is not None and self.teacher is None:
            raise ConfigError("teacher_checkpoint is set without a teacher; name the timm model with teacher (--teacher MODEL)")

    def search_space(self) -> SearchSpace:
        """Returns the search space, adapted to the image size.

        Raises:
            SpaceError: the space is unknown, or it can't cut images of that size into patches.
        """
        space = load_space(self.space)
        return space if self.image_size is None else space.resized(self.image_size)

    def growth(self, space: SearchSpace) -> GrowthSchedule:
        """Returns the growth schedule of this recipe in a space.

        Raises:
            ConfigError: transitions, stages and subspaces don't fit each other or the space.
        """
        subspaces = None
        if self.subspaces is not None:
            caps = [[math.inf if cap is None else cap for cap in pair] for pair in self.subspaces]
            subspaces = [Subspace(dim, ratio) for dim, ratio in caps]
            if subspaces[-1].restrict(space) != space:
                raise ConfigError(f"the last of subspaces must be the whole space: [null, null], not {list(self.subspaces[-1])}")
        transitions = self.transitions if isinstance(self.transitions, tuple) else None
        return growth_schedule(space, self.epochs, transitions=transitions, subspaces=subspaces, stages=self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON and YAML form, which :meth:`from_dict` reads."""
        return {key: _lists(value) for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
        """Builds a recipe from a mapping of its fields; absent fields get their defaults.

        Raises:
            ConfigError: a key is unknown (the message names the nearest known one), or a value is illegal.
        """
        check_known_fields(data, source)
        try:
            return cls(**data)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None

    def override(self, *layers: Mapping[str, Any]) -> Recipe:
        """Returns a copy with some fields changed, layer by layer. Values are checked after the last layer.

        Fields that depend on a changed field change too, unless the same layer sets them: warm-up and transitions scale with
        ``epochs``; transitions are reset by ``stages``, by ``subspaces`` and by a method without stages. ``method_options`` are
        merged with those of the same method and replace those of another method.

        Raises:
            ConfigError: a key is unknown, or a value is illegal.
        """
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        for layer in layers:
            check_known_fields(layer, "recipe")
            values = _changed(values, layer)
        return Recipe(**values)


def _changed(values: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Applies one layer of :meth:`Recipe.override`. The values are not checked yet."""
    changes = dict(layer)
    method = changes.get("method", values["method"])
    if method != "growtas":
        changes.setdefault("transitions", None)
    if method not in STAGED:
        changes.setdefault("subspaces", None)
    if any(key in changes and _lists(changes[key]) != _lists(values[key]) for key in ("stages", "subspaces")):
        changes.setdefault("transitions", None)
    epochs = changes.get("epochs", values["epochs"])
    if epochs != values["epochs"] and all(rule_of(Recipe, "epochs").accepts(number) for number in (epochs, values["epochs"])):
        factor = epochs / values["epochs"]
        if rule_of(Recipe, "warmup_epochs").accepts(values["warmup_epochs"]):
            changes.setdefault("warmup_epochs", values["warmup_epochs"] * factor)
        transitions = values["transitions"]
        if isinstance(transitions, list | tuple) and rule_of(Recipe, "transitions").accepts(transitions):
            changes.setdefault("transitions", tuple(time * factor for time in transitions))
    if method != values["method"]:
        changes.setdefault("method_options", {})
    elif all(isinstance(source.get("method_options"), Mapping) for source in (values, changes)):
        changes["method_options"] = {**values["method_options"], **changes["method_options"]}
    return {**values, **changes}


def is_float(field: dataclasses.Field[Any]) -> bool:
    """Whether a field holds a floating-point number."""
    return field.type in ("float", "float | None")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def check_known_fields(data: Any, source: str) -> None:
    """Checks that ``data`` is a mapping whose keys are fields of a recipe.

    Raises:
        ConfigError: it is not; the message names the unknown field and the nearest known one.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{source}: a recipe must be a mapping of fields such as epochs, lr and batch_size")
    check_keys(data, [field.name for field in dataclasses.fields(Recipe)], source)
