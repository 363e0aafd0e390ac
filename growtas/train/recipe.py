"""A training recipe: every number that decides what a training does, checked when it is made."""

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

METHODS = ("growtas", "growtas-plus", "uniform", "sandwich", "shrinking", "prenas", "focusformer")
"""What ``--method`` takes; ``finetune`` is what ``growtas finetune`` does."""
STAGED = ("growtas", "growtas-plus")
"""Methods to which stages, subspaces and transitions mean something."""


# timm itself passes over sections that it does not know, and takes any number.
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
    """How a supernet is trained.

    Attributes:
        name: what the recipe is called in ``run.json``.
        space: search space, a preset's name or a YAML file.
        image_size: pixels a side of the network's images, to which the space is adapted; null for the space's own.
        data: data set, as ``--data`` takes it.
        method: how subnets are chosen, a name of :data:`METHODS`; each has its file in ``strategies/``.
        method_options: the method's own settings, named in its file.
        init: a run or a ``supernet.safetensors`` whose weights the training starts from; ``growtas-plus`` needs one.
        epochs: passes over the training images.
        batch_size: images a step, over all processes and parts together.
        accumulate: parts that a process splits its share of a batch into, one after the other, to save memory.
        optimizer: ``adamw``, or ``sgd`` with Nesterov's momentum.
        momentum: of ``sgd``.
        lr: peak learning rate.
        min_lr: learning rate at the end of the cosine.
        warmup_epochs: epochs of linear warm-up; fractions are legal.
        warmup_lr: learning rate at the first step of the warm-up.
        weight_decay: of matrices only; biases, norms, cls token, positions and relative tables have none.
        label_smoothing: probability mass spread over all classes.
        mixup: alpha of Mixup's Beta distribution, 0 for none.
        cutmix: alpha of CutMix's Beta distribution, 0 for none; with both, each batch takes either with equal chance.
        drop_path: stochastic depth of the supernet's last block, growing linearly from 0 at the first.
        pixel_range: values of black and white in images of more than 8 bits a sample, as in [0, 4095]; null: the ends of the type.
        augment: ``none``; ``light``: images in memory, random shift and flip; ``paper``: timm's transforms, image by image.
        crop_padding: pixels of the random shift of ``light``.
        hflip: probability of a horizontal flip.
        auto_augment: timm's policy name such as ``rand-m9-mstd0.5-inc1``, or null; ``paper`` only.
        random_erasing: probability of erasing a rectangle; ``paper`` only.
        color_jitter: strength of the colour jitter where there is no auto_augment; ``paper`` only.
        repeated_aug: times that a drawn image comes in an epoch of unchanged length, 1 for once; ``paper`` only.
        transitions: T_1 to T_{K-1} of ``growtas`` in epochs, ``auto`` for when a subspace has converged, or null for equal stages.
        stages: number K of nested subspaces of ``growtas``, spread over the choices of embed_dim.
        subspaces: caps of A_1 to A_K as [max_embed_dim, max_mlp_ratio] pairs with null for no cap, or null for ``stages``.
        search_images: images of the search split, at most a fifth of the training set.
        monitor_images: images of the search split on which three subnets are measured every epoch, at most 2,000.
        clip_grad: largest norm of the gradient, or null.
        amp: ``fp32``; ``bf16`` or ``fp16`` autocast (``fp16`` with a loss scaler); ``auto``: bf16 on a GPU that has it, else fp32.
        ema_decay: decay of an exponential moving average of the weights, which is then what a checkpoint's supernet holds, or null.
        teacher: a timm model, or a growtas ``model.safetensors``, from whose soft outputs every pass learns too, or null.
        teacher_checkpoint: file of a timm teacher's weights, whose head has the data's classes; without it timm fetches its
            pretrained ones.
        teacher_weight: share of the loss that the teacher gets; the labels get the rest.
        temperature: that soft outputs of teachers are divided by.
        keep_checkpoints: how many of the newest are kept, besides the best.
        save_minutes: a checkpoint is written within an epoch too after so many minutes; 0 for never.
        probe_epochs: every how many epochs the probe subnets are measured.
        seed: of initialisation, image order, augmentation and sampling.
        workers: processes that decode images for ``paper``, as far as there are CPUs; the number does not change the result.
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
                        f"{key} is {getattr(self, key)!r}, which augment: {self.augment} doesn't do; set augment: paper"
                    )
        if self.subspaces is not None and self.method not in STAGED:
            raise ConfigError(f"subspaces is set, but the method {self.method} has no stages; leave it out or set method: growtas")
        if self.transitions is not None and self.method != "growtas":
            raise ConfigError(
                f"transitions is set, but the method {self.method} has no transitions; leave it out or set method: growtas"
            )
        if self.method == "growtas-plus" and self.init is None:
            raise ConfigError("growtas-plus goes on from a trained supernet; name its run with init (--init RUN)")
        for source in (self.teacher, self.teacher_checkpoint):
            if source is not None and "://" in source:  # timm's own local-dir:/FOLDER has one slash
                refuse_url(source, ConfigError)
        if self.teacher_checkpoint is not None and self.teacher is None:
            raise ConfigError("teacher_checkpoint is set without a teacher; name the timm model with teacher (--teacher MODEL)")

    def search_space(self) -> SearchSpace:
        """The search space, adapted to the image size.

        Raises:
            SpaceError: no such space, or an image size that can't be cut into patches as the space needs them.
        """
        space = load_space(self.space)
        return space if self.image_size is None else space.resized(self.image_size)

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
        transitions = self.transitions if isinstance(self.transitions, tuple) else None
        return growth_schedule(space, self.epochs, transitions=transitions, subspaces=subspaces, stages=self.stages)

    def to_dict(self) -> dict[str, Any]:
        """The JSON and YAML form, read back by :meth:`from_dict`."""
        return {key: _lists(value) for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
        """Build a recipe from a mapping of its fields; those that are absent have their defaults.

        Raises:
            ConfigError: an unknown key (with the nearest known one), or a wrong value.
        """
        check_known_fields(data, source)
        try:
            return cls(**data)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None

    def override(self, *layers: Mapping[str, Any]) -> Recipe:
        """A copy with some fields changed, layer by layer; values are checked when all are in place.

        What hangs on a changed field goes with it where the same layer doesn't give it too: warm-up and transitions scale with
        ``epochs``, transitions are reset by ``stages`` or ``subspaces``, and by a method without stages. ``method_options`` are
        added to those of the same method, and replace another method's.

        Raises:
            ConfigError: an unknown key or a wrong value.
        """
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        for layer in layers:
            check_known_fields(layer, "recipe")
            values = _changed(values, layer)
        return Recipe(**values)


def _changed(values: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Fields after one layer of :meth:`Recipe.override`; nothing is known to be legal yet."""
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
    """Whether a field holds a number with a fraction."""
    return field.type in ("float", "float | None")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def check_known_fields(data: Any, source: str) -> None:
    """Refuses anything but a mapping of a recipe's fields.

    Raises:
        ConfigError: naming the unknown field and the nearest known one.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{source}: a recipe is a mapping of fields such as epochs, lr and batch_size")
    check_keys(data, [field.name for field in dataclasses.fields(Recipe)], source)
