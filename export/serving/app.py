"""The endpoints of the open inference protocol (KServe v2) over HTTP, for one artifact."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
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
        """How many inference requests are being answered."""
        return len(self._under_way)

    async def drain(self) -> None:
        """Take no new requests, and wait until those under way are answered."""
        self.ready, self.draining = False, True
        await self._idle.wait()

    def cut_off(self) -> int:
        """Answer what is under way with 503 now; returns how many requests these are, 0 if that was done already."""
        if self._cut_off:
            return 0
        self.ready, self.draining, self._cut_off = False, True, True
        for task in self._under_way:
            task.cancel()
        return len(self._under_way)

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
            return Response(status_code=400)  # nobody reads it
        # Left to the framework, it would be a page that is no JSON, and a traceback on stderr for every such request.
        except Exception as error:
            failure = f"the server failed at this request ({type(error).__name__})"
            refusal = error if isinstance(error, RequestRefused) else RequestRefused(failure, 500)
            code = refusal.status
            return Refusal(refusal, unread=unread, closing=not self.ready)
        else:
            code = 200
            # A client that keeps its connection is sent away while it can still be, to another server.
            headers = {} if self.ready else {"Connection": "close"}
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
        # Before the body is read; who is still sending takes no place in the queue, or slow clients could fill it.
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
        """The request's body, never more of it than the limits allow."""
        most = self._body_bytes
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestRefused("compressed requests are not taken; send the body as it is", 415)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind.startswith(("image/", "video/", "audio/", "multipart/")):
            raise RequestRefused(f"the body is {kind[:40]}; {accepted(self.signature)}", 415)
        announced = request.headers.get("content-length")
        # h11 lets only digits through, but any number of them.
        if announced is not None and (len(announced) > 18 or int(announced) > most):
            raise RequestRefused(f"the body has {announced[:18]} bytes; at most {most} are taken; {accepted(self.signature)}", 413)
        try:
            async with asyncio.timeout(self._body_seconds):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > most:
                        raise RequestRefused(f"the body has over {most} bytes; no more are taken; {accepted(self.signature)}", 413)
                    if self._held > len(body) and self._held + len(chunk) > HELD_BYTES:
                        raise RequestRefused("too much is being sent at the same time; try again later", 503, retry_after=1)
                    body += chunk
                    self._held += len(chunk)
        except TimeoutError:
            raise RequestRefused(f"the body did not arrive within {self._body_seconds:g} s", 408) from None


class Refusal(Response):
    """A refused request's answer.

    Where the body has not been read, its rest is thrown away for a while, and then the connection ends: closed at once, it
    would be reset, and the client would not get to read the answer.

    Args:
        unread: the body may not have been read to its end.
        closing: end the connection in any case.
        headers: more headers of the answer.
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
    infer_path = f"/v2/models/{serving.name}/infer"
    # FastAPI adds HEAD to nothing by itself, and health checks ask with it; uvicorn leaves the body out.
    get = functools.partial(app.api_route, methods=["GET", "HEAD"])

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
        message, headers, path = str(error.detail), dict(error.headers or {}), request.url.path[:80]
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = sorted(headers.get("Allow", "").split(", "))
            headers["Allow"] = ", ".join(allowed)
            message = f"{request.method[:20]} is not taken at {path}; legal is {choices(allowed)}"
        elif message == HTTPStatus.NOT_FOUND.phrase:
            message = f"nothing is at {path}; GET /v2/models/{serving.name} describes the model, POST {infer_path} runs it"
        unread = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
        return Refusal(RequestRefused(message, error.status_code), unread=unread, headers=headers)

    @get("/")
    async def root() -> Response:
        return say({"see": "/v2", "model": f"/v2/models/{serving.name}", "infer": infer_path})

    @get("/v2/health/live")
    async def live() -> Response:
        return say({"live": True})

    @get("/v2/health/ready")
    async def ready() -> Response:
        return say({"ready": serving.ready}, 200 if serving.ready else 503)

    @get("/v2")
    async def server() -> Response:
        return say({"name": "growtas", "version": __version__, "extensions": ["binary_tensor_data", "classification"]})

    @get("/metrics")
    async def metrics() -> Response:
        return Response(serving.metrics.text(), media_type=CONTENT_TYPE)

    @get("/v2/models/{name}")
    @get("/v2/models/{name}/versions/{version}")
    async def model(name: str, version: str | None = None) -> Response:
        known(name, version)
        return say(serving.metadata())

    @get("/v2/models/{name}/ready")
    @get("/v2/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str | None = None) -> Response:
        known(name, version)
        return say({"name": name, "ready": serving.ready}, 200 if serving.ready else 503)

    @app.post("/v2/models/{name}/infer")
    @app.post("/v2/models/{name}/versions/{version}/infer")
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        known(name, version)
        return await serving.infer(request)

    return app
