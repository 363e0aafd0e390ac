from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from starlette.requests import Request

from growtas.export.artifact import load_artifact
from growtas.export.serving import app as module
from growtas.export.serving.app import HELD_BYTES, Serving, default_body_bytes
from growtas.export.serving.metrics import Metrics
from growtas.export.serving.options import ServeOptions
from growtas.export.signature import read_signature
from tests.unit.export.serving.helpers import MAX_BATCH, artifact, images, plain, reference


def serve(path: Path, body: bytes, max_body: int = 1 << 20):
    """Status and content of one request, and the server's metrics."""
    pieces = [body[place : place + 4000] for place in range(0, len(body), 4000)]

    async def receive():
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def main():
        metrics = Metrics()
        serving = Serving(
            lambda given: {"logits": reference(given)},
            read_signature(load_artifact(path)),
            name="net",
            platform="none",
            options=ServeOptions(max_body=max_body),
            metrics=metrics,
            about={},
        )
        try:
            response = await serving.infer(Request({"type": "http", "method": "POST", "headers": []}, receive))
            return response.status_code, json.loads(bytes(response.body)), metrics.text().decode()
        finally:
            await serving.batcher.close()

    return asyncio.run(main())


@pytest.mark.parametrize("error", [MemoryError(), KeyError("x"), RecursionError("deep")])
def test_a_fault_of_the_servers_own_is_an_answer_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    path = artifact(tmp_path)
    assert serve(path, plain(images(1)))[0] == 200
    monkeypatch.setattr(module, "encode_response", fail)
    status, content, metrics = serve(path, plain(images(1)))
    assert (status, content) == (500, {"error": f"the server failed at this request ({type(error).__name__})"})
    assert 'growtas_requests_total{code="500"} 1.0' in metrics


def test_a_body_alone_may_be_as_large_as_one_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a client is told to try again later, which never helps."""
    path, body = artifact(tmp_path), plain(images(MAX_BATCH))
    assert len(body) > 8000
    monkeypatch.setattr(module, "HELD_BYTES", 5000)
    assert serve(path, body)[0] == 200
    assert serve(path, body, max_body=len(body) - 1)[0] == 413


def test_the_largest_body_is_never_more_than_all_bodies_may_be(tmp_path: Path) -> None:
    entry = {"name": "pixels", "dtype": "uint8", "shape": ["batch", "height", "width", 3], "batch": {"max": MAX_BATCH}}
    path = artifact(tmp_path, pixels=True, input=entry)
    assert default_body_bytes(read_signature(load_artifact(path))) == HELD_BYTES
    plain_path = artifact(tmp_path, name="plain")
    assert default_body_bytes(read_signature(load_artifact(plain_path))) == (1 << 20) + 24 * MAX_BATCH * 192
