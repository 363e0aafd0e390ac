"""The endpoints of the open inference protocol (KServe v2) over HTTP, for one artifact."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from growtas import __version__
from growtas.errors import choices
from growtas.export.serving.batching import Batcher, Outputs
from growtas.export.serving.metrics import CONTENT_TYPE, Metrics
from growtas.export.serving.options import ServeOptions
from growtas.export.serving.protocol import HEADER_LENGTH, RequestRefused, accepted, parse_request
from growtas.export.serving.response import encode_response
from growtas.export.signature import Signature
from growtas.files import json_text

VERSION = "1"
# Larger JSON is parsed in a thread, so that it does not delay other requests.
_LARGE_JSON = 1 << 16
# Time during which the rest of a refused body is read and discarded, so that the client can read the reason.
_LINGER_SECONDS = 3.0
HELD_BYTES = 256 << 20
"""Largest size of all bodies in memory at the same time, if there are several."""


def default_body_bytes(signature: Signature) -> int:
    """The default limit of a body: the largest batch as JSON, with 24 characters per number, plus 1 MiB; at most HELD_BYTES."""
    # Images of any size may be large photographs.
    values = math.prod(4096 if size is None else size for size in signature.shape)
    return min((1 << 20) + 24 * signature.max_batch * values, HELD_BYTES)


class Serving:
    """The state of one served artifact, and the work of its endpoints.

    Args:
        run: computes the signature's outputs for at most ``signature.max_batch`` images.
        about: further entries of the model's metadata, such as the artifact's hash.
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
        self.ready = True
        self.draining = False
        self._under_way: set[asyncio.Task[Any]] = set()
        self._cut_off = False
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

    @property
    def under_way(self) -> int:
        """The number of inference requests in progress."""
        return len(self._under_way)

    def last_headers(self) -> dict[str, str]:
        """Headers of an answer: while the server stops, its connection is closed, so that clients connect to another server."""
        return {} if self.ready else {"Connection": "close"}

    async def drain(self) -> None:
        """Refuses new requests, and waits until those in progress are answered."""
        self.ready, self.draining = False, True
        await self._idle.wait()

    def cut_off(self) -> int:
        """Answers all requests in progress with status 503 now; returns their number, or 0 if that was done already."""
        if self._cut_off:
            return 0
        self.ready, self.draining, self._cut_off = False, True, True
        for task in self._under_way:
            task.cancel()
        return len(self._under_way)

    def metadata(self) -> dict[str, Any]:
        """Returns the model's metadata in the protocol's form."""
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
        """Answers one inference request. Every error becomes an HTTP status and a sentence."""
        start, code, images, unread = time.perf_counter(), 0, 0, True
        try:
            async with self._admitted():
                body = bytearray()
                try:
                    await self._read(request, body)
                    unread = False
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
        except asyncio.CancelledError:
            if not self._cut_off:
                raise
            code = 503
            return Refusal(RequestRefused("the server stopped before this request was answered", code), closing=True)
        except ClientDisconnect:
            return Response(status_code=400)  # the client has left
        # The framework would answer with a page that is not JSON, and print a traceback for every such request.
        except Exception as error:
            failure = f"the server failed at this request ({type(error).__name__})"
            refusal = error if isinstance(error, RequestRefused) else RequestRefused(failure, 500)
            code = refusal.status
            return Refusal(refusal, unread=unread, closing=not self.ready)
        else:
            code = 200
            headers = self.last_headers()
            if head is None:
                return Response(content, headers=headers, media_type="application/json")
            headers[HEADER_LENGTH] = str(head)
            return Response(content, headers=headers, media_type="application/octet-stream")
        finally:
            self.metrics.answered(code, time.perf_counter() - start, images)

    @contextlib.asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        if self.draining:
            raise RequestRefused("the server is stopping", 503, retry_after=1)
        # The queue is checked before the body is read. A request enters it only after its body has arrived, so that slow clients
        # can't fill it.
        self.batcher.check()
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        self._idle.clear()
        try:
            yield
        finally:
            self._under_way.discard(task)
            if not self._under_way:
                self._idle.set()

    async def _read(self, request: Request, body: bytearray) -> None:
        """Reads the request's body, within the limits."""
        most = self._body_bytes
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestRefused("compressed requests are not accepted; send the body without compression", 415)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind.startswith(("image/", "video/", "audio/", "multipart/")):
            raise RequestRefused(f"the body is {kind[:40]}; {accepted(self.signature)}", 415)
        announced = request.headers.get("content-length")
        # h11 accepts only digits, but any number of them.
        if announced is not None and (len(announced) > 18 or int(announced) > most):
            raise RequestRefused(f"the body has {announced[:18]} bytes; at most {most} are legal; {accepted(self.signature)}", 413)
        try:
            async with asyncio.timeout(self._body_seconds):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > most:
                        raise RequestRefused(f"the body has more than the legal {most} bytes; {accepted(self.signature)}", 413)
                    if self._held > len(body) and self._held + len(chunk) > HELD_BYTES:
                        raise RequestRefused("too much data is being sent at the same time; try again later", 503, retry_after=1)
                    body += chunk
                    self._held += len(chunk)
        except TimeoutError:
            raise RequestRefused(f"the body did not arrive within {self._body_seconds:g} s", 408) from None


