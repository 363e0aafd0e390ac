from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from growtas.errors import CheckpointError, GrowtasError
from growtas.export.manifest import read_manifest
from growtas.export.serving.protocol import RequestRefused, encode_response, parse_request
from growtas.export.serving.signature import Output, Signature, read_signature
from tests.unit.export.serving.helpers import CHANNELS, CLASSES, MAX_BATCH, NAMES, RECORD, SIZE, artifact

LOGITS_OUT = Output(name="logits", dtype="float32", shape=(3,), per_class=True)


def signature(**changes: Any) -> Signature:
    fields = {
        "input_name": "images",
        "dtype": "float32",
        "shape": (1, 2, 2),
        "max_batch": 3,
        "outputs": (LOGITS_OUT,),
        "class_names": ("a", "b", "c"),
        "preprocess": None,
    }
    return Signature(**{**fields, **changes})


FLOATS = signature()
MORE = signature(
    outputs=(
        LOGITS_OUT,
        Output(name="probabilities", dtype="float32", shape=(3,), per_class=True),
        Output(name="top_scores", dtype="float32", shape=(2,)),
        Output(name="top_classes", dtype="int64", shape=(2,)),
    )
)
NAMED = "logits, probabilities, top_scores or top_classes"
PIXELS = signature(input_name="pixels", dtype="uint8", shape=(2, 2, 1))
DATA = [0.5, -1.0, 2.0, 3.25]


def request(**changes: Any) -> dict[str, Any]:
    entry = {"name": "images", "datatype": "FP32", "shape": [1, 1, 2, 2], "data": DATA, **changes}
    return {"inputs": [{key: value for key, value in entry.items() if value is not ...}]}


def parse(document: Any, sign: Signature = FLOATS) -> Any:
    return parse_request(json.dumps(document).encode(), None, sign)


@pytest.mark.parametrize("data", [DATA, [[[[0.5, -1.0], [2.0, 3.25]]]]])
def test_json_numbers_flat_or_nested(data):
    got = parse({**request(data=data), "id": "seven"})
    assert got.id == "seven"
    assert got.images.dtype == np.float32
    assert got.images.tolist() == [[[[0.5, -1.0], [2.0, 3.25]]]]
    assert [(each.output.name, each.binary, each.classification) for each in got.wanted] == [("logits", False, 0)]


def test_binary_values_are_little_endian():
    head = json.dumps(request(data=..., parameters={"binary_data_size": 16})).encode()
    got = parse_request(head + struct.pack("<4f", *DATA), str(len(head)), FLOATS)
    assert got.images.ravel().tolist() == DATA


def test_pixels_are_bytes_or_whole_numbers():
    entry = request(name="pixels", datatype="UINT8", shape=[2, 2, 2, 1], data=[0, 1, 2, 3, 252, 253, 254, 255])
    assert parse(entry, PIXELS).images.reshape(2, 4).tolist() == [[0, 1, 2, 3], [252, 253, 254, 255]]
    head = json.dumps(
        request(name="pixels", datatype="UINT8", shape=[1, 2, 2, 1], data=..., parameters={"binary_data_size": 4})
    ).encode()
    assert parse_request(head + b"\x00\x80\xff\x07", str(len(head)), PIXELS).images.ravel().tolist() == [0, 128, 255, 7]
    for data, match in (([0, 1, 2, 256], "0 to 255"), ([0, 1, 2, -1], "0 to 255"), ([0, 1, 2, 1.5], "whole numbers")):
        with pytest.raises(RequestRefused, match=match):
            parse(request(name="pixels", datatype="UINT8", shape=[1, 2, 2, 1], data=data), PIXELS)


