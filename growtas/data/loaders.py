"""Training batches from memory or from files. The batches of an epoch depend only on (seed, epoch).

:class:`MemoryLoader` holds all images as uint8 and augments whole batches (random crop with padding, horizontal flip), because a
DataLoader would take longer than the network for small images. :class:`FileLoader` decodes and augments each image with timm's
transforms in worker processes.
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
"""Streams of random numbers within an epoch; each is seeded with (seed, epoch, stream, place)."""
_AHEAD = 64
"""Least number of images that a worker process prepares in advance."""


class Loader(Protocol):
    """Yields the training batches of an epoch.

    Attributes:
        steps: number of batches per epoch.
    """

    steps: int

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yields float32 images ``(n, C, H, W)`` and int64 labels ``(n,)``; the same ones for the same seed and epoch.

        If a loader has only some parts of each batch, it yields these parts, one after the other, as one tensor of ``n`` images.
        Each image is the same as in the whole batch.

        Args:
            epoch: the epoch, from 0.
            first: the first batch to yield; above 0 to continue in the middle of an epoch.

        Raises:
            DataError: An image can't be read.
        """
        ...


def epoch_order(size: int, seed: int, epoch: int, repeats: int = 1) -> NDArray[np.int64]:
    """Returns ``size`` image indices in random order; with repeated augmentation, each image comes ``repeats`` times in a row.

    As in Hoffer et al., "Augment your batch", the epoch keeps its length and therefore has fewer distinct images.
    """
    order = np.random.default_rng((seed, epoch, _ORDER)).permutation(size)
    return np.repeat(order, repeats)[:size] if repeats > 1 else order


def batch_indices(order: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Cuts an order into full batches. A smaller batch is only kept if it is the only one, with even length as Mixup needs it."""
    if len(order) < batch_size:
        return [order[: max(len(order) // 2 * 2, 1)]]
    steps = len(order) // batch_size
    return list(order[: steps * batch_size].reshape(steps, batch_size, *order.shape[1:]))


def cut_batches(size: int, batch_size: int, parts: Parts) -> tuple[int, NDArray[np.int64]]:
    """Returns the number of batches in an epoch of ``size`` images, and the rows of each batch that belong to the parts.

    Raises:
        ConfigError: The batches can't be cut into so many parts; the message gives legal values.
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
    """Makes batches of images in memory, in a background thread.

    Args:
        pixels: uint8 ``(n, C, H, W)``.
        labels: ``(n,)``.
        record: the preprocessing record.
        batch_size: images per batch, summed over all processes.
        seed: seed of order and augmentation.
        crop_padding: largest random shift in pixels, vertically and horizontally; 0 for no shift.
        hflip: probability of a horizontal flip.
        parts: the parts of each batch that this process loads.

    Raises:
        ConfigError: See :func:`cut_batches`.
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
            # Random numbers are drawn for the whole batch, even if only some parts of it are made here.
            if self.crop_padding:
                pixels = shift(pixels, draw_shifts(count, self.crop_padding, rng)[rows], self.crop_padding)
            if self.hflip:
                pixels = flip(pixels, draw_flips(count, self.hflip, rng)[rows])
            yield torch.from_numpy(normalise(pixels)), torch.from_numpy(labels[loaded])


class FileLoader:
    """Makes batches by decoding and transforming each image.

    Args:
        images: the training images.
        transform: image -> float32 ``(C, H, W)``; the global random generators are seeded with (seed, epoch, place) before.
        batch_size: images per batch, summed over all processes.
        seed: seed of order and augmentation.
        repeats: number of repetitions in repeated augmentation; see :func:`epoch_order`.
        workers: number of processes that decode; 0 decodes in this process. The number does not change the batches.
        pin_memory: use pinned memory, for copies to a GPU.
        parts: the parts of each batch that this process loads.

    Raises:
        ConfigError: See :func:`cut_batches`.
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
        """Batches of the running epoch: (epoch, index, place in the epoch) of each image, so that workers need no state."""
        self._loader: DataLoader[Any] = DataLoader(
            _TransformedImages(images, transform, seed),
            batch_sampler=self._keys,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=_collate,
            persistent_workers=workers > 0,
            # Batches that a worker makes in advance: two, or more small ones, so that the network needn't wait for a slow image.
            prefetch_factor=max(2, _AHEAD // len(self._rows)) if workers else None,
            # Image sets hold functions, which only forked processes inherit.
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
    """Ignores Ctrl-C and SIGTERM, which often reach a whole process group: the parent process ends its workers itself."""
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
            # Returned and not raised, because torch would wrap the message in the worker's traceback.
            return error


def _collate(items: list[tuple[Tensor, int] | DataError]) -> Batch | DataError:
    pairs = []
    for item in items:
        if isinstance(item, DataError):
            return item
        pairs.append(item)
    images, labels = zip(*pairs, strict=True)
    return torch.stack(images), torch.tensor(labels)
