"""A cache of decoded images on disk, so that a data set is decoded once and not at every start.

An entry is a ``.npy`` file of uint8 ``(n, C, height, width)`` that is mapped into memory. Its name is a hash of everything that its
pixels depend on: path, size and modification time of every image file in order, the decoding, resizing and cropping, and the
versions of the packages. A set with a changed image therefore has another entry.

The cache is in ``$GROWTAS_CACHE``, or by default in ``~/.cache/growtas``; ``GROWTAS_CACHE=off`` turns it off. It never raises an
error: if an entry can't be written or read, the images are decoded again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.errors import OutputError
from growtas.files import replacing

ENTRY_LIMIT = 2_000_000_000
"""Largest size of an entry, in bytes."""
TOTAL_LIMIT = 5 * ENTRY_LIMIT
"""Largest size of all entries together, in bytes; the least recently used entries beyond it are removed."""
_VERSION = 2
_LIBRARIES = ("PIL", "torchvision", "timm")
"""Packages that affect the pixels; they are imported when an entry is named, because that takes seconds."""
_ABANDONED = 24 * 3600
"""Age in seconds from which a half-written file is taken for one of a killed process."""


def cache_folder() -> Path | None:
    """Returns the cache's folder; None if the cache is off."""
    setting = os.environ.get("GROWTAS_CACHE", "")
    if setting == "off":
        return None
    try:
        return Path(setting).expanduser() if setting else Path.home() / ".cache" / "growtas"
    except RuntimeError:  # no home folder
        return None


def files_key(paths: Iterable[str], **facts: Any) -> str | None:
    """Returns the name of the entry for some image files.

    Args:
        paths: the files, in the order of their images.
        facts: everything else that the pixels depend on, in JSON types.

    Returns:
        64 hex digits, or None if a file can't be read; the decoder then reports the error.
    """
    versions = [str(importlib.import_module(name).__version__) for name in _LIBRARIES]
    digest = hashlib.sha256(json.dumps([_VERSION, versions, facts], sort_keys=True).encode())
    try:
        for path in paths:
            stat = os.stat(path)
            digest.update(os.fsencode(os.path.abspath(path)) + f"\0{stat.st_size} {stat.st_mtime_ns}\n".encode())
    except OSError:
        return None
    return digest.hexdigest()


def load_entry(key: str, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Maps the pixels of an entry into memory. Writing to them doesn't change the file.

    Returns:
        The pixels, or None if there is no complete entry of this shape.
    """
    if (path := _path(key)) is None:
        return None
    try:
        pixels = np.lib.format.open_memmap(path, mode="c")
        complete = pixels.shape == shape and pixels.dtype == np.uint8 and path.stat().st_size == pixels.offset + pixels.nbytes
    except (OSError, ValueError, EOFError, MemoryError):  # missing, truncated, or not a .npy file
        return None
    if not complete or not pixels.flags.c_contiguous:
        return None
    with contextlib.suppress(OSError):  # the file may be another user's, or read-only
        os.utime(path)  # marks the entry as used
    return pixels


def store_entry(key: str, pixels: NDArray[np.uint8]) -> bool:
    """Writes an entry for :func:`load_entry`; several processes may do so at the same time.

    Returns:
        Whether the entry was written. It is not if it is too large, the disk is nearly full, or the folder can't be written.
    """
    path = _path(key)
    if path is None or pixels.nbytes > ENTRY_LIMIT:
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < 2 * pixels.nbytes:
            return False
        # Not written through a memory map: a full disk raises an error here, but would kill a process that writes to a map.
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.lib.format.write_array(file, np.ascontiguousarray(pixels), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        _tidy(path)
    except (OSError, OutputError):
        return False
    return True


def _path(key: str) -> Path | None:
    folder = cache_folder()
    return folder / "pixels" / f"{key}.npy" if folder is not None else None


def _tidy(newest: Path) -> None:
    """Removes half-written files of killed processes, and the least recently used entries beyond the limit."""
    entries = []
    for path in newest.parent.iterdir():
        try:
            stat = path.stat()
            if path.suffix == ".tmp" and stat.st_mtime < time.time() - _ABANDONED:
                path.unlink()
            elif path.suffix == ".npy":
                entries.append((stat.st_mtime_ns, stat.st_size, path))
        except FileNotFoundError:
            continue  # another process has removed it
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries, key=lambda entry: (entry[2] == newest, entry[0])):
        if total <= TOTAL_LIMIT:
            return
        path.unlink(missing_ok=True)  # a process that has it mapped can still read it
        total -= size
