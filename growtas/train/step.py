"""One step of a training: passes over each part of the batch, the sum over processes, and the optimiser's update."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.optim import Optimizer

from growtas.costs import count_costs
from growtas.data.loaders import Batch
from growtas.data.seeding import seed_globals
from growtas.distributed import World
from growtas.errors import DeviceError, TrainingError
from growtas.nn.supernet import Supernet, trailing_first
from growtas.nn.vit import VisionTransformer
from growtas.train.clock import Clock
from growtas.train.freezing import FrozenEntries
from growtas.train.optimizer import make_optimizer, make_router_optimizer
from growtas.train.recipe import Recipe
from growtas.train.strategies.base import Pass
from growtas.train.teacher import Teacher

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
BACKWARD = 2
"""Cost of a backward pass in forward passes."""


def autocast_type(amp: str, device: torch.device) -> torch.dtype | None:
    """Returns the autocast type for a recipe's ``amp`` on a device; None means float32.

    Raises:
        DeviceError: the device can't compute in this type.
    """
    if amp == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    if amp == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise DeviceError(f"{torch.cuda.get_device_name(device)} does not support bf16; set amp to fp16 or fp32")
    return _TYPES.get(amp)


def soft_cross_entropy(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the logits against a teacher's soft outputs (Hinton et al., 2015, Section 2).

    Both are divided by the temperature, and the loss is multiplied by its square.

    Args:
        logits, teacher: logits of student and teacher, ``(n, classes)``.
        temperature: above 0.
    """
    target = F.softmax(teacher.float() / temperature, dim=-1)
    return F.cross_entropy(logits / temperature, target) * temperature**2


@dataclass
class StepResult:
    """Result of a step.

    Attributes:
        losses: mean loss over the batch, for each pass.
        macs: multiply-accumulates of all passes, forward and backward, over all images and processes.
        extra_macs: multiply-accumulates of the frozen teacher.
        requests: number of processes that made each request.
    """

    losses: list[float]
    macs: float
    extra_macs: float
    requests: list[float]


@dataclass
class Training:
    """The objects that a training changes.

    Attributes:
        supernet: the supernet in training.
        optimizer: its optimiser.
        average: exponential moving average of the weights, or None.
        scaler: the loss scaler; its state is empty if it is not used.
        moments: the states of the optimiser that a method keeps apart; usually a single one.
        router: the optimiser of the experts' router, which has no state; None without experts.
        teacher: frozen copy of the largest subnet, if the method keeps one.
    """

    supernet: Supernet
    optimizer: Optimizer
    average: ModelEmaV3 | None
    scaler: torch.amp.GradScaler
    moments: list[Any]
    router: Optimizer | None = None
    teacher: VisionTransformer | None = None

    @classmethod
    def of(cls, supernet: Supernet, recipe: Recipe, device: torch.device, moment_sets: int = 1) -> Training:
        """Creates the objects for a new training of ``supernet`` by a recipe, with a number of states of the optimiser."""
        average = ModelEmaV3(supernet, recipe.ema_decay, use_warmup=True) if recipe.ema_decay is not None else None
        scaler = torch.amp.GradScaler(device.type, enabled=autocast_type(recipe.amp, device) == torch.float16)
        optimizer = make_optimizer(supernet, recipe)
        moments = [optimizer.state, *(type(optimizer.state)(dict) for _ in range(moment_sets - 1))]
        return cls(supernet, optimizer, average, scaler, moments, make_router_optimizer(supernet))

    def prepare_step(self, lr: float, moments: int, router_lr: float = 0.0) -> None:
        """Sets the learning rates of the next step, and the index of the optimiser's state that it uses."""
        self.optimizer.state = self.moments[moments]
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.router is not None:
            self.router.param_groups[0]["lr"] = router_lr

    @property
    def result(self) -> Supernet:
        """The supernet for evaluation, search and export: the moving average if there is one."""
        if self.average is None:
            return self.supernet
        module = self.average.module
        assert isinstance(module, Supernet)
        return module


