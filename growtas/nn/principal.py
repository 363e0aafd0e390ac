"""Rotates the residual stream of a static ViT, so that its leading channels hold the principal directions.

Every layer reads the residual stream through a LayerNorm. A rotation Q of the stream changes nothing if the norms have no weights
of their own, and if Q keeps the mean over the channels: LayerNorm(Q x) = Q LayerNorm(x) for each orthogonal Q whose rows add up to
one. So the norms' weights become part of the layers that read them, and Q becomes part of all layers. Ashkboos et al. (SliceGPT,
2024) rotate networks with RMSNorm in this way, and cut out one width. Here the norms keep their means, and the leading channels of
one network serve all widths of a space.

The mean of the channels is a direction that each LayerNorm removes. The first w of n channels must contain w / n of it, because
each row of Q adds up to one. They hold the first w - 1 principal directions and one direction that contains the mean's part. So a
LayerNorm over w channels leaves the first w - 1 principal directions.

The leading channels then have nearly all of the variance, while a LayerNorm over w channels divides by the variance over w. A space
with ``full_width_norms`` corrects this: the norms divide by what the variance over all channels would be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from growtas.nn.vit import VisionTransformer, typed_blocks
from growtas.progress import SILENT, Progress

_BATCH = 32


def rotate_to_principal(model: VisionTransformer, images: Tensor, widths: Sequence[int], progress: Progress = SILENT) -> Tensor:
    """Rotates the residual stream in place. The logits stay equal up to rounding.

    Args:
        model: a network without relative position, in eval mode, with a head.
        images: normalised images, ``(n, in_chans, image_size, image_size)``, on which the directions are measured.
        widths: the numbers of leading channels that subnets use, ascending; the last one is the network's width.
        progress: receives the progress.

    Returns:
        The mean squares of the new channels after the norms, ``(embed_dim,)``.
    """
    _fold_norms(model)
    moments = _second_moments(model, images, progress)
    rotation = _rotation(moments, widths)
    _rotate(model, rotation)
    return (rotation * (moments @ rotation)).sum(0)


def _fold_norms(model: VisionTransformer) -> None:
    """Makes the norms' weights and biases part of the layers that read them."""
    for norm, reader in _norms(model):
        weight = reader.weight.double()
        reader.bias.data.copy_(reader.bias.double() + weight @ norm.bias.double())
        reader.weight.data.copy_(weight * norm.weight.double())
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)


@torch.no_grad()
def _second_moments(model: VisionTransformer, images: Tensor, progress: Progress) -> Tensor:
    """Returns the mean product of each pair of channels after the norms, which have no weights of their own; ``(dim, dim)``."""
    dim, rows = model.embed_dim, 0
    total = torch.zeros(dim, dim, dtype=torch.float64)

    def add(_: nn.Module, __: object, output: Tensor) -> None:
        nonlocal rows
        tokens = output.reshape(-1, dim)
        total.add_(tokens.t() @ tokens)
        rows += len(tokens)

    hooks = [norm.register_forward_hook(add) for norm, _ in _norms(model)]
    try:
        progress.stage("measuring the principal directions of the channels", len(images))
        for some in torch.split(images, _BATCH):
            model(some)
            progress.advance(len(some))
    finally:
        for hook in hooks:
            hook.remove()
    return total / rows


def _rotation(moments: Tensor, widths: Sequence[int]) -> Tensor:
    """Returns the orthogonal matrix whose columns are the new channels; each row and column adds up to one.

    Let the unit vector of the mean be m, and the principal directions orthogonal to it p_1, p_2, ... The first w channels span
    p_1, ..., p_(w-1) and v_w, where v_n is m. For the next smaller width u, v_u is the combination of v_w and p_u that has the
    share u / n of m. Within the channels from one width to the next, all have the same part of m.
    """
    count = len(moments)
    mean = torch.full((count,), 1 / math.sqrt(count), dtype=torch.float64)
    centre = torch.eye(count, dtype=torch.float64) - torch.outer(mean, mean)
    _, vectors = torch.linalg.eigh(centre @ moments @ centre - torch.outer(mean, mean))  # m has the only negative eigenvalue
    principal = vectors.flip(1)
    larger, last, bases = count, mean, list[Tensor]()
    for width in reversed(widths):
        share, next_one = width / larger, principal[:, width - 1]
        if width < larger:  # what the larger width adds: all directions that are orthogonal to the span of this width
            added = math.sqrt(1 - share) * last - math.sqrt(share) * next_one
            bases.append(torch.cat([principal[:, width : larger - 1], added[:, None]], 1))
        last, larger = math.sqrt(share) * last + math.sqrt(1 - share) * next_one, width
    bases.append(torch.cat([principal[:, : larger - 1], last[:, None]], 1))
    # An orthogonal map that takes the even mixture of all channels to m's part in each basis.
    return torch.cat([b @ _first_column(b.t() @ mean) @ _first_column(torch.ones(b.shape[1])).t() for b in reversed(bases)], 1)


def _first_column(vector: Tensor) -> Tensor:
    """Returns an orthogonal matrix whose first column has the direction of a vector."""
    vector = vector.double()
    rest = torch.eye(len(vector), dtype=torch.float64)
    matrix = torch.linalg.qr(torch.cat([vector[:, None], rest], 1))[0]
    return matrix * torch.cat([(matrix[:, :1].t() @ vector).sign(), torch.ones(len(vector) - 1, dtype=torch.float64)])


@torch.no_grad()
def _rotate(model: VisionTransformer, rotation: Tensor) -> None:
    """Rotates what is written to the residual stream and what is read from it."""
    layers: list[nn.Conv2d | nn.Linear] = [model.patch_embed]
    for block in typed_blocks(model):
        layers += [block.attn.proj, block.fc2]
    for layer in layers:
        weight = layer.weight.double()
        layer.weight.copy_((rotation.t() @ weight.flatten(1)).view_as(weight))
        assert layer.bias is not None
        layer.bias.copy_(rotation.t() @ layer.bias.double())
    for token in (model.cls_token, model.pos_embed):
        token.copy_(token.double() @ rotation)
    for _, reader in _norms(model):
        reader.weight.copy_(reader.weight.double() @ rotation)


def _norms(model: VisionTransformer) -> list[tuple[nn.LayerNorm, nn.Linear]]:
    """Returns the norms over the residual stream, each with the layer that reads it."""
    assert isinstance(model.head, nn.Linear)
    pairs = [pair for block in typed_blocks(model) for pair in ((block.norm1, block.attn.qkv), (block.norm2, block.fc1))]
    return [*pairs, (model.norm, model.head)]
