"""Decides when the halves of a block run as one autograd function each, and holds what those functions share.

Plain autograd keeps every intermediate of a block. The functions of :mod:`growtas.nn.fused.attention` and
:mod:`growtas.nn.fused.mlp` save the few that are expensive to compute again, and go through the batch in parts whose intermediates
stay in the processor's cache: what lies between two matrix products is then read and written there, and never becomes a tensor
as long as the batch.

Weights are handed over whole, and the leading block that belongs to the tokens' width is cut inside: a view, not a copy that
autograd would keep. Their gradients are whole as well, zero outside of the block.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-5
_TENSORS = (Tensor, nn.Parameter)


def fusable(x: Tensor, layers: Iterable[nn.Module], holders: Iterable[nn.Module] = ()) -> bool:
    """Whether a fused half may replace the modules: the tensor is an ordinary CPU one in float32 or float64, and no hook is set.

    Compilers, exporters, autocast and functorch need operations that they can see; hooks, and layers that were replaced or
    parametrised, need to be called.

    Args:
        x: the half's input.
        layers: the half's layers; each must be a Linear with bias or a LayerNorm, and nothing derived from them.
        holders: modules whose own forward pass would be left out, or that hold parameters used.
    """
    if not x.is_cpu or x.dtype not in (torch.float32, torch.float64) or type(x) not in _TENSORS:
        return False
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or torch.is_autocast_enabled("cpu"):
        return False
    # Function.apply asks the same question, to raise an error.
    if torch._C._are_functorch_transforms_active():
        return False
    return all(_is_plain(layer, x.dtype) for layer in layers) and not any(_is_watched(holder, x.dtype) for holder in holders)


def _is_plain(layer: nn.Module, dtype: torch.dtype) -> bool:
    if type(layer) not in (nn.Linear, nn.LayerNorm) or _is_watched(layer, dtype):
        return False
    parameters = layer._parameters
    return type(parameters.get("weight")) in _TENSORS and type(parameters.get("bias")) in _TENSORS


def _is_watched(module: nn.Module, dtype: torch.dtype) -> bool:
    # Asked for every layer of every pass: without parameters(), whose generator takes longer than all the rest.
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return True
    return any(value is not None and not (value.dtype == dtype and value.is_cpu) for value in module._parameters.values())


class Gradient:
    """The gradient of a weight of which a leading block was used: whole, zero outside of the block; summed up part by part."""

    def __init__(self, weight: Tensor, block: tuple[int, ...], needed: bool) -> None:
        self._whole: Tensor | None = None
        # The first part is written, not added: only what no part writes has to be zero.
        self._written = False
        if needed:
            if block == weight.shape:
                self._whole = self._block = torch.empty_like(weight, memory_format=torch.contiguous_format)
            else:
                self._whole = torch.zeros_like(weight, memory_format=torch.contiguous_format)
                self._block = leading(self._whole, *block)

    def __bool__(self) -> bool:
        """Whether the gradient is asked for."""
        return self._whole is not None

    def result(self) -> Tensor | None:
        """The sum, in the weight's shape; None where it isn't asked for."""
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
        """Adds the sum over the leading axis: a bias' gradient."""
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
    """The leading block of a weight, as a view."""
    for axis, size in enumerate(sizes):
        if size != weight.shape[axis]:
            weight = weight.narrow(axis, 0, size)
    return weight


def normalise(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm of ``(rows, dim)`` with the leading entries of weight and bias; also the mean and the inverse deviation."""
    dim = x.shape[1]
    return torch.native_layer_norm(x, (dim,), weight[:dim], bias[:dim], LAYER_NORM_EPS)


def normalise_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, grad_weight: Gradient, grad_bias: Gradient
) -> Tensor:
    """Gradient of :func:`normalise` for the input; the parameters' are added up."""
    dim = x.shape[1]
    mask = [True, bool(grad_weight), bool(grad_bias)]
    weight = weight[:dim]
    grad_x, to_weight, to_bias = torch.ops.aten.native_layer_norm_backward(grad, x, (dim,), mean, rstd, weight, weight, mask)
    grad_weight.add(to_weight)
    grad_bias.add(to_bias)
    return grad_x


def parts(count: int, most: int) -> list[slice]:
    """``range(count)`` in as few slices of at most ``most`` as can be, of sizes as equal as can be; none is longer than the first.

    Matrix products pay for every part, and more for a small one, so there is no short rest at the end.
    """
    number = -(-count // most)
    bounds = [-(-count * i // number) for i in range(number + 1)] if number else [0]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
