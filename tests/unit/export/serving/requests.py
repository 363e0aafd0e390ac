"""Requests as JSON objects, and the signatures of two artifacts that take them."""

from __future__ import annotations

import json
from typing import Any

from growtas.export.serving.protocol import parse_request
from growtas.export.signature import Output, Signature

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
