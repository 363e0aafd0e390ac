from __future__ import annotations

from pathlib import Path

import pytest

from growtas.export.graph.exporter import export_onnx
from growtas.nn.extract import extract
from growtas.nn.vit import VisionTransformer
from tests.export_helpers import SUBNET, random_supernet


@pytest.fixture(scope="session")
def model() -> VisionTransformer:
    """The tiny space's subnet with random weights."""
    return extract(random_supernet(), SUBNET)


@pytest.fixture(scope="session")
def onnx_file(model: VisionTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model as ONNX; not to be changed."""
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    export_onnx(model, path)
    return path
