"""Files that belong to an artifact: an OpenVINO IR is an ``.xml`` and its weights in a ``.bin``, and only both are the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growtas.errors import CheckpointError
from growtas.files import sha256

_SUFFIXES = {".xml": (".bin",)}
KEY = "companions"
"""Where the records lie, in a manifest's ``artifact``."""


def companions(artifact: str | Path) -> tuple[Path, ...]:
    """The files beside an artifact without which it can't be loaded; they are moved, hashed and deleted with it."""
    artifact = Path(artifact)
    return tuple(artifact.with_suffix(suffix) for suffix in _SUFFIXES.get(artifact.suffix, ()))


def companion_records(artifact: str | Path) -> list[dict[str, Any]]:
    """Name, hash and size of each, for ``manifest["artifact"]["companions"]``.

    Raises:
        CheckpointError: one is absent.
    """
    found = []
    for path in companions(artifact):
        if not path.is_file():
            raise CheckpointError(f"{artifact}: {path.name} is missing beside it")
        found.append({"file": path.name, "sha256": sha256(path), "bytes": path.stat().st_size})
    return found


def recorded_bytes(manifest: Mapping[str, Any]) -> int:
    """Size of an artifact with the files that belong to it, as its manifest recorded them."""
    artifact = manifest["artifact"]
    return int(artifact["bytes"]) + sum(int(entry["bytes"]) for entry in artifact.get(KEY) or ())


def check_companions(artifact: str | Path, manifest: Mapping[str, Any]) -> None:
    """Compare the files beside an artifact with what its manifest recorded.

    Raises:
        CheckpointError: one is absent, not recorded, or another one.
    """
    recorded = manifest.get("artifact", {}).get(KEY) or []
    hashes = {entry.get("file"): entry.get("sha256") for entry in recorded if isinstance(entry, dict)}
    for entry in companion_records(artifact):
        if entry["file"] not in hashes:
            raise CheckpointError(f"{artifact}: its manifest does not describe {entry['file']}; export it again")
        if hashes[entry["file"]] != entry["sha256"]:
            raise CheckpointError(
                f"{artifact}: {entry['file']} is not the one that the manifest describes (SHA-256 differs); export it again"
            )
