"""Precisions, ends and formats beside ONNX, through the whole export."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from growtas.checkpoint import load_supernet
from growtas.data.evaluation import test_set as open_test_set
from growtas.errors import CheckpointError, ParityError
from growtas.export.artifact import read_manifest
from growtas.export.open import open_session
from growtas.export.pipeline.options import ExportOptions
from growtas.export.pipeline.run import export_subnet
from growtas.export.pipeline.standalone import load_module
from growtas.export.runtimes.base import is_installed
from growtas.export.verification import images as verification_images
from growtas.export.verification.images import noise
from growtas.files import sha256
from growtas.runs import Run
from tests.export_helpers import SUBNET, TINY, Recorder, add_search, make_run
from tests.reference import plain_space, timm_network


def test_other_precisions_and_ends_are_verified_and_described(run: Run) -> None:
    options = ExportOptions(precision="int8", preprocess=True, softmax=True, top_k=2, calibration_images=16, max_accuracy_drop=100)
    made = export_subnet(run, dataclasses.replace(options, min_cosine=0.0, min_agreement=0.0, max_error=1.0, images=64))
    names = [artifact.path.name for artifact in made]
    assert names == [f"tiny-subnet.{end}" for end in ("safetensors", "onnx", "int8.onnx", "int8.pixels.onnx")]
    low, pixels = made[2].manifest.to_dict(), made[3].manifest.to_dict()
    assert (low["precision"], low["parity"], low["verification"]["passed"]) == ("int8", None, True)
    assert low["conversion"]["calibration"] == {
        "images": "16 images of the search split of digits",
        "count": 16,
        "method": "minmax",
    }
    assert (pixels["input"]["name"], pixels["input"]["dtype"], pixels["input"]["layout"]) == ("pixels", "uint8", "NHWC")
    assert pixels["postprocess"]["outputs"] == ["logits", "probabilities", "top_scores", "top_classes"]
    # What the files say themselves.
    kinds = {node.op_type for node in onnx.load(made[2].path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    with open_session(made[2].path) as plain, open_session(made[3].path) as whole:
        levels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
        mean, std = (np.asarray(run.info["preprocess"][key], np.float32) for key in ("mean", "std"))
        images = ((levels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
        np.testing.assert_allclose(whole.run(levels), plain.run(np.ascontiguousarray(images)), rtol=1e-3, atol=1e-3)


def test_coarse_precisions_are_verified_on_more_images(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification_images, "MOST_IMAGES", 64)
    options = ExportOptions(precision="int8", calibration_images=16, max_accuracy_drop=100, min_agreement=0.0, max_error=1.0)
    made = export_subnet(run, dataclasses.replace(options, min_cosine=0.0))
    counts = [artifact.manifest.to_dict()["verification"]["count"] for artifact in made]
    assert counts[:2] == [64, 64]
    assert counts[2] == min(2000, len(open_test_set(run))) > 64
    asked = export_subnet(run, dataclasses.replace(options, min_cosine=0.0, images=32))
    assert {artifact.manifest.to_dict()["verification"]["count"] for artifact in asked} == {32}


def test_the_calibration_method_is_used_and_recorded(run: Run) -> None:
    options = ExportOptions(precision="int8", calibration_images=16, max_accuracy_drop=100, min_agreement=0.0, max_error=1.0)
    files = {}
    for method in ("minmax", "percentile"):
        loose = dataclasses.replace(options, min_cosine=0.0, images=32, calibration_method=method)
        low = export_subnet(run, loose)[-1]
        assert low.manifest.to_dict()["conversion"]["calibration"]["method"] == method
        files[method] = low.path.read_bytes()
    assert files["minmax"] != files["percentile"]


def test_how_near_fp16_comes_to_its_end_is_recorded(run: Run) -> None:
    half = export_subnet(run, ExportOptions(precision="fp16", calibration_images=16))[-1].manifest.to_dict()
    assert half["half_range"]["tensors"] > 20
    assert 0 < half["half_range"]["largest"] < 65504


def test_layers_that_hurt_stay_high_and_are_said(run: Run) -> None:
    notes: list[str] = []
    options = ExportOptions(precision="int8", calibration_images=16, max_accuracy_drop=100, min_agreement=0.0, max_error=1.0)
    options = dataclasses.replace(options, images=48)
    as_is = export_subnet(run, dataclasses.replace(options, min_cosine=0.0))[-1].manifest.to_dict()
    strict = (1 + as_is["verification"]["cosine_min"]) / 2
    mixed = export_subnet(run, dataclasses.replace(options, min_cosine=strict), progress=Recorder(notes=notes))[
        -1
    ].manifest.to_dict()
    assert mixed["verification"]["cosine_min"] >= strict > as_is["verification"]["cosine_min"]
    assert mixed["sensitivity"]["kept"]
    assert set(mixed["sensitivity"]["kept"]) <= set(mixed["conversion"]["kept"])
    assert any(f"stay in fp32, or int8 would miss: {', '.join(mixed['sensitivity']['kept'])}" in note for note in notes)
    with pytest.raises(ParityError, match=r"tiny-subnet\.int8\.onnx in ONNX Runtime: the worst cosine"):
        export_subnet(run, dataclasses.replace(options, min_cosine=strict, keep="none"))


@pytest.mark.parametrize("preprocess", [False, True])
def test_an_int8_ir_is_run_in_openvino(run: Run, preprocess: bool) -> None:
    if not is_installed("openvino"):
        pytest.skip("openvino is not installed")
    options = ExportOptions(formats=("openvino",), precision="int8", preprocess=preprocess, calibration_images=16, images=64)
    loose = dataclasses.replace(options, max_accuracy_drop=100, min_cosine=0.0, min_agreement=0.0, max_error=1.0)
    last = export_subnet(run, loose)[-1]
    manifest = last.manifest.to_dict()
    assert (last.path.suffix, manifest["precision"], manifest["runtime"]) == (".xml", "int8", "openvino")
    assert manifest["executed"] is True
    assert manifest["verification"]["passed"] is True
    assert 1e-6 < manifest["verification"]["relative_error"] < 0.3
    assert 'element_type="i8"' in last.path.read_text()


def test_formats_beside_onnx(run: Run) -> None:
    if not is_installed("openvino"):
        pytest.skip("openvino is not installed")
    made = export_subnet(run, ExportOptions(formats=("program", "openvino"), images=64))
    assert [artifact.path.suffix for artifact in made] == [".safetensors", ".pt2", ".onnx", ".xml"]
    assert all(artifact.manifest.to_dict()["verification"]["passed"] for artifact in made)
    (weights,) = made[-1].manifest.to_dict()["artifact"]["companions"]
    assert sha256(run.path / "export" / weights["file"]) == weights["sha256"]
    (run.path / "export" / weights["file"]).write_bytes(b"others")
    with pytest.raises(CheckpointError, match=r"tiny-subnet\.bin is not the one"):
        read_manifest(made[-1].path)


@pytest.mark.parametrize("kind", ["mean", "qk_norm"])
def test_every_format_of_a_plain_vit_computes_what_timm_computes(tmp_path: Path, kind: str) -> None:
    # The subnet's only block is the last one of the supernet.
    space = plain_space(TINY, kind).replace(block_order=(1, 0))
    run = make_run(tmp_path, space=space, name="plain")
    add_search(run)
    formats = ("program", "openvino") if is_installed("openvino") else ("program",)
    made = export_subnet(run, ExportOptions(formats=formats, images=32))
    images = noise(3, (3, 16, 16))
    state = load_supernet(run.supernet_file).state_dict()
    with torch.inference_mode():
        want = timm_network(space, SUBNET, state)(torch.from_numpy(images).double()).numpy()
        module = load_module(run.path / "export" / f"{kind}_subnet.py").load()
        np.testing.assert_allclose(module(torch.from_numpy(images)).numpy(), want, rtol=1e-4, atol=1e-5)
    for artifact in made:
        with open_session(artifact.path) as session:
            np.testing.assert_allclose(session.run(images), want, rtol=1e-4, atol=1e-5)


def test_a_plan_has_the_ends_that_were_asked_for(run: Run) -> None:
    options = ExportOptions(formats=("trt",), precision="fp32", target="sm86", preprocess=True, top_k=2, images=32)
    made = export_subnet(run, options)
    assert [artifact.path.name for artifact in made][-2:] == ["tiny-subnet.pixels.onnx", "tiny-subnet.pixels.plan"]
    onnx_, plan = made[-2].manifest.to_dict(), made[-1].manifest.to_dict()
    assert plan["input"] == onnx_["input"]
    assert plan["postprocess"] == onnx_["postprocess"]
    assert plan["plan"]["compiled_from"]["file"] == "tiny-subnet.pixels.onnx"
    notes: list[str] = []
    made = export_subnet(run, dataclasses.replace(options, resize=True), progress=Recorder(notes=notes))
    assert made[-1].path.name == "tiny-subnet.plan"
    assert made[-1].manifest.to_dict()["input"]["dtype"] == "float32"
    assert "the plan takes normalised images of the model's size; only the ONNX file resizes pixels" in notes


def test_resizing_and_the_best_classes_go_together(run: Run) -> None:
    made = export_subnet(run, ExportOptions(preprocess=True, resize=True, softmax=True, top_k=2, images=32))[-1]
    assert made.manifest.to_dict()["input"]["resize"] is True
    with open_session(made.path) as session:
        pixels: Any = np.random.default_rng(0).integers(0, 256, (2, 30, 20, 3), np.uint8)
        found = session.run_named(pixels, ["probabilities", "top_scores"])  # type: ignore[attr-defined]
    np.testing.assert_allclose(np.sort(found["probabilities"])[:, :-3:-1], found["top_scores"], rtol=1e-6)


def test_ends_around_what_can_not_be_run_are_written_and_say_so(run: Run) -> None:
    low, whole = export_subnet(run, ExportOptions(precision="bf16", preprocess=True, softmax=True, images=32))[-2:]
    for each in (low, whole):
        assert (each.manifest.to_dict()["executed"], each.manifest.to_dict()["verification"]) == (False, None)
        assert "can't compute in bf16" in each.manifest.to_dict()["not_executed_because"]
    assert whole.path.name == "tiny-subnet.bf16.pixels.onnx"
    assert [value.name for value in onnx.load(whole.path).graph.output] == ["logits", "probabilities"]
