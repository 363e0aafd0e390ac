"""Reads the IDX files of MNIST and similar sets, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from growtas.errors import DataError
from growtas.files import open_regular

_UNSIGNED_BYTE = 8
_UNSUSPICIOUS, _RATIO = 100_000_000, 100
"""Number of values that any file may hold, and the factor by which gzip may shrink larger files; MNIST shrinks by 5."""


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
    start = 4 + 4 * dimensions
    try:
        with open_regular(path) as packed:
            file = cast("BinaryIO", gzip.GzipFile(fileobj=packed)) if path.suffix == ".gz" else packed
            header = file.read(start)
            if len(header) < start or header[:4] != bytes([0, 0, _UNSIGNED_BYTE, dimensions]):
                raise DataError(f"{path}: not an IDX file of unsigned bytes in {dimensions} dimension{'s' * (dimensions > 1)}")
            shape = tuple(int(size) for size in np.frombuffer(header, ">u4", dimensions, 4))
            expected, stored = math.prod(shape), os.fstat(packed.fileno()).st_size
            if expected > max(_UNSUSPICIOUS, (_RATIO if file is not packed else 1) * stored):
                raise DataError(f"{path}: the IDX file should hold {expected} values ({shape}), too many for its {stored} bytes")
            # One byte more than expected shows that the file is too long, whatever it expands to.
            raw = file.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the IDX file can't be read ({getattr(error, 'strerror', None) or error})") from None
    if len(raw) != expected:
        has = len(raw) if len(raw) < expected else "more"
        raise DataError(f"{path}: the IDX file should hold {expected} values ({shape}), but has {has}")
    return np.frombuffer(raw, np.uint8).reshape(shape)
