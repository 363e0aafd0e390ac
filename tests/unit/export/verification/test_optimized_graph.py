"""The graph that a plan is compiled from is run and compared with the file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from growtas.errors import ParityError
from growtas.export.quantization.convert import convert
from growtas.export.tensorrt.builder import BuiltPlan, Shapes
from growtas.export.tensorrt.optimize import plan_graphs
from growtas.export.verification.images import VerificationImages
from growtas.export.verification.optimized_graph import TOLERANCES, check_optimized_graph
from tests.export_helpers import PlainFile

IMAGES = VerificationImages(
    images=np.random.default_rng(0).standard_normal((12, 3, 16, 16), np.float32),
    description="noise",
    unlabelled_because="it is noise",
)
PLAN = BuiltPlan(
    data=b"plan",
    runtime="x",
    runtime_version="1",
    targets=("sm86",),
    activation_memory_bytes=None,
    weights_memory_bytes=None,
    seconds=0.0,
    precision="fp32",
    batches=Shapes(),
)


def plan_of(graph: bytes | None, precision: str = "fp32") -> BuiltPlan:
    return dataclasses.replace(PLAN, graph=graph, precision=precision)


def test_a_plan_of_the_file_itself_needs_nothing(onnx_file: Path) -> None:
    assert check_optimized_graph(plan_of(None), onnx_file, IMAGES, max_batch=8) is None


def check_arrangements(source: Path, precision: str, folder: Path) -> int:
    """Runs the graphs that a plan of a file in a precision is compiled from; returns their number."""
    file = source
    if precision != "fp32":
        file = folder / "low.onnx"
        rest = {"rest": "fp16"} if precision == "int8" else {}
        convert(source, file, precision, calibration=IMAGES.images, calibration_are="noise", **rest)
    graphs = plan_graphs(file)
    for graph in graphs:
        assert graph != file.read_bytes()
        found = check_optimized_graph(plan_of(graph, precision), file, IMAGES, max_batch=8)
        assert found is not None
        assert found["parity"]["passed"] is True
        assert 0 < found["parity"]["relative_error"] <= TOLERANCES[precision]
        assert [each["against"] for each in found["parity"]["comparisons"]] == [file.name] * 3
    return len(graphs)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_arrangement_computes_what_its_file_does(onnx_file: Path, precision: str, tmp_path: Path) -> None:
    assert check_arrangements(onnx_file, precision, tmp_path) == (1 if precision == "fp32" else 2)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_so_does_that_of_a_plain_vit(plain: PlainFile, precision: str, tmp_path: Path) -> None:
    assert check_arrangements(plain.path, precision, tmp_path) == 1


def test_a_wrong_index_in_the_arrangement_is_found(onnx_file: Path) -> None:
    (graph,) = plan_graphs(onnx_file)
    proto = onnx.load_from_string(graph)
    # Positions to the grid's lines: one table's entries for another's.
    index = next(entry for entry in proto.graph.initializer if entry.name.startswith("index.") and len(entry.dims) == 2)
    index.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(index), 1, axis=0), index.name))
    with pytest.raises(ParityError, match=r"^the graph that the plan of \S+ was compiled from: logits differ from the \S+'s by"):
        check_optimized_graph(plan_of(proto.SerializeToString()), onnx_file, IMAGES, max_batch=8)


def test_what_onnx_runtime_has_no_kernels_for_is_said(onnx_file: Path) -> None:
    found = check_optimized_graph(plan_of(b"graph", "bf16"), onnx_file, IMAGES, max_batch=8)
    assert found is not None
    assert (found["parity"], found["not_executed_because"]) == (None, "ONNX Runtime can't compute bf16 on a CPU")
