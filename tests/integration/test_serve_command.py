"""``growtas serve`` in a process of its own, asked by tritonclient and by clients that don't keep to the rules."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton

from growtas.export.serving.predictor import Predictor
from tests.export_helpers import Cli
from tests.unit.export.serving.helpers import (
    CHANNELS,
    CLASSES,
    MAX_BATCH,
    NAMES,
    SIZE,
    answer,
    artifact,
    post,
    reference,
    serving,
)  # fmt: skip

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
CLIENTS, REQUESTS = 8, 40
SHAPE = (CHANNELS, SIZE, SIZE)
GET = "GET {} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return artifact(tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="module")
def server(net):
    """One server for all tests that leave it running; slow clients have a second."""
    with serving(net, "--timeout", "1", "--max-connections", "40", "--max-body", "200000") as running:
        yield running
        assert running.process.poll() is None


def images(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)


def client(server):
    return triton.InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=30, connection_timeout=30)


def tensor(values, *, binary=True):
    given = triton.InferInput("images", list(values.shape), "FP32")
    given.set_data_from_numpy(values, binary_data=binary)
    return given


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


def test_tritonclient_finds_what_it_looks_for(server):
    with client(server) as asks:
        assert asks.is_server_live()
        assert asks.is_server_ready()
        assert asks.is_model_ready("net")
        assert asks.is_model_ready("net", "1")
        assert not asks.is_model_ready("other")
        assert asks.get_server_metadata()["name"] == "growtas"
        about = asks.get_model_metadata("net", "1")
        assert about["platform"] == "onnxruntime_onnx"
        assert about["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, *SHAPE]}]
        assert about["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, CLASSES]}]
        with pytest.raises(triton.InferenceServerException, match="no model 'other' here; legal is net"):
            asks.infer("other", [tensor(images(1))])
        with pytest.raises(triton.InferenceServerException, match="no version '2' of net; legal is 1"):
            asks.infer("net", [tensor(images(1))], model_version="2")


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_one_request_of_every_form(server, binary_in, binary_out):
    values = images(3)
    with client(server) as asks:
        wanted = [triton.InferRequestedOutput("logits", binary_data=binary_out)]
        got = asks.infer("net", [tensor(values, binary=binary_in)], outputs=wanted, request_id="mine")
        assert got.get_response()["id"] == "mine"
        assert np.allclose(got.as_numpy("logits"), reference(values), atol=1e-5)
        named = asks.infer("net", [tensor(values)], outputs=[triton.InferRequestedOutput("logits", class_count=2)])
        best = np.argsort(-reference(values), axis=1)[:, :2]
        found = [[text.decode().split(":", 2) for text in row] for row in named.as_numpy("logits")]
        assert [[int(index) for _, index, _ in row] for row in found] == best.tolist()
        assert [[name for _, _, name in row] for row in found] == [[NAMES[index] for index in row] for row in best]


def test_hundreds_of_requests_from_eight_clients_are_each_answered_as_predict_answers(server, net):
    """Every client asks for other images, so that an answer to somebody else's request would show."""
    before = server.metric('growtas_requests_total{code="200"}')
    asked = {number: images(REQUESTS * 2, seed=number) for number in range(CLIENTS)}
    answered, errors = {number: [] for number in asked}, []

    def work(number):
        try:
            with client(server) as asks:
                for turn in range(REQUESTS):
                    size = 1 + turn % 2
                    values = asked[number][turn * 2 : turn * 2 + size]
                    answered[number].append(asks.infer("net", [tensor(values)]).as_numpy("logits"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    with Predictor(net, threads=1) as predictor:
        for number, logits in answered.items():
            assert len(logits) == REQUESTS
            for turn, got in enumerate(logits):
                want = predictor.logits(asked[number][turn * 2 : turn * 2 + 1 + turn % 2])
                assert got.shape == want.shape
                assert np.abs(got - want).max() <= 1e-5
                assert (got.argmax(1) == want.argmax(1)).all()
    assert server.metric('growtas_requests_total{code="200"}') - before == CLIENTS * REQUESTS
    assert server.metric("growtas_batch_images_sum") == server.metric("growtas_images_total")
    assert server.metric("growtas_queue_requests") == 0


@pytest.mark.parametrize(
    ("body", "headers", "status", "sentence"),
    [
        (b"", (), 400, "not JSON"),
        (b"{", (), 400, "not JSON"),
        (b"\x00" * 1000, (), 400, "not JSON"),
        (plain(images(1))[:-5], (), 400, "not JSON"),
        (plain(images(MAX_BATCH + 1)), (), 400, "a batch from 1 to 4"),
        (plain(images(1)[:, :2]), (), 400, "legal is [batch, 3, 8, 8]"),
        (plain(images(1)).replace(b"FP32", b"INT8"), (), 400, "legal is FP32"),
        (plain(images(1)).replace(b'"images"', b'"x"'), (), 400, "legal is images"),
        (plain(images(1)), ("Inference-Header-Content-Length: x",), 400, "must be a number of bytes"),
        (plain(images(1)), ("Content-Encoding: gzip",), 415, "compressed"),
    ],
)
def test_wrong_requests_are_told_in_one_sentence(server, body, headers, status, sentence):
    got, content = ask(server, body, *headers)
    assert got == status
    assert list(content) == ["error"]
    assert sentence in content["error"]
    assert still_answers(server)


def test_paths_and_methods_that_are_not_there(server):
    assert get(server, "/v2/models/net/infer")[0] == 405
    status, _, content = get(server, "/etc/passwd")
    assert (status, json.loads(content)) == (404, {"error": "Not Found"})


def test_what_is_no_http_is_answered_400(server):
    with server.connect() as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 400")
    with server.connect() as connection:  # headers without end: h11 keeps 64 kB at most
        with contextlib.suppress(OSError):
            connection.sendall(b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 300_000)
        assert connection.recv(4096).startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))
    assert still_answers(server)


