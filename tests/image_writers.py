"""Writes image files that Pillow can't write, byte by byte: 16-bit colour PNGs, and TIFFs of any sample format."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG's, by the number of channels."""


def write_png16(path: Path, values: np.ndarray) -> None:
    """A PNG of 16 bits a sample: uint16 ``(height, width, channels)``; 1 channel is grey, 2 with alpha, 3 RGB, 4 with alpha."""
    height, width, channels = values.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[channels], 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))


def write_tiff(
    path: Path,
    values: np.ndarray,
    *,
    white_is_zero: bool = False,
    packed: bool = False,
    compressed: bool = False,
    planes: bool = False,
) -> None:
    """A TIFF of the array's own type and byte order: ``(height, width)``, RGB or CMYK.

    With ``packed``, two numbers of 12 bits lie in three bytes; with ``compressed`` the samples are deflated; with ``planes`` the
    red ones lie before all green ones, and these before the blue ones.
    """
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    order = ">" if values.dtype.byteorder == ">" else "<"
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data, bits = values.tobytes(), 8 * values.dtype.itemsize
    if packed:
        first, second = values.reshape(-1, 2).T
        data, bits = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes(), 12
    if planes:
        data = np.moveaxis(values, 2, 0).tobytes()
    parts = channels if planes else 1
    if compressed:
        data = zlib.compress(data)
        data += b"\0" * (len(data) % 2)  # the directory begins at an even place
    size = len(data) // parts
    photometric = {1: int(not white_is_zero), 3: 2, 4: 5}[channels]
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, bits), (259, 3, 1, 8 if compressed else 1),
        (262, 3, 1, photometric), (273, 4, parts, [8 + part * size for part in range(parts)]), (274, 3, 1, 1),
        (277, 3, 1, channels), (278, 4, 1, height), (279, 4, parts, [size] * parts),
        (284, 3, 1, 2 if planes else 1), (339, 3, channels, kind),
    ]  # fmt: skip
    # Three or four shorts don't fit into an entry: they lie behind the directory.
    behind, extra = 8 + len(data) + 2 + 12 * len(entries) + 4, b""
    directory = struct.pack(order + "H", len(entries))
    for tag, type_, count, given in entries:
        numbers = given if isinstance(given, list) else [given] * count
        directory += struct.pack(order + "HHI", tag, type_, count)
        if count > 2:
            directory += struct.pack(order + "I", behind + len(extra))
            extra += struct.pack(order + f"{count}{'I' if type_ == 4 else 'H'}", *numbers)
        else:
            directory += struct.pack(order + ("I" if type_ == 4 else "HH"), *(numbers if type_ == 4 else [numbers[0], 0]))
    header = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data))
    path.write_bytes(header + data + directory + b"\0\0\0\0" + extra)
