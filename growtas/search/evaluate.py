"""Accuracy of subnets on the search split, sharing the work that they have in common.

Children of one parent mostly begin with the same blocks. The supernet is run layer by layer, and what came out of a common
beginning is kept, so that only the rest is computed again; the numbers are the same, bit for bit. On a CPU the images are divided
among the threads, which for networks this small is faster than dividing every matrix product.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from growtas.errors import DataError
from growtas.nn.supernet import Supernet
from growtas.search.journal import Evaluation
from growtas.subnet import Subnet

_TOKENS_A_BATCH = 4096
"""On a CPU, batches of so many tokens: the activations of a layer stay in the cache."""
_CUDA_BATCH = 256
_IMAGE_BYTES = 2 << 30
_ACTIVATION_BYTES = 768 << 20
_FINGERPRINT_IMAGES = 32


class Images(Protocol):
    """The part of an evaluation set that is needed: images by position, and labels."""

    def images(self, start: int, stop: int, /) -> Tensor:
        """Preprocessed images, ``(stop - start, C, H, W)``, float32."""

    @property
    def labels(self) -> Tensor:
        """Class indices, ``(len,)``, int64."""

    def __len__(self) -> int: ...


def fingerprint(data: Images, description: Any) -> str:
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
        threads: CPU threads; by default torch's.
        image_bytes, activation_bytes: memory that decoded images, and kept activations, may take. Images beyond it are read
            again for every call.

    Raises:
        DataError: there are no images, they don't fit the supernet, or a label has no class.
    """

    def __init__(
        self,
        supernet: Supernet,
        data: Images,
        *,
        device: str = "cpu",
        threads: int | None = None,
        image_bytes: int = _IMAGE_BYTES,
        activation_bytes: int = _ACTIVATION_BYTES,
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
        workers = min(threads or self._previous_threads, -(-len(data) // self._batch)) if on_cpu else 1
        image_shape = (space.in_chans, space.image_size, space.image_size)
        first = tuple(data.images(0, 1).shape[1:])
        if first != image_shape:
            raise DataError(f"the search split's images are {first}, the supernet takes {image_shape} (channels, height, width)")
        self._chunk = max(self._batch, image_bytes // (4 * space.in_chans * space.image_size**2))
        self._workers = [_Worker(self.supernet, activation_bytes // workers) for _ in range(workers)]
        self._pools = (
            [ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) for _ in range(workers)] if on_cpu else []
        )
        if on_cpu:
            # Each worker computes on one thread. The setting is partly global, and close() sets it back.
            torch.set_num_threads(1)
        self._loaded: tuple[int, int] | None = None

    def __enter__(self) -> SubnetEvaluator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads and set torch's number of threads back."""
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._previous_threads)

    def __call__(self, subnets: Sequence[Subnet]) -> Iterator[tuple[Subnet, Evaluation]]:
        """Evaluate subnets; each comes as soon as it is done, in an order that shares most work, not the given one."""
        for subnet in subnets:
            self.supernet.space.validate(subnet)
        ordered = sorted(
            subnets, key=lambda s: (s.embed_dim, [gene for block in zip(s.num_heads, s.mlp_ratio, strict=True) for gene in block])
        )
        total = len(self._data)
        sums = dict.fromkeys(ordered, (0, 0.0))
        for start in range(0, total, self._chunk):
            stop = min(start + self._chunk, total)
            self._load(start, stop)
            pending = [[self._submit(i, subnet) for i in range(len(self._workers))] for subnet in ordered]
            for subnet, parts in zip(ordered, pending, strict=True):
                results = [part.result() for part in parts]
                correct, loss = sums[subnet]
                sums[subnet] = (correct + sum(c for c, _ in results), loss + sum(value for _, value in results))
                if stop == total:
                    yield subnet, Evaluation(sums[subnet][0] / total, sums[subnet][1] / total)

    def _load(self, start: int, stop: int) -> None:
        """Give the workers their images; nothing to do where they have them."""
        if self._loaded == (start, stop):
            return
        images, labels = self._data.images(start, stop).to(self._device), self._labels[start:stop]
        share = -(-(stop - start) // len(self._workers))
        for i, worker in enumerate(self._workers):
            rows = slice(i * share, (i + 1) * share)
            worker.load(torch.split(images[rows], self._batch), torch.split(labels[rows], self._batch))
        self._loaded = (start, stop)

    def _submit(self, index: int, subnet: Subnet) -> Future[tuple[int, float]]:
        if self._pools:
            return self._pools[index].submit(self._workers[index].evaluate, subnet)
        future: Future[tuple[int, float]] = Future()
        future.set_result(self._workers[index].evaluate(subnet))
        return future


class _Worker:
    """Evaluates subnets on a share of the images, and keeps the activations of their beginnings.

    A key is the batch, the width and the genes up to a layer. Only what comes out of attention is kept, which costs most: so twice
    as many beginnings fit. Where memory runs out, the longest go first: the short ones are few, and shared by more subnets.
    """

    def __init__(self, supernet: Supernet, activation_bytes: int) -> None:
        self._supernet, self._budget = supernet, activation_bytes
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._kept: list[dict[tuple[int, ...], Tensor]] = [{} for _ in range(2 * supernet.space.max_depth + 1)]
        self._bytes = 0
        self.layers_run = 0

    def load(self, images: Sequence[Tensor], labels: Sequence[Tensor]) -> None:
        self._batches = [pair for pair in zip(images, labels, strict=True) if len(pair[1])]
        self._bytes = 0
        for kept in self._kept:
            kept.clear()

    @torch.inference_mode()
    def evaluate(self, subnet: Subnet) -> tuple[int, float]:
        """Correct answers and summed cross-entropy."""
        correct, loss = 0, 0.0
        for index, (images, labels) in enumerate(self._batches):
            logits = self._supernet.classify(self._tokens(index, images, subnet)).float()
            correct += int((logits.argmax(dim=1) == labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        return correct, loss

    def _tokens(self, index: int, images: Tensor, subnet: Subnet) -> Tensor:
        """Tokens after the last block, from the longest beginning that is kept."""
        genes = [gene for i, heads in enumerate(subnet.num_heads) for gene in (heads, subnet.hidden_dim(i))]
        keys = [(index, subnet.embed_dim, *genes[:length]) for length in range(len(genes) + 1)]
        x, length = None, len(genes) + 1
        while x is None and length > 0:
            length -= 1
            x = self._kept[length].get(keys[length])
        if x is None:
            x = self._supernet.embed(images, subnet.embed_dim)
        for step in range(length, len(genes)):
            self.layers_run += 1
            if step % 2:
                x = self._supernet.mlp_layer(x, step // 2, genes[step])
            else:
                x = self._keep(keys, step + 1, self._supernet.attention_layer(x, step // 2, genes[step]))
        return x

    def _keep(self, path: list[tuple[int, ...]], length: int, x: Tensor) -> Tensor:
        """Keep the activations of ``path[length]``; entries of the path itself are not dropped for it."""
        self._kept[length][path[length]] = x
        self._bytes += x.numel() * x.element_size()
        for longest in range(len(self._kept) - 1, -1, -1):
            candidates, needed = self._kept[longest], path[longest] if longest < len(path) else None
            while self._bytes > self._budget:
                key = next((key for key in candidates if key != needed), None)
                if key is None:
                    break
                dropped = candidates.pop(key)
                self._bytes -= dropped.numel() * dropped.element_size()
        return x
