"""Plans a training before it starts: stages, steps, learning rates, compute, memory and time."""

from __future__ import annotations

import bisect
import dataclasses
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from growtas.costs import Costs, count_costs
from growtas.data.evaluation import cut_search_split, search_indices
from growtas.data.loaders import cut_batches
from growtas.data.parts import Parts
from growtas.data.preprocess import preprocess_record
from growtas.data.report import DataReport, check_data
from growtas.data.sources import open_data
from growtas.errors import TrainingError
from growtas.growth import Subspace
from growtas.progress import SILENT, Progress
from growtas.sampling import sample
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.train.cost_estimates import MemoryEstimate, TimeEstimate, estimate_memory, time_passes
from growtas.train.image_loader import check_memory
from growtas.train.initial_weights import InitialWeights
from growtas.train.optimizer import make_scheduler
from growtas.train.recipe import Recipe
from growtas.train.session import pick_device
from growtas.train.step import BACKWARD
from growtas.train.strategies import make_strategy
from growtas.train.strategies.base import Pass, Strategy
from growtas.train.strategies.fixed import Fixed
from growtas.train.strategies.growtas_plus import ProgressivePlus
from growtas.train.strategies.shrinking import Shrinking
from growtas.train.strategies.vitas import Vitas
from growtas.train.teacher import check_teacher, load_teacher

_DRAWS = 256
"""Number of steps whose passes are drawn to compute the mean costs of a stage."""


@dataclass(frozen=True)
class StagePlan:
    """One stage of a training.

    Attributes:
        number: number of the stage, from 1.
        subspace: caps of the open subspace.
        subnets: number of different subnets that can be drawn; None if the method decides it during the training.
        smallest: costs of the smallest subnet that can be drawn, for one image.
        largest: costs of the largest subnet that can be drawn, for one image.
        first_epoch: start of the stage in epochs, possibly a fraction.
        epochs: length of the stage in epochs, possibly a fraction.
        steps: number of optimiser steps.
        passes: mean number of forward and backward passes per step.
        macs: mean multiply-accumulates of a step's forward passes, for one image.
    """

    number: int
    subspace: Subspace
    subnets: int | None
    smallest: Costs
    largest: Costs
    first_epoch: float
    epochs: float
    steps: int
    passes: float
    macs: float


