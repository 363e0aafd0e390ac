"""``growtas serve`` of artifacts that give more than logits, asked by tritonclient and compared with ONNX Runtime's own answers."""

from __future__ import annotations

import json
import sys
import threading

import numpy as np
import onnxruntime
import pytest
import tritonclient.http as triton

from growtas.export.runtimes.base import is_installed
from tests.unit.export.serving.helpers import (
    CLASSES,
    MAX_BATCH,
    NAMES,
    artifact,
    as_ir,
    ask,
    images,
    plain,
    serving,
)  # fmt: skip

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
TOP = 3
SHAPES = {"logits": CLASSES, "probabilities": CLASSES, "top_scores": TOP, "top_classes": TOP}
TYPES = {"logits": "FP32", "probabilities": "FP32", "top_scores": "FP32", "top_classes": "INT64"}
needs_openvino = pytest.mark.skipif(not is_installed("openvino"), reason="openvino is not installed")


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return artifact(tmp_path_factory.mktemp("net"), softmax=True, top_k=TOP)


@pytest.fixture(scope="module")
def want(net):
    """The outputs of images, from ONNX Runtime on the same file."""
    session = onnxruntime.InferenceSession(str(net), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == list(SHAPES)
    return lambda values: dict(zip(names, session.run(names, {"images": values}), strict=True))


@pytest.fixture(scope="module", params=["onnx", pytest.param("xml", marks=needs_openvino)])
def server(net, request):
    # Time for company, so that requests of several clients share batches.
    with serving(net if request.param == "onnx" else as_ir(net), "--max-delay-us", "10000") as running:
        yield running
        assert running.process.poll() is None


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=30, connection_timeout=30) as asks:
        yield asks


def tensor(values, *, binary=True):
    given = triton.InferInput("images", list(values.shape), "FP32")
    given.set_data_from_numpy(values, binary_data=binary)
    return given


def named(names, *, binary=True):
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in names]


def check(got, want, names):
    """Names, order, types, shapes and values of an answer."""
    told = got.get_response()["outputs"]
    assert [each["name"] for each in told] == list(names)
    for each in told:
        values, wanted = got.as_numpy(each["name"]), want[each["name"]]
        assert each["datatype"] == TYPES[each["name"]]
        assert each["shape"] == list(values.shape) == list(wanted.shape)
        assert values.dtype == wanted.dtype
        np.testing.assert_allclose(values, wanted, atol=1e-5)


def test_metadata_lists_every_output(client):
    about = client.get_model_metadata("net")
    assert about["outputs"] == [{"name": name, "datatype": TYPES[name], "shape": [-1, size]} for name, size in SHAPES.items()]


@pytest.mark.parametrize("batch", [1, MAX_BATCH])
def test_all_are_given_where_none_is_named(client, server, want, batch):
    values = images(batch)
    check(client.infer("net", [tensor(values)]), want(values), SHAPES)
    status, content = ask(server, plain(values))
    assert status == 200
    assert [each["name"] for each in content["outputs"]] == list(SHAPES)
    for each in content["outputs"]:
        assert "parameters" not in each
        found = np.reshape(each["data"], each["shape"])
        np.testing.assert_allclose(found, want(values)[each["name"]], atol=1e-5)
        assert found.dtype.kind == ("i" if each["name"] == "top_classes" else "f")


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_those_that_are_named_are_given_in_their_order(client, want, binary_in, binary_out):
    values = images(2, seed=3)
    for names in (["top_classes"], ["top_classes", "logits"], ["probabilities", "top_scores", "top_classes", "logits"]):
        got = client.infer("net", [tensor(values, binary=binary_in)], outputs=named(names, binary=binary_out))
        check(got, want(values), names)


def test_each_output_has_a_form_of_its_own(client, want):
    values = images(3, seed=4)
    wanted = [
        *named(["top_classes"]),
        *named(["top_scores"], binary=False),
        *named(["logits"]),
        *named(["probabilities"], binary=False),
    ]
    got = client.infer("net", [tensor(values)], outputs=wanted)
    check(got, want(values), ["top_classes", "top_scores", "logits", "probabilities"])
    assert ["data" in each for each in got.get_response()["outputs"]] == [False, True, False, True]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name", ["logits", "probabilities"])
def test_classification_of_scores_beside_plain_outputs(client, want, name, binary):
    values = images(2, seed=6)
    best = triton.InferRequestedOutput(name, binary_data=binary, class_count=2)
    got = client.infer("net", [tensor(values)], outputs=[*named(["top_classes"]), best])
    exact = want(values)
    np.testing.assert_array_equal(got.as_numpy("top_classes"), exact["top_classes"])
    texts = got.as_numpy(name)
    assert texts.shape == (2, 2)
    for row, scores, order in zip(texts, exact[name], exact["top_classes"], strict=True):
        for text, index in zip(row, order[:2], strict=True):
            score, number, label = (text.decode() if isinstance(text, bytes) else text).split(":", 2)
            assert (int(number), label) == (index, NAMES[index])
            assert abs(float(score) - scores[index]) < 1e-5


@pytest.mark.parametrize(
    ("outputs", "sentence"),
    [
        ([{"name": "scores"}], "the output is named 'scores'; legal is logits, probabilities, top_scores or top_classes"),
        ([{"name": "logits"}, {"name": "logits"}], "the output logits is requested twice; once is legal"),
        ([], "outputs must be a list of objects, each naming an output"),
        ("logits", "outputs must be a list of objects, each naming an output"),
        (
            [{"name": "top_classes", "parameters": {"classification": 1}}],
            "classification of top_classes is not possible; legal is that of logits or probabilities",
        ),
    ],
)
def test_wrong_outputs_are_told_in_one_sentence(server, outputs, sentence):
    status, content = ask(server, json.dumps({**json.loads(plain(images(1))), "outputs": outputs}).encode())
    assert status == 400
    assert list(content) == ["error"]
    assert content["error"].startswith(sentence)


def test_clients_that_share_batches_get_their_own_answers(server, want):
    """Each asks for other images, in requests of one and two, and for other outputs."""
    orders = [
        list(SHAPES),
        ["top_classes"],
        ["probabilities", "logits"],
        ["top_scores", "top_classes"],
        ["logits"],
        [*SHAPES][::-1],
    ]
    errors, rounds = [], 15
    before = server.metric("growtas_batch_images_count")

    def work(number):
        try:
            with triton.InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=30) as asks:
                for turn in range(rounds):
                    values = images(1 + (number + turn) % 2, seed=100 * number + turn)
                    got = asks.infer("net", [tensor(values)], outputs=named(orders[number], binary=turn % 3 != 0))
                    check(got, want(values), orders[number])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(orders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    # Else nothing was cut.
    assert server.metric("growtas_batch_images_count") - before < rounds * len(orders)
