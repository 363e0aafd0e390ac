"""The endpoints of the open inference protocol (KServe v2) over HTTP, for one artifact."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from growtas.export.serving.batching import Batcher, Outputs
from growtas.export.serving.metrics import CONTENT_TYPE, Metrics
from growtas.export.serving.protocol import HEADER_LENGTH, InferRequest, RequestRefused, parse_request
from growtas.export.serving.response import encode_response
from growtas.export.signature import Signature

VERSION = "1"
# Above this, JSON is read in a thread, so that the others' answers are not held up.
_LARGE_JSON = 1 << 16


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """Limits on requests.

    Attributes:
        body_bytes: of one request.
        held_bytes: of all bodies that are in memory at the same time, where there are several.
        body_seconds: for a body to arrive.
        linger_seconds: how long the rest of a refused body is read and thrown away, so that the client gets to read why.
        queue: requests that may wait for a batch; more are told 503.
        max_delay_us: how long a request may wait for others to share its batch.
    """

    body_bytes: int
    held_bytes: int = 256 << 20
    body_seconds: float = 20.0
    linger_seconds: float = 3.0
    queue: int = 128
    max_delay_us: int = 0


def default_body_bytes(signature: Signature) -> int:
    """Enough for the largest batch as JSON, with up to 24 characters a number, and a megabyte; at most what all bodies may have."""
    return min((1 << 20) + 24 * signature.max_batch * signature.values, RequestLimits.held_bytes)


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
        limits: RequestLimits,
        metrics: Metrics,
        about: Mapping[str, str] | None = None,
    ) -> None:
        self.signature, self.name, self.platform, self.limits, self.metrics = signature, name, platform, limits, metrics
        self.about = dict(about or {})
        self.draining = False
        self.under_way = 0
        self._held = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.batcher = Batcher(
            run,
            max_batch=signature.max_batch,
            max_delay_s=limits.max_delay_us / 1e6,
            max_queue=limits.queue,
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
                    parsed = await self._parse(body, request.headers.get(HEADER_LENGTH))
                    outputs = await self.batcher.submit(parsed.images)
                finally:
                    self._held -= len(body)
                images = len(parsed.images)
                response = self._respond(parsed, outputs)
        except RequestRefused as refusal:
            code = refusal.status
            return Refusal(refusal, self.limits.linger_seconds, closing=self.draining)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        # Left to the framework, it would be a page that is no JSON, and a traceback on stderr for every such request.
        except Exception as error:
            code = 500
            failure = RequestRefused(f"the server failed at this request ({type(error).__name__})", code)
            return Refusal(failure, self.limits.linger_seconds, closing=self.draining)
        else:
            code = 200
            return response
        finally:
            self.metrics.answered(code, time.perf_counter() - start, images if code == 200 else 0)

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
        most = self.limits.body_bytes
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestRefused("compressed requests are not taken; send the body as it is", 415)
        announced = request.headers.get("content-length")
        # h11 lets only digits through, but any number of them.
        if announced is not None and (len(announced) > 18 or int(announced) > most):
            raise RequestRefused(f"the body has {announced[:18]} bytes; at most {most} are taken", 413)
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > most:
                        raise RequestRefused(f"the body has over {most} bytes; no more are taken", 413)
                    if self._held > len(body) and self._held + len(chunk) > self.limits.held_bytes:
                        raise RequestRefused("too much is being sent at the same time; try again later", 503, retry_after=1)
                    body += chunk
                    self._held += len(chunk)
        except TimeoutError:
            raise RequestRefused(f"the body did not arrive within {self.limits.body_seconds:g} s", 408) from None

    async def _parse(self, body: bytearray, header_length: str | None) -> InferRequest:
        if header_length is None and len(body) > _LARGE_JSON:
            return await asyncio.to_thread(parse_request, body, header_length, self.signature)
        return parse_request(body, header_length, self.signature)

    def _respond(self, request: InferRequest, outputs: Outputs) -> Response:
        content, head = encode_response(request, outputs, self.signature, model=self.name, version=VERSION)
        if head is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={HEADER_LENGTH: str(head)})


class Refusal(Response):
    """A refused request's answer.

    Where the body may not have been read, its rest is thrown away for a while, and then the connection ends: closed at once, it
    would be reset, and the client would not get to read the answer.
    """

    def __init__(self, refusal: RequestRefused, linger_seconds: float, *, closing: bool) -> None:
        self._unread = refusal.status in (408, 413, 415, 503)
        self._linger = linger_seconds
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
            async with asyncio.timeout(self._linger):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        break
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def error_body(message: str) -> bytes:
    """An error as the protocol words it."""
    return json.dumps({"error": message}, ensure_ascii=False).encode()


def build_app(serving: Serving, *, server_version: str) -> FastAPI:
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
        return say({"name": "growtas", "version": server_version, "extensions": ["binary_tensor_data", "classification"]})

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