def test_any_size_where_the_graph_resizes():
    free = signature(input_name="pixels", dtype="uint8", shape=(None, None, 1))
    entry = request(name="pixels", datatype="UINT8", shape=[1, 3, 2, 1], data=[1, 2, 3, 4, 5, 6])
    assert parse(entry, free).images.shape == (1, 3, 2, 1)
    with pytest.raises(RequestRefused, match=r"legal is \[batch, any, any, 1\]"):
        parse(request(name="pixels", datatype="UINT8", shape=[1, 0, 2, 1], data=[]), free)


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ([], "must be a JSON object"),
        ({}, "inputs must be a list of one object"),
        ({"inputs": []}, "inputs must be a list of one object"),
        ({"inputs": [1]}, "inputs must be a list of one object"),
        ({"inputs": request()["inputs"] * 2}, "inputs must be a list of one object"),
        (request(name="pixels"), "the input is named 'pixels'; legal is images"),
        (request(name=...), "the input is named None"),
        (request(datatype="FP16"), "datatype of images is 'FP16'; legal is FP32"),
        (request(shape=[1, 2, 2]), r"shape of images is \[1, 2, 2\]; legal is \[batch, 1, 2, 2\] with a batch from 1 to 3"),
        (request(shape=[4, 1, 2, 2]), "batch from 1 to 3"),
        (request(shape=[0, 1, 2, 2]), "batch from 1 to 3"),
        (request(shape=[-1, 1, 2, 2]), "batch from 1 to 3"),
        (request(shape=[True, 1, 2, 2]), "shape of images"),
        (request(shape=[1.0, 1, 2, 2]), "shape of images"),
        (request(shape="1122"), "shape of images is '1122'"),
        (request(shape=[1, 1, 2, 10**30]), "shape of images"),
        (request(data=DATA[:3]), r"holds 3 numbers of shape \[3\]; its shape is \[1, 1, 2, 2\]"),
        (request(data=[DATA]), r"holds 4 numbers of shape \[1, 4\]"),
        (request(data=[1, [2], 3, 4]), "not a list of numbers of one shape"),
        (request(data=["1", "2", "3", "4"]), "must be numbers"),
        (request(data=[None] * 4), "must be numbers"),
        (request(data=[True] * 4), "must be numbers"),
        (request(data=[1e39, 0, 0, 0]), "not finite in 32 bits"),
        (request(data=[10**400, 0, 0, 0]), "must be numbers|not a list of numbers"),
        (request(data="abcd"), "must be a list of numbers"),
        (request(data=...), "neither data nor binary_data_size"),
        (request(parameters={"binary_data_size": 16}), "both data and binary_data_size"),
        (request(parameters=3), "parameters of the input images must be an object"),
        (request(data=..., parameters={"binary_data_size": 16}), "16 and 0 bytes follow the JSON; FP32 of shape"),
        (request(data=..., parameters={"binary_data_size": "16"}), "binary_data_size of images is '16'"),
        ({**request(), "id": 7}, "id must be a string"),
        ({**request(), "outputs": []}, "outputs must be a list of objects, each naming an output; legal is logits"),
        ({**request(), "outputs": {"name": "logits"}}, "outputs must be a list of objects"),
        ({**request(), "outputs": ["logits"]}, "outputs holds 'logits'; it must be a list of objects"),
        ({**request(), "outputs": [{"name": "logits"}, None]}, "outputs holds None"),
        ({**request(), "outputs": [{}]}, "the output is named None; legal is logits"),
        ({**request(), "outputs": [{"name": ["logits"]}]}, r"the output is named \['logits'\]; legal is logits"),
        ({**request(), "outputs": [{"name": "x" * 9999}]}, "the output is named 'xxx"),
        ({**request(), "outputs": [{"name": "logits"}] * 2}, "the output logits is asked for twice; once is legal"),
        ({**request(), "outputs": [{"name": "logits", "parameters": []}]}, "parameters of the output logits must be an object"),
        (
            {**request(), "outputs": [{"name": "logits", "parameters": {"classification": True}}]},
            "classification of logits is True",
        ),
        ({**request(), "outputs": [{"name": "scores"}]}, "the output is named 'scores'; legal is logits"),
        ({**request(), "outputs": [{"name": "logits", "parameters": {"binary_data": 1}}]}, "binary_data is 1; it must be true"),
        ({**request(), "outputs": [{"name": "logits", "parameters": {"classification": -1}}]}, "classification of logits is -1"),
        ({**request(), "parameters": {"binary_data_output": "yes"}}, "binary_data_output is 'yes'"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(document, match):
    with pytest.raises(RequestRefused, match=match) as refused:
        parse(document)
    assert refused.value.status == 400
    assert isinstance(refused.value, GrowtasError)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"inputs": ' + b"1" * 5000 + b"}", "not JSON that can be read"),
        (b'{"inputs": [{"data": [NaN]}]}', "NaN is no JSON"),
    ],
)
def test_bodies_that_are_no_json(body, match):
    with pytest.raises(RequestRefused, match=match):
        parse_request(body, None, FLOATS)


