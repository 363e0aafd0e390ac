"""The networks that are compared: AutoFormer-T's published subnet, timm's DeiT-T, and the written-out reference attention."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from growtas import Architecture, Subnet, Supernet, VisionTransformer, extract, load_space
from growtas.costs import count_costs
from growtas.nn.vit import Attention

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


def naive() -> VisionTransformer:
    """The published subnet with the relative position written out as (N, N, head_dim) tensors."""
    torch.manual_seed(0)
    model = VisionTransformer(Architecture.of(SPACE, PUBLISHED)).eval()
    for block in model.blocks:
        block.attn = NaiveAttention(block.attn)
    return model


class NaiveAttention(nn.Module):
    """The formulas of AutoFormer's attention, term by term."""

    def __init__(self, attn: Attention) -> None:
        super().__init__()
        self.attn = attn
        grid, clip = attn.grid_size, attn.max_relative_position
        position = torch.arange(grid * grid)
        row, col = position // grid, position % grid
        self.register_buffer("vertical", torch.zeros(grid * grid + 1, grid * grid + 1, dtype=torch.long))
        self.register_buffer("horizontal", self.vertical.clone())
        self.vertical[1:, 1:] = (row - row[:, None]).clamp(-clip, clip) + clip + 1
        self.horizontal[1:, 1:] = (col - col[:, None]).clamp(-clip, clip) + clip + 1

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        attn = self.attn
        q, k, v = attn.qkv(x).view(batch, tokens, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
        relative_key, relative_value = (
            table.vertical[self.vertical] + table.horizontal[self.horizontal] for table in (attn.relative_key, attn.relative_value)
        )
        logits = q @ k.transpose(-2, -1) + torch.einsum("bhid,ijd->bhij", q, relative_key)
        weights = (logits * attn.head_dim**-0.5).softmax(dim=-1)
        out = weights @ v + torch.einsum("bhij,ijd->bhid", weights, relative_value)
        return attn.proj(out.transpose(1, 2).reshape(batch, tokens, -1))
