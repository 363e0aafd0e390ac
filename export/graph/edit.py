"""What the conversions have in common: an ONNX graph that can be looked up by name and put together anew."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.errors import BuildError, CheckpointError

# Messages name this many; the rest is counted.
_NAMED = 5
_WEIGHT = ".weight"


def load_graph(path: Path) -> Any:
    """An ONNX file with the types of all tensors inferred.

    Raises:
        CheckpointError: not an ONNX file.
        BuildError: a graph whose types can't be inferred.
    """
    import onnx

    try:
        proto = onnx.load(path)
    except Exception as error:  # the parser's exceptions share no base class
        raise CheckpointError(f"{path}: not an ONNX file ({_one_line(error)})") from None
    try:
        return onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    except Exception as error:
        raise BuildError(f"{path}: the types of its tensors can't be inferred ({_one_line(error)})") from None


def save_graph(proto: Any, out: Path) -> None:
    """Drop what no node reads, check, and write.

    Raises:
        BuildError: the graph is no valid ONNX.
        OutputError: the file can't be written.
    """
    import onnx

    from growtas.files import ensure_writable, replacing

    read = {name for node in proto.graph.node for name in node.input} | {output.name for output in proto.graph.output}
    kept = [entry for entry in proto.graph.initializer if entry.name in read]
    proto.graph.ClearField("initializer")
    proto.graph.initializer.extend(kept)
    # Shapes and types of what lies between are stale after a conversion.
    proto.graph.ClearField("value_info")
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise BuildError(f"{out.name}: the converted graph is no valid ONNX ({_one_line(error)})") from None
    ensure_writable(out.parent)
    with replacing(out) as temporary:
        onnx.save(proto, temporary)


def tensor_types(proto: Any) -> dict[str, int]:
    """Element type of every tensor of a graph whose types are inferred, initializers included."""
    graph = proto.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    return types | {entry.name: entry.data_type for entry in graph.initializer}


def constants(proto: Any) -> dict[str, Any]:
    """Initializers by name."""
    return {entry.name: entry for entry in proto.graph.initializer}


def layer_name(node: Any, known: Collection[str]) -> str:
    """What people call a node: the path of its weight without ``.weight``, else the node's own name.

    Args:
        known: names of the graph's initializers.
    """
    for name in list(node.input)[1:2]:
        if name in known and "." in name:
            return str(name).removesuffix(_WEIGHT)
    return str(node.name)


def is_kept(layer: str, keep: Collection[str]) -> bool:
    """Whether a layer is named by ``keep``: itself, or a part of the model that holds it (``blocks.3`` holds ``blocks.3.fc1``)."""
    return any(layer == name or layer.startswith(f"{name}.") for name in keep)


def is_linear(node: Any, initializers: dict[str, Any]) -> bool:
    """Whether a node is a Linear layer: a product with one constant matrix, plain but for a transposed weight."""
    if node.op_type not in ("Gemm", "MatMul") or len(node.input) < 2 or node.input[0] in initializers:
        return False
    weight = initializers.get(node.input[1])
    if weight is None or len(weight.dims) != 2:
        return False
    if node.op_type == "MatMul":
        # The tables of the relative position are constant matrices too, but no weights of a layer.
        return bool(node.input[1].endswith(_WEIGHT))
    plain = all(attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta")) and not attribute(node, "transA", 0)
    bias = len(node.input) < 3 or (node.input[2] in initializers and len(initializers[node.input[2]].dims) == 1)
    return plain and bias


def attribute(node: Any, name: str, default: Any) -> Any:
    """Value of a node's attribute."""
    import onnx

    return next((onnx.helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def tensor(name: str, values: Any, kind: int) -> Any:
    """An initializer of an ONNX element type; numbers are rounded to it."""
    import onnx

    array: NDArray[Any] = np.asarray(values)
    return onnx.numpy_helper.from_array(np.ascontiguousarray(array.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))), name)


def replace_nodes(proto: Any, nodes: Sequence[Any]) -> None:
    """Put other nodes, in an order that can be run, in place of a graph's."""
    import onnx

    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    proto.graph.ClearField("node")
    proto.graph.node.extend(copies)


def enumerate_names(names: Iterable[str]) -> str:
    """``a, b, c and 4 more``."""
    listed = list(names)
    more = len(listed) - _NAMED
    return ", ".join(listed[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
