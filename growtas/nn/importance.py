"""Orders heads, neurons, channels and blocks of a static ViT by importance, so that a subnet's leading slices are the best ones.

A subnet uses the leading heads of each block, neurons of each MLP and channels of the residual stream. A trained network has them
in no particular order. Permuting them does not change what the network computes: heads and neurons within a block, channels through
the whole network. Blocks stay where they are; their order of importance is a field of the search space.

Scores with images are first-order Taylor estimates (Molchanov et al., 2019). A gate multiplies a part's output; the score is the
squared derivative of an image's loss by the gate, summed over images, which is also the diagonal of the empirical Fisher matrix.
Blocks are chosen by the loss itself: the next one to be dropped is the one without which the loss is smallest. Without images,
magnitudes of weights replace the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growtas.nn.vit import VisionTransformer, typed_blocks
from growtas.progress import SILENT, Progress

_BATCH = 32


@dataclass(frozen=True)
class Importance:
    """Scores of a network's parts; a larger score is more important.

    Attributes:
        channels: scores of the channels of the residual stream, ``(embed_dim,)``.
        heads: for each block the scores of its heads, ``(num_heads,)``.
        neurons: for each block the scores of its MLP's neurons, ``(hidden_dim,)``.
        blocks: all blocks, the most important one first.
    """

    channels: Tensor
    heads: tuple[Tensor, ...]
    neurons: tuple[Tensor, ...]
    blocks: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form: the scores with six digits."""

        def rounded(scores: Tensor) -> list[float]:
            return [float(f"{score:.6g}") for score in scores.tolist()]

        heads, neurons = ([rounded(scores) for scores in part] for part in (self.heads, self.neurons))
        return {"channels": rounded(self.channels), "heads": heads, "neurons": neurons, "blocks": list(self.blocks)}


def by_magnitude(model: VisionTransformer) -> Importance:
    """Scores a network by its weights alone: the norms of what each part writes times the norms of what it reads."""
    blocks = typed_blocks(model)
    heads, neurons, sizes = [], [], []
    channels = model.patch_embed.weight.detach().square().sum((1, 2, 3))
    for block in blocks:
        values = block.attn.qkv.weight.detach().chunk(3)[2].square().sum(1)
        written = block.attn.proj.weight.detach().square()
        heads.append((values * written.sum(0)).view(block.attn.num_heads, -1).sum(1).sqrt())
        into, out = block.fc1.weight.detach().square(), block.fc2.weight.detach().square()
        neurons.append((into.sum(1) * out.sum(0)).sqrt())
        sizes.append(float(heads[-1].sum() + neurons[-1].sum()))
        channels = channels + written.sum(1) + out.sum(1)
    return Importance(channels, tuple(heads), tuple(neurons), tuple(sorted(range(len(blocks)), key=lambda i: -sizes[i])))