def test_a_gigabyte_is_refused_before_and_while_it_is_sent(server):
    before = server.memory("VmHWM")
    start = time.monotonic()
    with server.connect() as connection:
        connection.sendall(post(server.name, b"", length=1 << 30))
        status, headers, content = answer(connection)
    assert (status, headers["connection"]) == (413, "close")
    assert "1073741824 bytes; at most 200000 are taken" in json.loads(content)["error"]
    # And by those who send on without looking, and in chunks without saying how much it will be.
    block = b"x" * (1 << 20)
    for head, piece in (
        (post(server.name, b"", length=1 << 30), block),
        (_chunked(server), b"%x\r\n%b\r\n" % (len(block), block)),
    ):
        with server.connect() as connection:
            connection.sendall(head)
            sent = 0
            try:
                while sent < 64 << 20:
                    connection.sendall(piece)
                    sent += len(piece)
            except OSError:
                pass  # closed by the server, after a while in which it threw away what came
            status, _, content = answer(connection)
            assert status == 413
            assert "200000" in json.loads(content)["error"]
    assert server.memory("VmHWM") - before < 20 << 20
    assert time.monotonic() - start < 60
    assert still_answers(server)


def test_a_length_beyond_all_numbers(server):
    for length in ("9" * 30, "9" * 5000):
        with server.connect() as connection:
            connection.sendall(post(server.name, b"", length=length))
            assert answer(connection)[0] in (400, 413)
    assert still_answers(server)


def _chunked(server):
    return f"POST /v2/models/{server.name}/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


def test_chunked_bodies_within_the_limit_are_taken(server):
    body = plain(images(1, seed=5))
    pieces = [body[place : place + 500] for place in range(0, len(body), 500)]
    data = _chunked(server) + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    status, _, content = server.ask(data)
    assert status == 200
    assert np.allclose(json.loads(content)["outputs"][0]["data"], reference(images(1, seed=5))[0], atol=1e-5)


