"""Training batches of an epoch, as a function of (seed, epoch), from memory or from files.

:class:`MemoryLoader` holds all images as uint8 and augments whole batches (random crop with padding, horizontal flip):
for small images a DataLoader would take longer than the network. :class:`FileLoader` decodes and augments image by image with
timm's transforms, in worker processes.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from growtas.data.augment import draw_flips, draw_shifts, flip, shift
from growtas.data.images import ImageSet, load_as
from growtas.data.parts import Parts
from growtas.data.prefetch import prefetched
from growtas.data.preprocess import array_normaliser
from growtas.data.seeding import seed_globals
from growtas.errors import ConfigError, DataError

Batch = tuple[Tensor, Tensor]
_ORDER, _AUGMENT, _TRANSFORM = range(3)
"""Streams of random numbers within an epoch; each is seeded by (seed, epoch, stream, place)."""
_AHEAD = 64
"""The least number of images that a worker process prepares ahead."""


class Loader(Protocol):
    """Gives the training batches of an epoch.

    Attributes:
        steps: batches an epoch.
    """

    steps: int

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """float32 images ``(n, C, H, W)`` and int64 labels ``(n,)``; the same for the same seed and epoch.

        Where a loader has some parts of a batch only, ``n`` is their size, one part after the other; each image is what it would be
        in the whole batch.

        Args:
            epoch: from 0.
            first: the batch to begin with, to go on in the middle of an epoch.

        Raises:
            DataError: an image is unreadable.
        """
        ...


def epoch_order(size: int, seed: int, epoch: int, repeats: int = 1) -> NDArray[np.int64]:
    """``size`` image indices in random order; with repeated augmentation each drawn image comes ``repeats`` times in a row.

    As in Hoffer et al., "Augment your batch", an epoch's length stays and it sees fewer distinct images.
    """
    order = np.random.default_rng((seed, epoch, _ORDER)).permutation(size)
    return np.repeat(order, repeats)[:size] if repeats > 1 else order


def batch_indices(order: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Full batches; a last smaller one is left out, unless it is the only one (then of even length, as Mixup needs)."""
    if len(order) < batch_size:
        return [order[: max(len(order) // 2 * 2, 1)]]
    steps = len(order) // batch_size
    return list(order[: steps * batch_size].reshape(steps, batch_size, *order.shape[1:]))


def cut_batches(size: int, batch_size: int, parts: Parts) -> tuple[int, NDArray[np.int64]]:
    """Batches an epoch of ``size`` images, and the rows of each that belong to the parts.

    Raises:
        ConfigError: the batches can't be cut into so many parts; the message says what would be legal.
    """
    batches = batch_indices(np.arange(size), batch_size)
    batch, unit = len(batches[0]), 2 * parts.count
    if batch < batch_size and parts.count > 1 and batch % unit:
        too_few = f"batch_size is {batch_size}, but there are only {size} training images"
        if size < unit:
            raise ConfigError(f"{too_few}, too few for {parts.count} parts (processes x accumulate) of 2 images or more; use fewer")
        raise ConfigError(
            f"{too_few}, and their one batch of {batch} can't be cut into {parts.count} parts (processes x accumulate); "
            f"set batch_size to a multiple of {unit} up to {size // unit * unit}"
        )
    return len(batches), parts.rows(batch)


class MemoryLoader:
    """Batches from images in memory, made in a background thread.

    Args:
        pixels: uint8 ``(n, C, H, W)``.
        labels: ``(n,)``.
        record: the preprocessing.
        batch_size: images a batch, over all processes.
        seed: of order and augmentation.
        crop_padding: pixels by which images are shifted at most, up, down and sideways; 0 for no shift.
        hflip: probability of a horizontal flip.
        parts: what of each batch this process gets.

    Raises:
        ConfigError: see :func:`cut_batches`.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: NDArray[np.int64],
        record: Mapping[str, Any],
        *,
        batch_size: int,
        seed: int,
        crop_padding: int = 0,
        hflip: float = 0.0,
        parts: Parts = Parts(),  # noqa: B008 (frozen)
    ) -> None:
        self.pixels, self.labels, self.record = pixels, torch.from_numpy(np.array(labels)), record
        self.batch_size, self.seed, self.crop_padding, self.hflip = batch_size, seed, crop_padding, hflip
        self.steps, self._rows = cut_batches(len(labels), batch_size, parts)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """See :class:`Loader`."""
        return prefetched(self._make(epoch, first))

    def _make(self, epoch: int, first: int) -> Iterator[Batch]:
        images, labels, normalise = self.pixels.numpy(), self.labels.numpy(), array_normaliser(self.record)
        order = epoch_order(len(labels), self.seed, epoch)
        for number, indices in enumerate(batch_indices(order, self.batch_size)[first:], first):
            count, rows, loaded = len(indices), self._rows, indices[self._rows]
            rng = np.random.default_rng((self.seed, epoch, _AUGMENT, number))
            pixels = images[loaded]
            # Drawn for the whole batch, whatever part of it is made here.
            if self.crop_padding:
                pixels = shift(pixels, draw_shifts(count, self.crop_padding, rng)[rows], self.crop_padding)
            if self.hflip:
                pixels = flip(pixels, draw_flips(count, self.hflip, rng)[rows])
            yield torch.from_numpy(normalise(pixels)), torch.from_numpy(labels[loaded])


class FileLoader:
    """Batches decoded and transformed image by image.

    Args:
        images: the training images.
        transform: image -> float32 ``(C, H, W)``; what it draws from the global generators is seeded by (seed, epoch, place).
        batch_size: images a batch, over all processes.
        seed: of order and augmentation.
        repeats: repeated augmentation, see :func:`epoch_order`.
        workers: processes that decode; 0 decodes in this one. The number does not change the batches.
        pin_memory: for copies to a GPU.
        parts: what of each batch this process gets.

    Raises:
        ConfigError: see :func:`cut_batches`.
    """

    def __init__(
        self,
        images: ImageSet,
        transform: Callable[[Image.Image], Tensor],
        *,
        batch_size: int,
        seed: int,
        repeats: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
        parts: Parts = Parts(),  # noqa: B008 (frozen)
    ) -> None:
        self.batch_size, self.seed, self.repeats = batch_size, seed, repeats
        self._size = len(images)
        self.steps, self._rows = cut_batches(self._size, batch_size, parts)
        self._keys: list[NDArray[np.int64]] = []
        """The batches of the running epoch: (epoch, index, place in the epoch) of each image, so that workers keep no state."""
        self._loader: DataLoader[Any] = DataLoader(
            _TransformedImages(images, transform, seed),
            batch_sampler=self._keys,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=_collate,
            persistent_workers=workers > 0,
            # Batches that a worker makes ahead: two, or so many small ones that a slow image can't make the network wait.
            prefetch_factor=max(2, _AHEAD // len(self._rows)) if workers else None,
            # Image sets hold functions, which only a fork can take along.
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=_leave_signals,
            pin_memory=pin_memory,
        )

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """See :class:`Loader`."""
        order = epoch_order(self._size, self.seed, epoch, self.repeats)
        keys = np.stack([np.full(self._size, epoch), order, np.arange(self._size)], 1)
        self._keys[:] = [batch[self._rows] for batch in batch_indices(keys, self.batch_size)[first:]]
        for batch in self._loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch


def _leave_signals(worker: int) -> None:
    """Ctrl-C and SIGTERM often go to a whole group of processes. The parent decides what is still needed, and ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _TransformedImages(Dataset[tuple[Tensor, int] | DataError]):
    def __init__(self, images: ImageSet, transform: Callable[[Image.Image], Tensor], seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, key: NDArray[np.int64]) -> tuple[Tensor, int] | DataError:
        epoch, index, place = key.tolist()
        seed_globals(self.seed, epoch, _TRANSFORM, place)
        try:
            return load_as(self.images, index, self.transform), int(self.images.labels[index])
        except DataError as error:
            # Returned, not raised: torch would wrap it in the worker's traceback, and the sentence would be lost.
            return error


def _collate(items: list[tuple[Tensor, int] | DataError]) -> Batch | DataError:
    pairs = []
    for item in items:
        if isinstance(item, DataError):
            return item
        pairs.append(item)
    images, labels = zip(*pairs, strict=True)
    return torch.stack(images), torch.tensor(labels)
