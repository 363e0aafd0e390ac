"""Assembles ONNX graphs of many subnets of one space, without running the exporter for each.

Tracing a network takes one to fifteen seconds, nearly all of an export's time. A subnet is a chain of blocks, and a space has few
distinct blocks. So one network with every block is exported for each width, its graph is cut between the blocks, and other networks
are assembled from the pieces. The result has the nodes, attributes and shapes that
:func:`growtas.export.graph.exporter.export_onnx` writes; tests compare the two by :func:`signature`. Nodes are copied as protobufs,
because a latency profile needs a hundred graphs and onnx_ir is slower.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import onnx

from growtas.errors import BuildError
from growtas.export.graph.edit import to_proto
from growtas.export.graph.exporter import export_model
from growtas.nn.architecture import Architecture
from growtas.nn.vit import random_network
from growtas.space import SearchSpace
from growtas.subnet import Subnet

Block = tuple[int, float]
"""Heads and MLP ratio."""


def export_graph(architecture: Architecture) -> onnx.ModelProto:
    """Exports the graph of an architecture with random weights.

    Raises:
        BuildError: the exporter failed.
    """
    return to_proto(export_model(random_network(architecture)))


@dataclass(frozen=True)
class _Template:
    """A graph in pieces: the nodes outside the blocks, and each block's nodes with the names of its input and output."""

    proto: onnx.ModelProto
    stem: tuple[onnx.NodeProto, ...]
    blocks: dict[Block, tuple[tuple[onnx.NodeProto, ...], str, str]]
    tail: tuple[onnx.NodeProto, ...]
    first: str
    last: str
    shared: frozenset[str]


class Assembler:
    """Makes the ONNX graphs of subnets, which must be known in advance.

    Args:
        space: the subnets' search space.
        subnets: all subnets that will be requested. Their widths and blocks are exported when they are first needed.
    """

    def __init__(self, space: SearchSpace, subnets: Iterable[Subnet]) -> None:
        self.space = space
        self._blocks: dict[int, dict[Block, None]] = {}
        self._templates: dict[int, _Template] = {}
        for subnet in subnets:
            self._blocks.setdefault(subnet.embed_dim, {}).update(dict.fromkeys(_blocks(subnet)))

    def graph(self, subnet: Subnet) -> onnx.ModelProto:
        """Assembles the subnet's graph, with random weights.

        Raises:
            BuildError: the exporter failed, its graph is not a chain of blocks, or the subnet was not passed to the constructor.
        """
        missing = [block for block in _blocks(subnet) if block not in self._blocks.get(subnet.embed_dim, {})]
        if missing:
            heads, ratio = missing[0]
            raise BuildError(f"the subnet has an unannounced block of width {subnet.embed_dim}, {heads} heads and ratio {ratio:g}")
        template = self._template(subnet.embed_dim)
        nodes, constants = list(template.stem), {c.name: c for c in template.proto.graph.initializer}
        stream = template.first
        for position, block in enumerate(_blocks(subnet)):
            pieces, entry, leave = template.blocks[block]
            names = {entry: stream}
            for node in pieces:
                names |= {output: f"{output}.{position}" for output in node.output}
                for name in node.input:
                    # Every block gets its own copy of the weights: shared weights would stay in the CPU's caches, unlike those of
                    # a real network.
                    if name in constants and name not in template.shared:
                        names[name] = f"{name}.{position}"
                        constants[names[name]] = copy.deepcopy(constants[name])
                        constants[names[name]].name = names[name]
            nodes += [_rewired(node, names, f".{position}") for node in pieces]
            stream = names[leave]
        nodes += [_rewired(node, {template.last: stream}, "") for node in template.tail]
        graph = template.proto.graph
        # Nodes that only other subnets' blocks read are removed.
        live, read = list[onnx.NodeProto](), {output.name for output in graph.output}
        for node in reversed(nodes):
            if read.intersection(node.output):
                live.append(node)
                read.update(node.input)
        used = [constant for name, constant in constants.items() if name in read]
        whole = onnx.helper.make_graph(live[::-1], graph.name, graph.input, graph.output, used)
        proto = onnx.ModelProto()
        proto.CopyFrom(template.proto)
        proto.graph.CopyFrom(whole)
        return proto

    def _template(self, width: int) -> _Template:
        if width not in self._templates:
            kinds = sorted(self._blocks[width])  # the template must not depend on the order of the subnets
            # A constant is shared if several blocks read it, so at least two blocks are needed.
            chain = kinds if len(kinds) > 1 else kinds * 2
            subnet = Subnet(width, tuple(heads for heads, _ in chain), tuple(ratio for _, ratio in chain))
            # A template may be deeper than the space allows.
            space = self.space.replace(max_depth=max(self.space.max_depth, len(chain)), block_order=())
            proto = export_graph(Architecture.of(space, subnet))
            self._templates[width] = _cut(proto, chain)
        return self._templates[width]


