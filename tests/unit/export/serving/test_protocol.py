from __future__ import annotations

import contextlib
import json
import math
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from growtas.errors import GrowtasError
from growtas.export.serving.protocol import RequestRefused, parse_request
from tests.unit.export.serving.requests import DATA, FLOATS, MORE, NAMED, PIXELS, parse, request, signature


@pytest.mark.parametrize("data", [DATA, [[[[0.5, -1.0], [2.0, 3.25]]]]])
def test_json_numbers_flat_or_nested(data):
    got = parse({**request(data=data), "id": "seven"})
    assert got.id == "seven"
    assert got.images.dtype == np.float32
    assert got.images.tolist() == [[[[0.5, -1.0], [2.0, 3.25]]]]
    assert [(each.output.name, each.binary, each.classification) for each in got.outputs] == [("logits", False, 0)]


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
        (request(data=DATA[:3]), r"data of images holds 3 values; shape \[1, 1, 2, 2\] has 4"),
        (request(data=[]), "data of images holds 0 values"),
        (request(data=[DATA]), r"data of images is not nested like its shape \[1, 1, 2, 2\]"),
        (request(data=[1, [2], 3, 4]), "must be numbers"),
        (request(data=[1, 2, True, 4]), "must be numbers"),
        (request(data=["1", "2", "3", "4"]), "must be numbers"),
        (request(data=[None] * 4), "must be numbers"),
        (request(data=[True] * 4), "must be numbers"),
        (request(data=[1e39, 0, 0, 0]), "not finite in 32 bits"),
        (request(data=[10**400, 0, 0, 0]), "not finite in 32 bits"),
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
        ({**request(), "outputs": [{"name": "logits"}] * 2}, "the output logits is requested twice; once is legal"),
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
        (b'{"inputs": ' + b"1" * 5000 + b"}", "not JSON"),
        (b'{"inputs": [{"data": [NaN]}]}', "NaN is not JSON"),
    ],
)
def test_bodies_that_are_no_json(body, match):
    with pytest.raises(RequestRefused, match=match):
        parse_request(body, None, FLOATS)


@pytest.mark.parametrize("length", ["", "-1", "1e3", "99999", "9" * 500, "0" * 12 + "9" * 5000, "0" * 5000, "\u0664"])
def test_a_wrong_length_of_the_json(length):
    with pytest.raises(RequestRefused, match="must be a number of bytes of this body"):
        parse_request(b"{}", length, FLOATS)


def test_texts_for_numbers_take_no_more_memory_than_the_request():
    """NumPy would make every text as wide as the widest: of 20 kB of JSON, gigabytes."""
    sign = signature(shape=(1, 20, 20))
    body = json.dumps(request(shape=[1, 1, 20, 20], data=["x" * 50_000] + [""] * 399)).encode()
    tracemalloc.start()
    try:
        with pytest.raises(RequestRefused, match="data of images must be numbers"):
            parse_request(body, None, sign)
        assert tracemalloc.get_traced_memory()[1] < 10 * len(body)
    finally:
        tracemalloc.stop()


def test_nesting_of_every_depth_is_refused():
    """Some depths can just be read, and then not be shown."""
    for depth in [*range(1, 40), *range(500, 1050)]:
        nested = b"[" * depth + b"]" * depth
        for field in (b"name", b"shape", b"datatype", b"data"):
            body = json.dumps(request(**{field.decode(): "HERE"})).encode().replace(b'"HERE"', nested)
            with pytest.raises(RequestRefused) as refused:
                parse_request(body, None, FLOATS)
            assert len(str(refused.value)) < 300


def test_values_of_the_clients_are_shown_short():
    for value in ("x" * 10**6, [1] * 10**6, 10**4000, {"a" * 1000: ["b" * 1000] * 50}, [[[[[[1] * 100] * 100]]]]):
        for field in ("name", "datatype", "shape"):
            with pytest.raises(RequestRefused) as refused:
                parse(request(**{field: value}))
            assert len(str(refused.value)) < 200


@given(st.data())
def test_lists_are_numbers_flat_or_nested_and_nothing_else(data):
    """Against NumPy's own reading of the same list."""
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)))
    number = st.integers(-(10**6), 10**6) | st.floats(-1e30, 1e30, allow_nan=False)
    values = data.draw(st.lists(number, min_size=math.prod(shape), max_size=math.prod(shape)))
    nested = np.array(values, object).reshape(shape).tolist()
    sign = signature(shape=shape[1:])
    for listed in (values, nested):
        got = parse(request(shape=list(shape), data=listed), sign).images
        np.testing.assert_array_equal(got, np.array(values, np.float64).astype(np.float32).reshape(shape))
    # One thing wrong somewhere: a row too few, a number where a list belongs, something else for a number.
    place = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    depth = data.draw(st.integers(1, 4))
    row = nested
    for index in place[: depth - 1]:
        row = row[index]
    # Deeper than any place: of a shape of ones, a list less deep might be right.
    wrong = data.draw(st.sampled_from([..., None, True, "1", {}, [], [[[[[1.0]]]]]]))
    if wrong is ...:
        del row[place[depth - 1]]
    else:
        row[place[depth - 1]] = wrong
    with pytest.raises(RequestRefused):
        parse(request(shape=list(shape), data=nested), sign)


@pytest.mark.parametrize(
    ("sides", "legal"),
    [
        ((1, 1), True),
        ((64, 1), True),
        ((1, 64), True),
        ((16384, 256), True),
        ((16384, 1), True),
        ((1, 16385), False),
        ((16385, 16384), False),
        ((1, 10**3000), False),
        ((10**3000, 10**3000), False),
    ],
)
def test_sides_above_the_limit_are_refused(sides, legal):
    free = signature(input_name="pixels", dtype="uint8", shape=(None, None, 1))
    size = math.prod(sides) if legal else 5
    for kept in ({"data": ..., "parameters": {"binary_data_size": size}}, {"data": [1, 2, 3]}):
        head = json.dumps(request(name="pixels", datatype="UINT8", shape=[1, *sides, 1], **kept)).encode()
        raw = b"\x07" * size if "parameters" in kept else b""
        if legal and raw:
            assert parse_request(head + raw, str(len(head)), free).images.shape == (1, *sides, 1)
            continue
        with pytest.raises(RequestRefused, match="holds 3|holds 1" if legal else "sides from 1 to 16384") as refused:
            parse_request(head + raw, str(len(head)), free)
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize("spaces", range(4))
def test_raw_values_start_where_a_runtime_may_read_them(spaces):
    """Behind JSON of any length, yet at an address that a float may have."""
    head = json.dumps(request(data=..., parameters={"binary_data_size": 16})).encode() + b" " * spaces
    got = parse_request(bytearray(head + struct.pack("<4f", *DATA)), str(len(head)), FLOATS).images
    assert got.flags.aligned
    assert got.ravel().tolist() == DATA


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
        ([{"name": "top_scores"}, {"name": "logits"}, {"name": "top_scores"}], "the output top_scores is requested twice"),
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
        wanted = parse({**request(), "outputs": outputs}, MORE).outputs
        assert 1 <= len({each.output.name for each in wanted}) == len(wanted)
