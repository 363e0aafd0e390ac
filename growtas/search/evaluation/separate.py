"""Evaluates subnets one after the other, for supernets whose experts give each subnet weights of its own."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import CancelledError

import torch
import torch.nn.functional as F

from growtas.nn.extract import extract
from growtas.nn.supernet import Supernet
from growtas.search.evaluation.prefix_tree import Answers, Batch, joined
from growtas.subnet import Subnet


class SeparateEvaluator:
    """Evaluates extracted subnets on one thread's share of the images.

    Args:
        supernet: the supernet in eval mode.
    """

    def __init__(self, supernet: Supernet) -> None:
        self._supernet = supernet
        self._parts: list[list[Batch]] = []
        self._stopped = False

    def stop(self) -> None:
        """See :meth:`growtas.search.evaluation.prefix_tree.PrefixTreeEvaluator.stop`."""
        self._stopped = True

    def load(self, parts: list[list[Batch]]) -> None:
        """Sets the images, part by part."""
        self._parts = parts

    @torch.inference_mode()
    def evaluate(self, subnets: Sequence[Subnet], part: int) -> list[Answers]:
        """See :meth:`growtas.search.evaluation.prefix_tree.PrefixTreeEvaluator.evaluate`."""
        answers = []
        for subnet in subnets:
            model, batches = extract(self._supernet, subnet), []
            for images, labels, positions in self._parts[part]:
                if self._stopped:
                    raise CancelledError
                logits = model(images).float()
                batches.append((positions, logits.argmax(dim=1) == labels, F.cross_entropy(logits, labels, reduction="none")))
            answers.append(joined(batches))
        return answers
