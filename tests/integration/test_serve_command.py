"""``growtas serve`` in a process of its own, asked by tritonclient and by clients that don't keep to the rules."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import socket
import sys
import threading
import time

import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image

from growtas.export.serving.predictor import Predictor
from tests.unit.export.serving.helpers import (
    CLASSES,
    GET,
    MAX_BATCH,
    NAMES,
    SHAPE,
    answer,
    artifact,
    ask,
    get,
    images,
    plain,
    post,
    reference,
    serving,
    still_answers,
)  # fmt: skip

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
CLIENTS, REQUESTS = 8, 40


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return artifact(tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="module")
def server(net):
    """One server for all tests that leave it running; slow clients have a second."""
    with serving(net, "--timeout", "1", "--max-connections", "40", "--max-body", "200000") as running:
        yield running
        assert running.process.poll() is None


def client(server):
    return triton.InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=30, connection_timeout=30)


def tensor(values, *, binary=True):
    given = triton.InferInput("images", list(values.shape), "FP32")
    given.set_data_from_numpy(values, binary_data=binary)
    return given


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
                want = predictor.run(asked[number][turn * 2 : turn * 2 + 1 + turn % 2])
                assert got.shape == want.shape
                assert np.abs(got - want).max() <= 1e-5
                assert (got.argmax(1) == want.argmax(1)).all()
    assert server.metric('growtas_requests_total{code="200"}') - before == CLIENTS * REQUESTS
    assert server.metric("growtas_batch_images_sum") == server.metric("growtas_images_total")
    assert server.metric("growtas_queue_requests") == 0


@pytest.mark.parametrize(
    ("body", "headers", "status", "sentence"),
    [
        (b"", (), 400, "legal is a KServe v2 request: JSON with the input images"),
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


@pytest.mark.parametrize(
    ("method", "path", "legal"),
    [
        ("GET", "/v2/models/net/infer", "POST"),
        ("HEAD", "/v2/models/net/infer", "POST"),
        ("PUT", "/v2/models/net/versions/1/infer", "POST"),
        ("POST", "/v2", "GET, HEAD"),
        ("DELETE", "/v2/models/net", "GET, HEAD"),
        ("OPTIONS", "/metrics", "GET, HEAD"),
        ("POST", "/", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(server, method, path, legal):
    status, headers, content = server.ask(GET.format(path).replace("GET", method).encode(), head=method == "HEAD")
    assert (status, headers["allow"]) == (405, legal)
    if method != "HEAD":
        assert json.loads(content) == {"error": f"{method} is not allowed at {path}; legal is {legal.replace(', ', ' or ')}"}


def test_a_path_that_is_not_there_is_told_which_are(server):
    status, _, content = get(server, "/etc/passwd")
    assert status == 404
    assert json.loads(content) == {
        "error": "there is nothing at /etc/passwd; GET /v2/models/net describes the model, POST /v2/models/net/infer runs it"
    }


def test_a_large_body_to_a_wrong_path_does_not_keep_the_client_from_its_answer(server):
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (20 << 20)
    status, headers, content = server.ask(head + bytes(20 << 20))
    assert (status, headers["connection"]) == (404, "close")
    assert "there is nothing at /predict" in json.loads(content)["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/net", "/v2/models/net/versions/1", "/v2/models/net/ready",
        "/v2/models/net/versions/1/ready", "/v2/models/other", "/nothing",
    ],
)  # fmt: skip
def test_head_answers_as_get_does_without_the_body(server, path):
    status, headers, content = get(server, path)
    asked = server.ask(GET.format(path).replace("GET", "HEAD").encode(), head=True)
    for either in (headers, asked[1]):
        del either["date"]
    assert asked == (status, headers, b"")
    assert len(content) == int(headers["content-length"]) > 0


def test_head_of_the_metrics(server):
    # Their length changes from one request to the next.
    status, headers, content = server.ask(b"HEAD /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", head=True)
    assert (status, content) == (200, b"")
    assert headers["content-type"] == get(server, "/metrics")[1]["content-type"]


def test_the_root_points_to_the_protocol(server):
    status, _, content = get(server, "/")
    assert (status, json.loads(content)) == (200, {"see": "/v2", "model": "/v2/models/net", "infer": "/v2/models/net/infer"})


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_a_photograph_is_told_what_is_accepted(server, kind):
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, kind)
    for headers in ((), (f"Content-Type: image/{kind.lower()}",)):
        status, content = ask(server, file.getvalue(), *headers)
        assert status == (415 if headers else 400)
        assert (f"the body is image/{kind.lower()}" if headers else "the request is not JSON") in content["error"]
        assert "legal is a KServe v2 request: JSON with the input images, FP32 of shape [batch, 3, 8, 8]" in content["error"]
    assert still_answers(server)


def test_a_form_with_a_photograph_and_a_photograph_above_the_limit_are_told_too(server):
    status, content = ask(server, b"--x\r\n\r\n--x--", "Content-Type: multipart/form-data; boundary=x")
    assert (status, content["error"].partition(";")[0]) == (415, "the body is multipart/form-data")
    status, content = ask(server, b"\xff\xd8\xff\xe0" + bytes(300_000))
    assert status == 413
    assert "legal is a KServe v2 request" in content["error"]


def test_a_byte_order_mark_before_the_json_is_skipped(server):
    status, content = ask(server, b"\xef\xbb\xbf" + plain(images(1, seed=5)), "Content-Type: application/json")
    assert status == 200
    assert np.allclose(content["outputs"][0]["data"], reference(images(1, seed=5))[0], atol=1e-5)


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
    assert "1073741824 bytes; at most 200000 are legal" in json.loads(content)["error"]
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


def test_a_chunk_that_is_none_is_told(server):
    status, headers, content = server.ask(_chunked(server) + b"zz\r\n")
    assert (status, headers["connection"]) == (400, "close")
    assert json.loads(content) == {"error": "this is not a readable HTTP request"}
    assert still_answers(server)


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


def test_connections_without_a_request_make_room_for_those_with_one(server):
    with _several(server, 45):
        for _ in range(5):
            assert still_answers(server)


def test_a_request_in_progress_is_not_given_up_for_other_connections(net):
    with serving(net, "--max-connections", "1") as server, server.connect() as slow:
        body = plain(images(1, seed=5))
        slow.sendall(post(server.name, body[:100], length=len(body)))
        time.sleep(0.2)
        with server.connect() as other:
            status, headers, _ = answer(other)
            assert (status, headers["retry-after"]) == (503, "1")
        slow.sendall(body[100:])
        assert answer(slow)[0] == 200


def test_kept_connections_make_room_too_and_the_oldest_goes_first(server):
    request = GET.format("/v2").replace("Connection: close\r\n", "").encode()
    with _several(server, 40) as connections:
        for connection in connections:
            connection.sendall(request)
            assert answer(connection)[0] == 200
        assert still_answers(server)
        assert connections[0].recv(1) == b""
        for connection in connections[1:]:
            connection.sendall(request)
            assert answer(connection)[0] == 200


@pytest.mark.slow
def test_more_connections_at_once_than_files_that_a_process_may_open(net):
    with serving(net) as server:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        server.terminate(signal.SIGSTOP)
        connections = [socket.socket() for _ in range(1500)]
        for connection in connections:
            connection.setblocking(False)
            connection.connect_ex(("127.0.0.1", server.port))
        server.terminate(signal.SIGCONT)
        time.sleep(1)
        for connection in connections:
            connection.close()
        assert still_answers(server)
        server.terminate()
        assert server.wait() == (0, "stopping: 0 requests are in progress\n")


def test_names_that_are_no_text_are_answered_as_json(tmp_path):
    odd = artifact(tmp_path, precision="\ud800\x1b[31m", class_names=["\udcff", "\x1b[31mred", "a\nb", "x", "y"])
    with serving(odd) as server:
        status, _, content = get(server, "/v2/models/net")
        assert status == 200
        assert json.loads(content)["parameters"]["precision"] == "\ud800\x1b[31m"
        request = json.loads(plain(images(1)))
        for binary in (False, True):
            request["outputs"] = [{"name": "logits", "parameters": {"classification": CLASSES, "binary_data": binary}}]
            status, headers, content = server.ask(post(server.name, json.dumps(request).encode()))
            assert status == 200
            length = int(headers.get("inference-header-content-length", len(content)))
            assert json.loads(content[:length])["outputs"][0]["shape"] == [1, CLASSES]
            content[length:].decode()
            assert b"\x1b" not in content[:length]
        server.terminate()
        assert server.wait() == (0, "stopping: 0 requests are in progress\n")


class _several:
    def __init__(self, server, count):
        self.connections = [server.connect() for _ in range(count)]

    def __enter__(self):
        return self.connections

    def __exit__(self, *error):
        for connection in self.connections:
            connection.close()
