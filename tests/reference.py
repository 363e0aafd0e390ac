"""Independent oracles: the formulas written out, slow and plain. Nothing here imports growtas.nn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from timm.layers import LayerNorm, Mlp
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor

from growtas.data.evaluation import EvaluationSet
from growtas.space import SearchSpace
from growtas.subnet import Subnet

PLAIN: dict[str, dict[str, Any]] = {
    "class token": {"global_pool": "token"},
    "mean": {"prefix_tokens": 0, "fc_norm": True},
    "registers": {"prefix_tokens": 4, "fc_norm": True},
    "norm before mean": {"prefix_tokens": 5, "norm_eps": 1e-6},
    "qk_norm": {"prefix_tokens": 5, "global_pool": "token", "qk_norm": True, "norm_eps": 1e-6},
    "block order": {"global_pool": "token"},
}
"""Spaces of timm's plain ViTs, by what is particular about them; see :func:`plain_space`."""


def plain_space(space: SearchSpace, kind: str) -> SearchSpace:
    """A space of timm's plain ViTs with the choices of another space."""
    depth = space.max_depth
    order = (depth - 1, *range(depth - 1)) if kind == "block order" else ()
    return space.replace(
        name=kind.replace(" ", "-"),
        max_relative_position=None,
        block_order=order,
        full_width_norms=kind in ("block order", "registers", "norm before mean"),
        **PLAIN[kind],
    )


def timm_network(space: SearchSpace, subnet: Subnet, state: Mapping[str, Tensor]) -> TimmViT:
    """timm's ViT of a subnet's own size, with the subnet's weights cut from a supernet's one by one, in float64."""
    dim, head_dim, registers = subnet.embed_dim, space.head_dim, space.prefix_tokens // 4 * 4
    norm_layer = partial(LayerNorm, eps=space.norm_eps)
    model = TimmViT(
        img_size=space.image_size, patch_size=space.patch_size, in_chans=space.in_chans, num_classes=space.num_classes,
        global_pool=space.global_pool, embed_dim=dim, depth=subnet.depth, num_heads=1, qk_norm=space.qk_norm,
        class_token=space.prefix_tokens > registers, no_embed_class=True, reg_tokens=registers, fc_norm=space.fc_norm,
        norm_layer=norm_layer,
    )  # fmt: skip
    prefix = space.prefix_tokens - registers
    # A norm that divides by the deviation over all channels of the supernet, of which the absent ones are zero.
    stretch = (space.max_embed_dim / dim) ** 0.5 if space.full_width_norms else 1.0
    weights = {
        **({"cls_token": state["cls_token"][:, :1, :dim]} if prefix else {}),
        **({"reg_token": state["cls_token"][:, prefix:, :dim]} if registers else {}),
        "pos_embed": state["pos_embed"][..., :dim],
        "head.weight": state["head.weight"][:, :dim],
        "head.bias": state["head.bias"],
    }
    for end in ("weight", "bias"):
        weights[f"patch_embed.proj.{end}"] = state[f"patch_embed.{end}"][:dim]
        weights[f"{'fc_norm' if space.fc_norm else 'norm'}.{end}"] = state[f"norm.{end}"][:dim] * (
            stretch if end == "weight" else 1
        )
    blocks = sorted(space.block_order[: subnet.depth]) if space.block_order else range(subnet.depth)
    for place, index in enumerate(blocks):
        heads, hidden = subnet.num_heads[place], int(dim * subnet.mlp_ratio[place])
        width, block = heads * head_dim, model.blocks[place]
        block.attn = Attention(dim, heads, attn_head_dim=head_dim, qkv_bias=True, qk_norm=space.qk_norm, norm_layer=norm_layer)
        block.attn.fused_attn = False  # so that its two products can be counted
        block.mlp = Mlp(dim, hidden)
        cuts = {
            "norm1": ("norm1", (dim,)), "norm2": ("norm2", (dim,)), "attn.proj": ("attn.proj", (dim, width)),
            "fc1": ("mlp.fc1", (hidden, dim)), "fc2": ("mlp.fc2", (dim, hidden)),
        }  # fmt: skip
        if space.qk_norm:
            cuts |= {name: (name, (head_dim,)) for name in ("attn.q_norm", "attn.k_norm")}
        for ours, (theirs, size) in cuts.items():
            weight = state[f"blocks.{index}.{ours}.weight"]
            weights[f"blocks.{place}.{theirs}.weight"] = weight[tuple(map(slice, size))] * (stretch if ours[:4] == "norm" else 1)
            weights[f"blocks.{place}.{theirs}.bias"] = state[f"blocks.{index}.{ours}.bias"][: size[0]]
        rows, bias = (state[f"blocks.{index}.attn.qkv.{end}"][: 3 * width] for end in ("weight", "bias"))
        weights[f"blocks.{place}.attn.qkv.weight"] = torch.cat([rows[part::3, :dim] for part in range(3)])
        weights[f"blocks.{place}.attn.qkv.bias"] = torch.cat([bias[part::3] for part in range(3)])
    model.load_state_dict(weights)
    return model.double().eval()


def naive_relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_tables: tuple[Tensor, Tensor],
    value_tables: tuple[Tensor, Tensor],
    rows: int,
    cols: int,
    scale: float,
) -> Tensor:
    """AutoFormer's attention with its (N, N, head_dim) tensors of relative keys and values.

    q, k, v: (batch, heads, N, head_dim), N = rows * cols + 1 with cls first; tables: (vertical, horizontal), each
    (2 m + 2, head_dim), entry 0 for every pair with cls.
    """
    clip = (key_tables[0].shape[0] - 2) // 2
    tokens = rows * cols + 1
    position = torch.arange(rows * cols, device=q.device)
    row, col = position // cols, position % cols
    vertical = torch.zeros(tokens, tokens, dtype=torch.long, device=q.device)
    horizontal = torch.zeros(tokens, tokens, dtype=torch.long, device=q.device)
    vertical[1:, 1:] = (row[None, :] - row[:, None]).clamp(-clip, clip) + clip + 1
    horizontal[1:, 1:] = (col[None, :] - col[:, None]).clamp(-clip, clip) + clip + 1
    relative_key = key_tables[0][vertical] + key_tables[1][horizontal]
    relative_value = value_tables[0][vertical] + value_tables[1][horizontal]
    logits = torch.einsum("bhid,bhjd->bhij", q, k) + torch.einsum("bhid,ijd->bhij", q, relative_key)
    weights = (scale * logits).softmax(dim=-1)
    return torch.einsum("bhij,bhjd->bhid", weights, v) + torch.einsum("bhij,ijd->bhid", weights, relative_value)


@torch.inference_mode()
def count_correct(model: Callable[[Tensor], Tensor], images: EvaluationSet) -> int:
    """The number of images that get the right class; ``model`` maps float32 images to logits ``(n, classes)``."""
    return sum(int((model(batch).argmax(1).cpu() == labels).sum()) for batch, labels in images.batches(256))
