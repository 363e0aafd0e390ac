"""``growtas serve`` as a command: its options, and how it stops."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.export_helpers import Cli
from tests.unit.export.serving.helpers import (
    GET,
    answer,
    artifact,
    get,
    images,
    plain,
    post,
    reference,
    serving,
    was_read,
)  # fmt: skip

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return artifact(tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="module")
def server(net):
    with serving(net) as running:
        yield running


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
        status, headers, content = answer(kept)
        if status == 503:
            assert (json.loads(content), headers["connection"]) == ({"ready": False}, "close")
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
    assert said == "stopping: 1 requests are in progress\n"


def test_a_stop_does_not_wait_for_ever(half):
    server, _, _ = half
    server.terminate()
    code, said = server.wait()
    assert code == 1
    assert said == "stopping: 1 requests are in progress\n1 requests were still in progress after 2 s and are cut off\n"


def test_a_second_signal_cuts_off_what_is_under_way_and_tells_it_so(half):
    server, slow, _ = half
    with server.connect() as kept:
        server.terminate()
        _not_ready(server, kept)
        server.terminate()
        status, headers, content = answer(slow)
    assert (status, headers["connection"]) == (503, "close")
    assert json.loads(content) == {"error": "the server stopped before this request was answered"}
    code, said = server.wait()
    assert code == 1
    assert said == "stopping: 1 requests are in progress\n1 requests were still in progress and are cut off\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_right_after_the_ready_line_ends_with_zero(net, number):
    before = signal.signal(number, signal.SIG_DFL)  # the tests may run below nohup, which commands inherit
    try:
        with serving(net) as server:
            server.terminate(number)
            code, said = server.wait()
    finally:
        signal.signal(number, before)
    assert code == 0
    assert said == "stopping: 0 requests are in progress\n"


def test_more_signals_do_not_change_the_end_of_a_stop_that_loses_nothing(net):
    with serving(net) as server:
        while server.process.poll() is None:
            server.terminate()
            time.sleep(0.01)
        code, said = server.wait()
    assert code == 0
    assert said == "stopping: 0 requests are in progress\n"


def test_below_nohup_a_lost_terminal_stops_nothing(net):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with serving(net) as server:
            server.terminate(signal.SIGHUP)
            assert get(server, "/v2/health/ready")[0] == 200
            server.terminate()
            assert server.wait()[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_gone_does_not_keep_the_server_from_stopping(net):
    with serving(net) as server:
        assert get(server, "/v2/health/ready")[0] == 200
        server.process.stderr.close()
        server.terminate()
        assert server.process.wait(timeout=30) == 0


def test_readiness_is_gone_for_a_while_before_requests_are_refused(net):
    with serving(net, "--shutdown-delay", "1.5") as server, server.connect() as kept:
        start = time.monotonic()
        server.terminate()
        _not_ready(server, kept)
        assert get(server, "/v2/health/live")[0] == 200
        assert get(server, "/v2/models/net/ready")[0] == 503
        status, headers, content = server.ask(post(server.name, plain(images(1, seed=5))))
        assert (status, headers["connection"]) == (200, "close")
        assert np.allclose(json.loads(content)["outputs"][0]["data"], reference(images(1, seed=5))[0], atol=1e-5)
        code, _ = server.wait()
        assert code == 0
        assert time.monotonic() - start >= 1.5


def test_an_answer_that_nobody_takes_ends_without_a_traceback(net):
    with serving(net) as server, server.connect(receive_buffer=4096) as connection:
        request = GET.format("/metrics").replace("Connection: close\r\n", "").encode()
        connection.setblocking(False)
        sent, before = 0, -1
        # Until the server does nothing any more, since the system takes no more of its answers.
        while before != (before := server.work()):
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += connection.send((request * 100)[sent % len(request) :])
            time.sleep(0.5)
        server.terminate()
        code, said = server.wait()
    assert code == 1
    assert said == "stopping: 0 requests are in progress\n1 clients did not read their answers, which are cut off\n"


def test_sigterm_under_load_loses_no_request(net):
    """Until the server refuses or is gone, every request that it read is answered, and rightly."""
    with serving(net) as server:
        values = images(2, seed=9)
        want = reference(values)
        outcomes = Counter()
        lock = threading.Lock()

        def attempt():
            try:
                connection = server.connect()
            except ConnectionRefusedError:
                return "gone"
            with connection:
                try:
                    connection.sendall(post(server.name, plain(values)))
                    status, _, content = answer(connection)
                except ConnectionError:
                    # In the moment in which the port is closed the system may still accept a connection, and resets it.
                    return "lost" if was_read(connection) else "not read"
            if status == 503:
                return "refused"
            got = np.reshape(json.loads(content)["outputs"][0]["data"], (2, -1))
            return "answered" if status == 200 and np.allclose(got, want, atol=1e-5) else "wrong"

        def work():
            outcome = ""
            while outcome != "gone":
                outcome = attempt()
                with lock:
                    outcomes[outcome] += 1

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        server.terminate()
        for thread in threads:
            thread.join(30)
        code, _ = server.wait()
        assert outcomes.keys() <= {"answered", "refused", "not read", "gone"}, outcomes
        assert outcomes["not read"] <= 6
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
    assert "listening on 0.0.0.0: everyone who can reach this machine can use it" in said


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
        (("--shutdown-delay", "-1"), "--shutdown-delay is -1; it must be from 0 to 3600 seconds"),
        (("--host", "a" * 70), "(not a valid host name); choose another --host or --port"),
        (("--host", "nowhere.invalid"), "can't listen on nowhere.invalid:8000"),
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
