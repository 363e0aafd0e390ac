"""The static ViT of an extracted subnet: an ordinary module without any dependence on the supernet.

It has timm's interface (``forward_features``, ``forward_head``, ``reset_classifier``, ``drop_path_rate``) and one of two networks.
AutoFormer's has pre-norm blocks, a cls token, absolute positions, 2-D relative position on keys and values, and a linear head on
the mean of the normalised patch tokens. timm's plain ViT has no relative position; its tokens before the patches, its pooling and
its norms vary (:class:`growtas.space.SearchSpace`). The positions of the tokens before the patches are part of these tokens.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn

from growtas.nn.architecture import Architecture
from growtas.nn.fused.attention import fused_attention
from growtas.nn.fused.common import fusable
from growtas.nn.fused.layout import Layout
from growtas.nn.fused.mlp import fused_mlp, mlp_fusable
from growtas.nn.relative import grid_index, relative_attention
from growtas.space import SearchSpace


class RelativeTables(nn.Module):
    """The vertical and the horizontal table of the relative position, each ``(2 * max_relative_position + 2, head_dim)``."""

    def __init__(self, max_relative_position: int, head_dim: int) -> None:
        super().__init__()
        self.vertical = nn.Parameter(torch.empty(2 * max_relative_position + 2, head_dim))
        self.horizontal = nn.Parameter(torch.empty(2 * max_relative_position + 2, head_dim))
        _draw(self.vertical)
        _draw(self.horizontal)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Returns both tables, vertical first."""
        return self.vertical, self.horizontal