@pytest.mark.parametrize("length", ["", "-1", "1e3", "99999", "9" * 500, "\u0664"])
def test_a_wrong_length_of_the_json(length):
    with pytest.raises(RequestRefused, match="must be a number of bytes of this body"):
        parse_request(b"{}", length, FLOATS)


def test_bytes_after_the_json_that_nobody_announced():
    head = json.dumps(request()).encode()
    with pytest.raises(RequestRefused, match="4 bytes follow the JSON"):
        parse_request(head + b"rest", str(len(head)), FLOATS)


@given(st.binary(max_size=300), st.one_of(st.none(), st.integers(0, 400).map(str)))
def test_no_bytes_get_past_the_parser_as_another_error(body, length):
    with pytest.raises(RequestRefused):
        parse_request(body, length, FLOATS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["name", "parameters", "x"]), inner, max_size=3),
    max_leaves=10,
)


@given(st.sampled_from(["name", "datatype", "shape", "data", "parameters"]), JSON)
def test_no_value_of_a_field_gets_past_as_another_error(field, value):
    document = request(**{field: value})
    try:
        images = parse(document).images
    except RequestRefused:
        return
    assert images.shape[1:] == (1, 2, 2)
    assert np.isfinite(images).all()


@pytest.mark.parametrize(
    ("outputs", "match"),
    [
        ([], f"each naming an output; legal is {NAMED}"),
        ([{"name": "scores"}], f"the output is named 'scores'; legal is {NAMED}"),
        ([{"name": "top_scores"}, {"name": "logits"}, {"name": "top_scores"}], "the output top_scores is asked for twice"),
        ([{"name": "top_scores", "parameters": {"classification": 1}}], "classification of top_scores is not possible"),
        (
            [{"name": "top_classes", "parameters": {"classification": 1}}],
            "classification of top_classes is not possible; legal is that of logits or probabilities",
        ),
        ([{"name": "logits"}, {"name": "top_classes", "parameters": {"binary_data": "x"}}], "binary_data is 'x'"),
    ],
)
def test_wrong_outputs_where_there_are_several(outputs, match):
    with pytest.raises(RequestRefused, match=match) as refused:
        parse({**request(), "outputs": outputs}, MORE)
    assert refused.value.status == 400
    assert "\n" not in str(refused.value)


@given(JSON)
def test_no_list_of_outputs_gets_past_as_another_error(outputs):
    with contextlib.suppress(RequestRefused):
        wanted = parse({**request(), "outputs": outputs}, MORE).wanted
        assert 1 <= len({each.output.name for each in wanted}) == len(wanted)


LOGITS = np.array([[0.25, 3.0, -1.5], [2.0, 2.0, 1.0]], np.float32)


def test_the_answer_as_json_and_as_bytes_is_the_same():
    parsed = parse({**request(), "id": "é"})
    body, head = encode_response(parsed, {"logits": LOGITS}, FLOATS, model="m", version="1")
    assert head is None
    document = json.loads(body)
    assert document == {
        "model_name": "m",
        "model_version": "1",
        "id": "é",
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [2, 3], "data": LOGITS.ravel().tolist()}],
    }
    parsed = parse({**request(), "parameters": {"binary_data_output": True}})
    body, head = encode_response(parsed, {"logits": LOGITS}, FLOATS, model="m", version="1")
    assert head is not None
    document = json.loads(body[:head])
    assert document["outputs"][0]["parameters"] == {"binary_data_size": 24}
    assert struct.unpack("<6f", body[head:]) == tuple(LOGITS.ravel().tolist())


