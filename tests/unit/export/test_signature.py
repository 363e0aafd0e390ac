from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from growtas.errors import CheckpointError
from growtas.export.artifact import Artifact, Manifest, load_artifact
from growtas.export.signature import read_signature
from tests.unit.export.serving.helpers import CHANNELS, CLASSES, MAX_BATCH, NAMES, RECORD, SIZE, artifact


def changed(path: Path, **changes: Any) -> Artifact:
    record = load_artifact(path).manifest.to_dict()
    return Artifact(path=path, manifest=Manifest.from_dict({**record, **changes}))


def test_the_signature_is_the_manifests(tmp_path: Path):
    path = artifact(tmp_path)
    found = read_signature(load_artifact(path))
    assert (found.input_name, found.datatype, found.shape, found.takes_pixels) == ("images", "FP32", (CHANNELS, SIZE, SIZE), False)
    assert (found.max_batch, found.classes, found.output_name) == (MAX_BATCH, CLASSES, "logits")
    assert found.class_names == tuple(NAMES)
    assert found.preprocess == RECORD
    pixels = artifact(tmp_path, pixels=True, name="pixels")
    found = read_signature(load_artifact(pixels))
    assert (found.input_name, found.datatype, found.shape, found.takes_pixels) == ("pixels", "UINT8", (SIZE, SIZE, CHANNELS), True)
    free = read_signature(changed(path, input={**INPUT, "shape": ["batch", "height", -1, 3]}))
    assert (free.shape, free.any_size, free.example()) == ((None, None, 3), True, (SIZE, SIZE, 3))
    plan = read_signature(changed(path, plan={"max_batch": 2}))
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
    found = read_signature(load_artifact(path))
    got = [(each.name, each.datatype, each.shape, each.per_class) for each in found.outputs]
    assert got == [("logits", "FP32", (CLASSES,), True), *added]


INPUT = {"name": "x", "dtype": "uint8", "shape": ["batch", 8, 8, 3], "batch": {"max": 4}}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"input": None}, "does not describe the input and output"),
        ({"input": {"name": "images"}}, "no 'dtype'"),
        ({"input": {**INPUT, "dtype": "float16"}}, "type float16"),
        ({"input": {**INPUT, "shape": ["batch", 3]}}, "2 dimensions"),
        ({"output": {"name": "logits", "shape": []}}, "does not describe the input and output"),
        ({"class_names": ["a"]}, "1 class names for 5 classes"),
        ({"postprocess": {"softmax": True}}, "no 'outputs'"),
        ({"postprocess": ["probabilities"]}, "does not describe the input and output"),
        ({"postprocess": {"outputs": ["logits", "scores"]}}, "an output 'scores'"),
        ({"postprocess": {"outputs": ["logits", ["scores"]]}}, "an output"),
        ({"postprocess": {"outputs": ["top_scores"], "top_k": None}}, "does not describe the input and output"),
        ({"postprocess": {"outputs": ["top_scores"], "top_k": 6}}, "a top_k of 6 for 5 classes"),
        ({"postprocess": {"outputs": ["top_classes"], "top_k": 0}}, "a top_k of 0 for 5 classes"),
    ],
)
def test_manifests_that_do_not_say_enough(tmp_path: Path, changes, match):
    path = artifact(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=match):
        read_signature(load_artifact(path))
