"""Decoded images in memory: resized and cropped, but as uint8, which needs a quarter of the memory of normalised floats.

Images from files are also cached on disk; see :mod:`growtas.data.cache`.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from growtas.data.cache import files_key, load_entry, store_entry
from growtas.data.images import ArraySet, ImageSet, load_as, paths_of, resolve
from growtas.data.preprocess import geometry
from growtas.progress import SILENT, Progress, tracked
from growtas.resources import available_threads

MEMORY_LIMIT = 2_000_000_000
"""Largest size of decoded images kept in memory, in bytes; ImageNet's 10,000 search images at 224 px need 1.5 GB."""


class Pixels:
    """The images of a set as uint8 tensors, decoded at their first use and kept in memory if all of them fit.

    Args:
        images: the set.
        record: the preprocessing record.
    """

    def __init__(self, images: ImageSet, record: Mapping[str, Any]) -> None:
        self._images, self._record = images, record
        self._base, self._indices = resolve(images)
        # Grey images are stored with one channel; the network's other channels are copies of it.
        grey = record["in_chans"] == 1 or (isinstance(self._base, ArraySet) and self._base.pixels.ndim == 3)
        self._shape = (1 if grey else 3, record["image_size"], record["image_size"])
        self._decode = geometry(record, "L" if grey else None)
        self.size = len(images) * int(np.prod(self._shape))
        self._decoded = torch.empty((len(images), *self._shape), dtype=torch.uint8) if self.size <= MEMORY_LIMIT else None
        self._is_decoded = np.zeros(len(images), bool)
        self._key: str | None = None
        self._tried_cache = False

    def __len__(self) -> int:
        return len(self._images)

    def take(self, indices: NDArray[np.int64]) -> Tensor:
        """Returns images as uint8 ``(len(indices), C, image_size, image_size)``; C is 1 for grey images.

        Raises:
            DataError: An image can't be read.
        """
        if self._decoded is None:
            return self._read(indices)
        missing = np.unique(indices[~self._is_decoded[indices]])
        if len(missing) and not self._load_cached():
            self._decoded[missing] = self._read(missing)
            self._is_decoded[missing] = True
            # The key is the same only if no file has changed during the decoding.
            if self._is_decoded.all() and self._key is not None and self._key == self._cache_key():
                store_entry(self._key, self._decoded.numpy())
        return self._decoded[torch.from_numpy(indices)]

    def load_all(self, progress: Progress = SILENT, title: str = "decoding images") -> Tensor:
        """Returns all images in one tensor of ``self.size`` bytes."""
        chunks = np.array_split(np.arange(len(self)), max(1, len(self) // 256))
        parts = [self.take(chunk) for chunk in tracked(chunks, title, progress)]
        return self._decoded if self._decoded is not None else torch.cat(parts)

    def _cache_key(self) -> str | None:
        """Returns the name of the cache's entry for these images; None if they are not files."""
        paths = paths_of(self._images)
        if paths is None:
            return None
        rules = {key: self._record.get(key) for key in ("image_size", "crop_pct", "interpolation", "decode")}
        return files_key(paths, shape=self._shape, **rules)

    def _load_cached(self) -> bool:
        """Loads all images from the cache, at the first call only; returns whether that was possible."""
        if self._tried_cache:
            return False
        self._tried_cache = True
        self._key = self._cache_key()
        entry = load_entry(self._key, (len(self), *self._shape)) if self._key is not None else None
        if entry is not None:
            self._decoded = torch.from_numpy(entry)
            self._is_decoded[:] = True
        return entry is not None

    def _read(self, indices: NDArray[np.int64]) -> Tensor:
        if isinstance(self._base, ArraySet) and self._base.pixels.shape[1:3] == self._shape[1:]:
            pixels = torch.from_numpy(self._base.pixels[self._indices[indices]])
            if pixels.ndim == 3:
                return pixels[:, None]
            if self._shape[0] == 3:
                return pixels.permute(0, 3, 1, 2).contiguous()
        if len(indices) < 8:
            return torch.stack([load_as(self._images, index, self._decode) for index in indices.tolist()])
        with ThreadPoolExecutor(available_threads()) as pool:
            return torch.stack(list(pool.map(lambda index: load_as(self._images, index, self._decode), indices.tolist())))
