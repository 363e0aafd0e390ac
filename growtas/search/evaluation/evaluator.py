"""Evaluates the accuracy of subnets on the search split, and shares the work that they have in common.

Children of one parent often have the same first blocks. They are evaluated in groups, as paths of a prefix tree whose outputs are
cached for later subnets (:mod:`growtas.search.evaluation.prefix_tree`). On a CPU the images are divided among the threads, which
for such small networks is faster than dividing every matrix product. In a race (:mod:`growtas.search.evaluation.racing`) all
subnets see the first part of the images, the remaining ones see the next part, and so on.
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
from growtas.search.evaluation.separate import SeparateEvaluator
from growtas.search.journal import Evaluation
from growtas.subnet import Subnet

_TOKENS_A_BATCH = 4096
"""Number of tokens per batch on a CPU, chosen so that the activations of a layer stay in the CPU's cache."""
_CUDA_BATCH = 256
_IMAGE_BYTES = 2 << 30
_MOST_ACTIVATION_BYTES = 4 << 30
GROUP = 16
"""Number of subnets that are evaluated together."""
_FINGERPRINT_IMAGES = 32


def fingerprint(data: EvaluationSet, description: Any) -> str:
    """Returns a hex digest of the images: of their description (JSON), number, labels, and the pixels of the first ones."""
    digest = hashlib.sha256(json.dumps([description, len(data)], sort_keys=True, default=str).encode())
    digest.update(data.labels.to(torch.int64).numpy().tobytes())
    digest.update(data.images(0, min(_FINGERPRINT_IMAGES, len(data))).numpy().tobytes())
    return digest.hexdigest()


class SubnetEvaluator:
    """Evaluates subnets of a supernet on images. A context manager; leaving it restores torch's number of threads.

    Args:
        supernet: the supernet; it is set to eval mode and moved to ``device``.
        data: the search split.
        device: ``cpu`` or a CUDA device.
        threads: number of CPU threads; by default torch's number, but not more than this process may use.
        image_bytes: largest memory for decoded images; without enough they are read again in every call.
        activation_bytes: largest memory for cached activations; by default a quarter of the memory of the machine, container or
            GPU, and at most 4 GiB.

    Attributes:
        threads: number of CPU threads; an evaluation on a GPU does not use them.

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
            raise DataError("the search split contains no images")
        if int(data.labels.max()) >= space.num_classes or int(data.labels.min()) < 0:
            raise DataError(
                f"the search split has labels up to {int(data.labels.max())}, but the supernet has {space.num_classes} classes"
            )
        self.supernet = supernet.eval().to(device)
        self._data, self._device = data, torch.device(device)
        self._labels = data.labels.to(self._device)
        on_cpu = self._device.type == "cpu"
        self._previous_threads = torch.get_num_threads()
        self._batch = max(1, _TOKENS_A_BATCH // space.num_tokens) if on_cpu else _CUDA_BATCH
        self.threads = threads or min(self._previous_threads, available_threads())
        workers = min(self.threads, -(-len(data) // self._batch)) if on_cpu else 1
        # Smaller batches cost more time per image than dropping a subnet a little earlier saves.
        self._least = workers * self._batch // 2
        image_shape = (space.in_chans, space.image_size, space.image_size)
        first = tuple(data.images(0, 1).shape[1:])
        if first != image_shape:
            raise DataError(f"the search split's images are {first}, the supernet needs {image_shape} (channels, height, width)")
        self._block = max(self._batch, image_bytes // (4 * space.in_chans * space.image_size**2))
        if activation_bytes is None:
            # On a CPU, processes that torchrun started on this machine share its memory.
            processes = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
            memory = usable_memory() // processes if on_cpu else int(torch.cuda.mem_get_info(self._device)[1])
            activation_bytes = min(_MOST_ACTIVATION_BYTES, memory // 4)
        self._evaluators: Sequence[PrefixTreeEvaluator | SeparateEvaluator]
        if supernet.experts is None:
            layers = EvaluationLayers(self.supernet)
            self._evaluators = [PrefixTreeEvaluator(self.supernet, layers, activation_bytes // workers) for _ in range(workers)]
        else:
            self._evaluators = [SeparateEvaluator(self.supernet) for _ in range(workers)]
        self._pools = (
            [ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) for _ in range(workers)] if on_cpu else []
        )
        if on_cpu:
            # Each worker computes on one thread. The setting is partly global, and close() restores it.
            torch.set_num_threads(1)
        self._loaded: tuple[int, int, bytes | None] | None = None

    def __enter__(self) -> SubnetEvaluator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stops the threads after their current batch of images, and restores torch's number of threads."""
        for evaluator in self._evaluators:
            evaluator.stop()
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._previous_threads)

    def __call__(self, subnets: Sequence[Subnet], race: Race | None = None) -> Iterator[tuple[Subnet, Evaluation]]:
        """Evaluates subnets. Yields each as soon as it is done, in an order that shares the most work, not in the given order.

        Args:
            subnets: the subnets.
            race: the race, from which subnets that can't become parents are dropped; without it all evaluations are complete.
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
        """Evaluates all subnets on one part of the images. Yields each with its tally when it is done."""
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
        """Gives the workers their images, unless they have them already."""
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
    """Sorts subnets so that those with the most first blocks in common are neighbours. Removes duplicates."""
    return sorted(
        dict.fromkeys(subnets),
        key=lambda s: (s.embed_dim, [gene for block in zip(s.num_heads, s.mlp_ratio, strict=True) for gene in block]),
    )


def _merged(parts: Sequence[slice], least: int) -> list[slice]:
    """Joins consecutive parts until each but the last has at least ``least`` images."""
    merged: list[slice] = []
    for part in parts:
        if merged and merged[-1].stop - merged[-1].start < least:
            merged[-1] = slice(merged[-1].start, part.stop)
        else:
            merged.append(part)
    return merged


def _blocks(parts: Sequence[slice], images: int) -> list[tuple[int, int]]:
    """Returns ranges of at most ``images`` images that cover the parts: whole parts if they fit, otherwise pieces of a part."""
    blocks: list[tuple[int, int]] = []
    for part in parts:
        if blocks and part.stop - blocks[-1][0] <= images:
            blocks[-1] = blocks[-1][0], part.stop
        else:
            blocks += [(start, min(start + images, part.stop)) for start in range(part.start, part.stop, images)]
    return blocks


class _Tally:
    """A subnet's answers so far. Losses are summed in the split's order at the end, so the order of evaluation has no effect."""

    def __init__(self, images: int) -> None:
        self._right, self._losses, self.correct = np.zeros(images, bool), np.zeros(images), 0

    def add(self, rows: NDArray[np.int64], right: Tensor, losses: Tensor) -> None:
        self._right[rows], self._losses[rows] = right.numpy(), losses.numpy()
        self.correct += int(right.sum())

    def evaluation(self) -> Evaluation:
        """Returns the complete evaluation."""
        total = len(self._right)
        answers = np.packbits(self._right).tobytes()
        return Evaluation(self.correct / total, float(self._losses.sum()) / total, answers=answers)
