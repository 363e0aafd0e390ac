"""Finds the first layer that differs, by comparing an artifact's intermediate outputs with the static ViT's or another ONNX file's.

Compared with the static ViT, each layer is judged alone: the static layer gets the artifact's input, so errors of earlier layers do
not count. Layers are found by the LayerNormalization nodes, two per block and one at the end, in every precision.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from growtas.checkpoint import load_model
from growtas.errors import BuildError, UsageError
from growtas.export.formats import ONNX, TORCH
from growtas.export.graph.tensors import OnnxTensors
from growtas.export.runtimes.base import Array
from growtas.files import finite_or_null
from growtas.nn.vit import Block, VisionTransformer, pool, pools_first, typed_blocks

Feed = Callable[[Array], NDArray[Any]]

# Limits of a layer's own error, relative to what the layer adds. An error below the first number is usual for the precision, and an
# error above the second is a fault. In between, the error must stand out from the other layers.
_USUAL: Mapping[str, tuple[float, float]] = {
    "fp32": (1e-5, 1e-3),
    "fp16": (5e-3, 1e-1),
    "bf16": (4e-2, 5e-1),
    "int8": (1e-1, 7e-1),
    "fp8": (1e-1, 7e-1),
}
_STANDS_OUT = 4.0


def _as_is(images: Array) -> Array:
    return images


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """The error of one layer, or of one tensor.

    Attributes:
        layer: name of the layer, such as ``block 3 attention``; operator and tensor if two ONNX files are compared.
        tensor: name of the artifact's tensor.
        before: relative error ``|a - b| / |b|`` (Euclidean norms) of the layer's input.
        after: the same of the layer's output.
        own: error of the layer alone, for the artifact's input, relative to what the layer adds; equal to ``after`` if two ONNX
            files are compared.
    """

    layer: str
    tensor: str
    before: float
    after: float
    own: float


@dataclass(frozen=True, kw_only=True)
class Bisection:
    """The errors of all layers, and the first layer that differs.

    Attributes:
        subject: file name of the artifact.
        against: name of what it was compared with.
        images: number of images.
        layers: errors of all layers, from the images to the logits.
        first: first layer whose error is too large; None if there is none.
    """

    subject: str
    against: str
    images: int
    layers: tuple[LayerError, ...]
    first: LayerError | None

    @property
    def summary(self) -> str:
        """One sentence about the result."""
        if self.first is None:
            worst = max(self.layers, key=lambda layer: layer.own)
            largest = f"the largest error of a layer is {worst.own:.1e} ({worst.layer})"
            return f"{self.subject}: no layer stands out against {self.against}; {largest}"
        first = f"{self.first.layer} ({self.first.tensor}): error {self.first.before:.1e} before, {self.first.after:.1e} after"
        return f"{self.subject}: the first layer that differs from {self.against} is {first}"

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form; errors that are not finite become None."""
        return {
            "subject": self.subject,
            "against": self.against,
            "images": self.images,
            "first": self.first and finite_or_null(asdict(self.first)),
            "layers": [finite_or_null(asdict(error)) for error in self.layers],
        }


def bisect_artifact(path: Path, model: VisionTransformer, images: Array, *, precision: str, feed: Feed = _as_is) -> Bisection:
    """Compares an artifact with the static ViT that it was made from, layer by layer.

    Args:
        path: an ``.onnx`` file of any precision, or a ``.safetensors`` file.
        images: preprocessed images ``(count, channels, height, width)``; a few are enough.
        precision: precision of the artifact, which decides which errors are usual.
        feed: converts these images into the artifact's input.

    Raises:
        BuildError: the graph's LayerNormalization nodes or tensor shapes differ from those of the static ViT.
        CheckpointError: the file can't be read or run.
        UsageError: the artifact has another format.
    """
    if path.suffix == ONNX.suffix:
        names, values = _read_onnx(path, model, feed(images))
    elif path.suffix == TORCH.suffix:
        names, values = _read_torch(load_model(path), images)
    else:
        raise UsageError(f"{path}: layers can be compared in .onnx and .safetensors files only")
    layers = _compare_layers(names, values, model, torch.from_numpy(images), path.name)
    first = _first(layers, precision, adds_up=False)
    return Bisection(subject=path.name, against="the static ViT", images=len(images), layers=layers, first=first)


