"""ONNX files of many architectures of one space, without running the exporter for each.

Tracing a network takes seconds to a quarter of a minute, nearly all of an export's time. A subnet is a chain of blocks, and a space
has few distinct ones: so for each width one network that holds every block once is exported, its graph is cut where one block's
output is the next one's input, and other networks are put together from the pieces. The result has the nodes, attributes and shapes
that :func:`growtas.export.graph.exporter.export_onnx` writes; :func:`signature` tells, and tests compare.
"""

from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from growtas.errors import BuildError
from growtas.export.graph.exporter import export_onnx
from growtas.nn.architecture import Architecture
from growtas.space import SearchSpace
from growtas.subnet import Subnet

Block = tuple[int, float]
"""Heads and MLP ratio."""


def random_network(architecture: Architecture, seed: int = 0) -> Any:
    """A static ViT whose every parameter is random, as in a trained one.

    Equal tensors are kept once in an exported file: a freshly initialised network holds less, and is faster. The same seed gives
    the same weights.
    """
    import torch

    from growtas.nn.vit import VisionTransformer

    model = VisionTransformer(architecture).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                centre = 1.0 if isinstance(module, torch.nn.LayerNorm) else 0.0
                parameter.copy_(centre + 0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def export_graph(architecture: Architecture) -> Any:
    """What :func:`growtas.export.graph.exporter.export_onnx` writes for an architecture with random weights, as an
    ``onnx.ModelProto``.

    Raises:
        BuildError: the exporter failed.
    """
    import onnx

    with tempfile.TemporaryDirectory(prefix="growtas-") as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(random_network(architecture), path)
        return onnx.load(path)


@dataclass(frozen=True)
class _Template:
    """A graph in pieces: nodes outside the blocks, and each block's nodes between the tensors it reads and writes."""

    proto: Any
    stem: tuple[Any, ...]
    blocks: dict[Block, tuple[tuple[Any, ...], str, str]]
    tail: tuple[Any, ...]
    first: str
    last: str
    shared: frozenset[str]


class Assembler:
    """Makes the ONNX graphs of subnets, which must be known beforehand.

    Args:
        space: geometry of the images.
        subnets: all that will be asked for; their widths and blocks are exported when first needed.
    """

    def __init__(self, space: SearchSpace, subnets: Iterable[Subnet]) -> None:
        self.space = space
        self._blocks: dict[int, dict[Block, None]] = {}
        self._templates: dict[int, _Template] = {}
        for subnet in subnets:
            self._blocks.setdefault(subnet.embed_dim, {}).update(dict.fromkeys(_blocks(subnet)))

    def graph(self, subnet: Subnet) -> Any:
        """The subnet's graph with random weights, an ``onnx.ModelProto``.

        Raises:
            BuildError: the exporter failed, its graph is not a chain of blocks, or the subnet was not announced.
        """
        import onnx

        missing = [block for block in _blocks(subnet) if block not in self._blocks.get(subnet.embed_dim, {})]
        if missing:
            heads, ratio = missing[0]
            raise BuildError(
                f"no piece for a block of width {subnet.embed_dim}, {heads} heads and ratio {ratio:g}: it was not announced"
            )
        template = self._template(subnet.embed_dim)
        nodes, constants = list(template.stem), {c.name: c for c in template.proto.graph.initializer}
        stream = template.first
        for position, block in enumerate(_blocks(subnet)):
            pieces, entry, leave = template.blocks[block]
            names = {entry: stream}
            for node in pieces:
                names |= {output: f"{output}.{position}" for output in node.output}
                for name in node.input:
                    # Blocks have weights of their own, or the cache would hold less than it does.
                    if name in constants and name not in template.shared:
                        names[name] = f"{name}.{position}"
                        constants[names[name]] = _renamed(constants[name], names[name])
            nodes += [_rewired(node, names, f".{position}") for node in pieces]
            stream = names[leave]
        nodes += [_rewired(node, {template.last: stream}, "") for node in template.tail]
        proto = onnx.ModelProto()
        proto.CopyFrom(template.proto)
        for part in ("node", "initializer", "value_info"):
            proto.graph.ClearField(part)
        live = _live(nodes, [output.name for output in proto.graph.output])
        proto.graph.node.extend(live)
        used = {name for node in live for name in node.input}
        proto.graph.initializer.extend(constant for name, constant in constants.items() if name in used)
        return proto

    def save(self, subnet: Subnet, path: str | Path) -> None:
        """Write :meth:`graph` to a file.

        Raises:
            BuildError: as :meth:`graph`.
        """
        import onnx

        onnx.save(self.graph(subnet), path)

    def _template(self, width: int) -> _Template:
        if width not in self._templates:
            kinds = list(self._blocks[width])
            # With one block nothing would tell what blocks share from what is theirs.
            chain = kinds if len(kinds) > 1 else kinds * 2
            subnet = Subnet(width, tuple(heads for heads, _ in chain), tuple(ratio for _, ratio in chain))
            # The space's bounds hold for real depths; a template may be deeper.
            space = self.space.replace(max_depth=max(self.space.max_depth, len(chain)))
            proto = export_graph(Architecture.of(space, subnet))
            self._templates[width] = _cut(proto, chain)
        return self._templates[width]


def _blocks(subnet: Subnet) -> list[Block]:
    return list(zip(subnet.num_heads, subnet.mlp_ratio, strict=True))


def _cut(proto: Any, chain: list[Block]) -> _Template:
    """Cut a graph at the tensors that each block's first LayerNormalization reads."""
    nodes = list(proto.graph.node)
    norms = [node for node in nodes if node.op_type == "LayerNormalization"]
    if len(norms) != 2 * len(chain) + 1:
        raise BuildError(f"the exported graph has {len(norms)} LayerNormalization nodes for {len(chain)} blocks; it can't be cut")
    cuts = [norm.input[0] for norm in norms[::2]]
    behind = [_behind(nodes, cut) for cut in cuts]
    if any(not later < earlier for earlier, later in pairwise(behind)):
        raise BuildError("the exported graph is not a chain of blocks; it can't be cut")
    owned = [sorted(earlier - later) for earlier, later in pairwise(behind)]
    readers: dict[str, set[int]] = {}
    for part, rows in enumerate([*owned, [i for i in range(len(nodes)) if i not in behind[0]], sorted(behind[-1])]):
        for row in rows:
            for name in nodes[row].input:
                readers.setdefault(name, set()).add(part)
    weights = {c.name for c in proto.graph.initializer if len(c.dims) and c.data_type == c.FLOAT}
    shared = frozenset(c.name for c in proto.graph.initializer if c.name not in weights or len(readers.get(c.name, ())) > 1)
    pieces = {
        block: (tuple(nodes[row] for row in rows), cuts[i], cuts[i + 1])
        for i, (block, rows) in enumerate(zip(chain, owned, strict=True))
    }
    stem = tuple(node for row, node in enumerate(nodes) if row not in behind[0])
    return _Template(proto, stem, pieces, tuple(nodes[row] for row in sorted(behind[-1])), cuts[0], cuts[-1], shared)


def _behind(nodes: list[Any], tensor: str) -> set[int]:
    """Rows of the nodes that depend on a tensor; nodes come in topological order."""
    reached, rows = {tensor}, set()
    for row, node in enumerate(nodes):
        if reached.intersection(node.input):
            rows.add(row)
            reached.update(node.output)
    return rows


def _live(nodes: list[Any], outputs: list[str]) -> list[Any]:
    """The nodes that an output depends on, in their order."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    return kept[::-1]


def _rewired(node: Any, names: dict[str, str], suffix: str) -> Any:
    """A copy of a node with tensors renamed."""
    result = copy.deepcopy(node)
    result.name = node.name + suffix
    result.input[:] = [names.get(name, name) for name in node.input]
    result.output[:] = [names.get(name, name) for name in node.output]
    return result


def _renamed(constant: Any, name: str) -> Any:
    result = copy.deepcopy(constant)
    result.name = name
    return result


def signature(proto: Any) -> str:
    """A digest of everything in a graph that its speed depends on: operators, attributes, edges, and shapes and types of constants.

    Names, order and the values of floating-point constants don't count; whole numbers (shapes, indices) do.
    """
    seen: dict[str, str] = {"": ""}
    for value in proto.graph.input:
        seen[value.name] = _digest("input", value.type.SerializeToString(deterministic=True))
    for constant in proto.graph.initializer:
        content = b"" if constant.data_type == constant.FLOAT else _content(constant)
        seen[constant.name] = _digest("constant", constant.data_type, tuple(constant.dims), content)
    digests = []
    for node in proto.graph.node:
        attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
        whole = _digest(node.domain, node.op_type, attributes, [seen[name] for name in node.input])
        seen |= {name: _digest(whole, number) for number, name in enumerate(node.output)}
        digests.append(whole)
    opsets = sorted((entry.domain, entry.version) for entry in proto.opset_import)
    return _digest(opsets, sorted(digests), [seen[output.name] for output in proto.graph.output])


def _content(constant: Any) -> bytes:
    from onnx import numpy_helper

    return bytes(numpy_helper.to_array(constant).tobytes())


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
