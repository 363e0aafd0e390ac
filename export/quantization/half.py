"""fp16 and bf16: every float tensor in half the bytes, but for layers that are kept and the images and logits at the boundary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from growtas.errors import BuildError
from growtas.export.graph.edit import constants, enumerate_names, replace_nodes, tensor, tensor_types

FP16_MAX = 65504.0
# fp16's largest number over what calibration saw: other images may be twice as bright.
HEADROOM = 2.0


def over_range(largest: dict[str, float]) -> dict[str, float]:
    """Of tensors' largest magnitudes those that fp16 can't hold, with headroom."""
    return {name: size for name, size in largest.items() if not size * HEADROOM <= FP16_MAX}


def cast_floats(proto: Any, kind: int, high: Callable[[Any], bool], subject: str) -> None:
    """Change fp32 tensors to ``kind``, in place; the graph's inputs and outputs stay as they are.

    Weights are stored in the new type. A node that stays high reads and writes fp32, with a Cast on either side.

    Args:
        proto: a graph whose types are inferred.
        kind: ``TensorProto.FLOAT16`` or ``BFLOAT16``.
        high: whether a node stays in fp32.
        subject: what messages call the graph.

    Raises:
        BuildError: a weight that doesn't fit into the type; the message names its nodes.
    """
    _Caster(proto, kind, high, subject).run()


class _Caster:
    def __init__(self, proto: Any, kind: int, high: Callable[[Any], bool], subject: str) -> None:
        import onnx

        self.onnx, self.proto, self.kind, self.high, self.subject = onnx, proto, kind, high, subject
        self.float = onnx.TensorProto.FLOAT
        self.suffix = "_fp16" if kind == onnx.TensorProto.FLOAT16 else "_bf16"
        self.weights, self.types = constants(proto), tensor_types(proto)
        self.nodes: list[Any] = []
        self.casts: dict[tuple[str, int], str] = {}
        self.too_large: list[str] = []

    def run(self) -> None:
        outputs = {output.name for output in self.proto.graph.output}
        # Types as they become: only tensors that nodes make change theirs.
        now = dict(self.types)
        for node in self.proto.graph.node:
            touched = any(self.types.get(name) == self.float for name in (*node.input, *node.output))
            kind = self.float if not touched or self.high(node) else self.kind
            for index, name in enumerate(node.input):
                if self.types.get(name) == self.float and now[name] != kind:
                    node.input[index] = self._as(name, kind, node)
            if kind != self.float:
                self._attributes(node)
            self.nodes.append(node)
            for index, name in enumerate(node.output):
                if self.types.get(name) != self.float:
                    continue
                now[name] = kind
                if name in outputs and kind != self.float:
                    # Others may read it, so it keeps a name of its own.
                    node.output[index] = f"{name}{self.suffix}"
                    self.casts[name, kind] = node.output[index]
                    now[name] = self.float
                    self._cast(node.output[index], name, self.float)
        if self.too_large:
            raise BuildError(f"{self.subject}: {enumerate_names(self.too_large)} has weights beyond fp16's {FP16_MAX:.0f}")
        replace_nodes(self.proto, self.nodes)

    def _as(self, name: str, kind: int, node: Any) -> str:
        """The tensor in another type: a weight anew, anything else by a Cast that is shared."""
        if (name, kind) not in self.casts:
            new = f"{name}{self.suffix if kind != self.float else '_fp32'}"
            self.casts[name, kind] = new
            if name in self.weights:
                values = self.onnx.numpy_helper.to_array(self.weights[name])
                if self.kind == self.onnx.TensorProto.FLOAT16 and not np.abs(values).max(initial=0) <= FP16_MAX:
                    self.too_large.append(node.name)
                    values = np.zeros_like(values)
                self.proto.graph.initializer.append(tensor(new, values, kind))
            else:
                self._cast(name, new, kind)
        return self.casts[name, kind]

    def _cast(self, name: str, new: str, kind: int) -> None:
        self.nodes.append(self.onnx.helper.make_node("Cast", [name], [new], name=f"cast_{new}", to=kind))

    def _attributes(self, node: Any) -> None:
        """Types and tensors that are part of a node."""
        for entry in node.attribute:
            if node.op_type == "Cast" and entry.name == "to" and entry.i == self.float:
                entry.i = self.kind
            if entry.HasField("t") and entry.t.data_type == self.float:
                entry.t.CopyFrom(tensor(entry.t.name, self.onnx.numpy_helper.to_array(entry.t), self.kind))
