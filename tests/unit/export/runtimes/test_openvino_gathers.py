"""What growtas rewrites in a graph that OpenVINO is about to compile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from growtas.export.runtimes.base import is_installed
from growtas.export.runtimes.openvino import OpenVINOSession, write_ir
from tests.export_helpers import SUBNET

pytestmark = pytest.mark.skipif(not is_installed("openvino"), reason="openvino is not installed")


def test_gathers_by_a_constant_are_flat(onnx_file: Path, tmp_path: Path) -> None:
    """OpenVINO has compiled code for those; one whose index isn't constant stays what it is."""
    gathers = [node for node in onnx.load(onnx_file).graph.node if node.op_type == "GatherElements"]
    assert len(gathers) == 2 * len(SUBNET.num_heads)
    ir = tmp_path / "tiny.xml"
    write_ir(onnx_file, ir)
    text = ir.read_text()
    assert 'type="GatherElements"' not in text
    assert text.count('type="Gather"') >= len(gathers)
    make, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        make("Cast", ["images"], ["index"], to=TensorProto.INT64),
        make("GatherElements", ["images", "index"], ["taken"], axis=3),
        make("ReduceMean", ["taken"], ["logits"], keepdims=0),
    ]
    shape = ["batch", 1, 2, 2]
    graph = helper.make_graph(nodes, "g", [value("images", TensorProto.FLOAT, shape)], [value("logits", TensorProto.FLOAT, None)])
    path = tmp_path / "varying.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    images = np.array([[[[1, 0], [1, 1]]]], np.float32)
    with OpenVINOSession(path, threads=1) as session:
        # Of row (1, 0) the entries 1 and 0, of row (1, 1) the last one twice.
        assert float(session.run(images)) == (0 + 1 + 1 + 1) / 4
