"""Caches for building and running plans: the timings of kernels (TensorRT) and compiled kernels (TensorRT-RTX).

A cache is valid only for one GPU, package and driver, and native code reads it. So its key is in the file's name and, with a hash
of the content, in its first line. A cache that is damaged or has another key counts as absent and is replaced; it never causes an
error. The hash detects accidents, not attacks: everyone who may write to the folder can write a cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from growtas.errors import OutputError
from growtas.files import open_regular, replacing

FORMAT = "growtas-cache/1"
_HEADER_BYTES, _LARGEST = 10_000, 1_000_000_000
DRIVER_FILE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, kw_only=True)
class CacheKey:
    """The conditions for which a cache is valid.

    Attributes:
        kind: ``timing`` (timings of kernels) or ``runtime`` (compiled kernels).
        package: name of the runtime's package.
        version: version of that package.
        target: compute capability of the GPU, such as ``sm86``.
        driver: version of the NVIDIA driver; None if unknown.
        plan: SHA-256 of the plan to which compiled kernels belong; None for timings.
    """

    kind: str
    package: str
    version: str
    target: str
    driver: str | None = None
    plan: str | None = None


class CacheFile:
    """The cache of a key in a folder. The folder is made by the first write."""

    def __init__(self, folder: Path, key: CacheKey) -> None:
        parts = (key.kind, key.package, key.version, key.target, key.driver or "nodriver", (key.plan or "")[:12])
        name = "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts if part)
        self.path, self.key = folder / f"{name}.cache", key

    def read(self) -> bytes:
        """Returns the content written last for the same key; empty if it is absent, damaged or for another key."""
        try:
            with open_regular(self.path) as file:
                header = json.loads(file.readline(_HEADER_BYTES))
                content = file.read(_LARGEST + 1)
        except (OSError, RecursionError, ValueError):
            return b""
        return content if len(content) <= _LARGEST and header == self._header(content) else b""

    def write(self, content: bytes) -> bool:
        """Replaces the content; returns False if the folder can't be written."""
        if content and content == self.read():
            return True
        # Two processes may write at the same time: each writes a temporary file, and the later one remains.
        with contextlib.suppress(OutputError):
            with replacing(self.path) as temporary:
                temporary.write_bytes(json.dumps(self._header(content)).encode() + b"\n" + content)
            return True
        return False

    def _header(self, content: bytes) -> dict[str, object]:
        return {"format": FORMAT, **asdict(self.key), "sha256": hashlib.sha256(content).hexdigest()}


def driver_version() -> str | None:
    """Returns the version of the NVIDIA driver, such as ``580.65.06``; None if unknown."""
    try:
        match = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", DRIVER_FILE.read_text(encoding="utf-8"))
    except OSError:
        return None
    return match[1] if match else None
