"""Feeding the training: batches of an epoch as a function of (seed, epoch), from memory or from files.

Two ways. :class:`MemoryLoader` holds all images as uint8 and augments whole batches (random crop with padding, horizontal flip):
for small images a DataLoader would take longer than the network. :class:`FileLoader` decodes and augments image by image with
timm's transforms, in worker processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from growtas.data.images import ImageSet
from growtas.data.preprocess import normalise
from growtas.data.seeding import seed_globals
from growtas.errors import DataError

Batch = tuple[Tensor, Tensor]
_ORDER, _AUGMENT, _TRANSFORM = range(3)
"""Streams of random numbers within an epoch; each is seeded by (seed, epoch, stream)."""


class Loader(Protocol):
    """Gives the training batches of an epoch.

    Attributes:
        steps: batches an epoch.
    """

    steps: int

    def batches(self, epoch: int) -> Iterator[Batch]:
        """float32 images ``(n, C, H, W)`` and int64 labels ``(n,)``; the same for the same seed and epoch.

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
    return list(order[: steps * batch_size].reshape(steps, batch_size))


class MemoryLoader:
    """Batches from images in memory.

    Args:
        pixels: uint8 ``(n, C, H, W)``.
        labels: ``(n,)``.
        record: the preprocessing.
        batch_size: images a batch.
        seed: of order and augmentation.
        crop_padding: pixels by which images are shifted at most, up, down and sideways; 0 for no shift.
        hflip: probability of a horizontal flip.
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
    ) -> None:
        self.pixels, self.labels, self.record = pixels, torch.from_numpy(np.array(labels)), record
        self.batch_size, self.seed, self.crop_padding, self.hflip = batch_size, seed, crop_padding, hflip
        self.steps = len(batch_indices(np.arange(len(labels)), batch_size))

    def batches(self, epoch: int) -> Iterator[Batch]:
        """See :class:`Loader`."""
        rng = np.random.default_rng((self.seed, epoch, _AUGMENT))
        for indices in batch_indices(epoch_order(len(self.labels), self.seed, epoch), self.batch_size):
            chosen = torch.from_numpy(indices)
            pixels = self.pixels[chosen]
            if self.crop_padding:
                pixels = random_shift(pixels, self.crop_padding, rng)
            if self.hflip:
                pixels = random_flip(pixels, self.hflip, rng)
            yield normalise(pixels, self.record), self.labels[chosen]


def random_shift(pixels: Tensor, limit: int, rng: np.random.Generator) -> Tensor:
    """Shift every image of ``(n, C, H, W)`` by up to ``limit`` pixels each way, filling with zeros: pad and random crop."""
    count, _, height, width = pixels.shape
    padded = torch.nn.functional.pad(pixels, (limit,) * 4)
    top, left = (torch.from_numpy(rng.integers(0, 2 * limit + 1, (count, 1))) for _ in range(2))
    rows, cols = top + torch.arange(height), left + torch.arange(width)
    shifted = padded.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows[:, :, None], cols[:, None, :]]
    return shifted.permute(0, 3, 1, 2)


def random_flip(pixels: Tensor, probability: float, rng: np.random.Generator) -> Tensor:
    """Mirror each image of ``(n, C, H, W)`` left to right with a probability."""
    flip = torch.from_numpy(rng.random(len(pixels)) < probability)
    return torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)


class FileLoader:
    """Batches decoded and transformed image by image.

    Args:
        images: the training images.
        transform: image -> float32 ``(C, H, W)``; what it draws from the global generators is seeded by (seed, epoch, place).
        batch_size: images a batch.
        seed: of order and augmentation.
        repeats: repeated augmentation, see :func:`epoch_order`.
        workers: processes; 0 decodes in this one. The number does not change the batches.
        pin_memory: for copies to a GPU.
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
    ) -> None:
        self.batch_size, self.seed, self.repeats = batch_size, seed, repeats
        self._size = len(images)
        self._places = _Places()
        self.steps = len(batch_indices(np.arange(self._size), batch_size))
        self._loader: DataLoader[Any] = DataLoader(
            _TransformedImages(images, transform, seed),
            batch_sampler=self._places,
            num_workers=workers,
            collate_fn=_collate,
            persistent_workers=workers > 0,
            # Image sets hold functions, which only a fork can take along.
            multiprocessing_context="fork" if workers else None,
            pin_memory=pin_memory,
        )

    def batches(self, epoch: int) -> Iterator[Batch]:
        """See :class:`Loader`."""
        order = epoch_order(self._size, self.seed, epoch, self.repeats)
        places = np.stack([order, np.arange(self._size)], 1)
        self._places.epoch = epoch
        self._places.batches = [places[index] for index in batch_indices(np.arange(self._size), self.batch_size)]
        for batch in self._loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch


class _Places:
    """The DataLoader's batch sampler: (epoch, index, place in the epoch) of each image, so that workers keep no state."""

    def __init__(self) -> None:
        self.epoch = 0
        self.batches: list[NDArray[np.int64]] = []

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for batch in self.batches:
            yield [(self.epoch, index, place) for index, place in batch.tolist()]

    def __len__(self) -> int:
        return len(self.batches)


class _TransformedImages(Dataset[tuple[Tensor, int] | DataError]):
    def __init__(self, images: ImageSet, transform: Callable[[Image.Image], Tensor], seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, int] | DataError:
        epoch, index, place = key
        try:
            image = self.images.load(index)
        except DataError as error:
            # Returned, not raised: torch would wrap it in the worker's traceback, and the sentence would be lost.
            return error
        seed_globals(self.seed, epoch, _TRANSFORM, place)
        return self.transform(image), int(self.images.labels[index])


def _collate(items: list[tuple[Tensor, int] | DataError]) -> Batch | DataError:
    images, labels = [], []
    for item in items:
        if isinstance(item, DataError):
            return item
        images.append(item[0])
        labels.append(item[1])
    return torch.stack(images), torch.tensor(labels)
