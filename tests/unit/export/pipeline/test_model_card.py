from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from growtas.export.artifact import Manifest, write_manifest
from growtas.export.pipeline.model_card import CARD, card, same_network, write_card
from tests.export_helpers import DIGITS_PREPROCESS, SUBNET


def described(**changes: Any) -> dict[str, Any]:
    latency = {
        "ms": 0.4,
        "kind": "modelled",
        "device": "a10",
        "percentile": "p50",
        "batch": 1,
        "precision": "fp16",
        "runtime": "trt",
    }
    verification = {
        "images": "200 test images of digits",
        "labelled": True,
        "unlabelled_because": None,
        "accuracy": 0.8125,
        "reference_accuracy": 0.825,
        "top1_agreement": 0.99,
        "relative_error": 2e-7,
    }
    return {
        "precision": "fp32",
        "space": "tiny",
        "subnet": SUBNET.to_dict(),
        "params": 4218,
        "macs": 88000,
        "input": {"name": "images", "dtype": "float32", "shape": ["batch", 3, 16, 16]},
        "output": {"name": "logits", "dtype": "float32", "shape": ["batch", 10]},
        "preprocess": DIGITS_PREPROCESS,
        "class_names": [f"digit {index}" for index in range(12)],
        "source": {"run": "first"},
        "search": {"latency": latency},
        "verification": verification,
        "executed": True,
        **changes,
    }


@pytest.fixture
def made(onnx_file: Path, tmp_path: Path) -> Path:
    shutil.copy(onnx_file, tmp_path / "tiny.onnx")
    return tmp_path / "tiny.onnx"


def test_an_accuracy_has_its_standard_error(made: Path) -> None:
    manifest = described()
    manifest["verification"]["count"] = 200
    assert "| 81.2 ± 2.8 % | 82.5 ± 2.7 % |" in card([write_manifest(made, manifest).manifest], licence=None)


def test_the_card_says_what_the_manifest_says(made: Path) -> None:
    text = card([write_manifest(made, described()).manifest], licence="CC0-1.0")
    for said in (
        "# tiny",
        "embed_dim 16",
        "4.22K",
        "88K",
        "81.25 %",
        "82.50 %",
        "99.00 %",
        "2.0e-07",
        "200 test images of digits",
        "| a10 | 0.4 ms | **modelled** | p50, batch 1, fp16, trt |",
        "digit 9 and 2 more",
        "CC0-1.0",
        "onnxruntime",
    ):
        assert said in text
    assert "**measured**" not in text


def test_what_nobody_said_or_measured_is_called_so(made: Path) -> None:
    unknown = described(search=None, verification=None, class_names=None, executed=False, not_executed_because="no GPU")
    text = card([write_manifest(made, unknown).manifest])
    for said in ("not stated", "not measured", "no: no GPU", "no names", "Nothing was verified"):
        assert said in text


