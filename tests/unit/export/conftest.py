from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from growtas.export.graph.exporter import export_onnx
from growtas.nn.extract import extract
from growtas.nn.vit import VisionTransformer
from tests.export_helpers import PLAIN_OPSETS, SUBNET, TINY, PlainFile, export_networks_once, random_supernet
from tests.reference import plain_space
from tests.verify_helpers import TWO_BLOCKS


@pytest.fixture(scope="session", autouse=True)
def _quick_exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        export_networks_once(patch, tmp_path_factory)
        yield


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


@pytest.fixture(scope="session", params=PLAIN_OPSETS)
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PlainFile:
    """A plain ViT and its ONNX file, in every form; not to be changed."""
    model = extract(random_supernet(plain_space(TINY, request.param)), TWO_BLOCKS)
    path = tmp_path_factory.mktemp("plain") / f"{request.param.replace(' ', '-')}.onnx"
    export_onnx(model, path, opset=PLAIN_OPSETS[request.param])
    return PlainFile(model, path)
