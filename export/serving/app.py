"""The endpoints of the open inference protocol (KServe v2) over HTTP, for one artifact."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from growtas import __version__
from growtas.export.serving.batching import Batcher, Outputs
from growtas.export.serving.metrics import CONTENT_TYPE, Metrics
from growtas.export.serving.options import ServeOptions
from growtas.export.serving.protocol import HEADER_LENGTH, RequestRefused, parse_request
from growtas.export.serving.response import encode_response
from growtas.export.signature import Signature

VERSION = "1"
# Above this, JSON is read in a thread, so that the others' answers are not held up.
_LARGE_JSON = 1 << 16
# How long the rest of a refused body is read and thrown away, so that the client gets to read why.
_LINGER_SECONDS = 3.0
HELD_BYTES = 256 << 20
"""Of all bodies that are in memory at the same time, where there are several."""


def default_body_bytes(signature: Signature) -> int:
    """Enough for the largest batch as JSON, with up to 24 characters a number, and a megabyte; at most what all bodies may have."""
    # Of any size is a large photograph.
    values = math.prod(4096 if size is None else size for size in signature.shape)
    return min((1 << 20) + 24 * signature.max_batch * values, HELD_BYTES)


class Serving:
    """One artifact being served: its state, and what the endpoints do.

    Args:
        run: the signature's outputs of at most ``signature.max_batch`` images.
        about: more to say in the model's metadata, such as the artifact's hash.
    """

    def __init__(
        self,
        run: Callable[[NDArray[Any]], Outputs],
        signature: Signature,
        *,
        name: str,
        platform: str,
        options: ServeOptions,
        metrics: Metrics,
        about: Mapping[str, str],
    ) -> None:
        self.signature, self.name, self.platform, self.metrics = signature, name, platform, metrics
        self._body_bytes, self._body_seconds = options.max_body or default_body_bytes(signature), options.timeout_s
        self.about = about
        self.draining = False
        self.under_way = 0
        self._held = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.batcher = Batcher(
            run,
            max_batch=signature.max_batch,
            max_delay_s=options.max_delay_us / 1e6,
            max_queue=options.queue,
            metrics=metrics,
        )

    async def drain(self) -> None:
        """Take no new requests, and wait until those under way are answered."""
        self.draining = True
        await self._idle.wait()

    def metadata(self) -> dict[str, Any]:
        """The model's metadata, as the protocol words it."""
        signature = self.signature
        shape = [-1, *(-1 if size is None else size for size in signature.shape)]
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": self.platform,
            "inputs": [{"name": signature.input_name, "datatype": signature.datatype, "shape": shape}],
            "outputs": [
                {"name": output.name, "datatype": output.datatype, "shape": [-1, *output.shape]} for output in signature.outputs
            ],
            "parameters": {"max_batch": str(signature.max_batch), **self.about},
        }

    async def infer(self, request: Request) -> Response:
        """Answer one inference request; whatever is wrong with it becomes a status and a sentence."""
        start, code, images = time.perf_counter(), 0, 0
        try:
            async with self._admitted():
                body = bytearray()
                try:
                    await self._read(request, body)
                    length = request.headers.get(HEADER_LENGTH)
                    if length is None and len(body) > _LARGE_JSON:
                        parsed = await asyncio.to_thread(parse_request, body, length, self.signature)
                    else:
                        parsed = parse_request(body, length, self.signature)
                    outputs = await self.batcher.submit(parsed.images)
                finally:
                    self._held -= len(body)
                content, head = encode_response(parsed, outputs, self.signature, model=self.name, version=VERSION)
                images = len(parsed.images)
        except RequestRefused as refusal:
            code = refusal.status
            return Refusal(refusal, closing=self.draining)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        # Left to the framework, it would be a page that is no JSON, and a traceback on stderr for every such request.
        except Exception as error:
            code = 500
            failure = RequestRefused(f"the server failed at this request ({type(error).__name__})", code)
            return Refusal(failure, closing=self.draining)
        else:
            code = 200
            if head is None:
                return Response(content, media_type="application/json")
            return Response(content, media_type="application/octet-stream", headers={HEADER_LENGTH: str(head)})
        finally:
            self.metrics.answered(code, time.perf_counter() - start, images)

    @contextlib.asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        if self.draining:
            raise RequestRefused("the server is stopping", 503, retry_after=1)
        # Before the body is read; who is still sending takes no place in the queue, or slow clients could fill it.
        self.batcher.check()
        self.under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.under_way -= 1
            if not self.under_way:
                self._idle.set()

    async def _read(self, request: Request, body: bytearray) -> None:
        """The request's body, never more of it than the limits allow."""
        most = self._body_bytes
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestRefused("compressed requests are not taken; send the body as it is", 415)
        announced = request.headers.get("content-length")
        # h11 lets only digits through, but any number of them.
        if announced is not None and (len(announced) > 18 or int(announced) > most):
            raise RequestRefused(f"the body has {announced[:18]} bytes; at most {most} are taken", 413)
        try:
            async with asyncio.timeout(self._body_seconds):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > most:
                        raise RequestRefused(f"the body has over {most} bytes; no more are taken", 413)
                    if self._held > len(body) and self._held + len(chunk) > HELD_BYTES:
                        raise RequestRefused("too much is being sent at the same time; try again later", 503, retry_after=1)
                    body += chunk
                    self._held += len(chunk)
        except TimeoutError:
            raise RequestRefused(f"the body did not arrive within {self._body_seconds:g} s", 408) from None


