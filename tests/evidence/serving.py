"""``python -m tests.evidence.serving ARTIFACT``: tests a served model under load, under attack and during a stop.

It starts ``growtas serve`` on an artifact of a model trained on Fashion-MNIST, and sends the test images with tritonclient's HTTP
client: 10,000 requests from 8 clients, each a thread with its own connection. Every answer is compared with that of ``predict``:
the logits must agree within 1e-5, because the batch size may change rounding, and the class must be the same. Then it sends
malformed bodies, bodies of a gigabyte and requests that are too slow, and checks with a valid request that the server survived. At
last it sends SIGTERM under load. It prints the results, writes build/serving.json, and exits with 1 if a check fails. The latencies
depend on this machine and its other work.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as triton

from growtas.data.sources import open_data
from growtas.export.serving.predictor import Predictor
from tests.unit.export.serving.helpers import Running, answer, post, serving

TOLERANCE = 1e-5
TIMEOUT_S = 3


def test_images(predictor: Predictor, count: int) -> np.ndarray:
    """Returns test images of Fashion-MNIST as the artifact's input, ``(n, ...)``."""
    images = open_data("fashion-mnist").test
    return np.stack([predictor.prepare(images.load(index)) for index in range(min(count, len(images)))])


def tensor(server: Running, images: np.ndarray, predictor: Predictor) -> triton.InferInput:
    """Returns images as tritonclient's binary input."""
    entry = triton.InferInput(predictor.signature.input_name, list(images.shape), predictor.signature.datatype)
    entry.set_data_from_numpy(images)
    return entry


