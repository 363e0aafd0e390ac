from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import pytest

from growtas.errors import CheckpointError
from growtas.export.artifact import manifest_path, read_manifest, write_manifest


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"graph")
    return path


def test_a_manifest_lies_beside_its_artifact_and_reads_back(artifact: Path) -> None:
    written = write_manifest(artifact, {"space": "tiny"})
    assert manifest_path(artifact).name == "net.onnx.json"
    assert read_manifest(artifact) == written == json.loads(manifest_path(artifact).read_text())
    assert written["artifact"] == {"file": "net.onnx", "bytes": 5, "sha256": hashlib.sha256(b"graph").hexdigest()}
    assert (written["kind"], written["space"]) == ("onnx", "tiny")
    assert written["versions"]["torch"] == version("torch")
    assert artifact.read_bytes() == b"graph"


def test_a_changed_artifact_is_found(artifact: Path) -> None:
    write_manifest(artifact, {})
    artifact.write_bytes(b"grapH")
    with pytest.raises(CheckpointError, match="not the one that its manifest describes"):
        read_manifest(artifact)
    assert read_manifest(artifact, verify=False) is not None


def test_none_without_a_manifest_and_an_error_without_an_artifact(artifact: Path) -> None:
    assert read_manifest(artifact) is None
    with pytest.raises(CheckpointError, match="no such artifact"):
        read_manifest(artifact.with_name("other.onnx"))


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"format": "growtas-artifact/1"}', '{"format": "growtas-artifact/9", "artifact": {}}']
)
def test_what_is_no_manifest_is_refused(artifact: Path, text: str) -> None:
    manifest_path(artifact).write_text(text)
    with pytest.raises(CheckpointError, match=r"net\.onnx\.json"):
        read_manifest(artifact)
