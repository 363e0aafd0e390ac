"""Estimates the memory and the time of a training before it starts."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from growtas.costs import count_costs
from growtas.data.seeding import preserved_globals, seed_globals
from growtas.nn.fused.attention import padded_keys
from growtas.nn.relative import grid_index
from growtas.nn.supernet import Supernet
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.train.optimizer import make_optimizer
from growtas.train.recipe import Recipe
from growtas.train.step import autocast_type

_REPEATS = 3
_WORK_MACS = 10e9
"""Most forward MACs of one timed pass; with it, timing the largest spaces takes seconds on a CPU."""
_MOST_IMAGES = 32


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimated peak memory of one process, from :func:`estimate_memory`. All values are bytes.

    Attributes:
        weights: the supernet's weights.
        gradients: their gradients.
        optimizer: state of the optimiser.
        ema: moving average of the weights; 0 without one.
        activations: values that are stored for the backward pass, and the images.
    """

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.weights + self.gradients + self.optimizer + self.ema + self.activations


def estimate_memory(
    recipe: Recipe, space: SearchSpace, subnet: Subnet, images: int, device: torch.device, moment_sets: int = 1
) -> MemoryEstimate:
    """Estimates the peak memory of a process by a formula. Runs nothing.

    With W the bytes of the supernet's float32 weights:

    - weights W, gradients W;
    - optimiser 2 W for AdamW, W for SGD with momentum, 0 without;
    - EMA W if the recipe has one;
    - activations: the values stored for the backward pass, per image and block as below, plus one block for the backward pass
      itself; and three copies of the images (as loaded, during mixing, and mixed).

    Values that a block stores per token, with dim, hidden, heads, d (head_dim), N (tokens), M (keys: N, or N padded to full cache
    lines), L (grid lines) and D (distances), the last two padded to a multiple of 8:

    - float32 on a CPU, where a block's halves are fused: ``2 dim + hidden + heads ((d + L)(1 + 2 M/N) + d + M + D)`` floats;
    - the same without relative position, where only the MLP is fused: ``3 dim + hidden + 5 heads d`` floats;
    - elsewhere: residuals and normalised tokens ``4 dim``, ``2 hidden``, and ``heads (9 d + 6 L)``; under autocast all but the
      residuals take 2 bytes each, and there is a second copy of the weights in 2 bytes.

    On CPUs a test compares the estimate with the real peak of a step (within a factor of 1.5). The second formula was not checked
    on a GPU. Not included: Python and torch themselves, images that are held in memory, evaluation, and teachers.

    Args:
        recipe: the recipe of the training.
        space: the search space.
        subnet: the largest subnet that is trained.
        images: images of one part: the batch of a process divided by ``accumulate``.
        device: the device of the training.
        moment_sets: number of separate states of the optimiser.
    """
    depth = space.max_depth
    bounds = Subnet(space.max_embed_dim, (space.max_num_heads,) * depth, (space.max_mlp_ratio,) * depth)
    weights = 4 * count_costs(space, bounds).params
    states = moment_sets * (2 if recipe.optimizer == "adamw" else int(recipe.momentum > 0))
    known = device.type == "cpu" or torch.cuda.is_available()
    half = autocast_type(recipe.amp, device) is not None if known else recipe.amp != "fp32"
    fused = device.type == "cpu" and not half
    lines = distances = keys = 0
    if space.max_relative_position is not None:
        grid = grid_index(space.grid_size, space.grid_size, space.max_relative_position)
        lines, distances, keys = grid.onehot.shape[1], grid.distances.shape[1], padded_keys(space.num_tokens)
    block_bytes = []
    for block, heads in enumerate(subnet.num_heads):
        dim, hidden, d, n = subnet.embed_dim, subnet.hidden_dim(block), space.head_dim, space.num_tokens
        if fused and not lines:  # no relative position
            block_bytes.append(4 * n * (3 * dim + hidden + heads * 5 * d))
        elif fused:
            block_bytes.append(4 * (n * (2 * dim + hidden) + heads * ((d + lines) * (n + 2 * keys) + n * (d + keys + distances))))
        else:
            residuals, rest = 2 * dim, 2 * dim + 2 * hidden + heads * (9 * d + 6 * lines)
            block_bytes.append(n * (4 * residuals + (2 if half else 4) * rest))
    pixels = 4 * space.in_chans * space.image_size**2
    activations = images * (sum(block_bytes) + max(block_bytes) + 3 * pixels)
    if half:
        activations += 2 * count_costs(space, subnet).params
    return MemoryEstimate(weights, weights, states * weights, weights if recipe.ema_decay is not None else 0, activations)


