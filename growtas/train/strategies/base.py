"""A training method decides which subnets a step updates, and what each of them learns from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from growtas.errors import ConfigError, choices
from growtas.fields import check_fields, nearest
from growtas.growth import Subspace
from growtas.nn.supernet import Supernet
from growtas.sampling import sample
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.train.monitored_subnets import monitored
from growtas.train.recipe import Recipe


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a step; the gradients of a step's passes are summed.

    Attributes:
        subnet: what runs.
        labels: weight of the loss against the labels.
        soft: weight of the loss against the teacher's soft outputs.
        teacher: where those come from: ``first``, this step's first pass; ``frozen``, the largest subnet as it was when the
            strategy asked to keep it (:meth:`Strategy.keeps_teacher`).
    """

    subnet: Subnet
    labels: float = 1.0
    soft: float = 0.0
    teacher: Literal["first", "frozen"] = "first"


class Tools(Protocol):
    """What a strategy may ask of the training; the same answer on every process. What it costs is counted as the method's own.

    Attributes:
        device: where the weights are.
    """

    device: torch.device

    @property
    def supernet(self) -> Supernet:
        """The weights in training; a strategy leaves them and their gradients as they were."""
        ...

    @property
    def num_parts(self) -> int:
        """How many indices :meth:`sample_batch` gives something new for."""
        ...

    def accuracy(self, subnet: Subnet, count: int | None = None) -> float:
        """Accuracy (0..1) on the first ``count`` images (all, by default) of the search split's monitored part, in eval mode."""
        ...

    def sample_batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Training images ``(n, C, H, W)`` and labels of batch ``index`` of the first epoch, on the device, unmixed."""
        ...

    def count_macs(self, macs: float) -> None:
        """Book work that the trainer can't see, in multiply-accumulates (a backward pass is two forward passes)."""
        ...


@dataclass(frozen=True)
class NoOptions:
    """Settings of a method that has none."""


class Strategy:
    """A training method.

    Draws are functions of (seed, step) and of :meth:`state`, so that a resumed training needs no generator's state and every
    process agrees without talking to the others.

    Args:
        space: the search space, with the data's number of classes.
        recipe: the training; :attr:`options` are read from its ``method_options``.

    Raises:
        ConfigError: an unknown option (with the nearest known one), or a value that is not legal.
    """

    name: ClassVar[str]
    """What ``--method`` calls it."""
    Options: ClassVar[type[Any]] = NoOptions
    """A frozen dataclass of the method's own settings with defaults."""

    def __init__(self, space: SearchSpace, recipe: Recipe) -> None:
        self.space, self.recipe = space, recipe
        known = [field.name for field in dataclasses.fields(self.Options)]
        for key in recipe.method_options:
            if key not in known:
                hint = nearest(key, known) or f"it has {choices(known) or 'none'}"
                raise ConfigError(f"method_options: the method {self.name} has no option {key!r}; {hint}")
        self.options: Any = self.Options(**recipe.method_options)
        check_fields(self.options, "method_options: ")

    def rng(self, step: int) -> np.random.Generator:
        """The generator of a step."""
        return np.random.default_rng((self.recipe.seed, step))

    def draw(self, step: int, epoch: float) -> Sequence[Pass]:
        """The passes of a step, one or more; by default one subnet, uniformly from the open subspace.

        Args:
            step: counted from the start of the training.
            epoch: the same place in epochs, with its fraction.
        """
        return (Pass(sample(self.space, self.rng(step), self.subspace(epoch))),)

    def stage(self, epoch: float) -> int:
        """Index of the open stage, from 0."""
        return 0

    def subspace(self, epoch: float) -> Subspace:
        """The subspace that is open, as far as caps describe it."""
        return Subspace()

    def subspaces(self) -> tuple[Subspace, ...]:
        """Every subspace that is ever open, in order; their subnets are followed during the training."""
        return (Subspace(),)

    def followed(self) -> dict[str, Subnet]:
        """The subnets whose accuracy is measured every epoch and at the end, as ``smallest``, ``middle`` and ``largest``."""
        return monitored(self.space)

    def prepare(self, tools: Tools) -> None:
        """Called once, before the first step of a training (not when it is resumed)."""

    def before_step(self, step: int, epoch: float, tools: Tools) -> None:
        """Called before every step's :meth:`draw`."""

    def after_epoch(self, epochs: int, metrics: Mapping[str, Any]) -> None:
        """Called when ``epochs`` epochs are complete, with the line of ``metrics.jsonl``; what changes must be in :meth:`state`."""

    def keeps_teacher(self, epoch: float) -> bool:
        """Whether the largest subnet is to be kept as the frozen teacher from here on; asked before each step until it is."""
        return False

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold besides (seed, step), as JSON."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take a checkpoint's :meth:`state` back."""