class Refusal(Response):
    """A refused request's answer.

    Where the body may not have been read, its rest is thrown away for a while, and then the connection ends: closed at once, it
    would be reset, and the client would not get to read the answer.
    """

    def __init__(self, refusal: RequestRefused, *, closing: bool) -> None:
        self._unread = refusal.status in (408, 413, 415, 503)
        headers = {"Retry-After": str(refusal.retry_after)} if refusal.retry_after is not None else {}
        if self._unread or closing:
            headers["Connection"] = "close"
        super().__init__(error_body(str(refusal)), refusal.status, headers, "application/json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, then read on."""
        if not self._unread:
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        break
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def error_body(message: str) -> bytes:
    """An error as the protocol words it."""
    return json.dumps({"error": message}, ensure_ascii=False).encode()


def build_app(serving: Serving) -> FastAPI:
    """The web application of one served artifact."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)

    def say(content: Any, status: int = 200) -> Response:
        return Response(json.dumps(content, ensure_ascii=False).encode(), status, media_type="application/json")

    def known(name: str, version: str | None) -> None:
        if name != serving.name:
            raise HTTPException(404, f"no model {name[:80]!r} here; legal is {serving.name}")
        if version is not None and version != VERSION:
            raise HTTPException(404, f"no version {version[:80]!r} of {name}; legal is {VERSION}")

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        return Response(error_body(str(error.detail)), error.status_code, headers, "application/json")

    @app.get("/v2/health/live")
    async def live() -> Response:
        return say({"live": True})

    @app.get("/v2/health/ready")
    async def ready() -> Response:
        return say({"ready": not serving.draining}, 503 if serving.draining else 200)

    @app.get("/v2")
    async def server() -> Response:
        return say({"name": "growtas", "version": __version__, "extensions": ["binary_tensor_data", "classification"]})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(serving.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v2/models/{name}")
    @app.get("/v2/models/{name}/versions/{version}")
    async def model(name: str, version: str | None = None) -> Response:
        known(name, version)
        return say(serving.metadata())

    @app.get("/v2/models/{name}/ready")
    @app.get("/v2/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str | None = None) -> Response:
        known(name, version)
        return say({"name": name, "ready": not serving.draining}, 503 if serving.draining else 200)

    @app.post("/v2/models/{name}/infer")
    @app.post("/v2/models/{name}/versions/{version}/infer")
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        known(name, version)
        return await serving.infer(request)

    return app
