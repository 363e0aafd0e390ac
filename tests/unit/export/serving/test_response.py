from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from growtas.export.serving.protocol import RequestRefused
from growtas.export.serving.response import encode_response
from tests.unit.export.serving.requests import FLOATS, MORE, parse, request

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