def bisect_onnx(
    path: Path, other: Path, images: Array, *, precision: str, feed: Feed = _as_is, other_feed: Feed = _as_is
) -> Bisection:
    """Compares two ONNX files tensor by tensor, in the order of the first one.

    Two tensors correspond if their nodes have the same operator and the same output name. If the names differ, the n-th nodes of an
    operator correspond, provided that both files have equally many of them.

    Args:
        path: the artifact.
        other: the file that it is compared with.
        images, precision, feed: as for :func:`bisect_artifact`.
        other_feed: converts the images into the other file's input.

    Raises:
        BuildError: the two files have no tensor in common.
        CheckpointError: a file can't be read or run.
    """
    one, two = OnnxTensors(path), OnnxTensors(other)
    pairs = _pairs(one, two)
    got, want = one.read(pairs, feed(images)), two.read(pairs.values(), other_feed(images))
    layers: list[LayerError] = []
    errors: dict[str, float] = {}
    for node in one.nodes:
        name = node.output[0]
        # The largest error of the node's inputs. A tensor without a counterpart passes on the error of its own inputs.
        before = after = max((errors.get(source, 0.0) for source in node.input), default=0.0)
        if name in pairs and _comparable(got[name], want[pairs[name]]):
            values = got[name].astype(np.float64)
            after = _error(values, want[pairs[name]].astype(np.float64).reshape(values.shape))
            layers.append(LayerError(layer=f"{node.op_type} {name}", tensor=name, before=before, after=after, own=after))
        errors |= dict.fromkeys(node.output, after)
    if not layers:
        raise BuildError(f"{path.name} and {other.name} have no tensor in common; they can't be compared layer by layer")
    first = _first(layers, precision, adds_up=True)
    return Bisection(subject=path.name, against=other.name, images=len(images), layers=tuple(layers), first=first)


def _first(layers: Sequence[LayerError], precision: str, *, adds_up: bool) -> LayerError | None:
    """The first layer whose error is too large for the precision, or stands out.

    ``adds_up`` says that a layer's error includes the error of its input, because the layers are not judged alone.
    """
    usual, never = _USUAL[precision]
    median = float(np.median([layer.own for layer in layers if math.isfinite(layer.own)] or [0.0]))
    for layer in layers:
        ordinary = layer.before if adds_up else median
        # If a tensor is not finite, the first layer that wrote such a tensor is the one that is returned.
        if not layer.own <= never or (layer.own > usual and layer.own > _STANDS_OUT * ordinary):
            return layer
    return None


