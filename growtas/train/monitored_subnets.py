"""Measures the accuracy of some subnets during a training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from growtas.data.evaluation import EvaluationSet
from growtas.distributed import World
from growtas.growth import Subspace
from growtas.nn.supernet import Supernet
from growtas.space import SearchSpace
from growtas.subnet import Subnet

_BATCH = 256


def monitored(space: SearchSpace) -> dict[str, Subnet]:
    """Returns the smallest, the middle and the largest subnet of a space."""
    return {"smallest": space.smallest, "middle": space.middle(), "largest": space.largest}


def stage_subnets(space: SearchSpace, subspaces: Iterable[Subspace]) -> dict[str, Subnet]:
    """Returns the smallest, middle and largest subnet of each subspace, named like ``A1 largest``.

    Left out are subspaces that equal the whole space, and subnets that :func:`monitored` or an earlier subspace already contains.
    """
    known = set(monitored(space).values())
    subnets: dict[str, Subnet] = {}
    for number, subspace in enumerate(subspaces, 1):
        restricted = subspace.restrict(space)
        for label, subnet in monitored(restricted).items():
            if restricted != space and subnet not in known:
                known.add(subnet)
                subnets[f"A{number} {label}"] = subnet
    return subnets


def subnet_accuracies(
    supernet: Supernet,
    images: EvaluationSet,
    device: torch.device,
    subnets: Mapping[str, Subnet],
    world: World = World(),  # noqa: B008 (a frozen value)
    check: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Measures the accuracy (0..1) of some subnets. Leaves the supernet in eval mode.

    The processes share the batches, and all of them get the result.

    Args:
        supernet: the weights.
        images: the images to measure on.
        device: the device of this process.
        subnets: the subnets by name.
        world: the processes of the training.
        check: called before each pass, equally often on every process; it may raise to stop.
    """
    supernet.eval()
    models = {subnet: partial(supernet, subnet=subnet) for subnet in subnets.values()}
    accuracies = accuracies_of(models, images, device, world, check)
    return {name: accuracies[subnet] for name, subnet in subnets.items()}


def subnet_losses(
    supernet: Supernet,
    images: EvaluationSet,
    device: torch.device,
    subnets: Sequence[Subnet],
    world: World = World(),  # noqa: B008 (a frozen value)
    check: Callable[[], None] = lambda: None,
) -> list[float]:
    """Measures the mean cross-entropy of some subnets; see :func:`subnet_accuracies`."""
    supernet.eval()
    models = [partial(supernet, subnet=subnet) for subnet in subnets]
    return _means(models, images, device, world, check, lambda logits, labels: F.cross_entropy(logits, labels, reduction="sum"))


def accuracies_of(
    models: Mapping[Any, Callable[[Tensor], Tensor]],
    images: EvaluationSet,
    device: torch.device,
    world: World = World(),  # noqa: B008 (a frozen value)
    check: Callable[[], None] = lambda: None,
) -> dict[Any, float]:
    """Measures the accuracy (0..1) of models that map images to logits; see :func:`subnet_accuracies`."""
    means = _means(list(models.values()), images, device, world, check, lambda logits, labels: (logits.argmax(1) == labels).sum())
    return dict(zip(models, means, strict=True))


@torch.inference_mode()
def _means(
    models: Sequence[Callable[[Tensor], Tensor]],
    images: EvaluationSet,
    device: torch.device,
    world: World,
    check: Callable[[], None],
    measure: Callable[[Tensor, Tensor], Tensor],
) -> list[float]:
    """Returns the mean over the images of what ``measure`` sums up over the logits and labels of a batch, for each model."""
    sums = [0.0] * len(models)
    for first in range(0, len(images), world.size * _BATCH):
        start = first + world.rank * _BATCH
        labels: Tensor = images.labels[start : start + _BATCH]
        batch = images.images(start, start + _BATCH).to(device) if len(labels) else None
        for number, model in enumerate(models):
            check()
            if batch is not None:
                sums[number] += float(measure(model(batch).cpu(), labels))
    return [total / len(images) for total in world.sum_numbers(sums, device)]