class Attention(nn.Module):
    """Multi-head self-attention, with 2-D relative position if the architecture has it."""

    def __init__(self, architecture: Architecture, num_heads: int) -> None:
        super().__init__()
        embed_dim, head_dim = architecture.subnet.embed_dim, architecture.head_dim
        self.num_heads, self.head_dim, self.grid_size = num_heads, head_dim, architecture.grid_size
        self.max_relative_position = architecture.max_relative_position
        self.qkv = nn.Linear(embed_dim, 3 * num_heads * head_dim)
        self.proj = nn.Linear(num_heads * head_dim, embed_dim)
        if self.max_relative_position is not None:
            self.relative_key = RelativeTables(self.max_relative_position, head_dim)
            self.relative_value = RelativeTables(self.max_relative_position, head_dim)
            # Computed here because otherwise an exporter could compute them first and cache tensors of its tracing.
            grid_index(self.grid_size, self.grid_size, self.max_relative_position, "cpu")
        self.q_norm, self.k_norm = (
            nn.LayerNorm(head_dim, eps=architecture.norm_eps) if architecture.qk_norm else nn.Identity() for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, N, embed_dim)`` -> the same shape."""
        if self.fusable(x, None):
            return self.fused(x, None, residual=False)
        qkv = self.qkv(x)
        if self.max_relative_position is None:
            out = self.attend(qkv, self.num_heads)
        else:
            grid = grid_index(self.grid_size, self.grid_size, self.max_relative_position, str(x.device))
            out = relative_attention(qkv, self.relative_key(), self.relative_value(), self.num_heads, grid)
        return self.proj(out)

    def attend(self, qkv: Tensor, num_heads: int) -> Tensor:
        """Computes attention without relative position.

        Args:
            qkv: queries, keys and values in this order, ``(batch, N, 3 * num_heads * head_dim)``.
            num_heads: number of heads.

        Returns:
            ``(batch, N, num_heads * head_dim)``.
        """
        batch, tokens, _ = qkv.shape
        q, k, v = qkv.view(batch, tokens, 3, num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, -1)

    def fusable(self, x: Tensor, norm: nn.Module | None) -> bool:
        """Whether :meth:`fused` may replace ``norm`` (if given) and this module; see :func:`growtas.nn.fused.common.fusable`."""
        if self.max_relative_position is None:
            return False
        norms = () if norm is None else (norm,)
        # Without a norm this module itself was called, so its own hooks run in any case.
        holders = (self.relative_key, self.relative_value) if norm is None else (self, self.relative_key, self.relative_value)
        return fusable(x, (self.qkv, self.proj, *norms), holders)

    def fused(
        self, x: Tensor, norm: nn.LayerNorm | None, *, residual: bool, num_heads: int | None = None, interleaved: bool = False
    ) -> Tensor:
        """Computes ``forward(norm(x))`` in fused form, for tokens of at most the weights' width; with ``residual`` it adds ``x``.

        A supernet passes ``num_heads`` to use fewer heads, and ``interleaved`` for its order of the qkv weight's rows.
        """
        assert self.max_relative_position is not None
        grid = grid_index(self.grid_size, self.grid_size, self.max_relative_position, "cpu")
        layout = Layout(num_heads or self.num_heads, grid, interleaved, residual)
        key, value = self.relative_key, self.relative_value
        tables = (key.vertical, key.horizontal, value.vertical, value.horizontal)
        return fused_attention(x, norm, self.qkv, tables, self.proj, layout)


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a two-layer MLP with exact GELU."""

    def __init__(self, architecture: Architecture, index: int, drop_path: float) -> None:
        super().__init__()
        subnet = architecture.subnet
        self.norm1 = nn.LayerNorm(subnet.embed_dim, eps=architecture.norm_eps)
        self.attn = Attention(architecture, subnet.num_heads[index])
        self.norm2 = nn.LayerNorm(subnet.embed_dim, eps=architecture.norm_eps)
        self.fc1 = nn.Linear(subnet.embed_dim, subnet.hidden_dim(index))
        self.fc2 = nn.Linear(subnet.hidden_dim(index), subnet.embed_dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, N, embed_dim)`` -> the same shape."""
        keep = not self.training or isinstance(self.drop_path, nn.Identity)
        if type(self.attn) is Attention and self.attn.fusable(x, self.norm1):
            out = self.attn.fused(x, self.norm1, residual=keep)
            x = out if keep else x + self.drop_path(out)
        else:
            x = x + self.drop_path(self.attn(self.norm1(x)))
        if mlp_fusable(x, self.norm2, self.fc1, self.fc2):
            out = fused_mlp(x, self.norm2, self.fc1, self.fc2, self.fc1.out_features, residual=keep)
            return out if keep else x + self.drop_path(out)
        return x + self.drop_path(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class VisionTransformer(nn.Module):
    """A static vision transformer.

    Args:
        architecture: the architecture.
        drop_path_rate: drop path rate of the last block; it grows linearly from zero at the first block.
    """

    def __init__(self, architecture: Architecture, *, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.architecture = architecture
        subnet = architecture.subnet
        self.num_features = self.embed_dim = subnet.embed_dim
        self.num_classes = architecture.num_classes
        self.patch_embed = nn.Conv2d(architecture.in_chans, self.embed_dim, architecture.patch_size, architecture.patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, architecture.prefix_tokens, self.embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, architecture.num_positions, self.embed_dim))
        rates = [drop_path_rate * i / max(subnet.depth - 1, 1) for i in range(subnet.depth)]
        self.blocks = nn.ModuleList(Block(architecture, i, rate) for i, rate in enumerate(rates))
        self.norm = nn.LayerNorm(self.embed_dim, eps=architecture.norm_eps)
        self.head: nn.Module = nn.Identity()
        init_weights(self)
        self.reset_classifier(architecture.num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the head by a new one. With 0 classes the head is removed, and the model returns pooled features."""
        device, dtype = self.cls_token.device, self.cls_token.dtype
        self.num_classes = num_classes
        self.head = nn.Linear(self.embed_dim, num_classes, device=device, dtype=dtype) if num_classes else nn.Identity()
        init_weights(self.head)
        if num_classes != self.architecture.num_classes:
            self.architecture = dataclasses.replace(self.architecture, num_classes=num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Maps images ``(batch, in_chans, image_size, image_size)`` to tokens ``(batch, N, embed_dim)``, cls and registers first.

        The tokens are normalised, except with ``fc_norm``, as in timm.
        """
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return x if self.architecture.fc_norm else self.norm(x)

    def embed(self, images: Tensor) -> Tensor:
        """Maps images to the tokens before the first block, ``(batch, N, embed_dim)``."""
        return add_positions(self.patch_embed(images).flatten(2).transpose(1, 2), self.cls_token, self.pos_embed)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps tokens to logits ``(batch, num_classes)``; with ``pre_logits`` to the input of the head."""
        pooled = pool(tokens, self.architecture)
        pooled = self.norm(pooled) if self.architecture.fc_norm else pooled
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images to logits ``(batch, num_classes)``."""
        return self.forward_head(self.forward_features(images))


def typed_blocks(model: VisionTransformer) -> list[Block]:
    """Returns the blocks, which a ModuleList only knows as modules."""
    return [block for block in model.blocks if isinstance(block, Block)]


def add_positions(patches: Tensor, prefix: Tensor, positions: Tensor) -> Tensor:
    """Joins the tokens before the patches with the patches and adds the positions; returns ``(batch, N, dim)``.

    Args:
        patches: ``(batch, patches, dim)``.
        prefix: the class token and registers, ``(1, prefix_tokens, dim)``.
        positions: ``(1, N, dim)`` or ``(1, patches, dim)``.
    """
    if not prefix.shape[1]:
        return patches + positions
    prefix = prefix.expand(patches.shape[0], -1, -1)
    if positions.shape[1] == patches.shape[1]:
        return torch.cat([prefix, patches + positions], dim=1)
    return torch.cat([prefix, patches], dim=1) + positions


def pool(tokens: Tensor, geometry: Architecture | SearchSpace) -> Tensor:
    """Returns what the head reads of the tokens: their first one, or the mean of the patches; ``(batch, dim)``."""
    if geometry.global_pool == "token":
        return tokens[:, 0]
    # A slice of everything would be an operation of its own in exported programs.
    return (tokens[:, geometry.prefix_tokens :] if geometry.prefix_tokens else tokens).mean(dim=1)


def pools_first(geometry: Architecture | SearchSpace) -> bool:
    """Whether the last LayerNorm may run after the pooling. The norm of the first token is the first token of the norm."""
    return geometry.fc_norm or geometry.global_pool == "token"


def random_network(architecture: Architecture, seed: int = 0) -> VisionTransformer:
    """Builds a static ViT in which every parameter is random, similar to a trained network. Equal seeds give equal weights.

    A freshly initialised network has many equal tensors, which an exported file stores only once. It would be smaller and faster
    than a trained one.
    """
    model = VisionTransformer(architecture).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                centre = 1.0 if isinstance(module, nn.LayerNorm) else 0.0
                parameter.copy_(centre + 0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def init_weights(module: nn.Module) -> None:
    """Applies AutoFormer's initialisation: truncated normal (std 0.02) for linear weights and tokens, zero biases."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            _draw(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
    for name, parameter in module.named_parameters(recurse=False):
        if name in ("cls_token", "pos_embed"):
            _draw(parameter)


def _draw(parameter: Tensor) -> None:
    """Draws AutoFormer's initial values. On the meta device there are no values, but trying took most of the time of loading."""
    if not parameter.is_meta:
        trunc_normal_(parameter, std=0.02)
