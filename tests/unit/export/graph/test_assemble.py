from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from growtas.errors import BuildError
from growtas.export.benchmark import timing as measure
from growtas.export.benchmark.timing import clocks, measure_in_turns
from growtas.export.graph.assemble import Assembler, export_graph, signature
from growtas.export.graph.exporter import DEFAULT_OPSET, export_onnx
from growtas.export.runtimes.base import Timer
from growtas.export.runtimes.onnxruntime import OnnxRuntimeSession
from growtas.nn.architecture import Architecture
from growtas.nn.vit import VisionTransformer, random_network
from growtas.subnet import Subnet
from tests.export_helpers import TINY, PlainFile
from tests.verify_helpers import TWO_BLOCKS

SUBNETS = [Subnet(16, (2, 1), (3.0, 2.0)), Subnet(16, (1, 1), (2.0, 3.0)), Subnet(16, (2, 2), (2.0, 2.0)), Subnet(16, (1,), (3.0,))]


@pytest.fixture(scope="module")
def assembler() -> Assembler:
    return Assembler(TINY, SUBNETS)


@pytest.mark.parametrize("subnet", [SUBNETS[0], *SUBNETS[2:]], ids=str)
def test_an_assembled_graph_is_the_exported_one(assembler: Assembler, subnet: Subnet) -> None:
    exported, assembled = export_graph(Architecture.of(TINY, subnet)), assembler.graph(subnet)
    onnx.checker.check_model(assembled, full_check=True)
    assert signature(assembled) == signature(exported)
    assert len(assembled.graph.node) == len(exported.graph.node)
    assert len(assembled.graph.initializer) == len(exported.graph.initializer)


def test_an_assembled_plain_vit_is_the_exported_one(plain: PlainFile, request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["plain"] not in ("registers", "qk_norm"):
        pytest.skip("older opsets have other operators, and the graph between the blocks is as that of the registers")
    geometry = plain.model.architecture.geometry
    # A block order has no influence on graphs.
    space = TINY.replace(**geometry, block_order=(1, 0))
    assembled, exported = Assembler(space, [TWO_BLOCKS]).graph(TWO_BLOCKS), onnx.load(plain.path)
    onnx.checker.check_model(assembled, full_check=True)
    exported.opset_import[0].version = DEFAULT_OPSET
    assert signature(assembled) == signature(exported)


def test_an_assembled_graph_computes_its_blocks_in_their_order(tmp_path: Path) -> None:
    # A template sorts its blocks, so this subnet is its own. With its blocks exchanged it must compute what the exchanged network
    # does.
    subnet, exchanged = Subnet(16, (1, 2), (2.0, 3.0)), Subnet(16, (2, 1), (3.0, 2.0))
    assembler = Assembler(TINY, [subnet, exchanged])
    model = random_network(Architecture.of(TINY, subnet))
    images = np.random.default_rng(0).normal(size=(3, 3, TINY.image_size, TINY.image_size)).astype(np.float32)
    for wanted, blocks in ((subnet, [0, 1]), (exchanged, [1, 0]), (Subnet(16, (2, 2), (3.0, 3.0)), [1, 1])):
        graph = assembler.graph(wanted).SerializeToString()
        with OnnxRuntimeSession(graph, threads=1) as session, torch.inference_mode():
            own, model.blocks = model.blocks, torch.nn.ModuleList(model.blocks[i] for i in blocks)
            expected = model(torch.from_numpy(images)).numpy()
            model.blocks = own
            np.testing.assert_allclose(session.run(images), expected, rtol=1e-4, atol=1e-5)


def test_signatures_tell_graphs_apart(assembler: Assembler) -> None:
    graphs = [assembler.graph(subnet) for subnet in SUBNETS]
    assert len({signature(graph) for graph in graphs}) == len(SUBNETS)
    changed = assembler.graph(SUBNETS[0])
    softmax = next(node for node in changed.graph.node if node.op_type == "Softmax")
    softmax.attribute[0].i = 2
    assert signature(changed) != signature(graphs[0])


def test_a_freshly_initialised_network_would_hold_less(tmp_path: Path) -> None:
    # Its norms are alike and its biases zero: equal tensors are kept once, so it must not be what is timed.
    architecture = Architecture.of(TINY, SUBNETS[3])
    export_onnx(VisionTransformer(architecture).eval(), tmp_path / "fresh.onnx")
    fresh, random = onnx.load(tmp_path / "fresh.onnx"), export_graph(architecture)
    assert len(fresh.graph.initializer) < len(random.graph.initializer)
    # What is computed doesn't depend on the weights' values.
    assert [node.op_type for node in fresh.graph.node] == [node.op_type for node in random.graph.node]
    values = [parameter for parameter in random_network(architecture).parameters() if parameter.ndim == 1]
    assert all(len(torch.unique(parameter)) > 1 for parameter in values)


def test_what_was_not_announced_is_refused(assembler: Assembler) -> None:
    with pytest.raises(BuildError, match="width 24, 1 heads and ratio 2"):
        assembler.graph(Subnet(24, (1,), (2.0,)))


def test_turns_go_back_and_forth_and_give_the_median_of_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "WARMUP_SECONDS", 0.0)
    calls: list[str] = []

    def timer(name: str, first: float, then: float) -> Timer:
        def once() -> float:
            calls.append(name)
            return first if calls.count(name) <= 5 else then

        return once

    # Five untimed runs each before the first block: a's slow start must not be in it.
    blocks = measure_in_turns([timer("a", 9.0, 1.0), timer("b", 2.0, 2.0)], rounds=3, seconds=0.0, min_runs=3)
    assert "".join(calls) == "a" * 8 + "b" * 8 + "b" * 5 + "a" * 5 + "a" * 5 + "b" * 5
    assert [[block.median_ms for block in of] for of in blocks] == [[1.0] * 3, [2.0] * 3]
    assert {(block.fast_ms, block.slow_ms, block.interrupted) for block in blocks[1]} == {(2.0, 2.0, 0.0)}


def test_one_slow_second_spoils_one_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "WARMUP_SECONDS", 0.0)
    # Twelve runs up to the second block, two of them its untimed ones; then slow for its five, and the untimed ones after it.
    times = iter([4.0] * 12 + [50.0] * 7 + [4.0] * 1000)
    (blocks,) = measure_in_turns([lambda: next(times)], rounds=9, seconds=0.0, min_runs=5)
    assert [block.median_ms for block in blocks] == [4.0, 50.0, 4.0, *[4.0] * 6]


def test_clocks_are_what_the_system_tells() -> None:
    found = clocks()
    known = {"governor", "mhz", "max_mhz", "driver", "sm_mhz", "memory_mhz", "power_limit_w", "throttled"}
    assert set(found) <= known
