"""A run whose model knows its digits, its ONNX file in three precisions, and faults to plant in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from growtas.checkpoint import load_supernet, save_model, save_supernet
from growtas.costs import count_costs
from growtas.data.evaluation import test_set as open_test_set
from growtas.export.artifact import read_manifest, write_manifest
from growtas.export.graph.exporter import export_onnx
from growtas.export.quantization.convert import convert
from growtas.files import sha256
from growtas.nn.extract import extract
from growtas.nn.supernet import Supernet
from growtas.runs import Run
from growtas.subnet import Subnet
from tests.export_helpers import TINY, add_search, make_run, random_supernet

TWO_BLOCKS = Subnet(24, (2, 2), (3.0, 2.0))
PRECISIONS = ("fp32", "fp16", "int8")
Change = Callable[[np.ndarray], np.ndarray]


def knowing_run(root: Path, *, change: Callable[[Supernet], None] = lambda supernet: None) -> Run:
    """A run on the digits whose head was fitted to random features, by least squares; far from chance, and made in a second.

    Args:
        change: done to the supernet before its head is fitted.
    """
    run = make_run(root)
    supernet = random_supernet(TINY)
    change(supernet)
    images = open_test_set(run)
    with torch.no_grad():
        model = extract(supernet, TWO_BLOCKS).eval()
        features = model.forward_head(model.forward_features(images.images(0, len(images))), pre_logits=True).double()
        design = torch.cat([features, torch.ones(len(features), 1).double()], dim=1)
        wanted = torch.nn.functional.one_hot(images.labels, 10).double() * 8 - 4
        fitted = torch.linalg.solve(design.T @ design + 1e-6 * torch.eye(design.shape[1]).double(), design.T @ wanted)
        supernet.head.weight[:, : TWO_BLOCKS.embed_dim] = fitted[:-1].T.float()
        supernet.head.bias[:] = fitted[-1].float()
    save_supernet(run.supernet_file, supernet)
    add_search(run, TWO_BLOCKS)
    return run


def export_by_hand(run: Run) -> Path:
    """The run's static ViT as safetensors and ONNX with manifests, not gated by anything; gives the ONNX file."""
    folder = run.path / "export"
    folder.mkdir()
    model = extract(load_supernet(run.supernet_file), TWO_BLOCKS)
    onnx_file = folder / "tiny-subnet.onnx"
    save_model(onnx_file.with_suffix(".safetensors"), model)
    export_onnx(model, onnx_file)
    content = {
        "precision": "fp32",
        "subnet": TWO_BLOCKS.to_dict(),
        "macs": count_costs(run.space, TWO_BLOCKS).macs,
        "input": {"name": "images", "dtype": "float32", "batch": {"min": 1, "max": 8, "checked": [1, 3, 8]}},
        "preprocess": run.info["preprocess"],
        "class_names": run.info["class_names"],
        "source": {
            "run": run.path.name,
            "checkpoint": run.supernet_file.relative_to(run.path).as_posix(),
            "checkpoint_sha256": sha256(run.supernet_file),
            "subnet_file": "subnet.json",
        },
    }
    for path in (onnx_file.with_suffix(".safetensors"), onnx_file):
        write_manifest(path, content)
    return onnx_file


def initializer(proto: onnx.ModelProto, name: str, *, exact: bool = False) -> onnx.TensorProto:
    found = [tensor for tensor in proto.graph.initializer if (tensor.name == name if exact else tensor.name.endswith(name))]
    assert len(found) == 1, (name, [tensor.name for tensor in proto.graph.initializer])
    return found[0]


def edit(proto: onnx.ModelProto, name: str, change: Change, *, exact: bool = False) -> None:
    """Change a weight that must be there; its name ends with ``name``, or is exactly that."""
    tensor = initializer(proto, name, exact=exact)
    before = numpy_helper.to_array(tensor)
    after = np.ascontiguousarray(change(before.copy()))
    assert not np.array_equal(before, after)
    tensor.CopyFrom(numpy_helper.from_array(after, tensor.name))


def wrong_bias(proto: onnx.ModelProto) -> None:
    edit(proto, "blocks.1.fc1.bias", lambda bias: -bias)


def swapped_heads(proto: onnx.ModelProto) -> None:
    """The queries of block 1's two heads change places, their keys and values don't."""

    def swap(rows: np.ndarray) -> np.ndarray:
        half = len(rows) // 2
        return np.concatenate([rows[half:], rows[:half]])

    edit(proto, "blocks.1.attn.q.weight", swap)


def swapped_classes(proto: onnx.ModelProto) -> None:
    for name in ("head.weight", "head.bias"):
        edit(proto, name, lambda rows: rows[[1, 0, *range(2, len(rows))]])


def in_precision(source: Path, target: Path, precision: str, images: np.ndarray) -> None:
    """An fp32 file in another precision: fp16 by casting every weight, int8 as growtas makes it."""
    if precision == "fp32":
        target.write_bytes(source.read_bytes())
    elif precision == "fp16":
        onnx.save(to_fp16(onnx.load(source)), target)
    else:
        convert(source, target, precision, calibration=np.ascontiguousarray(images, np.float32))


def to_fp16(proto: onnx.ModelProto) -> onnx.ModelProto:
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for node in proto.graph.node:
        node.input[:] = ["images.half" if name == "images" else name for name in node.input]
        node.output[:] = ["logits.half" if name == "logits" else name for name in node.output]
    proto.graph.node.insert(0, helper.make_node("Cast", ["images"], ["images.half"], to=TensorProto.FLOAT16))
    proto.graph.node.append(helper.make_node("Cast", ["logits.half"], ["logits"], to=TensorProto.FLOAT))
    proto.graph.ClearField("value_info")
    onnx.checker.check_model(proto, full_check=True)
    return proto


def in_pixels(proto: onnx.ModelProto, *, mean: float = 0.5, std: float = 0.5, normalise: bool = True) -> onnx.ModelProto:
    """The graph with uint8 pixels ``(batch, height, width, channels)`` as its input."""
    (taken,) = proto.graph.input
    shape = [dim.dim_param or dim.dim_value for dim in taken.type.tensor_type.shape.dim]
    nodes = [
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "shift"], ["images"]),
    ]
    scale, shift = (1 / (255 * std), mean / std) if normalise else (1 / 255, 0.0)
    for name, value in (("scale", scale), ("shift", shift)):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    for node in reversed(nodes):
        proto.graph.node.insert(0, node)
    proto.graph.ClearField("input")
    pixels = [shape[0], shape[2], shape[3], shape[1]]
    proto.graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.UINT8, pixels))
    proto.graph.ClearField("value_info")
    onnx.checker.check_model(proto, full_check=True)
    return proto


def doctor(path: Path, change: Callable[[onnx.ModelProto], Any] = lambda proto: None, **manifest: Any) -> None:
    """Change an artifact behind its manifest's back, and the manifest so that it describes the new file."""
    proto = onnx.load(path)
    change(proto)
    onnx.save(proto, path)
    redescribe(path, **manifest)


def redescribe(path: Path, **changes: Any) -> None:
    """Write an artifact's manifest again, with the file's hash now and with changes."""
    old = read_manifest(path, verify=False)
    assert old is not None
    fixed = ("format", "created", "artifact", "kind", "versions")
    write_manifest(path, {**{key: value for key, value in old.to_dict().items() if key not in fixed}, **changes})
