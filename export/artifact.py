"""The sidecar manifest: what an artifact is, where it came from, and what was checked. ``NAME.onnx`` has ``NAME.onnx.json``.

A sidecar and not metadata inside the file, because runtimes and servers must be able to load an artifact as it is.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growtas.errors import CheckpointError
from growtas.export.side_files import KEY, check_companions, companion_records, companions
from growtas.files import read_json, sha256, write_json

FORMAT = "growtas-artifact/1"
KINDS = {".safetensors": "torch", ".pt2": "program", ".onnx": "onnx", ".xml": "openvino", ".plan": "plan"}
_PACKAGES = (
    "torch", "timm", "onnx", "onnxscript", "onnxslim", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "numpy",
)  # fmt: skip


def manifest_path(artifact: str | Path) -> Path:
    """Where an artifact's manifest lies."""
    artifact = Path(artifact)
    return artifact.with_name(artifact.name + ".json")


def write_manifest(artifact: str | Path, content: Mapping[str, Any], *, name: str | None = None) -> dict[str, Any]:
    """Write an artifact's manifest beside it; format, time, hash, size, kind and versions are filled in.

    Args:
        artifact: the finished file.
        content: everything else (see :mod:`growtas.export.pipeline.run`).
        name: the file name to record, where it differs from the artifact's name now.

    Returns:
        The manifest.
    """
    artifact = Path(artifact)
    files: dict[str, Any] = {"file": name or artifact.name, "sha256": sha256(artifact), "bytes": artifact.stat().st_size}
    if companions(artifact):
        files[KEY] = companion_records(artifact)
    manifest = {
        "format": FORMAT,
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "artifact": files,
        "kind": KINDS[artifact.suffix],
        **content,
        "versions": versions(),
    }
    write_json(manifest_path(artifact), manifest)
    return manifest


def read_manifest(artifact: str | Path, *, verify: bool = True) -> dict[str, Any] | None:
    """An artifact's manifest; None where there is none.

    Args:
        verify: compare the hash of the artifact, and of the files that belong to it, with the recorded one.

    Raises:
        CheckpointError: the artifact is absent, the manifest is unreadable or of another format, or the hash differs.
    """
    artifact = Path(artifact)
    if not artifact.is_file():
        raise CheckpointError(f"{artifact}: no such artifact")
    path = manifest_path(artifact)
    if not path.exists():
        return None
    manifest = read_json(path, "manifest")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or not isinstance(manifest.get("artifact"), dict):
        raise CheckpointError(f"{path}: not a manifest of format {FORMAT}")
    if verify and manifest["artifact"].get("sha256") != sha256(artifact):
        raise CheckpointError(f"{artifact}: the file is not the one that its manifest describes (SHA-256 differs); export it again")
    if verify:
        check_companions(artifact, manifest)
    return manifest


def network_of(manifest: Mapping[str, Any]) -> tuple[Any, Any]:
    """What tells whether two artifacts hold the same network: the subnet, and the hash of the checkpoint it was cut out of."""
    return manifest.get("subnet"), (manifest.get("source") or {}).get("checkpoint_sha256")


def versions() -> dict[str, str]:
    """Versions of growtas, Python and every installed package that makes or runs an artifact."""
    from growtas import __version__

    found = {"growtas": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
