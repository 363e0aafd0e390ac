"""Base class of training methods. A method chooses the subnets that a step updates, and the targets that they learn from."""

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
    """One forward and backward pass of a step. The gradients of a step's passes are summed.

    Attributes:
        subnet: the subnet that runs.
        labels: weight of the loss against the labels.
        soft: weight of the loss against the teacher's soft outputs.
        teacher: the teacher: ``first`` is the first pass of the same step; ``frozen`` is a copy of the largest subnet, made when
            :meth:`Strategy.keeps_teacher` first returned True.
        both_ends: whether the subnet runs on the trailing slices of all weights too. The logits of both runs are added.
    """

    subnet: Subnet
    labels: float = 1.0
    soft: float = 0.0
    teacher: Literal["first", "frozen"] = "first"
    both_ends: bool = False

    @property
    def runs(self) -> int:
        """Number of times that the subnet runs."""
        return 1 + self.both_ends


class Tools(Protocol):
    """The part of a training that a method may use. Every process gets the same results; their cost counts as the method's.

    Attributes:
        device: device of the weights.
    """

    device: torch.device

    @property
    def supernet(self) -> Supernet:
        """The supernet in training. A method must not change its weights or gradients."""
        ...

    @property
    def num_parts(self) -> int:
        """Number of different batches that :meth:`sample_batch` can return."""
        ...

    def accuracy(self, subnet: Subnet, count: int | None = None) -> float:
        """Measures a subnet's accuracy (0..1) on the first ``count`` monitored images of the search split (by default on all)."""
        ...

    def losses(self, subnets: Sequence[Subnet], count: int | None = None) -> list[float]:
        """Measures the mean cross-entropy of subnets on the same images as :meth:`accuracy`."""
        ...

    def sample_batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns images ``(n, C, H, W)`` and labels of batch ``index`` of the first epoch, on the device, without Mixup."""
        ...

    def count_macs(self, macs: float) -> None:
        """Adds multiply-accumulates that the trainer can't see to the method's cost. A backward pass is two forward passes."""
        ...


@dataclass(frozen=True)
class NoOptions:
    """Options of a method that has no options."""


class Strategy:
    """A training method.

    The drawn subnets depend on (seed, step) and :meth:`state` alone. So a resumed training needs no random generator's state, and
    all processes draw the same subnets without communication.

    Args:
        space: the search space, with the data's number of classes.
        recipe: the recipe of the training; :attr:`options` are read from its ``method_options``.

    Raises:
        ConfigError: an option is unknown (the message names the nearest known one), or a value is illegal.
    """

    name: ClassVar[str]
    """Name of the method, as for ``--method``."""
    Options: ClassVar[type[Any]] = NoOptions
    """Frozen dataclass of the method's options with their defaults."""

    def __init__(self, space: SearchSpace, recipe: Recipe) -> None:
        self.space, self.recipe = space, recipe
        known = [field.name for field in dataclasses.fields(self.Options)]
        for key in recipe.method_options:
            if key not in known:
                hint = nearest(key, known) or (f"its options are {choices(known)}" if known else "it has no options")
                raise ConfigError(f"method_options: the method {self.name} has no option {key!r}; {hint}")
        self.options: Any = self.Options(**recipe.method_options)
        check_fields(self.options, "method_options: ")

    def rng(self, step: int) -> np.random.Generator:
        """Returns the random generator of a step."""
        return np.random.default_rng((self.recipe.seed, step))

    def draw(self, step: int, epoch: float) -> Sequence[Pass]:
        """Returns the passes of a step, at least one. By default one subnet is drawn uniformly from the open subspace.

        Args:
            step: index of the step since the start of the training.
            epoch: the same place in epochs, a fraction.
        """
        return (Pass(sample(self.space, self.rng(step), self.subspace(epoch))),)

    def adapt(self, supernet: Supernet) -> None:
        """Adds parts to the supernet, or freezes some. Called before each training, when the supernet has its initial weights."""

    def router_rate(self, epoch: float) -> float:
        """Returns the learning rate of the experts' router, where the supernet has experts."""
        return 0.0

    @property
    def moment_sets(self) -> int:
        """Number of separate states of the optimiser, such as Adam's moments; the weights are the same for all."""
        return 1

    def moments(self, passes: Sequence[Pass]) -> int:
        """Returns the index of the optimiser's state that a step uses, below :attr:`moment_sets`."""
        return 0

    def learning_rate(self, scheduled: float, epoch: float, passes: Sequence[Pass]) -> float:
        """Returns the learning rate of a step.

        Args:
            scheduled: the rate of the recipe's schedule.
            epoch: the place of the step in epochs, a fraction.
            passes: the passes of the step.
        """
        return scheduled

    def stage(self, epoch: float) -> int:
        """Returns the index of the current stage, from 0."""
        return 0

    def subspace(self, epoch: float) -> Subspace:
        """Returns the open subspace, if the method describes it by caps."""
        return Subspace()

    def subspaces(self) -> tuple[Subspace, ...]:
        """Returns all subspaces of the training in order. Some subnets of each are measured during the training."""
        return (Subspace(),)

    def followed(self) -> dict[str, Subnet]:
        """Returns the subnets that are measured after every epoch and at the end: ``smallest``, ``middle`` and ``largest``."""
        return monitored(self.space)

    def prepare(self, tools: Tools) -> None:
        """Called once before the first step of a training, but not when the training is resumed."""

    def before_step(self, step: int, epoch: float, tools: Tools) -> None:
        """Called before the :meth:`draw` of every step."""

    def after_epoch(self, epochs: int, metrics: Mapping[str, Any]) -> None:
        """Called after each epoch.

        All that it changes must be part of :meth:`state`.

        Args:
            epochs: number of complete epochs.
            metrics: the epoch's line of ``metrics.jsonl``.
        """

    def converged(self, epochs: int) -> bool:
        """Whether the training ends after this number of complete epochs, because the method has nothing left to learn."""
        return False

    def keeps_teacher(self, epoch: float) -> bool:
        """Whether to keep a copy of the largest subnet as the frozen teacher now. Called before each step until there is one."""
        return False

    def state(self) -> dict[str, Any]:
        """Returns the method's state for a checkpoint, as JSON."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores the :meth:`state` of a checkpoint."""