def load(
    server: Running, predictor: Predictor, images: np.ndarray, want: np.ndarray, requests: int, clients: int
) -> dict[str, Any]:
    """Sends all requests, distributed over the clients; returns a summary of the answers."""
    output = predictor.signature.output_name
    answers: dict[int, np.ndarray] = {}
    milliseconds: list[float] = []
    errors: list[str] = []

    def work(client: int) -> None:
        with triton.InferenceServerClient(f"127.0.0.1:{server.port}", connection_timeout=60, network_timeout=60) as asks:
            for number in range(client, requests, clients):
                given = tensor(server, images[number % len(images)][None], predictor)
                start = time.perf_counter()
                try:
                    got = asks.infer(server.name, [given]).as_numpy(output)
                except Exception as error:
                    errors.append(f"request {number}: {error!r}")
                    continue
                milliseconds.append((time.perf_counter() - start) * 1e3)
                answers[number] = got[0]

    start = time.perf_counter()
    threads = [threading.Thread(target=work, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    got = np.stack([answers[number] for number in sorted(answers)])
    expected = want[[number % len(images) for number in sorted(answers)]]
    return {
        "requests": requests,
        "clients": clients,
        "answered": len(answers),
        "errors": errors[:5],
        "largest_difference": float(np.abs(got - expected).max()),
        "same_class": int((got.argmax(1) == expected.argmax(1)).sum()),
        "seconds": round(seconds, 2),
        "requests_per_second": round(requests / seconds),
        **{f"p{share}_ms": round(float(np.percentile(milliseconds, share)), 2) for share in (50, 95, 99)},
        "mean_batch": round(server.metric("growtas_batch_images_sum") / server.metric("growtas_batch_images_count"), 2),
    }


def attacks(server: Running, predictor: Predictor, images: np.ndarray, want: np.ndarray) -> dict[str, Any]:
    """Runs each attack; returns the answers, and whether a valid request afterwards was answered correctly."""
    signature = predictor.signature
    entry = {"name": signature.input_name, "datatype": signature.datatype, "shape": [1, *signature.example()]}
    good = json.dumps({"inputs": [{**entry, "data": images[0].ravel().tolist()}]}).encode()
    cases: dict[str, bytes] = {
        "empty body": b"",
        "no JSON": b"\x00\xff" * 500,
        "cut off": good[:-10],
        "nested deeply": b"[" * 200_000,
        "wrong shape": good.replace(b'"shape": [1', b'"shape": [2'),
        "wrong type": good.replace(signature.datatype.encode(), b"BOOL"),
        "wrong name": good.replace(signature.input_name.encode(), b"pictures"),
    }
    found: dict[str, Any] = {}
    for what, body in cases.items():
        status, _, content = server.ask(post(server.name, body))
        found[what] = [status, json.loads(content)["error"]]
    found |= {"1 GB, announced": gigabyte(server, chunked=False), "1 GB, chunked": gigabyte(server, chunked=True)}
    found |= {f"slow {where}": slow(server, where) for where in ("head", "body")}
    found["never reads"] = never_reads(server)
    status, _, content = server.ask(post(server.name, good))
    logits = np.array(json.loads(content)["outputs"][0]["data"]) if status == 200 else np.full_like(want[0], np.nan)
    found["good request afterwards"] = [status, float(np.abs(logits - want[0]).max())]
    return found


def gigabyte(server: Running, *, chunked: bool) -> list[Any]:
    """Sends up to a gigabyte without reading answers; returns the status, and the growth of the server's memory."""
    before = server.memory("VmHWM")
    block = b"x" * (1 << 20)
    head = post(server.name, b"", length=1 << 30)
    if chunked:
        head = head.replace(b"Content-Length: 1073741824", b"Transfer-Encoding: chunked")
        block = b"%x\r\n%b\r\n" % (len(block), block)
    with server.connect() as connection:
        connection.sendall(head)
        sent = 0
        try:
            for _ in range(1 << 10):
                connection.sendall(block)
                sent += 1
        except OSError:
            pass  # the server has closed the connection
        try:
            status = answer(connection)[0]
        except OSError as error:
            return [repr(error), sent]
    return [status, f"{sent} MB sent", f"memory grew by {(server.memory('VmHWM') - before) / 1e6:.1f} MB"]


def slow(server: Running, where: str) -> list[Any]:
    """Sends a request whose head or body arrives with one byte per second."""
    start = time.perf_counter()
    with server.connect() as connection:
        data = post(server.name, b"", length=1000)
        if where == "body":
            connection.sendall(data)
            data = b"x" * 1000
        connection.settimeout(1.0)
        for place in range(len(data)):
            try:
                connection.sendall(data[place : place + 1])
                if connection.recv(1, socket.MSG_PEEK):
                    break
            except TimeoutError:
                continue
            except OSError as error:
                return [repr(error)]
        connection.settimeout(20)
        return [answer(connection)[0], f"after {time.perf_counter() - start:.1f} s"]


def never_reads(server: Running) -> str:
    """Sends endless requests without reading the answers."""
    start = time.perf_counter()
    with server.connect(receive_buffer=4096) as connection:
        connection.settimeout(0.5)
        while time.perf_counter() - start < 60:
            try:
                connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 50)
            except TimeoutError:
                continue
            except OSError:
                return f"dropped after {time.perf_counter() - start:.1f} s"
    return "NOT dropped"


def stop_under_load(server: Running, predictor: Predictor, images: np.ndarray, want: np.ndarray, clients: int) -> dict[str, Any]:
    """Sends SIGTERM under full load; every request must be answered, refused with 503, or never accepted."""
    outcomes: Counter[str] = Counter()
    signature = predictor.signature
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": signature.input_name,
                    "datatype": signature.datatype,
                    "shape": [1, *images.shape[1:]],
                    "parameters": {"binary_data_size": images[0].nbytes},
                }
            ]
        }
    ).encode()

    def work(client: int) -> None:
        number = client
        while True:
            index = number % len(images)
            body = head + images[index].tobytes()
            try:
                with server.connect() as connection:
                    sent = False
                    connection.sendall(post(server.name, body, f"Inference-Header-Content-Length: {len(head)}"))
                    sent = True
                    status, _, content = answer(connection)
            except ConnectionRefusedError:
                outcomes["connection refused"] += 1
                return
            except OSError as error:
                # The request was in the system's backlog when the server closed the port.
                outcomes[f"{type(error).__name__} after sending: {sent}"] += 1
                return
            if status == 200:
                logits = np.array(json.loads(content)["outputs"][0]["data"])
                right = np.abs(logits - want[index]).max() <= TOLERANCE
                outcomes["answered rightly" if right else "answered WRONGLY"] += 1
            else:
                outcomes[f"status {status}"] += 1
            number += clients

    threads = [threading.Thread(target=work, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(2.0)
    server.terminate()
    start = time.perf_counter()
    for thread in threads:
        thread.join(60)
    code, said = server.wait()
    return {"exit_code": code, "seconds": round(time.perf_counter() - start, 2), "said": said.strip(), "requests": dict(outcomes)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path, help="Artifact of a model trained on Fashion-MNIST.")
    parser.add_argument("--requests", type=int, default=10_000, help="Number of requests (default: 10000).")
    parser.add_argument("--clients", type=int, default=8, help="Number of clients (default: 8).")
    parser.add_argument("--out", type=Path, default=Path("build/serving.json"), help="Output file (default: build/serving.json).")
    options = parser.parse_args()
    with Predictor(options.artifact, threads=1) as predictor, serving(options.artifact, "--timeout", str(TIMEOUT_S)) as server:
        images = test_images(predictor, options.requests)
        want = predictor.run(images)
        report: dict[str, Any] = {"artifact": options.artifact.name, "images": len(images), "load_average": os.getloadavg()[0]}
        report["load"] = load(server, predictor, images, want, options.requests, options.clients)
        report["attacks"] = attacks(server, predictor, images, want)
        report["stop"] = stop_under_load(server, predictor, images, want, options.clients)
    under, attacked, stop = report["load"], report["attacks"], report["stop"]
    holds = {
        "none lost": under["answered"] == options.requests and not under["errors"],
        "equal to predict": under["largest_difference"] <= TOLERANCE and under["same_class"] == options.requests,
        "attacks answered": all(
            400 <= attacked[what][0] < 500
            for what in attacked
            if what not in ("never reads", "good request afterwards") and isinstance(attacked[what][0], int)
        )
        and all(isinstance(attacked[what][0], int) for what in attacked if what != "never reads"),
        "never reading is dropped": attacked["never reads"].startswith("dropped"),
        "survived": attacked["good request afterwards"][0] == 200 and attacked["good request afterwards"][1] <= TOLERANCE,
        "SIGTERM drains": stop["exit_code"] == 0 and "answered WRONGLY" not in stop["requests"],
    }
    report["holds"] = holds
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0 if all(holds.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
