"""Keeps the weights that small subnets use bit-identical during GrowTAS+ (Lee et al., Section 3.2, Eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from growtas.growth import Subspace
from growtas.nn.architecture import Architecture
from growtas.nn.supernet import Supernet, supernet_name
from growtas.nn.vit import VisionTransformer

Region = tuple[slice, ...]


def used_regions(supernet: Supernet, subspace: Subspace) -> dict[str, Region]:
    """Returns the leading block of each parameter that at least one subnet of a subspace uses. Unused parameters are absent.

    A subspace is a product of choices, so its largest subnet uses every entry that any of its subnets uses. This holds for the
    interleaved qkv rows too: a subnet whose heads have w channels in total uses the first 3 w rows.
    """
    largest = subspace.restrict(supernet.space).largest
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in VisionTransformer(Architecture.of(supernet.space, largest)).named_parameters()}
    space = supernet.space
    return {supernet_name(space, largest.depth, name): tuple(map(slice, shape)) for name, shape in shapes.items()}


class FrozenEntries:
    """Entries of a module's parameters that a training must not change.

    Their gradients are set to zero before each optimiser step, and their values are restored after it. So weight decay, momentum,
    averaging and rounding can't change them. Parameters that are frozen completely get no gradient at all.

    Args:
        module: the module in training.
        regions: the block to freeze, by parameter name.
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
        """Sets the gradients of frozen entries to zero, so that they affect neither momentum nor the gradient's norm."""
        for parameter, region, _ in self._partly_frozen:
            if parameter.grad is not None:
                parameter.grad[region] = 0

    @torch.no_grad()
    def restore(self) -> None:
        """Restores the frozen values after the optimiser's step."""
        for parameter, region, value in self._partly_frozen:
            parameter[region] = value

    @torch.no_grad()
    def restore_in(self, module: nn.Module) -> None:
        """Writes the frozen values into another module with the same parameter names, such as a moving average of the weights."""
        for name, (region, value) in self._values.items():
            module.get_parameter(name)[region] = value
