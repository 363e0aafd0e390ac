"""Sensitivities ``|w * g|`` of a supernet's slices, the pruning criterion of SNIP (Lee et al., ICLR 2019, Section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from growtas.costs import count_costs
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.train.strategies.base import Tools

_IMAGES = 64
_NORMALISED = ("attn.qkv.weight", "fc1.weight", "fc2.weight")


@dataclass(frozen=True)
class Sensitivity:
    """Sums of ``|w * g|`` over the slices that subnets consist of.

    The axes ``d``, ``h`` and ``r`` are the choices of width, heads and MLP ratio.

    Attributes:
        stem: everything outside the blocks, shape ``(d,)``.
        attention: the attention half of a block with its norms and tables, shape ``(d, block, h)``.
        mlp: the MLP half of a block with its norm, shape ``(d, block, r)``.
        normal_attention: the part of the qkv weight alone, divided by the product of the whole weight's sums of ``|w|`` and of
            ``|g|``. So a block is not preferred because all its weights or gradients are larger. Shape as ``attention``.
        normal_mlp: the same for the weights of ``fc1`` and ``fc2``, each divided by its own sums. Shape as ``mlp``.
    """

    stem: NDArray[np.float64]
    attention: NDArray[np.float64]
    mlp: NDArray[np.float64]
    normal_attention: NDArray[np.float64]
    normal_mlp: NDArray[np.float64]

    @classmethod
    def measure(cls, space: SearchSpace, tools: Tools, batches: int) -> Sensitivity:
        """Computes the sensitivities of the largest subnet from its mean gradient over the first ``batches`` training batches.

        Drop path is off. Weights, gradients and the train/eval mode stay unchanged. The work is added to the method's cost.
        """
        supernet, largest = tools.supernet, space.largest
        names, parameters = zip(*supernet.named_parameters(), strict=True)
        mean = [torch.zeros_like(parameter) for parameter in parameters]
        count = min(batches, tools.num_parts)
        training = supernet.training
        supernet.eval()
        try:
            for index in range(count):
                images, labels = tools.sample_batch(index)
                # In pieces, because the batch of all processes may not fit on one device.
                for piece, target in zip(torch.split(images, _IMAGES), torch.split(labels, _IMAGES), strict=True):
                    with torch.enable_grad():
                        loss = F.cross_entropy(supernet(piece, largest).float(), target, reduction="sum")
                        # backward() would change the gradients that the parameters already have.
                        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
                    for total, grad in zip(mean, grads, strict=True):
                        if grad is not None:
                            total += grad / (count * len(images))
                tools.count_macs(3.0 * count_costs(space, largest).macs * len(images))
        finally:
            supernet.train(training)
        weights = {name: parameter.detach().abs().double().cpu() for name, parameter in zip(names, parameters, strict=True)}
        return cls.of_slices(space, weights, {name: grad.abs().double().cpu() for name, grad in zip(names, mean, strict=True)})

    @classmethod
    def of_slices(cls, space: SearchSpace, weights: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> Sensitivity:
        """Computes the sums for all choices from the absolute values of a supernet's parameters and gradients, by name."""
        both = {name: weight * grads[name] for name, weight in weights.items()}
        # With a block order the subnets' blocks lie anywhere in the supernet.
        dims, depth = len(space.embed_dim), space.max_depth
        attention = np.zeros((2, dims, depth, len(space.num_heads)))
        mlp = np.zeros((2, dims, depth, len(space.mlp_ratio)))
        for index in range(depth):
            prefix = f"blocks.{index}."
            block = {name.removeprefix(prefix): value for name, value in both.items() if name.startswith(prefix)}
            whole = {name: float(weights[prefix + name].sum() * grads[prefix + name].sum()) for name in _NORMALISED}
            # All subnets use the whole tables, and the whole norms of queries and keys.
            uncut = sum(float(value.sum()) for name, value in block.items() if ".relative_" in name or "_norm." in name)
            for d, dim in enumerate(space.embed_dim):
                for h, heads in enumerate(space.num_heads):
                    plain, normal = _attention(block, dim, heads * space.head_dim, whole)
                    attention[:, d, index, h] = plain + uncut, normal
                for r, ratio in enumerate(space.mlp_ratio):
                    mlp[:, d, index, r] = _mlp(block, dim, int(dim * ratio), whole)
        stem = np.array([_stem(both, dim) for dim in space.embed_dim])
        return cls(stem, attention[0], mlp[0], attention[1], mlp[1])

    def total(self, space: SearchSpace, subnet: Subnet) -> float:
        """Returns the sum of ``|w * g|`` over all weights of a subnet of the space."""
        d = space.embed_dim.index(subnet.embed_dim)
        heads = [space.num_heads.index(value) for value in subnet.num_heads]
        ratios = [space.mlp_ratio.index(value) for value in subnet.mlp_ratio]
        blocks = list(space.blocks_of(subnet.depth))
        return float(self.stem[d] + self.attention[d, blocks, heads].sum() + self.mlp[d, blocks, ratios].sum())


def _attention(block: Mapping[str, Tensor], dim: int, width: int, whole: Mapping[str, float]) -> tuple[float, float]:
    """Returns plain sum (of what is sliced) and normalised sum of an attention half sliced to ``dim`` and ``width`` channels."""
    # The rows of q, k and v alternate in the weight, so one slice contains all three. The bias' leading part has all three, too.
    qkv = float(block["attn.qkv.weight"][: 3 * width, :dim].sum())
    parts = [block["attn.qkv.bias"][: 3 * width], block["attn.proj.weight"][:dim, :width], block["attn.proj.bias"][:dim]]
    parts += [block["norm1.weight"][:dim], block["norm1.bias"][:dim]]
    return qkv + _sum(*parts), _share(qkv, whole["attn.qkv.weight"])


def _mlp(block: Mapping[str, Tensor], dim: int, hidden: int, whole: Mapping[str, float]) -> tuple[float, float]:
    """Returns plain and normalised sum of an MLP half sliced to ``dim`` and ``hidden`` channels."""
    fc1, fc2 = float(block["fc1.weight"][:hidden, :dim].sum()), float(block["fc2.weight"][:dim, :hidden].sum())
    rest = _sum(block["fc1.bias"][:hidden], block["fc2.bias"][:dim], block["norm2.weight"][:dim], block["norm2.bias"][:dim])
    return fc1 + fc2 + rest, _share(fc1, whole["fc1.weight"]) + _share(fc2, whole["fc2.weight"])


def _stem(both: Mapping[str, Tensor], dim: int) -> float:
    rows = [both[name][:dim] for name in ("patch_embed.weight", "patch_embed.bias", "norm.weight", "norm.bias")]
    columns = [both[name][..., :dim] for name in ("cls_token", "pos_embed", "head.weight")]
    return _sum(*rows, *columns, both["head.bias"])


def _sum(*parts: Tensor) -> float:
    return sum(float(part.sum()) for part in parts)


def _share(part: float, whole: float) -> float:
    # A layer whose gradient is zero everywhere contributes nothing.
    return part / whole if whole > 0 else 0.0
