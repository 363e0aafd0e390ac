"""Exporting and verifying from Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from growtas import api
from growtas.errors import ConfigError, ParityError, UsageError
from growtas.runs import Run
from tests.export_helpers import SUBNET, TINY, Recorder, add_search, make_run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    run = make_run(Path("runs"))
    add_search(run)
    return run


def test_what_was_exported_is_verified(run: Run) -> None:
    progress = Recorder()
    artifacts = api.export(formats=["torch"], images=32, licence="MIT", progress=progress)
    assert progress.notes == ["run: runs/tiny (the newest)"]
    assert [artifact.path for artifact in artifacts] == [run.path / "export" / "tiny-subnet.safetensors"]
    assert artifacts.card == run.path / "export" / "README.md"
    assert (artifacts.served, artifacts.triton) == (None, None)
    report = api.verify(artifacts, images=32)
    assert report.error is None
    assert [(result.path, result.passed) for result in report.artifacts] == [(artifacts[0].path, True)]
    assert report.to_dict()["run"] == str(run.path)
    artifacts[0].path.write_bytes(b"another")
    assert isinstance(api.verify(run=run).error, ParityError)


def test_a_subnet_is_a_value_or_a_file(run: Run) -> None:
    (searched,) = api.export(run, SUBNET, formats=["torch"], images=32)
    assert searched.manifest.to_dict()["source"]["subnet_file"] == "subnet.json"
    assert searched.manifest.to_dict()["search"] is not None
    (other,) = api.export(run, TINY.smallest, formats=["torch"], images=32, out=Path("other"))
    assert other.manifest.to_dict()["subnet"] == TINY.smallest.to_dict()
    assert other.manifest.to_dict()["source"]["subnet_file"] is None
    assert other.manifest.to_dict()["search"] is None


def test_wrong_arguments_are_one_sentence(run: Run) -> None:
    with pytest.raises(ConfigError, match="--format is 'onnx,tflite'; legal are torch, program, onnx, openvino or trt"):
        api.export(run, formats=["onnx", "tflite"])
    with pytest.raises(ConfigError, match="--triton needs an ONNX file or a TensorRT plan"):
        api.export(run, formats=["torch"], triton="repo")
    with pytest.raises(ConfigError, match="--instances and --max-delay-us need a Triton repository; name one with --triton"):
        api.export(run, instances=2)
    with pytest.raises(UsageError, match="no artifacts here; make some with `growtas export runs/tiny`"):
        api.verify(run=run)


@pytest.mark.parametrize("kind", [str, Path])
def test_the_folder_is_a_path_or_its_text(run: Run, tmp_path: Path, kind: type) -> None:
    artifacts = api.export(run, formats=["torch"], images=32, out=kind("some where"))
    assert [artifact.path for artifact in artifacts] == [Path("some where") / "tiny-subnet.safetensors"]
    assert artifacts[0].path.is_file()
