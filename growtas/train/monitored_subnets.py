"""The subnets whose accuracy is measured during a training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from growtas.data.evaluation import EvaluationSet
from growtas.distributed import World
from growtas.growth import Subspace
from growtas.nn.supernet import Supernet
from growtas.space import SearchSpace
from growtas.subnet import Subnet

_BATCH = 256


def monitored(space: SearchSpace) -> dict[str, Subnet]:
    """The three subnets that every table shows."""
    return {"smallest": space.smallest, "middle": space.middle(), "largest": space.largest}


def stage_subnets(space: SearchSpace, subspaces: Iterable[Subspace]) -> dict[str, Subnet]:
    """The smallest, a middle and the largest subnet of each subspace that is not the whole space, as ``A1 largest``.

    Subnets that :func:`monitored` or an earlier subspace has already are left out.
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
    """Accuracy (0..1) of some subnets; the supernet is left in eval mode.

    The processes of a world share the batches; all get the result.

    Args:
        check: called before each subnet's turn at a batch, on every process equally often; it may raise.
    """
    supernet.eval()
    models = {subnet: partial(supernet, subnet=subnet) for subnet in subnets.values()}
    accuracies = accuracies_of(models, images, device, world, check)
    return {name: accuracies[subnet] for name, subnet in subnets.items()}


@torch.inference_mode()
def accuracies_of(
    models: Mapping[Any, Callable[[Tensor], Tensor]],
    images: EvaluationSet,
    device: torch.device,
    world: World = World(),  # noqa: B008 (a frozen value)
    check: Callable[[], None] = lambda: None,
) -> dict[Any, float]:
    """Accuracy (0..1) of some models, which map images to logits; see :func:`subnet_accuracies`."""
    correct = dict.fromkeys(models, 0)
    for first in range(0, len(images), world.size * _BATCH):
        start = first + world.rank * _BATCH
        labels: Tensor = images.labels[start : start + _BATCH]
        batch = images.images(start, start + _BATCH).to(device) if len(labels) else None
        for key, model in models.items():
            check()
            if batch is not None:
                correct[key] += int((model(batch).argmax(1).cpu() == labels).sum())
    return {key: count / len(images) for key, count in zip(correct, world.sum_counts(list(correct.values()), device), strict=True)}
