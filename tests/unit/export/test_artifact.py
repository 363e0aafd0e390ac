from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import pytest

from growtas.errors import CheckpointError
from growtas.export.artifact import load_artifact, manifest_path, read_manifest, write_manifest


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"graph")
    return path


def test_a_manifest_lies_beside_its_artifact_and_reads_back(artifact: Path) -> None:
    made = write_manifest(artifact, {"space": "tiny"})
    written = made.manifest.to_dict()
    assert manifest_path(artifact).name == "net.onnx.json"
    assert load_artifact(artifact) == made
    assert written == json.loads(manifest_path(artifact).read_text())
    assert list(written) == ["format", "created", "artifact", "kind", "space", "versions"]
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


def test_a_manifest_keeps_what_it_does_not_know_and_reads_wrong_types_as_absent(artifact: Path) -> None:
    record = {"precision": "fp16", "plan": "none", "params": "many", "mine": {"b": 1, "a": [2]}, "output": {"shape": ["n", 3]}}
    write_manifest(artifact, record)
    text = manifest_path(artifact).read_text()
    manifest = load_artifact(artifact).manifest
    assert json.dumps(manifest.to_dict(), indent=2) + "\n" == text
    assert (manifest.precision, manifest.plan, manifest.params) == ("fp16", None, None)
    assert manifest.output is not None
    assert manifest.output.sizes == (3,)
