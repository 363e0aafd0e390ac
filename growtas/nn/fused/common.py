"""Decides when the halves of a block run as one autograd function each, and contains the code that these functions share.

Plain autograd stores every intermediate result of a block. The functions of :mod:`growtas.nn.fused.attention` and
:mod:`growtas.nn.fused.mlp` store only the few that are expensive to compute again. They process the batch in parts, so that the
intermediate results between two matrix products stay in the processor's cache.

The functions get whole weights and take the leading block for the tokens' width inside. So the block is a view, and autograd keeps
no copy of it. The gradients have the size of the whole weights and are zero outside of the block.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-5
_TENSORS = (Tensor, nn.Parameter)


def fusable(x: Tensor, layers: Iterable[nn.Module], holders: Iterable[nn.Module] = ()) -> bool:
    """Whether a fused half may replace the modules: for ordinary CPU tensors in float32 or float64, and without hooks.

    Compilers, exporters, autocast and functorch must see the single operations. Hooks and replaced or parametrised layers must be
    called.

    Args:
        x: input of the half.
        layers: layers of the half. Each must be a Linear with bias or a LayerNorm, and not a subclass.
        holders: modules whose forward pass would be skipped, or whose parameters are used.
    """
    if not x.is_cpu or x.dtype not in (torch.float32, torch.float64) or type(x) not in _TENSORS:
        return False
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or torch.is_autocast_enabled("cpu"):
        return False
    # Function.apply would raise an error in this case.
    if torch._C._are_functorch_transforms_active():
        return False
    return all(_is_plain(layer, x.dtype) for layer in layers) and not any(_is_watched(holder, x.dtype) for holder in holders)


def _is_plain(layer: nn.Module, dtype: torch.dtype) -> bool:
    if type(layer) not in (nn.Linear, nn.LayerNorm) or _is_watched(layer, dtype):
        return False
    parameters = layer._parameters
    return type(parameters.get("weight")) in _TENSORS and type(parameters.get("bias")) in _TENSORS


def _is_watched(module: nn.Module, dtype: torch.dtype) -> bool:
    # Called for every layer of every pass. parameters() is avoided, because its generator takes longer than everything else.
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return True
    return any(value is not None and not (value.dtype == dtype and value.is_cpu) for value in module._parameters.values())


class Gradient:
    """The gradient of a weight whose leading block was used: in the weight's shape, zero outside the block, summed over parts."""

    def __init__(self, weight: Tensor, block: tuple[int, ...], needed: bool) -> None:
        self._whole: Tensor | None = None
        # The first part is copied and not added, so only entries outside of the block must be set to zero.
        self._written = False
        if needed:
            if block == weight.shape:
                self._whole = self._block = torch.empty_like(weight, memory_format=torch.contiguous_format)
            else:
                self._whole = torch.zeros_like(weight, memory_format=torch.contiguous_format)
                self._block = leading(self._whole, *block)

    def __bool__(self) -> bool:
        """Whether the gradient is needed."""
        return self._whole is not None

    def result(self) -> Tensor | None:
        """Returns the sum in the weight's shape; None if it is not needed."""
        if self._whole is not None and not self._written:
            self._whole.zero_()
        return self._whole

    def add(self, value: Tensor) -> None:
        """Adds a part's gradient."""
        if self:
            if self._written:
                self._block.add_(value)
            else:
                self._block.copy_(value)
            self._written = True

    def add_rows(self, value: Tensor) -> None:
        """Adds the sum over the leading axis, which is the gradient of a bias."""
        if self:
            self.add(value.sum(0))

    def add_product(self, a: Tensor, b: Tensor) -> None:
        """Adds the matrix product ``a @ b``."""
        if self:
            if self._written:
                self._block.addmm_(a, b)
            else:
                torch.mm(a, b, out=self._block)
            self._written = True


def leading(weight: Tensor, *sizes: int) -> Tensor:
    """Returns the leading block of a weight as a view."""
    for axis, size in enumerate(sizes):
        if size != weight.shape[axis]:
            weight = weight.narrow(axis, 0, size)
    return weight


class Norm(NamedTuple):
    """The parameters of a LayerNorm of at least the needed width."""

    weight: Tensor
    bias: Tensor
    eps: float


def normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float = LAYER_NORM_EPS) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the layer norm of ``(rows, dim)`` with leading entries of weight and bias, its mean and its inverse deviation."""
    dim = x.shape[1]
    return torch.native_layer_norm(x, (dim,), weight[:dim], bias[:dim], eps)


def normalise_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, grad_weight: Gradient, grad_bias: Gradient
) -> Tensor:
    """Returns the gradient of :func:`normalise` for the input, and adds those of the parameters to the given ones."""
    dim = x.shape[1]
    mask = [True, bool(grad_weight), bool(grad_bias)]
    weight = weight[:dim]
    grad_x, to_weight, to_bias = torch.ops.aten.native_layer_norm_backward(grad, x, (dim,), mean, rstd, weight, weight, mask)
    grad_weight.add(to_weight)
    grad_bias.add(to_bias)
    return grad_x


def parts(count: int, most: int) -> list[slice]:
    """Divides ``range(count)`` into the fewest slices of at most ``most``, with nearly equal sizes. The first is the longest.

    Each part has a cost in matrix products, and small parts are inefficient, so a short part at the end is avoided.
    """
    number = -(-count // most)
    bounds = [-(-count * i // number) for i in range(number + 1)] if number else [0]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