def test_the_output_says_how_it_is_wanted():
    wanted = [{"name": "logits", "parameters": {"binary_data": False, "classification": 2}}]
    parsed = parse({**request(), "parameters": {"binary_data_output": True}, "outputs": wanted})
    document = json.loads(encode_response(parsed, {"logits": LOGITS}, FLOATS, model="m", version="1")[0])
    assert document["outputs"][0] == {
        "name": "logits",
        "datatype": "BYTES",
        "shape": [2, 2],
        "data": ["3.000000:1:b", "0.250000:0:a", "2.000000:0:a", "2.000000:1:b"],
    }
    parsed = parse({**request(), "outputs": [{"name": "logits", "parameters": {"binary_data": True, "classification": 99}}]})
    body, head = encode_response(parsed, {"logits": LOGITS[:1]}, FLOATS, model="m", version="1")
    assert (
        body[head:]
        == b"".join(struct.pack("<I", 12) + b"3.000000:1:b" for _ in range(1))
        + struct.pack("<I", 12)
        + b"0.250000:0:a"
        + struct.pack("<I", 13)
        + b"-1.500000:2:c"
    )


ANSWERS = {
    "logits": LOGITS,
    "probabilities": np.array([[0.0625, 0.875, 0.0625], [0.375, 0.5, 0.125]], np.float32),
    "top_scores": np.array([[0.875, 0.0625], [0.5, 0.375]], np.float32),
    "top_classes": np.array([[1, 0], [1, 1 << 40]], np.int64),
}
KINDS = {"logits": "FP32", "probabilities": "FP32", "top_scores": "FP32", "top_classes": "INT64"}


def taken(body: bytes, head: int | None) -> dict[str, list[Any]]:
    """Flat values by name, in the answer's order; raw ones are read from where the ones before end."""
    document = json.loads(body[:head])
    found, place = {}, head
    for entry in document["outputs"]:
        size = entry.get("parameters", {}).get("binary_data_size")
        assert (size is None) == ("data" in entry)
        assert entry["datatype"] == KINDS[entry["name"]]
        assert entry["shape"] == list(ANSWERS[entry["name"]].shape)
        if size is None:
            found[entry["name"]] = entry["data"]
        else:
            form = "<f" if entry["datatype"] == "FP32" else "<q"
            found[entry["name"]] = [value for (value,) in struct.iter_unpack(form, body[place : place + size])]
            place += size
    assert place is None or place == len(body)
    return found


def everything(names: Any = ANSWERS) -> dict[str, list[Any]]:
    return {name: ANSWERS[name].ravel().tolist() for name in names}


@pytest.mark.parametrize("binary", [True, False])
def test_every_output_is_given_where_none_is_named(binary):
    parsed = parse({**request(), "parameters": {"binary_data_output": binary}}, MORE)
    body, head = encode_response(parsed, ANSWERS, MORE, model="m", version="1")
    assert (head is not None) == binary
    got = taken(body, head)
    assert got == everything()
    assert list(got) == list(ANSWERS)
    assert list(taken(*encode_response(parse(request(), MORE), ANSWERS, MORE, model="m", version="1"))) == list(ANSWERS)


@given(
    st.lists(st.sampled_from(list(ANSWERS)), min_size=1, unique=True),
    st.lists(st.sampled_from([None, True, False]), min_size=4, max_size=4),
    st.booleans(),
)
def test_what_is_named_is_given_in_its_order_and_each_as_it_is_wanted(names, forms, default):
    outputs = [
        {"name": name, **({} if form is None else {"parameters": {"binary_data": form}})}
        for name, form in zip(names, forms, strict=False)
    ]
    parsed = parse({**request(), "parameters": {"binary_data_output": default}, "outputs": outputs}, MORE)
    body, head = encode_response(parsed, ANSWERS, MORE, model="m", version="1")
    got = taken(body, head)
    assert got == everything(names)
    assert list(got) == names
    given = {entry["name"]: "data" not in entry for entry in json.loads(body[:head])["outputs"]}
    assert given == {name: default if form is None else form for name, form in zip(names, forms, strict=False)}


def test_classes_of_the_probabilities_and_numbers_of_the_rest():
    outputs = [{"name": "top_classes"}, {"name": "probabilities", "parameters": {"classification": 1}}]
    body, _ = encode_response(parse({**request(), "outputs": outputs}, MORE), ANSWERS, MORE, model="m", version="1")
    assert json.loads(body)["outputs"] == [
        {"name": "top_classes", "datatype": "INT64", "shape": [2, 2], "data": [1, 0, 1, 1 << 40]},
        {"name": "probabilities", "datatype": "BYTES", "shape": [2, 1], "data": ["0.875000:1:b", "0.500000:1:b"]},
    ]


