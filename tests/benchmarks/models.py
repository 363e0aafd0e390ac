"""The networks that are compared: AutoFormer-T's published subnet, timm's DeiT-T, and the written-out reference attention."""

from __future__ import annotations

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growtas import Subnet, Supernet, VisionTransformer, extract, load_space
from growtas.costs import count_costs
from growtas.nn.vit import Attention, RelativeTables
from tests.reference import naive_relative_attention

SPACE = load_space("autoformer-t")
PUBLISHED = Subnet(
    192,
    (3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 3, 3),
    (3.5, 3.5, 3.0, 3.5, 3.0, 3.0, 4.0, 4.0, 3.5, 4.0, 3.5, 4.0, 3.5),
)
PUBLISHED_MACS = count_costs(SPACE, PUBLISHED).macs
# DeiT-T is a ViT without relative position: the same formulas count it.
DEIT_MACS = count_costs(SPACE, Subnet(192, (3,) * 12, (4.0,) * 12)).macs


def supernet() -> Supernet:
    torch.manual_seed(0)
    return Supernet(SPACE)


def static() -> VisionTransformer:
    return extract(supernet(), PUBLISHED)


def deit_tiny() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("deit_tiny_patch16_224")


def naive(attention: type[nn.Module]) -> VisionTransformer:
    """The published subnet with its relative position written out as (N, N, head_dim) tensors."""
    model = static()
    for block in model.blocks:
        block.attn = attention(block.attn)
    return model


class OracleAttention(nn.Module):
    """The tests' oracle: the formulas, term by term."""

    def __init__(self, attn: Attention) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, x: Tensor) -> Tensor:
        attn, grid = self.attn, self.attn.grid_size
        q, k, v = attn.qkv(x).unflatten(-1, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)
        out = naive_relative_attention(q, k, v, attn.relative_key(), attn.relative_value(), grid, grid, attn.head_dim**-0.5)
        return attn.proj(out.transpose(1, 2).flatten(2))


class PublicOrderAttention(nn.Module):
    """The same formulas in the order in which AutoFormer's public code evaluates them.

    Relative keys and values are looked up as (N, N, head_dim) tensors in every forward pass; content and position give a tensor of
    logits each, and the products with the relative tensors take the query positions as their batch.
    """

    def __init__(self, attn: Attention) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        attn, heads, scale = self.attn, self.attn.num_heads, self.attn.head_dim**-0.5
        q, k, v = attn.qkv(x).reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
        relative_key = self._look_up(attn.relative_key)
        logits = (q @ k.transpose(-2, -1)) * scale
        by_position = q.permute(2, 0, 1, 3).reshape(tokens, heads * batch, -1) @ relative_key.transpose(2, 1)
        logits = logits + by_position.transpose(1, 0).reshape(batch, heads, tokens, tokens) * scale
        weights = logits.softmax(dim=-1)
        out = (weights @ v).transpose(1, 2).reshape(batch, tokens, -1)
        by_position = weights.permute(2, 0, 1, 3).reshape(tokens, batch * heads, -1) @ self._look_up(attn.relative_value)
        by_position = by_position.transpose(1, 0).reshape(batch, heads, tokens, -1).transpose(2, 1)
        return attn.proj(out + by_position.reshape(batch, tokens, -1))

    def _look_up(self, tables: RelativeTables) -> Tensor:
        grid, clip = self.attn.grid_size, self.attn.max_relative_position
        assert clip is not None
        position = torch.arange(grid * grid, device=tables.vertical.device)
        row, col = position // grid, position % grid
        vertical = F.pad((row[None, :] - row[:, None]).clamp(-clip, clip) + clip + 1, (1, 0, 1, 0))
        horizontal = F.pad((col[None, :] - col[:, None]).clamp(-clip, clip) + clip + 1, (1, 0, 1, 0))
        return tables.vertical[vertical] + tables.horizontal[horizontal]
