"""Keeps the entries that small subnets use unchanged, bit by bit (GrowTAS+: Lee et al., Section 3.2, Eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from growtas.growth import Subspace
from growtas.nn.architecture import Architecture
from growtas.nn.supernet import Supernet
from growtas.nn.vit import VisionTransformer

Region = tuple[slice, ...]


def used_regions(supernet: Supernet, subspace: Subspace) -> dict[str, Region]:
    """The leading block of each parameter that some subnet of a subspace uses; parameters that none uses are absent.

    A subspace is a product of choices, so its largest subnet uses every entry that any of its subnets does. That holds for the
    interleaved qkv rows too: a subnet with w channels of heads takes the first 3 w of them.
    """
    largest = subspace.restrict(supernet.space).largest
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in VisionTransformer(Architecture.of(supernet.space, largest)).named_parameters()}
    return {name: tuple(slice(0, size) for size in shape) for name, shape in shapes.items()}


class FrozenEntries:
    """Entries of a module's parameters that a training must not change.

    Neither weight decay, momentum, an average of weights nor rounding gets at them: gradients there are cleared before a step, and
    the values are put back after it. Parameters that are frozen whole take no gradient at all.

    Args:
        module: in training.
        regions: for each parameter's name the block to freeze.
    """

    def __init__(self, module: nn.Module, regions: dict[str, Region]) -> None:
        self._partly_frozen: list[tuple[nn.Parameter, Region, Tensor]] = []
        self._values: dict[str, tuple[Region, Tensor]] = {}
        for name, region in regions.items():
            parameter = module.get_parameter(name)
            value = parameter.detach()[region].clone()
            self._values[name] = (region, value)
            if value.shape == parameter.shape:
                parameter.requires_grad_(False)
            else:
                self._partly_frozen.append((parameter, region, value))

    def clear_gradients(self) -> None:
        """Set the gradients of frozen entries to zero, so that they count neither for momentum nor for a norm."""
        for parameter, region, _ in self._partly_frozen:
            if parameter.grad is not None:
                parameter.grad[region] = 0

    @torch.no_grad()
    def restore(self) -> None:
        """Put the values back after the optimiser's step."""
        for parameter, region, value in self._partly_frozen:
            parameter[region] = value

    @torch.no_grad()
    def restore_in(self, module: nn.Module) -> None:
        """Put the values into another module with the same names, such as an average of the weights."""
        for name, (region, value) in self._values.items():
            module.get_parameter(name)[region] = value
