from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from growtas.errors import ConfigError
from growtas.export.graph.exporter import export_onnx
from growtas.export.graph.pre_post import add_preprocess
from growtas.export.pipeline.options import ExportOptions
from growtas.export.quantization.convert import convert
from growtas.nn.vit import VisionTransformer
from tests.export_helpers import DIGITS_PREPROCESS

IMAGES = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)


def versions(path: Path) -> tuple[int, int]:
    proto = onnx.load(path)
    return proto.opset_import[0].version, proto.ir_version


def test_every_file_has_the_lowest_ir_version_that_its_opset_needs(onnx_file: Path, tmp_path: Path) -> None:
    # ONNX's table of released versions: opset 20 came with IR version 9, opset 22 with 10.
    made = {precision: tmp_path / f"{precision}.onnx" for precision in ("fp16", "int8", "fp8", "bf16")}
    for precision, path in made.items():
        convert(onnx_file, path, precision, calibration=IMAGES)
    add_preprocess(onnx_file, tmp_path / "pixels.onnx", DIGITS_PREPROCESS, resize=True)
    low = {versions(path) for path in (onnx_file, made["fp16"], made["int8"], made["fp8"], tmp_path / "pixels.onnx")}
    assert low == {(20, 9)}
    assert versions(made["bf16"]) == (22, 10)


def test_an_ir_version_is_kept_by_what_is_made_from_the_file(model: VisionTransformer, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(model, path, opset=18, ir_version=11)
    convert(path, tmp_path / "int8.onnx", "int8", calibration=IMAGES)
    add_preprocess(tmp_path / "int8.onnx", tmp_path / "pixels.onnx", DIGITS_PREPROCESS)
    assert {versions(tmp_path / name) for name in ("m.onnx", "int8.onnx", "pixels.onnx")} == {(18, 11)}
    # QuantizeLinear has had float8 since opset 19.
    convert(path, tmp_path / "fp8.onnx", "fp8", calibration=IMAGES)
    assert versions(tmp_path / "fp8.onnx") == (19, 11)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"ir_version": 8}, rf"--ir-version is 8; legal are 9 to {onnx.IR_VERSION} \(opset 20 came with IR version 9"),
        ({"opset": 18, "ir_version": 7}, "legal are 8 to"),
        ({"ir_version": onnx.IR_VERSION + 1}, f"the installed onnx knows {onnx.IR_VERSION}"),
        ({"ir_version": 9, "precision": "bf16"}, r"legal are 10 to .* \(opset 22, which bf16 needs, came with IR version 10"),
        ({"opset": 22, "ir_version": 9, "precision": "fp8"}, r"legal are 10 to .* \(opset 22 came with"),
    ],
)
def test_an_ir_version_that_no_file_can_have_is_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ExportOptions(**settings)
