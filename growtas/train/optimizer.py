"""The optimiser, its schedule, and its state as tensors.

Which weights a step moves: gradients are set to None before it, so a parameter that the drawn subnet doesn't touch at all (every
weight of a block that its depth leaves out) is not stepped. A parameter that it cuts is stepped whole: the entries outside the cut
have zero gradients, but their momentum still moves them and, in matrices, weight decay shrinks them.
"""

from __future__ import annotations

import torch
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch.optim import SGD, AdamW, Optimizer

from growtas.nn.supernet import Supernet
from growtas.train.recipe import Recipe

NO_WEIGHT_DECAY = ("cls_token", "pos_embed", "relative_key", "relative_value")
"""Parameters without weight decay besides biases and norms: those with one of these in their name."""


def make_optimizer(supernet: Supernet, recipe: Recipe) -> Optimizer:
    """The recipe's optimiser over all weights that take gradients; only matrices decay."""
    excluded = [name for name, _ in supernet.named_parameters() if any(part in name for part in NO_WEIGHT_DECAY)]
    groups = param_groups_weight_decay(supernet, recipe.weight_decay, no_weight_decay_list=excluded)
    if recipe.optimizer == "sgd":
        # Without momentum torch has no Nesterov; its fused form fails when only some parameters have stepped before.
        return SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    return AdamW(groups, lr=recipe.lr, fused=True)


def make_scheduler(optimizer: Optimizer, recipe: Recipe, steps_per_epoch: int) -> CosineLRScheduler:
    """Linear warm-up, then a cosine over the whole training; ``step_update(step)`` sets the rate of a step."""
    return CosineLRScheduler(
        optimizer,
        t_initial=max(recipe.epochs * steps_per_epoch, 2),
        lr_min=recipe.min_lr,
        warmup_t=round(recipe.warmup_epochs * steps_per_epoch),
        warmup_lr_init=min(recipe.warmup_lr, recipe.lr),
        t_in_epochs=False,
    )


def parameter_names(supernet: Supernet, optimizer: Optimizer) -> list[str]:
    """Names of the optimiser's parameters, in its order."""
    names = {id(parameter): name for name, parameter in supernet.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def optimizer_tensors(supernet: Supernet, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as ``NAME/KEY`` tensors: ``exp_avg``, ``exp_avg_sq``, ``step`` of each parameter that was stepped."""
    state = optimizer.state_dict()["state"]
    names = parameter_names(supernet, optimizer)
    return {
        f"{names[index]}/{key}": value
        for index, entries in state.items()
        for key, value in entries.items()
        if value is not None  # SGD's momentum before the first step
    }


def load_optimizer_tensors(supernet: Supernet, optimizer: Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of :func:`optimizer_tensors`."""
    index_of = {name: index for index, name in enumerate(parameter_names(supernet, optimizer))}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        state.setdefault(index_of[name], {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