def row(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| `{name}`")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_row_says_which_images_it_is_from(made: Path) -> None:
    """int8 is verified on more images; a plan that was not run has the numbers of the file that it was compiled from."""
    first = described()
    coarse = {**first["verification"], "images": "359 test images of digits", "accuracy": 0.79, "top1_agreement": 0.95}
    unlabelled = {**coarse, "images": "9 crops", "labelled": False, "unlabelled_because": "no data", "accuracy": None}
    manifests = [write_manifest(made, first).manifest]
    for name, changes in (
        ("tiny.int8.onnx", {"precision": "int8", "verification": coarse}),
        ("tiny.fp16.onnx", {"precision": "fp16", "verification": unlabelled}),
        ("tiny.bf16.onnx", {"precision": "bf16", "verification": None, "executed": False, "not_executed_because": "no kernels"}),
        (
            "tiny.int8.plan",
            {
                "precision": "int8",
                "verification": None,
                "executed": False,
                "not_executed_because": "no GPU",
                "plan": {"compiled_from": {"file": "tiny.int8.onnx", "verification": coarse}},
            },
        ),
        ("tiny.bf16.plan", {"verification": None, "plan": {"compiled_from": {"file": "tiny.bf16.onnx", "verification": None}}}),
    ):
        path = Path(shutil.copy(made, made.with_name(name)))
        manifests.append(write_manifest(path, described(**changes)).manifest)
    text = card(manifests)
    lines = text.splitlines()
    assert "- `tiny.onnx`: 200 test images of digits." in lines
    assert "- `tiny.int8.onnx`, `tiny.int8.plan`: 359 test images of digits." in lines
    assert "- `tiny.fp16.onnx`: 9 crops; they have no labels (no data), so accuracies are unknown." in lines
    assert row(text, "tiny.int8.plan")[3:7] == row(text, "tiny.int8.onnx")[3:7] == ["79.00 %", "82.50 %", "95.00 %", "2.0e-07"]
    assert row(text, "tiny.int8.plan")[7] == "no: no GPU; the numbers are of `tiny.int8.onnx`, from which it was compiled"
    assert row(text, "tiny.int8.onnx")[7] == "yes"
    for name in ("tiny.bf16.onnx", "tiny.bf16.plan"):
        assert row(text, name)[3:7] == ["not measured"] * 4
        assert f"`{name}`" not in text.partition("Measured on:")[2].partition("## Latencies")[0]
    assert row(text, "tiny.bf16.onnx")[7] == "no: no kernels"


def test_a_file_s_size_is_that_of_all_that_belongs_to_it(made: Path) -> None:
    record = write_manifest(made, described()).manifest.to_dict()
    record["artifact"] |= {"bytes": 1000, "companions": [{"file": "tiny.bin", "sha256": "", "bytes": 5_000_000}]}
    assert row(card([Manifest.from_dict(record)]), "tiny.onnx")[2] == "5 MB"


def test_files_of_earlier_exports_stay_on_the_card_where_they_hold_the_same_network(made: Path) -> None:
    fresh = write_manifest(made, described()).manifest
    for name, changes in (
        ("tiny.int8.onnx", {}),
        ("other-subnet.onnx", {"subnet": {**SUBNET.to_dict(), "embed_dim": 24}}),
        ("other-run.onnx", {"source": {"run": "first", "checkpoint_sha256": "00"}}),
        ("changed.onnx", {}),
    ):
        write_manifest(Path(shutil.copy(made, made.with_name(name))), described(**changes))
    made.with_name("changed.onnx").write_bytes(b"something else")
    shutil.copy(made, made.with_name("unknown.onnx"))
    shutil.copy(made, made.with_name(".growtas-part.onnx"))
    found = same_network(made.parent, [fresh])
    assert [manifest.file.file for manifest in found] == ["tiny.int8.onnx"]


def test_the_onnx_lines_run(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = card([write_manifest(made, described()).manifest])
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found
    monkeypatch.chdir(made.parent)
    names: dict[str, Any] = {}
    exec(found[1], names)
    assert names["logits"].shape == (1, 10)
    assert np.isfinite(names["logits"]).all()


def test_another_readme_stays_and_an_own_one_is_renewed(made: Path) -> None:
    manifests = [write_manifest(made, described()).manifest]
    assert write_card(made.parent, manifests) == made.parent / CARD
    assert write_card(made.parent, manifests, licence="MIT") == made.parent / CARD
    assert "MIT" in (made.parent / CARD).read_text()
    (made.parent / CARD).write_text("mine")
    assert write_card(made.parent, manifests) is None
    assert (made.parent / CARD).read_text() == "mine"


def test_the_card_has_the_steps_of_the_preprocessing_and_the_oldest_runtime(made: Path) -> None:
    record = {**DIGITS_PREPROCESS, "image_size": 224, "crop_pct": 0.875}
    onnx = {"opset": 20, "ir_version": 9, "oldest_onnxruntime": "1.17.0"}
    text = card([write_manifest(made, described(preprocess=record, onnx=onnx)).manifest])
    assert "crop_pct 0.875" in text
    steps = [line for line in text.splitlines() if line[:3] in ("1. ", "2. ", "3. ", "4. ", "5. ")]
    assert steps[0].startswith("1. Convert to RGB (")
    assert "Resize the short side to 256 pixels" in steps[1]
    assert "bicubic" in steps[1]
    assert steps[2] == "3. Crop the centre, 224 x 224 pixels."
    assert "subtract the mean [0.5, 0.5, 0.5]" in steps[3]
    assert len(steps) == 5
    assert f"| `{made.name}` | 20 | 9 | 1.17.0 |" in text


def test_a_latency_of_a_busy_machine_is_marked(made: Path) -> None:
    latency = {"ms": 0.4, "kind": "measured", "device": "cpu", "percentile": "p50", "batch": 1, "unsteady": True}
    text = card([write_manifest(made, described(search={"latency": latency})).manifest])
    assert "| cpu | 0.4 ms | **measured, unsteady** | p50, batch 1 |" in text