def _trickle(connection, data, seconds=0.2):
    """A byte now and then, until the server has enough of it."""
    try:
        for place in range(len(data)):
            connection.sendall(data[place : place + 1])
            time.sleep(seconds)
            connection.setblocking(False)
            try:
                if connection.recv(1, socket.MSG_PEEK):
                    return
            except BlockingIOError:
                pass
            finally:
                connection.settimeout(20)
    except OSError:
        pass


@pytest.mark.parametrize("where", ["silence", "head", "second head", "body"])
def test_clients_that_trickle_are_told_408_and_the_others_are_served(server, where):
    head = post(server.name, b"", "X-Slow: " + "z" * 200, length=5000)
    with server.connect() as connection:
        if where == "second head":
            connection.sendall(post(server.name, plain(images(1))))
            assert answer(connection)[0] == 200
        if where == "body":
            connection.sendall(head)
            head = b"x" * 5000
        slow = threading.Thread(target=_trickle, args=(connection, head if where != "silence" else b""))
        slow.start()
        assert still_answers(server)
        slow.join(30)
        status, headers, content = answer(connection)
        assert (status, headers["connection"].lower()) == (408, "close")
        assert "within 1 s" in json.loads(content)["error"]
    assert still_answers(server)


def test_a_client_that_never_reads_is_dropped(server):
    """It sends request after request down one connection, and takes no answer until the server's buffers are full."""
    before = server.metric("growtas_connections_dropped_total")
    with server.connect(receive_buffer=4096) as connection:
        connection.settimeout(0.5)
        request = GET.format("/metrics").replace("Connection: close\r\n", "").encode()
        deadline = time.monotonic() + 30
        dropped = False
        while not dropped and time.monotonic() < deadline:
            try:
                connection.sendall(request * 50)
            except TimeoutError:
                continue
            except OSError:
                dropped = True
        assert dropped
    assert server.metric("growtas_connections_dropped_total") > before
    assert still_answers(server)


def test_too_many_connections_are_told_so(server):
    with _several(server, 45) as connections:
        time.sleep(0.2)
        told = 0
        for connection in connections:
            connection.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                told += connection.recv(100).startswith(b"HTTP/1.1 503")
        assert told >= 5
    time.sleep(0.2)
    assert still_answers(server)


class _several:
    def __init__(self, server, count):
        self.connections = [server.connect() for _ in range(count)]

    def __enter__(self):
        return self.connections

    def __exit__(self, *error):
        for connection in self.connections:
            connection.close()


@pytest.fixture
def half(net):
    """A server, and a request to it of which half the body is there."""
    with serving(net, "--timeout", "10", "--drain", "2") as running, running.connect() as connection:
        body = plain(images(1, seed=5))
        connection.sendall(post(running.name, body[:100], length=len(body)))
        time.sleep(0.3)
        yield running, connection, body[100:]


