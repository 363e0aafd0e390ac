"""Evaluates the accuracy of subnets on the search split, sharing the work that they have in common.

Children of one parent mostly have the same first blocks. They are evaluated a group at a time, as paths of a prefix tree whose
outputs are cached for later subnets (:mod:`growtas.search.evaluation.prefix_tree`). On a CPU the images are divided among the
threads, which for networks this small is faster than dividing every matrix product. In a race
(:mod:`growtas.search.evaluation.racing`) all subnets see the first images, those that are still in it the next ones, and so on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from growtas.data.evaluation import EvaluationSet
from growtas.errors import DataError
from growtas.nn.evaluation.layers import EvaluationLayers
from growtas.nn.supernet import Supernet
from growtas.resources import available_threads, usable_memory
from growtas.search.evaluation.prefix_tree import Answers, Batch, PrefixTreeEvaluator
from growtas.search.evaluation.racing import Race
from growtas.search.journal import Evaluation
from growtas.subnet import Subnet

_TOKENS_A_BATCH = 4096
"""On a CPU, batches of so many tokens: the activations of a layer stay in the cache."""
_CUDA_BATCH = 256
_IMAGE_BYTES = 2 << 30
_MOST_ACTIVATION_BYTES = 4 << 30
GROUP = 16
"""Subnets that go through the layers together, and come out together."""
_FINGERPRINT_IMAGES = 32


def fingerprint(data: EvaluationSet, description: Any) -> str:
    """Hex digest of what the images are: their description (JSON), number, labels, and the pixels of some."""
    digest = hashlib.sha256(json.dumps([description, len(data)], sort_keys=True, default=str).encode())
    digest.update(data.labels.to(torch.int64).numpy().tobytes())
    digest.update(data.images(0, min(_FINGERPRINT_IMAGES, len(data))).numpy().tobytes())
    return digest.hexdigest()


class SubnetEvaluator:
    """Evaluates subnets of a supernet on images. A context manager; leaving it sets torch's threads back.

    Args:
        supernet: in eval mode; moved to ``device``.
        data: the search split.
        device: ``cpu`` or a CUDA device.
        threads: CPU threads; by default torch's number, and no more than this process may use.
        image_bytes: memory that decoded images may take; beyond it they are read again for every call.
        activation_bytes: memory that cached activations may take; by default a quarter of the machine's, container's or GPU's,
            and 4 GiB at most.

    Attributes:
        threads: CPU threads that compute; a GPU's evaluation takes none of them.

    Raises:
        DataError: there are no images, they don't fit the supernet, or a label has no class.
    """

    def __init__(
        self,
        supernet: Supernet,
        data: EvaluationSet,
        *,
        device: str = "cpu",
        threads: int | None = None,
        image_bytes: int = _IMAGE_BYTES,
        activation_bytes: int | None = None,
    ) -> None:
        space = supernet.space
        if not len(data):
            raise DataError("the search split holds no image")
        if int(data.labels.max()) >= space.num_classes or int(data.labels.min()) < 0:
            raise DataError(
                f"the search split's labels go up to {int(data.labels.max())}, but the supernet has {space.num_classes} classes"
            )
        self.supernet = supernet.eval().to(device)
        self._data, self._device = data, torch.device(device)
        self._labels = data.labels.to(self._device)
        on_cpu = self._device.type == "cpu"
        self._previous_threads = torch.get_num_threads()
        self._batch = max(1, _TOKENS_A_BATCH // space.num_tokens) if on_cpu else _CUDA_BATCH
        self.threads = threads or min(self._previous_threads, available_threads())
        workers = min(self.threads, -(-len(data) // self._batch)) if on_cpu else 1
        # Smaller batches cost more an image than dropping a subnet a little earlier saves.
        self._least = workers * self._batch // 2
        image_shape = (space.in_chans, space.image_size, space.image_size)
        first = tuple(data.images(0, 1).shape[1:])
        if first != image_shape:
            raise DataError(f"the search split's images are {first}, the supernet takes {image_shape} (channels, height, width)")
        self._block = max(self._batch, image_bytes // (4 * space.in_chans * space.image_size**2))
        if activation_bytes is None:
            # On a CPU this process's share, where torchrun started several on this machine.
            processes = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
            memory = usable_memory() // processes if on_cpu else int(torch.cuda.mem_get_info(self._device)[1])
            activation_bytes = min(_MOST_ACTIVATION_BYTES, memory // 4)
        layers = EvaluationLayers(self.supernet)
        self._evaluators = [PrefixTreeEvaluator(self.supernet, layers, activation_bytes // workers) for _ in range(workers)]
        self._pools = (
            [ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) for _ in range(workers)] if on_cpu else []
        )
        if on_cpu:
            # Each worker computes on one thread. The setting is partly global, and close() sets it back.
            torch.set_num_threads(1)
        self._loaded: tuple[int, int, bytes | None] | None = None

    def __enter__(self) -> SubnetEvaluator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads and set torch's threads back; what is being evaluated ends with the batch of images at hand."""
        for evaluator in self._evaluators:
            evaluator.stop()
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._previous_threads)

    def __call__(self, subnets: Sequence[Subnet], race: Race | None = None) -> Iterator[tuple[Subnet, Evaluation]]:
        """Evaluate subnets; each comes as soon as it is done, in an order that shares most work, not the given one.

        Args:
            race: drop what can't become a parent. Without it all evaluations are complete.
        """
        for subnet in subnets:
            self.supernet.space.validate(subnet)
        total = len(self._data)
        running = {subnet: _Tally(total) for subnet in by_beginning(subnets)}
        parts = _merged(race.parts(), self._least) if race else [slice(0, total)]
        order = race.order if race else None
        seen = 0
        for start, stop in _blocks(parts, self._block):
            if not running:
                return
            cuts = (slice(max(part.start, start), min(part.stop, stop)) for part in parts)
            inside = [cut for cut in cuts if cut.start < cut.stop]
            self._load(order, start, stop, inside)
            for number, part in enumerate(inside):
                seen = part.stop
                for subnet, tally in self._run_part(running, number):
                    if seen == total:
                        yield subnet, tally.evaluation()
                if race is None or seen == total:
                    continue
                for subnet, tally in list(running.items()):
                    if race.is_lost(tally.correct, total - seen):
                        del running[subnet]
                        yield subnet, Evaluation(tally.correct / seen, np.inf, seen=seen)

    def _run_part(self, running: Mapping[Subnet, _Tally], number: int) -> Iterator[tuple[Subnet, _Tally]]:
        """All subnets on one part of the images; each with its tally when it is done."""
        everyone = list(running)
        groups = [everyone[start : start + GROUP] for start in range(0, len(everyone), GROUP)]
        pending = [[self._submit(i, group, number) for i in range(len(self._evaluators))] for group in groups]
        for group, answers in zip(groups, pending, strict=True):
            for answer in answers:
                for subnet, answers_of_subnet in zip(group, answer.result(), strict=True):
                    running[subnet].add(*answers_of_subnet)
            for subnet in group:
                yield subnet, running[subnet]

    def _load(self, order: NDArray[np.int64] | None, start: int, stop: int, parts: Sequence[slice]) -> None:
        """Give the workers their images; nothing to do where they have them."""
        key = start, stop, None if order is None else order.tobytes()
        if key == self._loaded:
            return
        rows = np.arange(start, stop) if order is None else order[start:stop]
        images = self._data.take(rows).to(self._device)
        labels = self._labels[torch.from_numpy(rows).to(self._device)]
        shares: list[list[list[Batch]]] = [[] for _ in self._evaluators]
        for part in parts:
            share = -(-(part.stop - part.start) // len(self._evaluators))
            for i, held in enumerate(shares):
                first, last = (min(part.start + share * n, part.stop) for n in (i, i + 1))
                cuts = [slice(at - start, min(at + self._batch, last) - start) for at in range(first, last, self._batch)]
                held.append([(images[cut], labels[cut], rows[cut]) for cut in cuts])
        for evaluator, held in zip(self._evaluators, shares, strict=True):
            evaluator.load(held)
        self._loaded = key

    def _submit(self, index: int, group: Sequence[Subnet], part: int) -> Future[list[Answers]]:
        if self._pools:
            return self._pools[index].submit(self._evaluators[index].evaluate, group, part)
        future: Future[list[Answers]] = Future()
        future.set_result(self._evaluators[index].evaluate(group, part))
        return future


def by_beginning(subnets: Sequence[Subnet]) -> list[Subnet]:
    """Subnets sorted so that those with the longest common beginnings are neighbours; equal ones once."""
    return sorted(
        dict.fromkeys(subnets),
        key=lambda s: (s.embed_dim, [gene for block in zip(s.num_heads, s.mlp_ratio, strict=True) for gene in block]),
    )


def _merged(parts: Sequence[slice], least: int) -> list[slice]:
    """Consecutive parts put together until each but the last has ``least`` images."""
    merged: list[slice] = []
    for part in parts:
        if merged and merged[-1].stop - merged[-1].start < least:
            merged[-1] = slice(merged[-1].start, part.stop)
        else:
            merged.append(part)
    return merged


def _blocks(parts: Sequence[slice], images: int) -> list[tuple[int, int]]:
    """Ranges of at most ``images`` images that cover the parts: whole parts where one fits, and pieces of one where it does not."""
    blocks: list[tuple[int, int]] = []
    for part in parts:
        if blocks and part.stop - blocks[-1][0] <= images:
            blocks[-1] = blocks[-1][0], part.stop
        else:
            blocks += [(start, min(start + images, part.stop)) for start in range(part.start, part.stop, images)]
    return blocks


class _Tally:
    """A subnet's answers so far. Losses are added up in the split's order at the end: so the sum depends on nothing else."""

    def __init__(self, images: int) -> None:
        self._right, self._losses, self.correct = np.zeros(images, bool), np.zeros(images), 0

    def add(self, rows: NDArray[np.int64], right: Tensor, losses: Tensor) -> None:
        self._right[rows], self._losses[rows] = right.numpy(), losses.numpy()
        self.correct += int(right.sum())

    def evaluation(self) -> Evaluation:
        """The complete evaluation."""
        total = len(self._right)
        answers = np.packbits(self._right).tobytes()
        return Evaluation(self.correct / total, float(self._losses.sum()) / total, answers=answers)