@dataclass(frozen=True)
class TrainingPlan:
    """The plan of a training.

    Attributes:
        recipe: the recipe of the training.
        space: the search space, with the data's number of classes.
        device: device of the training, ``cpu`` or ``cuda``.
        processes: number of processes that share a batch.
        train_images: number of training images, without the search split.
        steps_per_epoch: optimiser steps per epoch.
        batch_images: images per step; smaller than the recipe's ``batch_size`` if there are fewer training images.
        stages: the stages in order.
        lr: learning rate of the first step, the highest learning rate, and the learning rate of the last step.
        memory: estimated peak memory of a process.
        time: estimated time; None if the device is not available on this machine.
        remarks: sentences about what the numbers do not include.
        data: the check of the data; None if the plan was made from a number of images alone.
    """

    recipe: Recipe
    space: SearchSpace
    device: str
    processes: int
    train_images: int
    steps_per_epoch: int
    batch_images: int
    stages: tuple[StagePlan, ...]
    lr: tuple[float, float, float]
    memory: MemoryEstimate
    time: TimeEstimate | None
    remarks: tuple[str, ...]
    data: DataReport | None = None

    @property
    def steps(self) -> int:
        """Number of optimiser steps of the whole training."""
        return sum(stage.steps for stage in self.stages)

    @property
    def images(self) -> int:
        """Number of images of all steps."""
        return self.steps * self.batch_images

    @property
    def passes(self) -> float:
        """Mean number of passes per step."""
        return sum(stage.passes * stage.steps for stage in self.stages) / self.steps

    @property
    def macs(self) -> float:
        """Multiply-accumulates of all passes without teachers. A backward pass counts as two forward passes."""
        return sum(stage.macs * stage.steps for stage in self.stages) * self.batch_images * (1 + BACKWARD)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form: counts, bytes, seconds, MACs."""
        return {
            "space": self.space.name,
            **{name: getattr(self, name) for name in ("device", "processes", "train_images", "steps_per_epoch", "batch_images")},
            **{name: getattr(self, name) for name in ("steps", "images", "passes", "macs")},
            "lr": dict(zip(("start", "peak", "end"), self.lr, strict=True)),
            "stages": [{**dataclasses.asdict(stage), "subspace": stage.subspace.to_dict()} for stage in self.stages],
            "memory_bytes": {**dataclasses.asdict(self.memory), "total": self.memory.total},
            "time": self.time.to_dict() if self.time else None,
            "remarks": list(self.remarks),
            "recipe": self.recipe.to_dict(),
            **({"data": self.data.to_dict()} if self.data else {}),
        }


def plan_training(
    recipe: Recipe, *, data_dir: str | None = None, device: str = "auto", progress: Progress = SILENT
) -> TrainingPlan:
    """Opens and checks the data and plans a training on it, for the number of processes that torchrun started.

    Arguments and errors: see :func:`growtas.train.session.start_session`. A plan for ``cuda`` needs no GPU.
    """
    check_teacher(recipe)
    initial = InitialWeights.of(recipe)
    if initial is not None:
        recipe, data_dir = initial.inherit(recipe, data_dir)
    torch_device = torch.device(device) if device == "cuda" else pick_device(device)
    data = open_data(recipe.data, data_dir, progress=progress)
    space = recipe.search_space().replace(num_classes=len(data.class_names))
    split = cut_search_split(data, recipe.seed, recipe.search_images)
    record = preprocess_record(space, data, recipe.pixel_range)
    check_memory(data, record, recipe)
    check_teacher(recipe, len(data.class_names))
    if recipe.teacher is not None and (recipe.teacher_checkpoint is not None or recipe.teacher.endswith(".safetensors")):
        load_teacher(recipe, record, data.class_names)  # a plan loads only teachers that need no download
    images = len(data.train) - len(search_indices(split))
    plan = make_plan(recipe, space, images, torch_device, int(os.environ.get("WORLD_SIZE", "1")))
    report = check_data(data, split, record, progress, steps=plan.steps)
    return dataclasses.replace(plan, data=report)


def make_plan(
    recipe: Recipe,
    space: SearchSpace,
    train_images: int,
    device: torch.device,
    processes: int = 1,
    *,
    timed: bool = True,
) -> TrainingPlan:
    """Plans a training. Writes nothing and leaves the global random generators unchanged.

    Args:
        recipe: the recipe of the training.
        space: the search space, with the data's number of classes.
        train_images: number of training images, without the search split.
        device: device of the training; ``cuda`` is planned but not timed on a machine without a GPU.
        processes: number of processes that share a batch.
        timed: whether to time a few passes on the device.

    Raises:
        ConfigError: the recipe doesn't fit the space, or a batch can't be cut into so many parts.
        DeviceError: the device can't compute in the recipe's precision.
    """
    strategy = make_strategy(recipe, space)
    parts = Parts.of_process(0, processes, recipe.accumulate)
    steps_per_epoch, rows = cut_batches(train_images, recipe.batch_size, parts)
    batch_images = len(rows) * processes
    remarks: list[str] = []
    staged = strategy
    if recipe.transitions == "auto":
        remarks.append("the training chooses the transitions itself; this plan assumes stages of equal length")
        staged = make_strategy(dataclasses.replace(recipe, transitions=None, method_options={}), space)
    if recipe.teacher is not None or recipe.method == "shrinking":
        remarks.append("the numbers do not include the teacher's forward passes and memory")
    if recipe.method in ("focusformer", "greedynas", "shiftnas"):
        remarks.append(f"the numbers do not include the subnets that {recipe.method} measures between the steps")
    if recipe.method == "tas-lora":
        remarks.append("the numbers do not include the experts")
    stages = tuple(_stages(staged, steps_per_epoch, remarks))
    images_per_part = math.ceil(batch_images / parts.count)
    largest = strategy.subnet if isinstance(strategy, Fixed) else space.largest
    time = None
    if timed and (device.type != "cuda" or torch.cuda.is_available()):
        subnets = (largest,) if isinstance(strategy, Fixed) else (space.smallest, space.middle(), space.largest)
        measured = time_passes(recipe, space, subnets, images_per_part, device)
        time = TimeEstimate.of(measured, [(stage.steps, stage.passes, stage.macs) for stage in stages], batch_images / processes)
    elif timed:
        remarks.append("no time is estimated because torch finds no CUDA device on this machine")
    return TrainingPlan(
        recipe=recipe,
        space=space,
        device=device.type,
        processes=processes,
        train_images=train_images,
        steps_per_epoch=steps_per_epoch,
        batch_images=batch_images,
        stages=stages,
        lr=learning_rates(recipe, steps_per_epoch),
        memory=estimate_memory(
            recipe, space, largest, images_per_part * (2 if isinstance(strategy, Vitas) else 1), device, strategy.moment_sets
        ),
        time=time,
        remarks=tuple(remarks),
    )


def learning_rates(recipe: Recipe, steps_per_epoch: int) -> tuple[float, float, float]:
    """Returns the learning rate of the first step, the highest one, and that of the last step, from the training's scheduler."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=recipe.lr)
    scheduler = make_scheduler(optimizer, recipe, steps_per_epoch)
    last = recipe.epochs * steps_per_epoch - 1
    warmed = round(recipe.warmup_epochs * steps_per_epoch)
    rates = []
    # The rate rises until the end of the warm-up and falls afterwards.
    for step in (0, max(warmed - 1, 0), min(warmed, last), last):
        scheduler.step_update(step)
        rates.append(float(optimizer.param_groups[0]["lr"]))
    return rates[0], max(rates), rates[-1]