def _not_ready(server, kept):
    """Waits until the server says on a connection made before that it is not ready."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        kept.sendall(GET.format("/v2/health/ready").replace("Connection: close\r\n", "").encode())
        status, _, content = answer(kept)
        if status == 503:
            assert json.loads(content) == {"ready": False}
            return
        time.sleep(0.02)
    raise AssertionError("still ready")


def test_sigterm_finishes_what_is_under_way_and_refuses_what_is_new(half):
    server, slow, rest = half
    with server.connect() as kept, server.connect() as late:
        server.terminate()
        _not_ready(server, kept)
        late.sendall(post(server.name, plain(images(1))))
        status, headers, content = answer(late)
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        assert json.loads(content) == {"error": "the server is stopping"}
        slow.sendall(rest)
        status, _, content = answer(slow)
        assert status == 200
        assert np.allclose(json.loads(content)["outputs"][0]["data"], reference(images(1, seed=5))[0], atol=1e-5)
    code, said = server.wait()
    assert code == 0
    assert said == "stopping: 1 requests are under way\n"


def test_a_stop_does_not_wait_for_ever(half):
    server, _, _ = half
    server.terminate()
    code, said = server.wait()
    assert code == 1
    assert "1 requests were still under way after 2 s and are cut off" in said


def test_sigterm_under_load_loses_no_request(net):
    """Until the server refuses or is gone, every request that it took is answered, and rightly."""
    with serving(net) as server:
        values = images(2, seed=9)
        want = reference(values)
        outcomes = {"answered": 0, "refused": 0, "gone": 0}
        wrong = []
        lock = threading.Lock()

        def work():
            while True:
                try:
                    status, content = ask(server, plain(values))
                except ConnectionRefusedError:
                    outcome = "gone"
                except Exception as error:
                    wrong.append(error)
                    return
                else:
                    outcome = {200: "answered", 503: "refused"}[status]
                    if status == 200 and not np.allclose(np.reshape(content["outputs"][0]["data"], (2, -1)), want, atol=1e-5):
                        wrong.append(content)
                with lock:
                    outcomes[outcome] += 1
                if outcome == "gone":
                    return

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        server.terminate()
        for thread in threads:
            thread.join(30)
        code, _ = server.wait()
        # A connection that the system had taken but the server had not yet seen when it closed is reset, not lost unanswered.
        assert all(isinstance(error, ConnectionResetError) for error in wrong), wrong
        assert len(wrong) <= 6
        assert outcomes["answered"] > 20
        assert code == 0


def test_the_newest_artifact_is_the_default_and_other_addresses_are_warned_of(tmp_path: Path):
    from tests.export_helpers import make_run

    run = make_run(tmp_path / "runs")
    made = artifact(run.path / "export", name="new")
    with serving(made, "--host", "0.0.0.0", "--name", "other") as server:
        assert server.name == "other"
        assert get(server, "/v2/models/other/ready")[0] == 200
        server.terminate()
        code, said = server.wait()
    assert code == 0
    assert "listening on 0.0.0.0: whoever reaches this machine can use it" in said


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(monkeypatch, capsys)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--port", "70000"), "--port is 70000; it must be from 0 to 65535"),
        (("--max-batch", "5"), "--max-batch is 5; the artifact was exported for 1 to 4"),
        (("--queue", "0"), "--queue is 0; it must be at least 1"),
        (("--timeout", "0"), "--timeout is 0; it must be above 0"),
        (("--name", "a/b"), "--name is 'a/b'"),
        (("--host", "256.1.1.1"), "can't listen on 256.1.1.1:8000"),
    ],
)
def test_options_out_of_range(cli: Cli, net, options, match):
    code, sentence = cli.fails("serve", net, *options)
    assert code == 2
    assert match in sentence


def test_a_port_that_is_taken(cli: Cli, net, server):
    code, sentence = cli.fails("serve", net, "--port", server.port)
    assert code == 2
    assert f"can't listen on 127.0.0.1:{server.port} (Address already in use)" in sentence


def test_artifacts_that_cannot_be_served(cli: Cli, net, tmp_path, monkeypatch):
    changed = artifact(tmp_path / "changed")
    changed.write_bytes(changed.read_bytes() + b" ")
    assert "SHA-256 differs" in cli.fails("serve", changed)[1]
    bare = artifact(tmp_path / "bare")
    bare.with_name("net.onnx.json").unlink()
    assert "no manifest net.onnx.json beside it" in cli.fails("serve", bare)[1]
    assert "no such artifact" in cli.fails("serve", "nothing.onnx")[1]
    assert "legal are files that end in .safetensors, .pt2, .onnx" in cli.fails("serve", "net.txt")[1]
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, sentence = cli.fails("serve", net)
    assert code == 1
    assert "pip install 'growtas[serve]'" in sentence