def _blocks(subnet: Subnet) -> list[Block]:
    return list(zip(subnet.num_heads, subnet.mlp_ratio, strict=True))


def _cut(proto: onnx.ModelProto, chain: list[Block]) -> _Template:
    """Cuts a graph between the blocks: at each second sum of the residual stream, which a norm and the next sum read."""
    nodes = list(proto.graph.node)
    added = {name: node.output[0] for node in nodes if node.op_type == "Add" for name in node.input}
    stream = [node.input[0] for node in nodes if node.op_type == "LayerNormalization" and node.input[0] in added]
    if len(stream) != 2 * len(chain):
        raise BuildError(f"the exported graph has {len(stream)} residual sums for {len(chain)} blocks; it can't be cut")
    cuts = [*stream[::2], added[stream[-1]]]
    behind = [_behind(nodes, cut) for cut in cuts]
    if any(not later < earlier for earlier, later in pairwise(behind)):
        raise BuildError("the exported graph is not a chain of blocks; it can't be cut")
    owned = [sorted(earlier - later) for earlier, later in pairwise(behind)]
    readers: dict[str, set[int]] = {}
    for part, rows in enumerate([*owned, [i for i in range(len(nodes)) if i not in behind[0]], sorted(behind[-1])]):
        for row in rows:
            for name in nodes[row].input:
                readers.setdefault(name, set()).add(part)
    weights = {c.name for c in proto.graph.initializer if len(c.dims) and c.data_type == onnx.TensorProto.FLOAT}
    shared = frozenset(c.name for c in proto.graph.initializer if c.name not in weights or len(readers.get(c.name, ())) > 1)
    pieces = {
        block: (tuple(nodes[row] for row in rows), cuts[i], cuts[i + 1])
        for i, (block, rows) in enumerate(zip(chain, owned, strict=True))
    }
    stem = tuple(node for row, node in enumerate(nodes) if row not in behind[0])
    return _Template(proto, stem, pieces, tuple(nodes[row] for row in sorted(behind[-1])), cuts[0], cuts[-1], shared)


def _behind(nodes: list[onnx.NodeProto], tensor: str) -> set[int]:
    """The indices of the nodes that depend on a tensor; the nodes are in topological order."""
    reached, rows = {tensor}, set()
    for row, node in enumerate(nodes):
        if reached.intersection(node.input):
            rows.add(row)
            reached.update(node.output)
    return rows


def _rewired(node: onnx.NodeProto, names: dict[str, str], suffix: str) -> onnx.NodeProto:
    """A copy of a node with tensors renamed."""
    result = copy.deepcopy(node)
    result.name = node.name + suffix
    result.input[:] = [names.get(name, name) for name in node.input]
    result.output[:] = [names.get(name, name) for name in node.output]
    return result


def signature(proto: onnx.ModelProto) -> str:
    """Returns a digest of everything that determines a graph's speed: operators, attributes, edges, shapes and types of constants.

    It ignores names, order and the values of floating-point constants, but not whole numbers (shapes, indices).
    """
    seen: dict[str, str] = {"": ""}
    for value in proto.graph.input:
        seen[value.name] = _digest("input", value.type.SerializeToString(deterministic=True))
    for constant in proto.graph.initializer:
        content = b"" if constant.data_type == onnx.TensorProto.FLOAT else onnx.numpy_helper.to_array(constant).tobytes()
        seen[constant.name] = _digest("constant", constant.data_type, tuple(constant.dims), content)
    digests = []
    for node in proto.graph.node:
        attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
        whole = _digest(node.domain, node.op_type, attributes, [seen[name] for name in node.input])
        seen |= {name: _digest(whole, number) for number, name in enumerate(node.output)}
        digests.append(whole)
    opsets = sorted((entry.domain, entry.version) for entry in proto.opset_import)
    return _digest(opsets, sorted(digests), [seen[output.name] for output in proto.graph.output])


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