def _stages(strategy: Strategy, steps_per_epoch: int, remarks: list[str]) -> Iterator[StagePlan]:
    steps = strategy.recipe.epochs * steps_per_epoch
    first = 0
    while first < steps:
        stage = strategy.stage(first / steps_per_epoch)
        # The stage never decreases, so bisection finds the first step of the next stage.
        after = bisect.bisect_right(range(steps), stage, first, key=lambda step: strategy.stage(step / steps_per_epoch))
        subnets, smallest, largest = _pool(strategy, stage, first / steps_per_epoch)
        passes, macs = _mean_step(strategy, first, after, steps_per_epoch, remarks)
        yield StagePlan(
            number=stage + 1,
            subspace=strategy.subspace(first / steps_per_epoch),
            subnets=subnets,
            smallest=smallest,
            largest=largest,
            first_epoch=first / steps_per_epoch,
            epochs=(after - first) / steps_per_epoch,
            steps=after - first,
            passes=passes,
            macs=macs,
        )
        first = after


def _pool(strategy: Strategy, stage: int, epoch: float) -> tuple[int | None, Costs, Costs]:
    """Returns the number of subnets that a stage draws from, and the costs of the smallest and the largest of them."""
    space = strategy.space
    if isinstance(strategy, Fixed):
        costs = count_costs(space, strategy.subnet)
        return 1, costs, costs
    if isinstance(strategy, ProgressivePlus):
        count = space.size - strategy.frozen.restrict(space).size
        return count, smallest_outside(space, strategy.frozen), count_costs(space, space.largest)
    drawn = strategy.phases[stage] if isinstance(strategy, Shrinking) else strategy.subspace(epoch).restrict(space)
    count_known = strategy.name != "prenas"
    return drawn.size if count_known else None, count_costs(space, drawn.smallest), count_costs(space, drawn.largest)


def smallest_outside(space: SearchSpace, inner: Subspace) -> Costs:
    """Returns the fewest parameters and the fewest MACs of the subnets that lie in a space but outside a subspace.

    In the smallest such subnet, either the width or the MLP ratio of a single block is the first choice above the cap.
    """
    candidates = []
    least = space.smallest
    wider = [dim for dim in space.embed_dim if dim > inner.max_embed_dim]
    if wider:
        candidates.append(Subnet(wider[0], least.num_heads, least.mlp_ratio))
    higher = [ratio for ratio in space.mlp_ratio if ratio > inner.max_mlp_ratio]
    if higher:
        candidates.append(Subnet(least.embed_dim, least.num_heads, (higher[0], *least.mlp_ratio[1:])))
    costs = [count_costs(space, candidate) for candidate in candidates]
    return Costs(params=min(cost.params for cost in costs), macs=min(cost.macs for cost in costs))


def _mean_step(strategy: Strategy, first: int, after: int, steps_per_epoch: int, remarks: list[str]) -> tuple[float, float]:
    """Returns the mean number of passes per step and the mean MACs per step, from steps spread evenly over the stage."""
    steps = np.unique(np.linspace(first, after - 1, min(_DRAWS, after - first)).round().astype(int)).tolist()
    draws = []
    for step in steps:
        try:
            drawn = strategy.draw(step, step / steps_per_epoch)
        except TrainingError:
            # The method chooses its subnets from the data at the start of the training.
            drawn = (Pass(sample(strategy.space, strategy.rng(step))),)
            remark = f"{strategy.name} chooses its subnets when the training begins; the mean costs assume uniform sampling"
            if remark not in remarks:
                remarks.append(remark)
        draws.append(drawn)
    macs = [sum(chosen.runs * count_costs(strategy.space, chosen.subnet).macs for chosen in drawn) for drawn in draws]
    return float(np.mean([sum(chosen.runs for chosen in drawn) for drawn in draws])), float(np.mean(macs))
