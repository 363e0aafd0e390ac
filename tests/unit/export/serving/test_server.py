from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from growtas.export.artifact import load_artifact
from growtas.export.serving import server
from growtas.export.serving.app import Serving
from growtas.export.serving.connection_limits import guarded
from growtas.export.serving.metrics import Metrics
from growtas.export.serving.options import ServeOptions
from growtas.export.signature import read_signature
from growtas.progress import SILENT
from tests.unit.export.serving.helpers import answer, artifact, images, plain, post, reference


@pytest.mark.parametrize(("number", "end"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_while_the_artifact_is_loaded_ends_the_server_before_it_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, end: type[BaseException]
) -> None:
    def signalled(*args: object, **kwargs: object) -> None:
        os.kill(os.getpid(), number)
        raise AssertionError("the signal was not heard")

    monkeypatch.setattr(server, "Predictor", signalled)
    before = signal.getsignal(number)
    with pytest.raises(end) as caught:
        server.run_server(artifact(tmp_path), ServeOptions(port=0), SILENT)
    assert end is KeyboardInterrupt or caught.value.code == 0
    assert signal.getsignal(number) == before


MOMENTS = ["before the port is closed", "after the port is closed", "when the connection is closed"]


def _stopped_while(moment: str, data: bytes, path: Path) -> socket.socket:
    """Runs a server that stops at once; at a moment of its end, data arrives on a new connection, which is returned.

    The client works in the server's thread, so that the server does nothing between the moment and the arrival.
    """
    options, metrics, client = ServeOptions(), Metrics(), socket.socket()
    client.settimeout(10)

    class Protocol(guarded(options, metrics)):
        asked = False

        def shutdown(self) -> None:
            if moment == "when the connection is closed" and not self.asked:
                client.sendall(data)
                self.asked = True
            super().shutdown()

    class Stopping(server.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            self.stop(signal.SIGTERM, None)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            client.connect(sockets[0].getsockname())
            if moment == "before the port is closed":
                client.sendall(data)
            elif moment == "after the port is closed":
                asyncio.get_running_loop().call_later(0.05, client.sendall, data)
            await super().shutdown(sockets)

    serving = Serving(
        lambda given: {"logits": reference(given)},
        read_signature(load_artifact(path)),
        name="net",
        platform="none",
        options=options,
        metrics=metrics,
        about={},
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stopping = Stopping(serving, Protocol, options, SILENT)
        stopping.run([listener])
    assert not stopping.cut_off
    return client


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_request_that_arrives_while_the_server_ends_is_answered(tmp_path: Path, moment: str) -> None:
    with _stopped_while(moment, post("net", plain(images(1))), artifact(tmp_path)) as client:
        status, headers, content = answer(client)
    assert (status, headers["connection"]) == (503, "close")
    assert json.loads(content) == {"error": "the server is stopping"}


@pytest.mark.parametrize("moment", MOMENTS)
def test_half_a_request_that_arrives_while_the_server_ends_is_answered_too(tmp_path: Path, moment: str) -> None:
    with _stopped_while(moment, b"POST /v2/models/net/infer HTTP/1.1\r\nHo", artifact(tmp_path)) as client:
        status, headers, content = answer(client)
    assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
    assert json.loads(content) == {"error": "the server is stopping"}


def test_a_connection_without_a_request_ends_with_the_server(tmp_path: Path) -> None:
    with _stopped_while("before the port is closed", b"", artifact(tmp_path)) as client:
        assert client.recv(1) == b""
