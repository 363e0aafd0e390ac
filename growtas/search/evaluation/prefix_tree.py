"""Evaluates many subnets on one thread's share of the images, as paths of a prefix tree.

A node of the tree is a sequence of first blocks, which subnets with the same first blocks share. Every batch of images passes
through the tree once: the output of a node is the input of all its children, which are computed together
(:mod:`growtas.nn.evaluation.layers`). Outputs are cached as far as memory allows, because subnets of the next generation share many
first blocks with those of this one. A cached node is not computed again, and a node with a smaller cached sibling only in part.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import CancelledError

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from growtas.nn.evaluation.layers import EvaluationLayers
from growtas.nn.supernet import Supernet
from growtas.search.evaluation.activation_cache import ActivationCache, Path
from growtas.space import SearchSpace
from growtas.subnet import Subnet

Batch = tuple[Tensor, Tensor, NDArray[np.int64]]
"""Images, labels, and the positions of the images in the split."""
Answers = tuple[NDArray[np.int64], Tensor, Tensor]
"""For each image its position, whether the answer is right, and its cross-entropy."""
_SKIPPED = 0
"""Stands in a path for each half of a block that a subnet does not run."""


class PrefixTreeEvaluator:
    """Evaluates subnets on one thread's share of the images.

    Args:
        supernet: the supernet in eval mode.
        layers: its layers, shared by all threads.
        activation_bytes: memory for cached outputs of nodes in bytes.

    Attributes:
        layers_run: number of computed half blocks (attention or MLP).
    """

    def __init__(self, supernet: Supernet, layers: EvaluationLayers, activation_bytes: int) -> None:
        self._supernet, self._layers = supernet, layers
        self._parts: list[list[Batch]] = []
        self._cache = ActivationCache(activation_bytes, 2 * supernet.space.max_depth + 1, supernet.cls_token)
        self.layers_run = 0
        self._stopped = False

    def stop(self) -> None:
        """Ends the running evaluation and all later ones with a ``CancelledError``. Called from another thread."""
        self._stopped = True

    def load(self, parts: list[list[Batch]]) -> None:
        """Sets the images, part by part, and clears the cached outputs of earlier ones."""
        self._parts = parts
        self._cache.clear()

    @torch.inference_mode()
    def evaluate(self, subnets: Sequence[Subnet], part: int) -> list[Answers]:
        """Returns the answers of each subnet to the images of a part.

        Raises:
            CancelledError: :meth:`stop` was called.
        """
        paths = [_path(self._supernet.space, subnet) for subnet in subnets]
        before = sum(map(len, self._parts[:part]))
        answers: list[list[Answers]] = [[] for _ in subnets]
        for number, (images, labels, positions) in enumerate(self._parts[part], start=before):
            if self._stopped:
                raise CancelledError
            logits = self._logits(number, images, paths)
            for path, batches in zip(paths, answers, strict=True):
                losses = F.cross_entropy(logits[path], labels, reduction="none")
                batches.append((positions, logits[path].argmax(dim=1) == labels, losses))
        return [joined(batches) for batches in answers]

    def _logits(self, number: int, images: Tensor, paths: Sequence[Path]) -> dict[Path, Tensor]:
        """Returns the logits of every path in float32, or in the supernet's own type if that is wider."""
        starts, children = self._plan(number, paths)
        self._cache.use(number, starts)
        ends, logits = set(paths), dict[Path, Tensor]()

        def visit(node: Path, x: Tensor) -> None:
            if node in ends:
                out = self._supernet.classify(x)
                logits[node] = out.float() if out.dtype in (torch.float16, torch.bfloat16) else out
            genes = children.get(node, [])
            if _SKIPPED in genes:
                visit((*node, _SKIPPED), x)
                genes = [gene for gene in genes if gene != _SKIPPED]
            if not genes:
                return
            self.layers_run += len(genes)
            for gene, out in zip(genes, self._grow(number, node, x, genes), strict=True):
                visit((*node, gene), out)

        for node, x in starts.items():
            visit(node, self._supernet.embed(images, node[0]) if x is None else x)
        self._cache.release(number, starts)
        return logits

    def _grow(self, number: int, node: Path, x: Tensor, genes: Sequence[int]) -> list[Tensor]:
        """Returns the outputs of a node's children, given the node's output ``x``. All are written into the cache.

        They stay valid while their own children are computed, because only longer paths are dropped then.
        """
        block, is_mlp = divmod(len(node) - 1, 2)
        choices = self._layers.hidden_choices(node[0]) if is_mlp else self._layers.head_choices
        begun = None
        for choice in choices:
            if choice < min(genes) and (cached := self._cache.get(number, (*node, choice))) is not None:
                begun = choice, cached
        busy = [(*node, gene) for gene in (*genes, *(begun[:1] if begun else ()))]
        self._cache.use(number, busy)
        into = [self._cache.reserve(number, (*node, gene), tuple(x.shape)) for gene in genes]
        half = self._layers.mlp if is_mlp else self._layers.attention
        outs = half(x, block, genes, into, begun)
        self._cache.release(number, busy)
        return outs

    def _plan(self, number: int, paths: Sequence[Path]) -> tuple[dict[Path, Tensor | None], dict[Path, list[int]]]:
        """Returns the start nodes with cached outputs (None before the first block), and the genes to compute at each node."""
        starts: dict[Path, Tensor | None] = {}
        children: dict[Path, list[int]] = {}
        reached: set[Path] = set()
        for path in paths:
            length = len(path)
            while length > 1 and path[:length] not in reached:
                cached = self._cache.get(number, path[:length])
                if cached is not None:
                    starts[path[:length]] = cached
                    break
                length -= 1
            if length == 1:
                starts.setdefault(path[:1], None)
            reached.add(path[:length])
            for shorter in range(length, len(path)):
                children.setdefault(path[:shorter], []).append(path[shorter])
                reached.add(path[: shorter + 1])
        return starts, children


def _path(space: SearchSpace, subnet: Subnet) -> Path:
    blocks = space.blocks_of(subnet.depth)
    genes = [_SKIPPED] * (2 * (blocks[-1] + 1))
    for place, index in enumerate(blocks):
        genes[2 * index : 2 * index + 2] = subnet.num_heads[place], subnet.hidden_dim(place)
    return (subnet.embed_dim, *genes)


def joined(answers: Sequence[Answers]) -> Answers:
    """Joins the answers to several batches."""
    if not answers:
        return np.empty(0, np.int64), torch.empty(0, dtype=torch.bool), torch.empty(0)
    rows, rights, losses = zip(*answers, strict=True)
    return np.concatenate(rows), torch.cat(rights).cpu(), torch.cat(losses).cpu()
