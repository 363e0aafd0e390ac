"""The optimiser, its learning rate schedule, and its state as tensors.

Gradients are set to None before a step. So the optimiser skips a parameter that the drawn subnet does not use at all, such as the
weights of a block beyond its depth. It updates a parameter that the subnet uses in part as a whole: entries outside the slice have
zero gradients, but momentum still moves them and, in matrices, weight decay shrinks them.
"""

from __future__ import annotations

import torch
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch.optim import SGD, AdamW, Optimizer

from growtas.nn.supernet import Supernet
from growtas.train.recipe import Recipe

NO_WEIGHT_DECAY = ("cls_token", "pos_embed", "relative_key", "relative_value")
"""Parameters whose name contains one of these have no weight decay, like biases and norms."""


ROUTER = ("experts.reader.", "experts.logits.", "experts.own")
"""Beginnings of the names of the experts' router's parameters, which another optimiser trains."""


def make_optimizer(supernet: Supernet, recipe: Recipe) -> Optimizer:
    """Creates the recipe's optimiser over all weights that need gradients, except the experts' router. Only matrices decay."""
    excluded = [name for name, _ in supernet.named_parameters() if any(part in name for part in NO_WEIGHT_DECAY)]
    groups = param_groups_weight_decay(supernet, recipe.weight_decay, no_weight_decay_list=excluded)
    router = {id(parameter) for name, parameter in supernet.named_parameters() if name.startswith(ROUTER)}
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in router]
    if recipe.optimizer == "sgd":
        # torch requires momentum for Nesterov. Its fused SGD fails if only some parameters were updated before.
        return SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    return AdamW(groups, lr=recipe.lr, fused=True)


def make_router_optimizer(supernet: Supernet) -> Optimizer | None:
    """Creates plain gradient descent for the experts' router; None without experts."""
    router = [parameter for name, parameter in supernet.named_parameters() if name.startswith(ROUTER)]
    return SGD(router, lr=0.0) if router else None


def make_scheduler(optimizer: Optimizer, recipe: Recipe, steps_per_epoch: int) -> CosineLRScheduler:
    """Creates the schedule: a linear warm-up, then a cosine to the end. Its ``step_update(step)`` sets the rate of a step."""
    return CosineLRScheduler(
        optimizer,
        t_initial=max(recipe.epochs * steps_per_epoch, 2),
        lr_min=recipe.min_lr,
        warmup_t=round(recipe.warmup_epochs * steps_per_epoch),
        warmup_lr_init=min(recipe.warmup_lr, recipe.lr),
        t_in_epochs=False,
    )


def parameter_names(supernet: Supernet, optimizer: Optimizer) -> list[str]:
    """Returns the names of the optimiser's parameters in the optimiser's order."""
    names = {id(parameter): name for name, parameter in supernet.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def optimizer_tensors(supernet: Supernet, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """Returns the optimiser's state as tensors ``NAME/KEY``, such as ``exp_avg`` and ``step``, of each updated parameter."""
    state = optimizer.state_dict()["state"]
    names = parameter_names(supernet, optimizer)
    return {
        f"{names[index]}/{key}": value
        for index, entries in state.items()
        for key, value in entries.items()
        if value is not None  # SGD's momentum before the first step
    }


def load_optimizer_tensors(supernet: Supernet, optimizer: Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Restores the state that :func:`optimizer_tensors` returned.

    Raises:
        KeyError, ValueError: The state is not that of this optimiser.
    """
    index_of = {name: index for index, name in enumerate(parameter_names(supernet, optimizer))}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        state.setdefault(index_of[name], {})[entry] = value
    entries = {"momentum_buffer"} if isinstance(optimizer, SGD) else {"step", "exp_avg", "exp_avg_sq"}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, found in state.items():
        if found.keys() != entries or any(
            value.shape != (() if entry == "step" else parameters[index].shape) for entry, value in found.items()
        ):
            raise ValueError(f"the entries of the parameter {index} are not {', '.join(sorted(entries))} in its shape")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
