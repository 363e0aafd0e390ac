"""Reads the IDX files of MNIST and similar sets, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from growtas.errors import DataError

_UNSIGNED_BYTE = 8


def find_idx(folder: Path, stem: str) -> Path | None:
    """Finds the file ``stem`` or ``stem.gz`` in a folder; the plain file has priority."""
    return next((path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()), None)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Reads an IDX file of unsigned bytes.

    The header consists of two zero bytes, the type, the number of dimensions, and a big-endian uint32 for each dimension.

    Args:
        path: the file.
        dimensions: the required number of dimensions: 3 for images ``(n, height, width)``, 1 for labels.

    Raises:
        DataError: The file is not such a file, or is truncated.
    """
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the IDX file can't be read ({getattr(error, 'strerror', None) or error})") from None
    start = 4 + 4 * dimensions
    if len(raw) < start or raw[:4] != bytes([0, 0, _UNSIGNED_BYTE, dimensions]):
        raise DataError(f"{path}: not an IDX file of unsigned bytes in {dimensions} dimension{'s' * (dimensions > 1)}")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", dimensions, 4))
    if len(raw) - start != math.prod(shape):
        raise DataError(f"{path}: the IDX file should hold {math.prod(shape)} values ({shape}), but has {len(raw) - start}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