@dataclass(frozen=True)
class TimedPasses:
    """Measured times of forward and backward passes.

    Attributes:
        images: number of images per pass.
        macs: forward MACs of each timed subnet for one image.
        pass_seconds: median time of a forward and backward pass of each timed subnet, per image.
        optimizer_seconds: median time of an optimiser step.
        passes: total number of timed passes.
    """

    images: int
    macs: tuple[int, ...]
    pass_seconds: tuple[float, ...]
    optimizer_seconds: float
    passes: int


def time_passes(recipe: Recipe, space: SearchSpace, subnets: Sequence[Subnet], images: int, device: torch.device) -> TimedPasses:
    """Times a few passes of each subnet on random images, after one warm-up pass.

    Args:
        recipe: the recipe of the training.
        space: the search space.
        subnets: the subnets to time.
        images: largest number of images per pass; large subnets get fewer.
        device: the device of the training.

    Raises:
        DeviceError: the device can't compute in the recipe's precision.
    """
    macs = tuple(count_costs(space, subnet).macs for subnet in subnets)
    count = max(1, min(images, _MOST_IMAGES, int(_WORK_MACS / max(macs))))
    reduced = autocast_type(recipe.amp, device)
    generator = torch.Generator().manual_seed(recipe.seed)
    shape = (count, space.in_chans, space.image_size, space.image_size)
    batch = torch.randn(shape, generator=generator).to(device)
    labels = torch.randint(space.num_classes, (count,), generator=generator).to(device)
    with preserved_globals():
        seed_globals(recipe.seed)
        supernet = Supernet(space, drop_path_rate=recipe.drop_path).to(device).train()
        optimizer = make_optimizer(supernet, recipe)

        def run(subnet: Subnet) -> None:
            with torch.autocast(device.type, reduced, enabled=reduced is not None):
                loss = F.cross_entropy(supernet(batch, subnet).float(), labels)
            loss.backward()  # type: ignore[no-untyped-call]

        seconds = tuple(_median_seconds(functools.partial(run, subnet), device) / count for subnet in subnets)
        update = _median_seconds(optimizer.step, device)
    return TimedPasses(count, macs, seconds, update, _REPEATS * len(subnets))


def _median_seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Returns the median time of some repetitions after one warm-up."""
    seconds = []
    for _ in range(1 + _REPEATS):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


@dataclass(frozen=True)
class TimeEstimate:
    """Estimated time of a training's passes and optimiser steps.

    Loading data, evaluation, checkpoints and communication between processes are not included.

    Attributes:
        seconds: estimated time of the whole training.
        timed: the measured passes that the estimate is based on.
    """

    seconds: float
    timed: TimedPasses

    @classmethod
    def of(cls, timed: TimedPasses, stages: Sequence[tuple[int, float, float]], images: float) -> TimeEstimate:
        """Estimates the time from timed passes.

        The model: the seconds per pass and image are a straight line over the MACs, whose intercept and slope are not negative.

        Args:
            timed: the measured passes.
            stages: for each stage the number of steps, the passes per step and the forward MACs per step and image.
            images: images per step of one process.
        """
        from scipy.optimize import nnls

        most = max(timed.macs)  # brings both columns to a similar scale
        (base, slope), _ = nnls([(1.0, macs / most) for macs in timed.macs], timed.pass_seconds)
        steps = ((count, images * (base * passes + slope * macs / most)) for count, passes, macs in stages)
        return cls(float(sum(count * (seconds + timed.optimizer_seconds) for count, seconds in steps)), timed)

    @property
    def label(self) -> str:
        """States where the number comes from."""
        return f"estimated from {self.timed.passes} timed passes of {self.timed.images} images on this machine"

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "seconds": self.seconds,
            "label": self.label,
            "timed_passes": self.timed.passes,
            "timed_images": self.timed.images,
            "optimizer_seconds": self.timed.optimizer_seconds,
            "pass_seconds_per_image": list(self.timed.pass_seconds),
        }
