"""Caches of compiling and running plans: kernels' timings (TensorRT) and compiled kernels (TensorRT-RTX).

A cache fits the same GPU, package and driver only, and both are read by native code. So a file's name holds what it is for, and its
first line says it again with the hash of the rest: what doesn't fit, or is damaged, counts as absent and is replaced. A cache is
never the reason for an error. The hash finds accidents, not intent: whoever may write in the folder may write a cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from growtas.errors import OutputError
from growtas.files import replacing

FORMAT = "growtas-cache/1"
DRIVER_FILE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, kw_only=True)
class CacheKey:
    """What a cache is for.

    Attributes:
        kind: ``timing`` or ``runtime``.
        package, version: of the runtime.
        target: compute capability, such as ``sm86``.
        driver: version of the NVIDIA driver; None where the system doesn't tell.
        plan: SHA-256 of the plan that compiled kernels belong to; None for timings.
    """

    kind: str
    package: str
    version: str
    target: str
    driver: str | None = None
    plan: str | None = None


class CacheFile:
    """The cache of a key in a folder, which is made when something is written."""

    def __init__(self, folder: Path, key: CacheKey) -> None:
        parts = (key.kind, key.package, key.version, key.target, key.driver or "nodriver", (key.plan or "")[:12])
        name = "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts if part)
        self.path, self.key = folder / f"{name}.cache", key

    def read(self) -> bytes:
        """What was written last for the same key; nothing where that is absent, damaged or for something else."""
        try:
            line, _, content = self.path.read_bytes().partition(b"\n")
            header = json.loads(line)
        except (OSError, ValueError):
            return b""
        return content if header == self._header(content) else b""

    def write(self, content: bytes) -> bool:
        """Replaces it; returns False where the folder can't be written."""
        if content and content == self.read():
            return True
        # Two processes may end at the same time: each writes a file of its own, and the later one stays.
        with contextlib.suppress(OutputError):
            with replacing(self.path) as temporary:
                temporary.write_bytes(json.dumps(self._header(content)).encode() + b"\n" + content)
            return True
        return False

    def _header(self, content: bytes) -> dict[str, object]:
        return {"format": FORMAT, **asdict(self.key), "sha256": hashlib.sha256(content).hexdigest()}


def driver_version() -> str | None:
    """Version of the NVIDIA driver, such as ``580.65.06``; None where the system doesn't tell."""
    try:
        match = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", DRIVER_FILE.read_text(encoding="utf-8"))
    except OSError:
        return None
    return match[1] if match else None
