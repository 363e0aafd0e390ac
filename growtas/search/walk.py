"""One thread's part of an evaluation: many subnets on its share of the images, along the tree of their beginnings.

Subnets that begin with the same blocks are one path of a tree until they part. Every batch of images is taken through the whole
tree once: what leaves one node enters all of its children, which are computed together (:mod:`growtas.nn.siblings`). The outputs
of the nodes are kept while there is memory, since the next generation's subnets begin like this one's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from growtas.nn.siblings import SiblingLayers
from growtas.nn.supernet import Supernet
from growtas.subnet import Subnet

Batch = tuple[Tensor, Tensor, NDArray[np.int64]]
"""Images, labels, and the images' positions in the split."""
Path = tuple[int, ...]
"""The width, then heads and hidden channels of block after block: a node of the tree, or, in full, a subnet."""
Answers = tuple[NDArray[np.int64], Tensor, Tensor]
"""Positions of images, whether each is answered right, and its cross-entropy."""
_BLOCK_BYTES = 64 << 20


class Walker:
    """Evaluates subnets on a share of the images.

    Args:
        supernet: in eval mode.
        layers: its layers, shared by all threads.
        activation_bytes: memory for the outputs of nodes. Where it runs out, the longest paths go first: the short ones are few,
            and shared by more subnets; among equals the one that was not used for longest.

    Attributes:
        layers_run: halves of blocks that were computed, over all batches.
    """

    def __init__(self, supernet: Supernet, layers: SiblingLayers, activation_bytes: int) -> None:
        self._supernet, self._layers, self._budget = supernet, layers, activation_bytes
        self._parts: list[list[Batch]] = []
        # By the length of the path; beside it the number of the batch.
        self._kept: list[dict[tuple[int, Path], Tensor]] = [{} for _ in range(2 * supernet.space.max_depth + 2)]
        self._in_use: set[tuple[int, Path]] = set()
        self._slots: Slots | None = None
        self.layers_run = 0

    def load(self, parts: list[list[Batch]]) -> None:
        """Take over images, part by part, and forget what was kept of others."""
        self._parts = parts
        for kept in self._kept:
            kept.clear()
        most = max((images.shape[0] for part in parts for images, _, _ in part), default=0)
        space, weight = self._supernet.space, self._supernet.cls_token
        numbers = most * space.num_tokens * max(space.embed_dim)
        if self._slots is None or self._slots.numbers < numbers:
            self._slots = Slots(numbers, self._budget // (weight.element_size() * max(numbers, 1)), weight)
        self._slots.empty()

    @torch.inference_mode()
    def evaluate(self, subnets: Sequence[Subnet], part: int) -> list[Answers]:
        """The answers of each subnet to a part's images."""
        paths = [_path(subnet) for subnet in subnets]
        before = sum(map(len, self._parts[:part]))
        found: list[list[Answers]] = [[] for _ in subnets]
        for number, (images, labels, positions) in enumerate(self._parts[part], start=before):
            logits = self._walk(number, images, paths)
            for path, answers in zip(paths, found, strict=True):
                own = logits[path]
                losses = F.cross_entropy(own, labels, reduction="none")
                answers.append((positions, own.argmax(dim=1) == labels, losses))
        return [_joined(answers) for answers in found]

    def _walk(self, number: int, images: Tensor, paths: Sequence[Path]) -> dict[Path, Tensor]:
        """The logits of every path, float32 (or as the supernet computes, where that is wider)."""
        starts, children = self._plan(number, paths)
        self._in_use = {(number, node) for node in starts}
        ends, logits = set(paths), dict[Path, Tensor]()

        def visit(node: Path, x: Tensor) -> None:
            if node in ends:
                out = self._supernet.classify(x)
                logits[node] = out.float() if out.dtype in (torch.float16, torch.bfloat16) else out
            genes = children.get(node)
            if not genes:
                return
            self.layers_run += len(genes)
            block, is_mlp = divmod(len(node) - 1, 2)
            half = self._layers.mlp if is_mlp else self._layers.attention
            for gene, out in zip(genes, half(x, block, genes), strict=True):
                self._keep((number, (*node, gene)), out)
                visit((*node, gene), out)

        for node, x in starts.items():
            visit(node, self._supernet.embed(images, node[0]) if x is None else x)
        return logits

    def _plan(self, number: int, paths: Sequence[Path]) -> tuple[dict[Path, Tensor | None], dict[Path, list[int]]]:
        """Where the walk begins, with what is kept there (None before the first block), and the genes to compute after nodes."""
        starts: dict[Path, Tensor | None] = {}
        children: dict[Path, list[int]] = {}
        reached: set[Path] = set()
        for path in paths:
            length = len(path)
            while length > 1 and path[:length] not in reached:
                kept = self._kept[length].pop((number, path[:length]), None)
                if kept is not None:
                    # Put back as the last that was used.
                    self._kept[length][number, path[:length]] = kept
                    starts[path[:length]] = kept
                    break
                length -= 1
            if length == 1:
                starts.setdefault(path[:1], None)
            reached.add(path[:length])
            for shorter in range(length, len(path)):
                children.setdefault(path[:shorter], []).append(path[shorter])
                reached.add(path[: shorter + 1])
        return starts, children

    def _keep(self, key: tuple[int, Path], x: Tensor) -> None:
        assert self._slots is not None
        length = len(key[1])
        place = self._slots.take()
        if place is None:
            place = self._drop(length)
        if place is not None:
            self._kept[length][key] = self._slots.fill(place, x)

    def _drop(self, length: int) -> Tensor | None:
        """The place of what was kept of a path at least so long; None where all that is kept is shorter, or in use."""
        for kept in reversed(self._kept[length:]):
            key = next((key for key in kept if key not in self._in_use), None)
            if key is not None:
                return kept.pop(key)
        return None


class Slots:
    """Places of one size for activations.

    A new page of memory costs the system several times what writing it costs, so places are made once, many at a time, in blocks
    that fit the system's large pages, and used again.

    Args:
        numbers: that a place holds.
        most: places at most.
        like: a tensor of the device and type.
    """

    def __init__(self, numbers: int, most: int, like: Tensor) -> None:
        self.numbers, self._most, self._like = numbers, most, like.detach()
        self._blocks: list[Tensor] = []
        self._free: list[Tensor] = []

    def empty(self) -> None:
        """All places are free again."""
        self._free = [place for block in self._blocks for place in block]

    def take(self) -> Tensor | None:
        """A free place; None where there is none."""
        if not self._free:
            made = sum(map(len, self._blocks))
            count = min(self._most - made, max(1, _BLOCK_BYTES // (self.numbers * self._like.element_size())))
            if count <= 0:
                return None
            self._blocks.append(self._like.new_empty(count, self.numbers))
            self._free.extend(self._blocks[-1])
        return self._free.pop()

    def fill(self, place: Tensor, x: Tensor) -> Tensor:
        """A copy of ``x`` there, in its shape; of a place that held something else the rest is left as it is."""
        return place.as_strided((x.numel(),), (1,)).copy_(x.reshape(-1)).view_as(x)


def _path(subnet: Subnet) -> Path:
    genes = (gene for block, heads in enumerate(subnet.num_heads) for gene in (heads, subnet.hidden_dim(block)))
    return (subnet.embed_dim, *genes)


def _joined(answers: Sequence[Answers]) -> Answers:
    if not answers:
        return np.empty(0, np.int64), torch.empty(0, dtype=torch.bool), torch.empty(0)
    rows, rights, losses = zip(*answers, strict=True)
    return np.concatenate(rows), torch.cat(rights).cpu(), torch.cat(losses).cpu()
