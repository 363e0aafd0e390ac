"""The weight-sharing supernet: one set of weights, of which every subnet uses leading slices (AutoFormer, Section 3).

The subnet is an argument of the forward pass and not a state: ``supernet(images, subnet)``.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import drop_path
from torch import Tensor, nn

from growtas.nn.architecture import Architecture
from growtas.nn.experts import Experts
from growtas.nn.fused.common import Norm
from growtas.nn.fused.mlp import fused_mlp, mlp_fusable
from growtas.nn.relative import grid_index, relative_attention
from growtas.nn.vit import Attention, Block, VisionTransformer, add_positions, pool, pools_first
from growtas.space import SearchSpace
from growtas.subnet import Subnet


class Supernet(nn.Module):
    """All subnets of a space in one module. Parameters have the same names as in :class:`growtas.nn.vit.VisionTransformer`.

    A subnet uses the leading rows and columns of Linear and LayerNorm weights. The exception is AutoFormer's qkv weight: among its
    first ``3 * head_dim * num_heads`` rows, rows 0, 3, 6, ... are q, 1, 4, 7, ... are k, and 2, 5, 8, ... are v. Its bias is the
    leading entries in q, k, v order. Published checkpoints have this layout. In a space without relative position, the bias has the
    order of the weight's rows, so that a subnet's bias is part of the largest one's.

    Args:
        space: the search space; its bounds determine the sizes of the weights.
        drop_path_rate: drop path rate of the supernet's last block; it grows linearly from zero at the first block.
        experts: experts that change the weights for each subnet; None for the same weights for all.
    """

    def __init__(self, space: SearchSpace, *, drop_path_rate: float = 0.0, experts: Experts | None = None) -> None:
        super().__init__()
        self.space = space
        self.drop_path_rate = drop_path_rate
        depth = space.max_depth
        bounds = Subnet(space.max_embed_dim, (space.max_num_heads,) * depth, (space.max_mlp_ratio,) * depth)
        full = VisionTransformer(Architecture.of(space, bounds))
        assert isinstance(full.head, nn.Linear)
        self.patch_embed, self.blocks, self.norm, self.head = full.patch_embed, full.blocks, full.norm, full.head
        self.cls_token, self.pos_embed = full.cls_token, full.pos_embed
        self.experts = experts

    def forward(self, images: Tensor, subnet: Subnet, *, merged: bool = False) -> Tensor:
        """Computes the logits of one subnet.

        Args:
            images: ``(batch, in_chans, image_size, image_size)``.
            subnet: a subnet within the supernet's bounds.
            merged: whether the weights already contain what the experts add for this subnet.

        Returns:
            ``(batch, num_classes)``.

        Raises:
            SubnetError: the subnet exceeds the bounds.
        """
        self.space.validate(subnet)
        if self.experts is not None and not merged:
            weights = self.merged_weights(subnet)
            return cast("Tensor", torch.func.functional_call(self, weights, (images, subnet), {"merged": True}))
        x = self.embed(images, subnet.embed_dim)
        for place, index in enumerate(self.space.blocks_of(subnet.depth)):
            x = self.mlp_layer(self.attention_layer(x, index, subnet.num_heads[place]), index, subnet.hidden_dim(place))
        return self.classify(x)

    def merged_weights(self, subnet: Subnet) -> dict[str, Tensor]:
        """Returns the weights that experts change for a subnet, with the changes; an empty mapping without experts."""
        if self.experts is None:
            return {}
        return {name: self.get_parameter(name) + change for name, change in self.experts.changes(subnet).items()}

    def block(self, index: int) -> Block:
        """Returns a block with its type."""
        block = self.blocks[index]
        assert isinstance(block, Block)
        return block

    # The steps of the forward pass are public, because a search runs them one by one to share work between subnets. They don't
    # include the experts.

    def embed(self, images: Tensor, embed_dim: int) -> Tensor:
        """Maps images to tokens with positions, ``(batch, N, embed_dim)``; the class token and registers are the first."""
        assert self.patch_embed.bias is not None
        weight, bias = self.patch_embed.weight[:embed_dim], self.patch_embed.bias[:embed_dim]
        x = F.conv2d(images, weight, bias, self.patch_embed.stride).flatten(2).transpose(1, 2)
        return add_positions(x, self.cls_token[..., :embed_dim], self.pos_embed[..., :embed_dim])

    def attention_layer(self, x: Tensor, index: int, num_heads: int) -> Tensor:
        """Computes the attention half of block ``index`` with its residual; ``(batch, N, embed_dim)`` -> the same shape."""
        block = self.block(index)
        if block.attn.fusable(x, block.norm1):
            keep = not self._drop_rate(index)
            out = block.attn.fused(x, block.norm1, residual=keep, num_heads=num_heads, interleaved=True)
            return out if keep else x + self._drop_path(out, index)
        normed = _layer_norm(x, self.scaled(block.norm1, x.shape[-1]))
        return x + self._drop_path(self._attention(normed, block.attn, num_heads), index)

    def mlp_layer(self, x: Tensor, index: int, hidden_dim: int) -> Tensor:
        """Computes the MLP half of block ``index`` with its residual; ``(batch, N, embed_dim)`` -> the same shape."""
        block, dim = self.block(index), x.shape[-1]
        norm = self.scaled(block.norm2, dim)
        if mlp_fusable(x, block.norm2, block.fc1, block.fc2):
            keep = not self._drop_rate(index)
            out = fused_mlp(x, norm, block.fc1, block.fc2, hidden_dim, residual=keep)
            return out if keep else x + self._drop_path(out, index)
        y = F.linear(_layer_norm(x, norm), block.fc1.weight[:hidden_dim, :dim], block.fc1.bias[:hidden_dim])
        return x + self._drop_path(F.linear(F.gelu(y), block.fc2.weight[:dim, :hidden_dim], block.fc2.bias[:dim]), index)

    def classify(self, x: Tensor) -> Tensor:
        """Maps the tokens after the last block to logits ``(batch, num_classes)``."""
        norm = self.scaled(self.norm, x.shape[-1])
        if pools_first(self.space):
            pooled = _layer_norm(pool(x, self.space), norm)
        else:
            pooled = pool(_layer_norm(x, norm), self.space)
        return F.linear(pooled, self.head.weight[:, : x.shape[-1]], self.head.bias)

    def scaled(self, norm: nn.LayerNorm, embed_dim: int) -> Norm:
        """Returns a norm's weight, bias and epsilon for a width; see :meth:`growtas.space.SearchSpace.norm_scale`."""
        scale = self.space.norm_scale(embed_dim)
        return Norm(norm.weight if scale == 1 else norm.weight * scale, norm.bias, norm.eps)

    def _attention(self, x: Tensor, attn: Attention, heads: int) -> Tensor:
        dim, width = x.shape[-1], heads * self.space.head_dim
        clip, grid_size = self.space.max_relative_position, self.space.grid_size
        qkv = F.linear(x, subnet_qkv_weight(attn.qkv.weight, dim, width), subnet_qkv_bias(attn.qkv.bias, width, clip))
        if clip is None:
            out = attn.attend(qkv, heads)
        else:
            grid = grid_index(grid_size, grid_size, clip, str(x.device))
            out = relative_attention(qkv, attn.relative_key(), attn.relative_value(), heads, grid)
        return F.linear(out, attn.proj.weight[:dim, :width], attn.proj.bias[:dim])

    def _drop_path(self, x: Tensor, index: int) -> Tensor:
        rate = self._drop_rate(index)
        return drop_path(x, rate, self.training) if rate else x

    def _drop_rate(self, index: int) -> float:
        return self.drop_path_rate * index / max(self.space.max_depth - 1, 1) if self.training else 0.0