def test_answers_that_json_cannot_hold():
    broken = np.array([[np.nan, 1, 2]], np.float32)
    with pytest.raises(RequestRefused, match="ask for binary data"):
        encode_response(parse(request()), {"logits": broken}, FLOATS, model="m", version="1")
    # In an answer of both forms, it is the JSON's numbers that matter.
    for name, refused in (("logits", True), ("probabilities", False)):
        outputs = [{"name": "logits"}, {"name": "probabilities", "parameters": {"binary_data": True}}]
        parsed = parse({**request(), "outputs": outputs}, MORE)
        with pytest.raises(RequestRefused, match="ask for binary data") if refused else contextlib.nullcontext():
            encode_response(parsed, {**ANSWERS, name: broken}, MORE, model="m", version="1")


def test_the_signature_is_the_manifests(tmp_path: Path):
    path = artifact(tmp_path)
    found = read_signature(read_manifest(path), path)
    assert (found.input_name, found.datatype, found.shape, found.takes_pixels) == ("images", "FP32", (CHANNELS, SIZE, SIZE), False)
    assert (found.max_batch, found.classes, found.output_name) == (MAX_BATCH, CLASSES, "logits")
    assert found.class_names == tuple(NAMES)
    assert found.preprocess == RECORD
    pixels = artifact(tmp_path, pixels=True, name="pixels")
    found = read_signature(read_manifest(pixels), pixels)
    assert (found.input_name, found.datatype, found.shape, found.takes_pixels) == ("pixels", "UINT8", (SIZE, SIZE, CHANNELS), True)
    free = read_signature({**read_manifest(path), "input": {**INPUT, "shape": ["batch", "height", -1, 3]}}, path)
    assert (free.shape, free.any_size, free.example()) == ((None, None, 3), True, (SIZE, SIZE, 3))
    plan = read_signature({**read_manifest(path), "plan": {"max_batch": 2}}, path)
    assert plan.max_batch == 2


@pytest.mark.parametrize(
    ("more", "added"),
    [
        ({}, []),
        ({"softmax": True}, [("probabilities", "FP32", (CLASSES,), True)]),
        ({"top_k": 2}, [("top_scores", "FP32", (2,), False), ("top_classes", "INT64", (2,), False)]),
        (
            {"softmax": True, "top_k": CLASSES},
            [
                ("probabilities", "FP32", (CLASSES,), True),
                ("top_scores", "FP32", (CLASSES,), False),
                ("top_classes", "INT64", (CLASSES,), False),
            ],
        ),
        ({"postprocess": None}, []),
    ],
)
def test_the_outputs_are_the_manifests(tmp_path: Path, more, added):
    path = artifact(tmp_path, **more)
    found = read_signature(read_manifest(path), path)
    got = [(each.name, each.datatype, each.shape, each.per_class) for each in found.outputs]
    assert got == [("logits", "FP32", (CLASSES,), True), *added]


INPUT = {"name": "x", "dtype": "uint8", "shape": ["batch", 8, 8, 3], "batch": {"max": 4}}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"input": None}, "does not say what goes in and out"),
        ({"input": {"name": "images"}}, "no 'dtype'"),
        ({"input": {**INPUT, "dtype": "float16"}}, "type float16"),
        ({"input": {**INPUT, "shape": ["batch", 3]}}, "2 dimensions"),
        ({"output": {"name": "logits", "shape": []}}, "does not say what goes in and out"),
        ({"class_names": ["a"]}, "1 class names for 5 classes"),
        ({"postprocess": {"softmax": True}}, "no 'outputs'"),
        ({"postprocess": ["probabilities"]}, "does not say what goes in and out"),
        ({"postprocess": {"outputs": ["logits", "scores"]}}, "an output 'scores'"),
        ({"postprocess": {"outputs": ["logits", ["scores"]]}}, "an output"),
        ({"postprocess": {"outputs": ["top_scores"], "top_k": None}}, "does not say what goes in and out"),
        ({"postprocess": {"outputs": ["top_scores"], "top_k": 6}}, "a top_k of 6 for 5 classes"),
        ({"postprocess": {"outputs": ["top_classes"], "top_k": 0}}, "a top_k of 0 for 5 classes"),
    ],
)
def test_manifests_that_do_not_say_enough(tmp_path: Path, changes, match):
    path = artifact(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=match):
        read_signature(read_manifest(path), path)
