"""Low-rank experts of a supernet, and the router that mixes them for a subnet: TAS-LoRA (CVPR 2026, Section 3).

All subnets of a supernet share its weights. Experts give them something of their own: each linear layer of each block has a few
products of two thin matrices. A router reads the description of a subnet's blocks and returns the share of each expert. The mixture
is added to the layer's weight, so that an extracted subnet has the same layers as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from growtas.space import SearchSpace
from growtas.subnet import Subnet

LAYERS = ("attn.qkv", "attn.proj", "fc1", "fc2")
"""The linear layers of a block that have experts."""
_OWN = 3.0
"""Initial logit of a group's own expert; all other logits are near zero."""


class Experts(nn.Module):
    """The experts of all blocks of a space, one for each group: a combination of heads, MLP ratio and width.

    The second matrix of each product is zero at first, so new experts change nothing.

    Args:
        space: the search space.
        rank: rank of the products.
        router_dim: number of hidden channels of the router, an LSTM over the blocks.
    """

    def __init__(self, space: SearchSpace, rank: int = 8, router_dim: int = 128) -> None:
        super().__init__()
        self.space, self.rank = space, rank
        self.groups = {group: index for index, group in enumerate(product(space.num_heads, space.mlp_ratio, space.embed_dim))}
        count, dim = len(self.groups), space.max_embed_dim
        width, hidden = space.max_num_heads * space.head_dim, int(dim * space.max_mlp_ratio)
        sizes = {"attn.qkv": (3 * width, dim), "attn.proj": (dim, width), "fc1": (hidden, dim), "fc2": (dim, hidden)}
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for index, (layer, (rows, columns)) in product(range(space.max_depth), sizes.items()):
            self.down[_key(index, layer)] = nn.Parameter(torch.randn(count, rank, columns) / columns**0.5)
            self.up[_key(index, layer)] = nn.Parameter(torch.zeros(count, rows, rank))
        self.reader, self.logits = nn.LSTM(4, router_dim, batch_first=True), nn.Linear(router_dim, count)
        nn.init.trunc_normal_(self.logits.weight, std=0.02)
        nn.init.zeros_(self.logits.bias)
        self.own = nn.Parameter(_OWN * torch.eye(count))

    def shares(self, subnet: Subnet) -> Tensor:
        """Returns the share of each expert in each block of a subnet, ``(depth, experts)``; the rows add up to one.

        The shares of a block depend on this block and those before it.
        """
        space, dim = self.space, subnet.embed_dim
        blocks = list(zip(subnet.num_heads, subnet.mlp_ratio, strict=True))
        own = [self._group(heads, ratio, dim) for heads, ratio in blocks]
        largest = (space.max_num_heads, space.max_mlp_ratio, space.max_embed_dim, space.max_depth)
        described = self.own.new_tensor([(heads, ratio, dim, place) for place, (heads, ratio) in enumerate(blocks, 1)])
        hidden, _ = self.reader((described / described.new_tensor(largest))[None])
        logits: Tensor = self.logits(hidden[0]) + self.own[own]
        return logits.softmax(-1)

    def _group(self, heads: int, ratio: float, dim: int) -> int:
        """Returns the index of the group whose choices are nearest; a subnet within the bounds may have other values."""

        def nearest(choices: Sequence[float], value: float) -> Any:
            return min(choices, key=lambda choice: abs(choice - value))

        space = self.space
        return self.groups[nearest(space.num_heads, heads), nearest(space.mlp_ratio, ratio), nearest(space.embed_dim, dim)]

    def changes(self, subnet: Subnet) -> dict[str, Tensor]:
        """Returns what a subnet adds to the weights of its blocks' layers, by the weight's name in the supernet, in full size."""
        shares, changes = self.shares(subnet), {}
        for index, share in zip(self.space.blocks_of(subnet.depth), shares, strict=True):
            for layer in LAYERS:
                down, up = self.down[_key(index, layer)], self.up[_key(index, layer)]
                # The sum over the experts of share * up @ down, as one product.
                scaled = (share[:, None, None] * up).transpose(0, 1).flatten(1)
                changes[f"blocks.{index}.{layer}.weight"] = scaled @ down.flatten(0, 1)
        return changes


def _key(index: int, layer: str) -> str:
    return f"{index}_{layer.replace('.', '_')}"
