"""Small artifacts with manifests, made without the exporter: a linear classifier, whose logits NumPy computes too."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from growtas.export.artifact import write_manifest
from growtas.export.graph.pre_post import add_postprocess

SIZE, CHANNELS, CLASSES, MAX_BATCH = 8, 3, 5, 4
NAMES = ["shoe", "hat, woollen", "bag", "Über-Hemd", "coat"]
RECORD = {
    "image_size": SIZE,
    "in_chans": CHANNELS,
    "mean": [0.2, 0.5, 0.6],
    "std": [0.3, 0.25, 0.5],
    "interpolation": "bicubic",
    "crop_pct": 1.0,
}


def weights(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(SIZE * SIZE * CHANNELS, CLASSES)).astype(np.float32) * 0.1


def reference(images: np.ndarray) -> np.ndarray:
    """Logits of normalised images ``(n, 3, 8, 8)``, in float64."""
    return images.reshape(len(images), -1).astype(np.float64) @ weights().astype(np.float64)


def artifact(
    folder: Path,
    *,
    pixels: bool = False,
    name: str = "net",
    softmax: bool = False,
    top_k: int | None = None,
    classes: int = CLASSES,
    **changes: Any,
) -> Path:
    """``folder/name.onnx`` with its manifest: float32 ``images``, or uint8 ``pixels`` that are only cast and turned.

    Of the classifier's classes it has the first ``classes``. With ``softmax`` or ``top_k`` there are more outputs after the logits,
    put there as the exporter does.
    """
    shape = ["batch", SIZE, SIZE, CHANNELS] if pixels else ["batch", CHANNELS, SIZE, SIZE]
    entry = "pixels" if pixels else "images"
    nodes = []
    if pixels:
        nodes = [
            helper.make_node("Transpose", ["pixels"], ["turned"], perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["turned"], ["images"], to=TensorProto.FLOAT),
        ]
    nodes += [helper.make_node("Flatten", ["images"], ["flat"]), helper.make_node("MatMul", ["flat", "weight"], ["logits"])]
    kind = TensorProto.UINT8 if pixels else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(entry, kind, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(weights()[:, :classes].copy(), "weight")],
    )
    path = folder / f"{name}.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    if softmax or top_k:
        changes = {"postprocess": add_postprocess(path, path, softmax=softmax, top_k=top_k, class_names=NAMES), **changes}
    manifest = {
        "precision": "fp32",
        "runtime": "onnxruntime",
        "input": {
            "name": entry,
            "dtype": "uint8" if pixels else "float32",
            "shape": shape,
            "batch": {"min": 1, "max": MAX_BATCH},
        },
        "output": {"name": "logits", "dtype": "float32", "shape": ["batch", classes]},
        "preprocess": RECORD,
        "class_names": NAMES[:classes],
        **changes,
    }
    write_manifest(path, manifest)
    return path


def as_ir(path: Path) -> Path:
    """The same model as an OpenVINO IR, with a manifest of its own."""
    from growtas.export.runtimes.openvino import write_ir

    xml = path.with_suffix(".xml")
    write_ir(path, xml)
    manifest = json.loads(path.with_name(path.name + ".json").read_text())
    kept = ("precision", "input", "output", "preprocess", "class_names", "postprocess")
    write_manifest(xml, {"runtime": "openvino", **{key: manifest[key] for key in kept if key in manifest}})
    return xml


class Running:
    """A ``growtas serve`` of its own process."""

    def __init__(self, process: subprocess.Popen[str], said: list[str]) -> None:
        self.process, self.said = process, said
        match = re.search(r"http://[^/]*:(\d+)/v2/models/([\w.-]+)", said[0])
        assert match, said
        self.port, self.name = int(match[1]), match[2]

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        connection = socket.socket()
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(20)
        try:
            connection.connect(("127.0.0.1", self.port))
        except OSError:
            connection.close()
            raise
        return connection

    def ask(self, data: bytes, *, head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own, as bytes."""
        with self.connect() as connection:
            connection.sendall(data)
            return answer(connection, head=head)

    def memory(self, key: str) -> int:
        """Of the process, in bytes: ``VmRSS`` now, ``VmHWM`` at most so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{key}:\s+(\d+) kB", status)[1]) * 1024

    def work(self) -> int:
        """The processor time that the process has used, in the system's ticks."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def metric(self, name: str) -> float:
        text = self.ask(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")[2].decode()
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))

    def terminate(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self) -> tuple[int, str]:
        """Exit code and what was said since the start."""
        assert self.process.stderr is not None
        self.process.wait(timeout=30)
        # Not communicate(): it reads past what readline() took beyond the first line.
        return self.process.returncode, self.process.stderr.read()


@contextlib.contextmanager
def serving(path: Path, *options: str) -> Iterator[Running]:
    """A server on a free port; killed at the end if it still runs."""
    command = [sys.executable, "-m", "growtas", "serve", str(path), "--port", "0", "--threads", "1", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert first.startswith(path.name), first + process.stderr.read()
        yield Running(process, [first])
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def answer(connection: socket.socket, *, head: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (lower case) and body of the next response on a connection; of the answer to HEAD all that comes."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError(f"closed after {received!r}")
        received += piece
    start, _, body = received.partition(b"\r\n\r\n")
    first, *lines = start.decode().split("\r\n")
    headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
    while head and (piece := connection.recv(65536)):
        body += piece
    if head:
        return int(first.split()[1]), headers, body
    while len(body) < int(headers["content-length"]):
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError(f"closed after {len(body)} bytes of the body")
        body += piece
    return int(first.split()[1]), headers, body


def was_read(connection: socket.socket) -> bool:
    """Whether the server had read everything that was sent on a connection that it closed.

    Linux resets a connection whose closed end holds unread data, or receives data after it was closed. So a connection that is only
    half closed a second later has had all its data read.
    """
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        if connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
            return False
        time.sleep(0.01)
    return True


def post(name: str, body: bytes, *headers: str, length: int | str | None = None) -> bytes:
    """An inference request as bytes."""
    lines = [f"POST /v2/models/{name}/infer HTTP/1.1", "Host: a", *headers]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


_TCP_CLOSE = 7  # the state of the same name in Linux's tcp_states.h
SHAPE = (CHANNELS, SIZE, SIZE)
GET = "GET {} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def images(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)


def get(server, path):
    return server.ask(GET.format(path).encode())


def ask(server, body, *headers, **options):
    status, _, content = server.ask(post(server.name, body, *headers, **options))
    return status, json.loads(content)


def plain(values):
    entry = {"name": "images", "shape": list(values.shape), "datatype": "FP32", "data": values.ravel().tolist()}
    return json.dumps({"inputs": [entry]}).encode()


def still_answers(server):
    values = images(1, seed=5)
    status, content = ask(server, plain(values))
    assert status == 200
    assert np.allclose(content["outputs"][0]["data"], reference(values)[0], atol=1e-5)
    return True