def _comparable(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two tensors can be compared: tokens may be the rows of a matrix in one, and have a batch axis in the other."""
    alike = a.shape == b.shape or (a.size == b.size and a.shape[-1:] == b.shape[-1:] and {a.ndim, b.ndim} == {2, 3})
    return alike and a.dtype.kind == b.dtype.kind == "f"


def _error(got: NDArray[np.float64], want: NDArray[np.float64]) -> float:
    if got.shape != want.shape or not (np.isfinite(got).all() and np.isfinite(want).all()):
        return math.inf
    difference, size = float(np.linalg.norm(got - want)), float(np.linalg.norm(want))
    return difference / size if size else (0.0 if difference == 0.0 else math.inf)


def _layers(model: VisionTransformer) -> list[tuple[str, Callable[[Tensor], Tensor], bool]]:
    """The name and function of each layer, and whether it adds to its input. The first layer's input is the images."""

    def attention(block: Block, x: Tensor) -> Tensor:
        return x + block.attn(block.norm1(x))

    def mlp(block: Block, x: Tensor) -> Tensor:
        return x + block.fc2(F.gelu(block.fc1(block.norm2(x))))

    layers: list[tuple[str, Callable[[Tensor], Tensor], bool]] = [("patch embedding", model.embed, False)]
    for i, block in enumerate(typed_blocks(model)):
        layers += [(f"block {i} attention", partial(attention, block), True), (f"block {i} MLP", partial(mlp, block), True)]
    if not pools_first(model.architecture):
        return [*layers, ("final norm", model.norm, False), ("head", model.forward_head, False)]
    name, last, _ = layers.pop()
    layers.append((f"{name} and pooling", lambda x: pool(last(x), model.architecture), False))
    return [*layers, ("final norm", model.norm, False), ("head", model.head, False)]


def _compare_layers(
    names: Sequence[str], values: Sequence[NDArray[Any]], model: VisionTransformer, images: Tensor, subject: str
) -> tuple[LayerError, ...]:
    errors: list[LayerError] = []
    # fp64, so that the errors contain only the artifact's rounding.
    model = copy.deepcopy(model).double().eval()
    with torch.inference_mode():
        want = source = images.double()
        before = 0.0
        for (layer, function, adds), tensor, value in zip(_layers(model), names, values, strict=True):
            alone, want = function(source), function(want)
            got = torch.from_numpy(np.asarray(value, np.float64).copy())
            if got.numel() != want.numel():
                shapes = f"{tuple(value.shape)}, not {tuple(want.shape)}"
                raise BuildError(f"{subject}: the tensor {tensor} after {layer} is {shapes}; it can't be compared")
            got = got.reshape(want.shape)
            base = source if adds else torch.zeros_like(alone)
            after, own = _error(got.numpy(), want.numpy()), _error((got - base).numpy(), (alone - base).numpy())
            errors.append(LayerError(layer=layer, tensor=tensor, before=before, after=after, own=own))
            before, source = after, got
    return tuple(errors)


def _read_torch(artifact: VisionTransformer, images: Array) -> tuple[list[str], list[NDArray[Any]]]:
    names, values, x = [], [], torch.from_numpy(images)
    with torch.inference_mode():
        for name, function, _ in _layers(artifact):
            x = function(x)
            names.append(name)
            values.append(x.numpy())
    return names, values


def _read_onnx(path: Path, model: VisionTransformer, images: NDArray[Any]) -> tuple[list[str], list[NDArray[Any]]]:
    """The tensors between the layers: the input of each LayerNormalization, the output of the last one, and the logits."""
    tensors = OnnxTensors(path)
    norms = [node for node in tensors.nodes if node.op_type == "LayerNormalization"]
    if model.architecture.qk_norm:  # The second and third of a block's four norms are those of queries and keys.
        norms = [norm for place, norm in enumerate(norms) if place % 4 in (0, 3)]
    count = 2 * len(model.blocks) + 1
    if len(norms) != count:
        raise BuildError(
            f"{path}: the graph has {len(norms)} LayerNormalization nodes and the static ViT has {count}; "
            f"its layers can't be identified, so compare it with another ONNX file (--against)"
        )
    names = [*(norm.input[0] for norm in norms), norms[-1].output[0], tensors.logits]
    values = tensors.read(names, images)
    return names, [values[name] for name in names]


def _pairs(one: OnnxTensors, two: OnnxTensors) -> dict[str, str]:
    """The tensors of the first graph and their counterparts."""

    def by_operator(tensors: OnnxTensors) -> dict[str, list[str]]:
        outputs: dict[str, list[str]] = {}
        for node in tensors.nodes:
            outputs.setdefault(node.op_type, []).append(node.output[0])
        return outputs

    pairs, others = {}, by_operator(two)
    for operator, names in by_operator(one).items():
        candidates = others.get(operator, [])
        for place, name in enumerate(names):
            if name in candidates:
                pairs[name] = name
            elif len(names) == len(candidates):
                pairs[name] = candidates[place]
    return pairs
