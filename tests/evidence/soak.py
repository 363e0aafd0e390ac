"""``python -m tests.evidence.soak``: serves 10,000 requests of 8 clients beside floods and slow senders, and through restarts.

It exports a tiny model, starts ``growtas serve`` on it, and lets the clients send requests: half of them keep a connection, the
others make a new one for each request. Every answer is compared with that of ONNX Runtime. Beside them, hundreds of other
connections send nothing, half a head, garbage, a byte every half second, or bodies that are too large; others leave in the middle
of a body or before the answer. In the first part the server is stopped by SIGTERM several times and started again at the same
port. Then its memory and its open files are measured after a warm-up and four times more, while nothing is connected.

A client repeats a request that was refused (no connection, or status 503), and one that the server did not read: Linux resets the
connection then. A request is lost if the server read it and did not answer it, or answered only a part. The script prints a
report as JSON. It exits with 1 if a request was lost or answered wrongly, if the server printed anything unexpected or did not
stop with exit code 0, or if memory or the number of open files grew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from growtas import api
from tests.export_helpers import SUBNET, TINY, make_run
from tests.unit.export.serving.helpers import Running, answer, post, was_read

TOLERANCE = 1e-5
TIMEOUT_S = 3
_IMAGES = 64
_STEADY = 2000
"""Number of measured requests from which on growing memory is an error. Before, the process still gets its first large bursts."""
_EXPECTED_LINES = re.compile(r"\S+ in onnxruntime at http://\S+|stopping: \d+ requests are in progress")


def exported(folder: Path) -> Path:
    """Exports a tiny random model on the digits as an ONNX file with a manifest."""
    *_, artifact = api.export(make_run(folder / "runs"), SUBNET, formats=["onnx"], images=32)
    return artifact.path


class Server:
    """``growtas serve`` in a process of its own, which can be started again at the same port.

    Attributes:
        running: the process.
        codes: the exit codes of the stopped processes.
    """

    def __init__(self, artifact: Path, log: Path) -> None:
        self._artifact, self._log = artifact, log
        self.codes: list[int] = []
        self.running = self._start(0)

    def _start(self, port: int) -> Running:
        options = ["--port", str(port), "--threads", "1", "--timeout", str(TIMEOUT_S)]
        with self._log.open("ab") as log:
            begin = log.tell()
            process = subprocess.Popen([sys.executable, "-m", "growtas", "serve", str(self._artifact), *options], stderr=log)
        while not (lines := self._log.read_bytes()[begin:].decode()).endswith("\n"):
            if process.poll() is not None:
                raise SystemExit(lines)
            time.sleep(0.02)
        return Running(process, lines.splitlines())

    def restart(self) -> None:
        """Stops the server and starts it again at its port."""
        self.stop()
        self.running = self._start(self.running.port)

    def stop(self) -> None:
        """Stops the server with SIGTERM."""
        self.running.terminate()
        self.codes.append(self.running.process.wait(60))

    def log(self) -> str:
        """Returns everything that the processes have printed."""
        return self._log.read_text()

    def state(self) -> tuple[int, int]:
        """Resident memory in bytes and number of open files, when all connections are closed."""
        deadline = time.monotonic() + 4 * TIMEOUT_S
        files = Path(f"/proc/{self.running.process.pid}/fd")
        seen = [len(os.listdir(files))]
        while len(seen) < 10 or len(set(seen[-10:])) > 1:  # the same for a second
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
            seen.append(len(os.listdir(files)))
        return self.running.memory("VmRSS"), seen[-1]


class Clients:
    """Clients that send a number of valid requests, each until it is answered.

    Attributes:
        requests: the different requests, as bytes.
        outcomes: number of attempts by outcome.
    """

    def __init__(self, server: Server, images: np.ndarray, want: np.ndarray) -> None:
        self._server, self._want = server, want
        self.requests = [post(server.running.name, self._body(image[None])) for image in images]
        self._lock = threading.Lock()
        self.outcomes: Counter[str] = Counter()

    @staticmethod
    def _body(values: np.ndarray) -> bytes:
        entry = {"name": "images", "shape": list(values.shape), "datatype": "FP32", "data": values.ravel().tolist()}
        return json.dumps({"inputs": [entry]}).encode()

    @property
    def done(self) -> int:
        """The number of requests that are answered or lost."""
        return self.outcomes["right"] + self.count("wrong") + self.count("lost")

    def count(self, kind: str) -> int:
        """The number of attempts whose outcome begins with a word."""
        with self._lock:
            return sum(count for outcome, count in self.outcomes.items() if outcome.startswith(kind))

    def start(self, requests: int, clients: int) -> list[threading.Thread]:
        """Starts the clients, which share the requests."""
        shares = [requests // clients + (number < requests % clients) for number in range(clients)]
        threads = [threading.Thread(target=self._work, args=(share, number)) for number, share in enumerate(shares)]
        for thread in threads:
            thread.start()
        return threads

    def _work(self, requests: int, client: int) -> None:
        rng, kept = random.Random(client), None
        for _ in range(requests):
            number = rng.randrange(len(self.requests))
            outcome = ""
            while not outcome.startswith(("right", "wrong", "lost")):
                outcome, kept = self._attempt(number, kept)
                if kept is not None and client % 2 == 0:  # every second client makes a connection for each request
                    kept.close()
                    kept = None
                with self._lock:
                    self.outcomes[outcome] += 1
                if outcome.startswith(("no connection", "status 503")):
                    time.sleep(0.05)
        if kept is not None:
            kept.close()

    def _attempt(self, number: int, connection: socket.socket | None) -> tuple[str, socket.socket | None]:
        """Sends one request; returns the outcome, and the connection if it can be used again."""
        try:
            connection = connection or self._server.running.connect()
        except OSError as error:
            return f"no connection ({type(error).__name__})", None
        try:
            connection.sendall(self.requests[number])
            begun = bool(connection.recv(1, socket.MSG_PEEK))
        except TimeoutError:
            return self._loss(connection, "no answer"), None
        except OSError:
            begun = False
        if not begun:
            # On the loopback a request is one segment, so the server has read all of it or nothing.
            if was_read(connection):
                return self._loss(connection, "closed without an answer"), None
            connection.close()
            return "not read", None
        try:
            status, headers, content = answer(connection)
        except OSError as error:
            return self._loss(connection, f"half an answer: {error!r}"), None
        if headers.get("connection") == "close":
            connection.close()
            connection = None
        if status == 503:
            return f"status 503: {json.loads(content)['error']}", connection
        if status != 200:
            return f"wrong: status {status}", connection
        got = np.reshape(json.loads(content)["outputs"][0]["data"], self._want[number].shape)
        return ("right" if np.abs(got - self._want[number]).max() <= TOLERANCE else "wrong: other numbers"), connection

    def _loss(self, connection: socket.socket, reason: str) -> str:
        connection.close()
        return f"lost: {reason}"


class Crowd(threading.Thread):
    """Connections that send ``opening`` and then a byte every half second, or nothing more; ended ones are replaced.

    Attributes:
        made: number of connections made so far.
    """

    def __init__(self, server: Server, size: int, opening: bytes, *, drips: bool = False) -> None:
        super().__init__(daemon=True)
        self._server, self._size, self._opening, self._drips = server, size, opening, drips
        self._open: list[socket.socket] = []
        self.made = 0
        self.active = True

    def run(self) -> None:
        """Works while ``active``."""
        while self.active:
            self._open = [connection for connection in self._open if self._goes_on(connection)]
            with contextlib.suppress(OSError):
                while len(self._open) < self._size:
                    connection = self._server.running.connect()
                    self._open.append(connection)
                    self.made += 1
                    connection.setblocking(False)
                    connection.send(self._opening)
            time.sleep(0.5)
        for connection in self._open:
            connection.close()

    def _goes_on(self, connection: socket.socket) -> bool:
        try:
            if self._drips:
                connection.send(b"x")
            while connection.recv(4096):
                pass
        except BlockingIOError:
            return True
        except OSError:
            pass
        connection.close()
        return False


class Rude(threading.Thread):
    """Makes one connection after the other, and does with each what the next of the ``deeds`` says.

    Attributes:
        made: number of connections made so far.
    """

    def __init__(self, server: Server, deeds: Sequence[Callable[[socket.socket], None]]) -> None:
        super().__init__(daemon=True)
        self._server, self._deeds = server, deeds
        self.made = 0
        self.active = True

    def run(self) -> None:
        """Works while ``active``."""
        while self.active:
            with contextlib.suppress(OSError), self._server.running.connect() as connection:
                self.made += 1
                self._deeds[self.made % len(self._deeds)](connection)
            time.sleep(0.02)


def deeds(name: str, request: bytes) -> dict[str, Callable[[socket.socket], None]]:
    """What a connection can do to a server, each in a second at most."""
    rng = random.Random(0)

    def sends(data: bytes, *, reads: bool = True, resets: bool = False) -> Callable[[socket.socket], None]:
        def deed(connection: socket.socket) -> None:
            connection.settimeout(0.5)
            connection.sendall(data)
            if reads:
                while connection.recv(65536):
                    pass
            if resets:  # closing sends a reset instead of an end
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        return deed

    chunked = post(name, b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    return {
        "garbage": sends(rng.randbytes(3000)),
        "garbage as body": sends(post(name, rng.randbytes(3000))),
        "a gigabyte announced": sends(post(name, b"x" * 100_000, length=1 << 30)),
        "ten megabytes in chunks": sends(chunked + b"%x\r\n%b\r\n" % (10 << 20, bytes(10 << 20))),
        "half a body, then leaves": sends(request[: len(request) // 2], reads=False),
        "half a body, then resets": sends(request[: len(request) // 2], reads=False, resets=True),
        "leaves before the answer": sends(request, reads=False),
        "resets before the answer": sends(request, reads=False, resets=True),
        "wrong path": sends(request.replace(b"/v2/models", b"/\x25\x1b")),
        "wrong chunk": sends(chunked + b"zz\r\n"),
        "pipeline, not read": sends(request * 20, reads=False),
    }


class Disturbance:
    """Everything that goes on beside the clients; a context manager."""

    def __init__(self, server: Server, request: bytes) -> None:
        head = post(server.running.name, b"", "X: y", length=5000)
        self._rude = deeds(server.running.name, request)
        self.crowds = {
            "sends nothing": Crowd(server, 200, b""),
            "half a head": Crowd(server, 60, head[:60]),
            "slow head": Crowd(server, 20, head[:-4], drips=True),
            "slow body": Crowd(server, 20, head, drips=True),
        }
        self.rude = [Rude(server, list(self._rude.values())) for _ in range(4)]

    def __enter__(self) -> Disturbance:
        for thread in (*self.crowds.values(), *self.rude):
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        for thread in (*self.crowds.values(), *self.rude):
            thread.active = False
        for thread in (*self.crowds.values(), *self.rude):
            thread.join()

    def made(self) -> Counter[str]:
        """The number of connections of each kind."""
        made = Counter({kind: crowd.made for kind, crowd in self.crowds.items()})
        for place, kind in enumerate(self._rude):
            made[kind] = sum((rude.made + len(self._rude) - place) // len(self._rude) for rude in self.rude)
        return made


def soak(folder: Path, requests: int, clients: int, restarts: int) -> dict[str, Any]:
    """Sends the requests in parts: one with restarts, a warm-up, and four after which memory is measured; returns the report."""
    artifact = exported(folder)
    images = np.random.default_rng(0).normal(size=(_IMAGES, 3, TINY.image_size, TINY.image_size)).astype(np.float32)
    session = onnxruntime.InferenceSession(artifact, providers=["CPUExecutionProvider"])
    want = np.stack([session.run(["logits"], {"images": image[None]})[0][0] for image in images])
    server = Server(artifact, folder / "server.log")
    started = time.monotonic()
    asking, made, states = Clients(server, images, want), Counter[str](), []
    parts = [requests * 3 // 10, requests * 3 // 10, *[requests // 10] * 3]
    parts.append(requests - sum(parts))
    for part, count in enumerate(parts):
        with Disturbance(server, asking.requests[0]) as disturbance:
            begin = asking.done
            threads = asking.start(count, clients)
            for number in range(1, restarts + 1) if part == 0 else ():
                while asking.done - begin < count * number // (restarts + 1) and any(map(threading.Thread.is_alive, threads)):
                    time.sleep(0.01)
                server.restart()
            for thread in threads:
                thread.join()
        made += disturbance.made()
        if part:
            states.append(server.state())
    server.stop()
    memory, files = zip(*states, strict=True)
    outcomes = asking.outcomes
    log = server.log().splitlines()
    return {
        "requests": requests,
        "clients": clients,
        "right": outcomes["right"],
        "wrong": asking.count("wrong"),
        "lost": asking.count("lost"),
        "attempts": dict(sorted(outcomes.items())),
        "other_connections": dict(made),
        "restarts": restarts,
        "exit_codes": server.codes,
        "tracebacks": sum(line.startswith("Traceback") for line in log),
        "unexpected_lines": [line for line in log if not _EXPECTED_LINES.fullmatch(line)][:50],
        "measured_requests": sum(parts[2:]),
        "memory_mb": [round(value / 1e6, 2) for value in memory],
        "memory_growth_percent": round(100 * (memory[-1] / memory[0] - 1), 2),
        "open_files": files,
        "seconds": round(time.monotonic() - started),
    }


def holds(report: dict[str, Any]) -> bool:
    """Whether the report is without a loss, an error or growth."""
    return (
        report["right"] == report["requests"]
        and not any(report[key] for key in ("wrong", "lost", "tracebacks", "unexpected_lines"))
        and not any(report["exit_codes"])
        and (report["memory_growth_percent"] < 1 or report["measured_requests"] < _STEADY)
        and len(set(report["open_files"])) == 1
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="Number of requests (default: 10000).")
    parser.add_argument("--clients", type=int, default=8, help="Number of clients (default: 8).")
    parser.add_argument("--restarts", type=int, default=8, help="Number of restarts (default: 8).")
    parser.add_argument("--sample", action="store_true", help="Send 1,000 requests with 2 restarts (a minute).")
    options = parser.parse_args()
    requests, restarts = (1000, 2) if options.sample else (options.requests, options.restarts)
    with tempfile.TemporaryDirectory() as folder:
        report = soak(Path(folder), requests, options.clients, restarts)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    sys.exit(not holds(report))


if __name__ == "__main__":
    main()
