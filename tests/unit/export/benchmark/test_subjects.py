from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from growtas.errors import DeviceError, UsageError
from growtas.export.artifact import Manifest
from growtas.export.benchmark.subjects import (
    default_runtime,
    find_baseline,
    name_baseline,
    normalise,
    subjects_of,
)
from growtas.export.open import check_device
from growtas.export.runtimes import base as runtimes
from growtas.export.runtimes.base import require_compiler
from tests.export_helpers import without_gpu


def built_for(runtime: str) -> Manifest:
    return Manifest.from_dict({"plan": {"runtime": runtime}})


def labels(names: list[str], *runtimes: str, manifests: dict[str, Any] | None = None) -> list[tuple[str, str]]:
    return [(subject.label, subject.runtime) for subject in subjects_of(names, manifests or {}, runtimes)]


def test_every_artifact_runs_in_its_own_runtime() -> None:
    names = ["a.safetensors", "a.pt2", "a.onnx", "a.xml", "a.plan", "timm:deit_tiny_patch16_224"]
    assert [runtime for _, runtime in labels(names)] == [
        "eager", "eager", "onnxruntime", "openvino", "tensorrt-rtx", "onnxruntime",
    ]  # fmt: skip
    assert default_runtime("a.plan", built_for("tensorrt")) == "tensorrt"
    # A manifest's word counts for the runtime only where the suffix can run in it.
    assert default_runtime("a.onnx", built_for("eager")) == "onnxruntime"


def test_runtimes_are_asked_of_every_artifact_that_takes_them() -> None:
    assert labels(["a.onnx"], "onnxruntime", "openvino") == [
        ("a.onnx in onnxruntime", "onnxruntime"),
        ("a.onnx in openvino", "openvino"),
    ]
    assert labels(["a.safetensors", "b.onnx"], "eager", "compile", "openvino") == [
        ("a.safetensors in eager", "eager"),
        ("a.safetensors in compile", "compile"),
        ("b.onnx", "openvino"),
    ]
    assert labels(["timm:deit_tiny_patch16_224"], "eager") == [("timm:deit_tiny_patch16_224", "eager")]
    # `tensorrt` is whichever of the two a plan was built for.
    rtx = {"a.plan": built_for("tensorrt-rtx")}
    assert labels(["a.plan"], "tensorrt", manifests=rtx) == [("a.plan", "tensorrt-rtx")]


def test_files_of_one_name_are_told_apart_by_their_folders() -> None:
    assert [label for label, _ in labels(["x/a.onnx", "y/a.onnx", "b.onnx"])] == ["x/a.onnx", "y/a.onnx", "b.onnx"]


@pytest.mark.parametrize(
    ("names", "runtimes", "match"),
    [
        (["a.onnx"], ("torch",), "--runtime is 'torch'; legal are eager"),
        (
            ["a.onnx"],
            ("eager",),
            "a.onnx: it runs in onnxruntime, openvino, tensorrt or tensorrt-rtx, and --runtime asks for eager",
        ),
        (["a.xml"], ("openvino", "compile"), "--runtime compile: none of the artifacts runs in it"),
        (["a.pt2"], ("compile",), "a.pt2: it runs in eager"),
    ],
)
def test_runtimes_that_do_not_fit_are_refused(names: list[str], runtimes: tuple[str, ...], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        subjects_of(names, {}, runtimes)


def test_names_are_checked_with_a_hint() -> None:
    assert normalise(Path("x") / "a.onnx") == "x/a.onnx"
    assert normalise("timm:deit_tiny_patch16_224") == "timm:deit_tiny_patch16_224"
    with pytest.raises(UsageError, match="no model that timm knows; did you mean .*deit_tiny_patch16_224"):
        normalise("timm:deit_tny_patch16_224")
    with pytest.raises(UsageError, match="for the timm model of that name, write timm:deit_tiny_patch16_224"):
        normalise("deit_tiny_patch16_224")
    with pytest.raises(UsageError, match=r"weights\.bin: not an artifact; legal are files that end in"):
        normalise("weights.bin")


def test_a_baseline_is_one_of_the_artifacts_or_comes_beside_them() -> None:
    names = ["x/a.onnx", "timm:deit_tiny_patch16_224"]
    for known in ("x/a.onnx", "a.onnx", "deit_tiny_patch16_224", "timm:deit_tiny_patch16_224", "openvino", "a.onnx in openvino"):
        assert name_baseline(known, names) is None
    assert name_baseline("b.onnx", names) == "b.onnx"
    assert name_baseline("deit_small_patch16_224", names) == "timm:deit_small_patch16_224"
    with pytest.raises(UsageError, match="--baseline is 'deit_smal_patch16_224'.*did you mean deit_small_patch16_224"):
        name_baseline("deit_smal_patch16_224", names)


def test_the_baseline_is_found_by_label_artifact_or_runtime() -> None:
    subjects = subjects_of(["x/a.onnx", "b.onnx"], {}, ("onnxruntime", "openvino"))
    found = {text: find_baseline(text, subjects).label for text in ("a.onnx in openvino", "b.onnx", "openvino", "x/a.onnx")}
    assert found == {
        "a.onnx in openvino": "a.onnx in openvino",
        "b.onnx": "b.onnx in onnxruntime",
        "openvino": "a.onnx in openvino",
        "x/a.onnx": "a.onnx in onnxruntime",
    }
    with pytest.raises(UsageError, match="--baseline is 'eager'; legal are a.onnx in onnxruntime"):
        find_baseline("eager", subjects)


@without_gpu
def test_devices_are_checked() -> None:
    check_device("cpu")
    with pytest.raises(DeviceError, match="--device cuda needs an NVIDIA GPU"):
        check_device("cuda")
    with pytest.raises(DeviceError, match="--device is 'tpu'; legal are cpu or cuda"):
        check_device("tpu")


def test_a_compiler_that_does_not_work_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "cxx"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(DeviceError, match=r"torch\.compile needs a C\+\+ compiler, and none of .*cxx works here"):
        require_compiler()
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(runtimes.shutil, "which", lambda command: None)
    with pytest.raises(DeviceError, match=r"none of g\+\+, clang\+\+, c\+\+ works"):
        require_compiler()
