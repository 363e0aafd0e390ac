from __future__ import annotations

from pathlib import Path

import pytest

from growtas.errors import UsageError
from growtas.export.formats import FORMATS, ONNX, OPENVINO, PLAN, TORCH, artifact_files, format_of, side_files, with_sources


def test_every_format_is_found_by_its_suffix() -> None:
    for entry in FORMATS:
        assert format_of(f"runs/a.b/net{entry.suffix}") is entry
    for field in ("name", "suffix", "kind", "default_rank"):
        assert len({getattr(entry, field) for entry in FORMATS}) == len(FORMATS)
    with pytest.raises(UsageError, match=r"^net.bin: not an artifact; legal are files that end in .*, \.xml or \.plan$"):
        format_of("net.bin")


def test_a_format_makes_what_it_is_made_from_first() -> None:
    assert with_sources(["openvino"]) == (TORCH, ONNX, OPENVINO)
    assert with_sources(["trt", "torch"]) == (TORCH, ONNX, PLAN)


def test_artifacts_of_a_folder_without_their_side_files(tmp_path: Path) -> None:
    for name in ("b.xml", "b.bin", "a.onnx", "a.onnx.json", ".half.onnx", "README.md"):
        (tmp_path / name).touch()
    assert [path.name for path in artifact_files(tmp_path)] == ["a.onnx", "b.xml"]
    assert side_files(tmp_path / "b.xml") == (tmp_path / "b.bin",)
    assert side_files(tmp_path / "a.onnx") == ()