def by_taylor(
    model: VisionTransformer,
    images: Tensor,
    labels: Tensor,
    *,
    least_depth: int,
    block_images: int = 128,
    progress: Progress = SILENT,
) -> Importance:
    """Scores a network on labelled images.

    Args:
        model: the network in eval mode; its gradients stay as they are.
        images: normalised images, ``(n, in_chans, image_size, image_size)``.
        labels: their classes, ``(n,)``.
        least_depth: smallest depth that a subnet may have. The blocks that every subnet runs are not ordered among each other.
        block_images: number of images for the order of the blocks, which takes many forward passes.
        progress: receives the progress.
    """
    blocks, hidden = typed_blocks(model), dict[str, Tensor]()
    totals: dict[str, Tensor] = {}

    def keep(name: str, argument: bool) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            hidden[name] = inputs[0] if argument else output

        return hook

    hooks = [model.norm.register_forward_hook(keep("channels.last", False))]
    for index, block in enumerate(blocks):
        hooks += [
            block.attn.proj.register_forward_hook(keep(f"heads.{index}", True)),
            block.fc2.register_forward_hook(keep(f"neurons.{index}", True)),
            block.norm1.register_forward_hook(keep(f"channels.{index}.1", False)),
            block.norm2.register_forward_hook(keep(f"channels.{index}.2", False)),
        ]
    try:
        progress.stage("scoring heads, neurons and channels", len(images))
        for some, classes in zip(torch.split(images, _BATCH), torch.split(labels, _BATCH), strict=True):
            with torch.enable_grad():
                # The images require a gradient, so that the activations have one even where all weights are frozen.
                loss = F.cross_entropy(model(some.requires_grad_()), classes, reduction="sum")
                grads = torch.autograd.grad(loss, list(hidden.values()))
            gates: dict[str, Tensor] = {}
            for (name, activation), grad in zip(hidden.items(), grads, strict=True):
                # The last norm of some networks has a vector for each image; all others have one for each token.
                product = (activation * grad).detach().view(len(some), -1, activation.shape[-1]).sum(1)
                if name.startswith("heads"):
                    product = product.view(len(some), blocks[int(name.split(".")[1])].attn.num_heads, -1).sum(2)
                # One gate multiplies a channel wherever the network reads it.
                part = "channels" if name.startswith("channels") else name
                gates[part] = gates[part] + product if part in gates else product
            for name, gate in gates.items():
                totals[name] = totals.get(name, torch.zeros(())) + gate.double().square().sum(0)
            hidden.clear()
            progress.advance(len(some))
    finally:
        for hook in hooks:
            hook.remove()
    depth = range(len(blocks))
    # Evenly spaced, because the images of a folder are sorted by class.
    some = torch.linspace(0, len(images) - 1, min(block_images, len(images))).round().long()
    order = _block_order(model, images[some], labels[some], least_depth, progress)
    return Importance(
        totals["channels"], tuple(totals[f"heads.{i}"] for i in depth), tuple(totals[f"neurons.{i}"] for i in depth), order
    )


@torch.no_grad()
def _block_order(model: VisionTransformer, images: Tensor, labels: Tensor, least: int, progress: Progress) -> tuple[int, ...]:
    """Drops one block at a time, the one without which the loss is smallest, down to ``least`` blocks."""
    kept, dropped = list(range(len(model.blocks))), list[int]()
    progress.stage("choosing the blocks that shallow subnets drop", len(kept) - least)
    while len(kept) > least:
        losses = dict.fromkeys(kept, 0.0)
        for some, classes in zip(torch.split(images, _BATCH), torch.split(labels, _BATCH), strict=True):
            # The tokens before each candidate are computed once.
            x = model.embed(some)
            for place, candidate in enumerate(kept):
                y = x
                for index in kept[place + 1 :]:
                    y = model.blocks[index](y)
                logits = model.forward_head(y if model.architecture.fc_norm else model.norm(y))
                losses[candidate] += float(F.cross_entropy(logits, classes, reduction="sum"))
                x = model.blocks[candidate](x)
        worst = min(kept, key=lambda index: losses[index])
        kept.remove(worst)
        dropped.append(worst)
        progress.advance(1)
    return (*kept, *reversed(dropped))


def reorder(model: VisionTransformer, importance: Importance) -> None:
    """Permutes heads, neurons and channels in place, the most important ones first. The logits stay equal up to rounding."""
    with torch.no_grad():
        for block, heads, neurons in zip(typed_blocks(model), importance.heads, importance.neurons, strict=True):
            head_dim, order = block.attn.head_dim, heads.argsort(descending=True, stable=True)
            rows = (order[:, None] * head_dim + torch.arange(head_dim)).flatten()
            qkv = torch.cat([rows + part * len(rows) for part in range(3)])
            _permute(block.attn.qkv, qkv)
            block.attn.proj.weight.copy_(block.attn.proj.weight[:, rows])
            order = neurons.argsort(descending=True, stable=True)
            _permute(block.fc1, order)
            block.fc2.weight.copy_(block.fc2.weight[:, order])
        order = importance.channels.argsort(descending=True, stable=True)
        for module in (model.patch_embed, model.norm, *_writers(model)):
            _permute(module, order)
        for token in (model.cls_token, model.pos_embed):
            token.copy_(token[..., order])
        for block in typed_blocks(model):
            for reader in (block.attn.qkv, block.fc1):
                reader.weight.copy_(reader.weight[:, order])
        if isinstance(model.head, nn.Linear):
            model.head.weight.copy_(model.head.weight[:, order])


def _writers(model: VisionTransformer) -> Iterator[nn.Module]:
    for block in typed_blocks(model):
        yield from (block.norm1, block.attn.proj, block.norm2, block.fc2)


def _permute(module: nn.Module, order: Tensor) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.copy_(parameter[order])