class Stepper:
    """Runs the steps of a training.

    Args:
        training: the objects that a step changes.
        recipe: the recipe of the training.
        world: the processes of the training.
        device: the device of this process.
        teacher: external teacher for every pass that learns from labels.
        frozen: weights that must not change.
    """

    def __init__(
        self,
        training: Training,
        recipe: Recipe,
        world: World,
        device: torch.device,
        *,
        teacher: Teacher | None = None,
        frozen: FrozenEntries | None = None,
    ) -> None:
        self.training, self.supernet, self.recipe, self.world, self.device = training, training.supernet, recipe, world, device
        self.teacher, self.frozen = teacher, frozen
        self._type = autocast_type(recipe.amp, device)
        self._mixup = None
        if recipe.mixup or recipe.cutmix:
            classes, smoothing = self.supernet.space.num_classes, recipe.label_smoothing
            self._mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=smoothing, num_classes=classes)  # type: ignore[no-untyped-call]
        self._parameters = [parameter for parameter in self.supernet.parameters() if parameter.requires_grad]

    def __call__(
        self, step: int, batch: Batch, passes: Sequence[Pass], clock: Clock, requests: Callable[[], Sequence[bool]] = tuple
    ) -> StepResult:
        """Runs one step.

        Args:
            step: index of the step since the start of the training; it seeds Mixup and drop path.
            batch: images and labels of this process, all parts concatenated.
            passes: the passes of this step, the same on every process.
            clock: measures the activities of the step.
            requests: returns this process's requests, such as to save a checkpoint. It is called when the gradients are ready, and
                the requests are summed over all processes together with the gradients.

        Raises:
            TrainingError: a loss is not finite; nothing was updated.
        """
        accumulate = self.recipe.accumulate
        parts = accumulate * self.world.size
        self.supernet.zero_grad(set_to_none=True)
        losses = torch.zeros(len(passes), device=self.device)
        pieces = [tensor.to(self.device, non_blocking=True).chunk(accumulate) for tensor in batch]
        for index, (images, labels) in enumerate(zip(*pieces, strict=True)):
            self._part(step, self.world.rank * accumulate + index, parts, images, labels, passes, losses, clock)
        with clock("optimiser", step=True):
            totals = torch.cat([losses, torch.tensor([float(r) for r in requests()], device=self.device)])
            self.world.sum_gradients(self._parameters, totals)
            values = totals.tolist()
            for loss, chosen in zip(values, passes, strict=False):
                if not math.isfinite(loss):
                    raise TrainingError(
                        f"step {step + 1}: the loss is {loss} for the subnet ({chosen.subnet}); lower lr ({self.recipe.lr:g}) "
                        f"or set clip_grad; the last checkpoint is kept"
                    )
            self._update(step)
        images_seen = len(batch[0]) * self.world.size
        return StepResult(values[: len(passes)], *self._count_macs(passes, images_seen), values[len(passes) :])

    def _part(
        self,
        step: int,
        number: int,
        parts: int,
        images: Tensor,
        labels: Tensor,
        passes: Sequence[Pass],
        losses: Tensor,
        clock: Clock,
    ) -> None:
        """Runs forward and backward of every pass on one part of the batch."""
        seed_globals(self.recipe.seed, step)
        smoothing, target = self.recipe.label_smoothing, labels
        if self._mixup is not None:
            images, target = self._mixup(images, labels)
            smoothing = 0.0  # Mixup's targets are already smoothed
        if parts > 1:  # the parts share the random numbers of Mixup, but not those of drop path
            seed_globals(self.recipe.seed, step, number)
        with clock("forward", step=True):
            teacher_logits = self._soft_outputs(images, passes)
        for index, chosen in enumerate(passes):
            with clock("forward", step=True):
                with torch.autocast(self.device.type, self._type, enabled=self._type is not None):
                    logits = self.supernet(images, chosen.subnet)
                    if chosen.both_ends:
                        weights = trailing_first(self.supernet)
                        logits = logits + torch.func.functional_call(self.supernet, weights, (images, chosen.subnet))
                logits = logits.float()
                loss = self._loss(logits, target, smoothing, chosen, teacher_logits) / parts
            if index == 0:
                teacher_logits["first"] = logits.detach()
            with clock("backward", step=True):
                self.training.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            losses[index] += loss.detach()

    def _soft_outputs(self, images: Tensor, passes: Sequence[Pass]) -> dict[str, Tensor]:
        teacher_logits: dict[str, Tensor] = {}
        with torch.no_grad(), torch.autocast(self.device.type, self._type, enabled=self._type is not None):
            if self.teacher is not None:
                teacher_logits["external"] = self.teacher(images)
            if self.training.teacher is not None and self._learns_from_frozen(passes):
                teacher_logits["frozen"] = self.training.teacher(images)
        return teacher_logits

    def _loss(self, logits: Tensor, target: Tensor, smoothing: float, chosen: Pass, teacher_logits: dict[str, Tensor]) -> Tensor:
        loss, temperature = logits.new_zeros(()), self.recipe.temperature
        if chosen.labels:
            share = self.recipe.teacher_weight if "external" in teacher_logits else 0.0
            if share < 1:
                loss = loss + chosen.labels * (1 - share) * F.cross_entropy(logits, target, label_smoothing=smoothing)
            if share:
                loss = loss + chosen.labels * share * soft_cross_entropy(logits, teacher_logits["external"], temperature)
        # Before the frozen teacher exists, passes that need it learn from labels alone.
        if chosen.soft and chosen.teacher in teacher_logits:
            loss = loss + chosen.soft * soft_cross_entropy(logits, teacher_logits[chosen.teacher], temperature)
        return loss

    def _update(self, step: int) -> None:
        scaler, optimizer, average = self.training.scaler, self.training.optimizer, self.training.average
        optimizers = [optimizer, *filter(None, [self.training.router])]
        for each in optimizers:
            scaler.unscale_(each)
        if self.frozen is not None:
            self.frozen.clear_gradients()
        if self.recipe.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self.recipe.clip_grad)
        for each in optimizers:
            scaler.step(each)
        scaler.update()
        if self.frozen is not None:
            self.frozen.restore()
        if average is not None:
            average.update(self.supernet, step)
            if self.frozen is not None:
                self.frozen.restore_in(average.module)

    def _count_macs(self, passes: Sequence[Pass], images: int) -> tuple[float, float]:
        space = self.supernet.space
        forward = sum(chosen.runs * count_costs(space, chosen.subnet).macs for chosen in passes)
        teacher = count_costs(space, space.largest).macs if self._learns_from_frozen(passes) else 0
        return (1.0 + BACKWARD) * forward * images, float(teacher * images)

    def _learns_from_frozen(self, passes: Sequence[Pass]) -> bool:
        return self.training.teacher is not None and any(chosen.soft and chosen.teacher == "frozen" for chosen in passes)