def _layer_norm(x: Tensor, norm: Norm) -> Tensor:
    dim = x.shape[-1]
    return F.layer_norm(x, (dim,), norm.weight[:dim], norm.bias[:dim], norm.eps)


def subnet_qkv_weight(weight: Tensor, dim: int, width: int) -> Tensor:
    """Returns a subnet's qkv weight in q, k, v order, ``(3 * width, dim)``, from the supernet's interleaved rows."""
    return weight[: 3 * width, :dim].view(width, 3, dim).transpose(0, 1).reshape(3 * width, dim)


def subnet_qkv_bias(bias: Tensor, width: int, max_relative_position: int | None) -> Tensor:
    """Returns a subnet's qkv bias in q, k, v order, ``(3 * width,)``; see :class:`Supernet` for the two layouts."""
    leading = bias[: 3 * width]
    return leading if max_relative_position is not None else leading.view(width, 3).t().reshape(-1)


def has_norm_scale(name: str) -> bool:
    """Whether a parameter is the weight of a norm over the embedding, which :meth:`Supernet.scaled` scales."""
    return name.endswith((".norm1.weight", ".norm2.weight")) or name == "norm.weight"


def supernet_name(space: SearchSpace, depth: int, name: str) -> str:
    """Returns the name in the supernet of a parameter of a subnet. It differs where the space has a ``block_order``."""
    owner, _, rest = name.partition(".")
    if owner != "blocks":
        return name
    place, _, rest = rest.partition(".")
    return f"blocks.{space.blocks_of(depth)[int(place)]}.{rest}"


def trailing_first(supernet: Supernet) -> dict[str, Tensor]:
    """Returns the weights in reverse order of heads and channels: their leading slices are the supernet's trailing slices.

    The largest subnet computes the same with them. Gradients flow to the supernet's weights.
    """
    heads, plain = supernet.space.max_num_heads, supernet.space.max_relative_position is None
    backwards: dict[str, Tensor] = {}
    for name, parameter in supernet.named_parameters():
        weight: Tensor = parameter
        if name == "head.bias" or "_norm." in name or ".relative_" in name:
            continue  # all subnets use the whole of it
        if name.endswith("attn.qkv.weight"):
            weight = weight.view(heads, -1, weight.shape[1]).flip(0, 2).flatten(0, 1)
        elif name.endswith("attn.qkv.bias"):
            # In AutoFormer's layout all biases of q come first, then those of k, then those of v.
            weight = weight.view(1 if plain else 3, heads, -1).flip(1).flatten()
        elif name.endswith("attn.proj.weight"):
            weight = weight.view(len(weight), heads, -1).flip(0, 1).flatten(1)
        elif name in ("cls_token", "pos_embed", "head.weight"):
            weight = weight.flip(-1)
        elif name == "patch_embed.weight":
            weight = weight.flip(0)
        else:
            weight = weight.flip(*range(weight.ndim))
        backwards[name] = weight
    return backwards