class Refusal(Response):
    """The answer to a refused request.

    If the body was not read completely, its rest is read and discarded for a while before the connection is closed. Otherwise the
    connection would be reset, and the client could not read the answer.

    Args:
        unread: whether the body may not have been read completely.
        closing: whether to close the connection in any case.
        headers: further headers of the answer.
    """

    def __init__(
        self, refusal: RequestRefused, *, unread: bool = False, closing: bool = False, headers: Mapping[str, str] | None = None
    ) -> None:
        self._unread = unread
        headers = dict(headers or {})
        if refusal.retry_after is not None:
            headers["Retry-After"] = str(refusal.retry_after)
        if unread or closing:
            headers["Connection"] = "close"
        super().__init__(error_body(str(refusal)), refusal.status, headers, "application/json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer, then reads the rest of the body."""
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
    """Returns an error in the protocol's form."""
    return json_text({"error": message}).encode()


def build_app(serving: Serving) -> FastAPI:
    """Builds the web application of one served artifact."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    infer_path = f"/v2/models/{serving.name}/infer"
    # Health checks use HEAD, which FastAPI does not add itself; uvicorn removes the body.
    get = functools.partial(app.api_route, methods=["GET", "HEAD"])

    def json_response(content: Any, status: int = 200) -> Response:
        return Response(json_text(content).encode(), status, serving.last_headers(), "application/json")

    def check_model(name: str, version: str | None) -> None:
        if name != serving.name:
            raise HTTPException(404, f"no model {name[:80]!r} here; legal is {serving.name}")
        if version is not None and version != VERSION:
            raise HTTPException(404, f"no version {version[:80]!r} of {name}; legal is {VERSION}")

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message, headers, path = str(error.detail), dict(error.headers or {}), request.url.path[:80]
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = sorted(headers.get("Allow", "").split(", "))
            headers["Allow"] = ", ".join(allowed)
            message = f"{request.method[:20]} is not allowed at {path}; legal is {choices(allowed)}"
        elif message == HTTPStatus.NOT_FOUND.phrase:
            message = f"there is nothing at {path}; GET /v2/models/{serving.name} describes the model, POST {infer_path} runs it"
        unread = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
        return Refusal(RequestRefused(message, error.status_code), unread=unread, closing=not serving.ready, headers=headers)

    @get("/")
    async def root() -> Response:
        return json_response({"see": "/v2", "model": f"/v2/models/{serving.name}", "infer": infer_path})

    @get("/v2/health/live")
    async def live() -> Response:
        return json_response({"live": True})

    @get("/v2/health/ready")
    async def ready() -> Response:
        return json_response({"ready": serving.ready}, 200 if serving.ready else 503)

    @get("/v2")
    async def server() -> Response:
        return json_response({"name": "growtas", "version": __version__, "extensions": ["binary_tensor_data", "classification"]})

    @get("/metrics")
    async def metrics() -> Response:
        return Response(serving.metrics.text(), headers=serving.last_headers(), media_type=CONTENT_TYPE)

    @get("/v2/models/{name}")
    @get("/v2/models/{name}/versions/{version}")
    async def model(name: str, version: str | None = None) -> Response:
        check_model(name, version)
        return json_response(serving.metadata())

    @get("/v2/models/{name}/ready")
    @get("/v2/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str | None = None) -> Response:
        check_model(name, version)
        return json_response({"name": name, "ready": serving.ready}, 200 if serving.ready else 503)

    @app.post("/v2/models/{name}/infer")
    @app.post("/v2/models/{name}/versions/{version}/infer")
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        check_model(name, version)
        return await serving.infer(request)

    return app
