"""Converts a finished fp32 ONNX file to another precision. Plans and IRs are built from the converted file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from growtas.errors import BuildError, ConfigError, choices
from growtas.export.graph.attention_fusion import fuse_attention
from growtas.export.graph.edit import (
    enumerate_names,
    forget_types,
    infer_types,
    is_linear,
    is_within,
    layer_name,
    load_typed_model,
    numbers,
    operand,
    remove_unused,
    save_model,
)
from growtas.export.graph.tensors import FP16_MAX
from growtas.export.graph.versions import LEAST_OPSETS
from growtas.export.quantization.calibration import Array, clipping_points, largest
from growtas.export.quantization.half import cast_floats
from growtas.export.quantization.inspect import require_precision
from growtas.export.quantization.layout import reshape_norms, restore_batch_axis
from growtas.export.quantization.precisions import HALVES, ONNX_TYPES, PRECISIONS, QUANTISED
from growtas.export.quantization.qdq import Quantisation, merge_linears, quantise_linears

VERSION = 1
"""Version of the conversion. Accuracies of converted subnets are cached by it, so raise it when the numbers in a file change."""
RESTS = ("fp32", *HALVES)
DEFAULT_METHOD = "minmax"
_REQUESTED = "requested"
# Factor between fp16's largest number and the largest calibrated value, because other images may give larger values.
HEADROOM = 2.0
_NO_BF16 = "ONNX Runtime's CPU provider can't compute in bf16; the file is for building plans for GPUs"


@dataclass(frozen=True, kw_only=True)
class PrecisionInfo:
    """How a file was converted, and what it contains.

    Attributes:
        precision: precision of the converted layers.
        rest: precision of everything else; equal to ``precision`` in fp32, fp16 and bf16.
        kept: layers that keep a higher precision, each with the reason.
        operators: how often each operator computes in each type, such as ``{"Gemm": {"int8": 52, "fp32": 1}}``.
        layers: type in which each layer with weights, and every other matrix product, is computed.
        initializers: how many numbers are stored in each type.
        calibration: description (``images``), number (``count``) and ``method`` of the calibration images; None without any.
        per_channel: whether each output channel of a weight has its own scale; None where nothing is quantised.
        runs_here: whether ONNX Runtime's CPU provider can run the file.
        runs_not_because: the reason why it can't; None if it can.
    """

    precision: str
    rest: str
    kept: Mapping[str, str]
    operators: Mapping[str, Mapping[str, int]]
    layers: Mapping[str, str]
    initializers: Mapping[str, int]
    calibration: Mapping[str, Any] | None = None
    per_channel: bool | None = None
    runs_here: bool = True
    runs_not_because: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form for manifests."""
        # Earlier manifests have this key, so it stays.
        return {**asdict(self), "notes": []}


def convert(
    source: Path,
    out: Path,
    precision: str,
    *,
    calibration: Array | None = None,
    calibration_are: str = "",
    keep: Collection[str] = (),
    rest: str = "fp32",
    method: str = DEFAULT_METHOD,
) -> PrecisionInfo:
    """Writes a finished fp32 ONNX file in another precision, and checks the precision of the result.

    Images and logits stay float32. The same arguments make the same bytes.

    Args:
        source: an fp32 file, written by :func:`growtas.export.graph.exporter.export_onnx`. It is not changed.
        out: path of the converted file.
        precision: one of :data:`~growtas.export.quantization.inspect.PRECISIONS`.
        calibration: real images ``(count, channels, height, width)``, preprocessed, float32. int8 and fp8 need them; with fp16 they
            show which layers exceed its range.
        calibration_are: description of these images for the manifest.
        keep: layers, or parts of the model such as ``blocks.3``, that stay in fp32; with int8 and fp8 they stay in ``rest``.
        rest: for int8 and fp8, the precision around the quantised layers. fp32 is for CPUs (the biases of int8 layers are then
            quantised too, which TensorRT refuses). fp16 and bf16 are for GPUs; on sm75 TensorRT-RTX has no fp32 products.
        method: one of :data:`~growtas.export.quantization.calibration.METHODS`.

    Raises:
        BuildError: the conversion failed, or the result is not in the precision.
        CheckpointError: ``source`` is not an ONNX file.
        ConfigError: the precision, method or a layer is unknown, or images are needed and missing.
        OutputError: the file can't be written.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}; legal are {choices(PRECISIONS)}")
    if rest not in RESTS:
        raise ConfigError(f"the precision around quantised layers is {rest!r}; legal are {choices(RESTS)}")
    if source.resolve() == out.resolve():
        raise ConfigError(f"{out}: the converted file would replace its source; name another one")
    model = load_typed_model(source)
    _require_fp32(model, source)
    kept: dict[str, str] = {}
    measured: str | None = None
    rest = rest if precision in QUANTISED else precision
    least = max(LEAST_OPSETS.get(name, 0) for name in (precision, rest))
    if precision in QUANTISED and rest in HALVES:
        least = max(least, 19)  # since then QuantizeLinear accepts half precision
    model.opset_imports[""] = max(model.opset_imports.get("", 0), least)
    if rest in HALVES:
        # Half precision is for GPUs.
        fuse_attention(model)
        model = infer_types(model)
    if precision in QUANTISED:
        if calibration is None:
            raise ConfigError(f"{precision} needs calibration images, and none were given")
        # ONNX Runtime and OpenVINO need a form that TensorRT doesn't accept.
        for_cpus, measured = precision == "int8" and rest == "fp32", method
        if for_cpus:
            merge_linears(model)
            reshape_norms(model)
        else:
            # q, k and v stay separate products, which reduces a plan's activation memory by up to a sixth.
            restore_batch_axis(model)
            model = infer_types(model)
        _require_layers(model.graph, keep)
        beyond = _beyond_fp16(model, calibration) if rest == "fp16" else {}
        # Kept layers have the precision of the rest: fp32 layers in between would need casts, and sm75 has no fp32 products.
        layers, kept = _split_layers(model.graph, precision, [*keep, *beyond])
        clipping = clipping_points(model, list(dict.fromkeys(str(operand(node).name) for node in layers)), calibration, method)
        quantise_linears(model, layers, clipping, Quantisation(precision, half_scales=rest != "fp32"), for_cpus=for_cpus)
        kept |= beyond
        if rest != "fp32":
            # The types of the new Q/DQ nodes are not known yet.
            forget_types(model)
            model = infer_types(model)
            cast_floats(model, rest, beyond, source.name)
    else:
        _require_layers(model.graph, keep)
    if precision in HALVES:
        kept = {name: _REQUESTED for node in model.graph if is_within(name := layer_name(node), keep)}
        if precision == "fp16":
            kept, measured = _beyond_fp16(model, calibration) | kept, "largest magnitude"
        cast_floats(model, precision, kept, source.name)
    remove_unused(model)
    forget_types(model)
    save_model(model, out, "the converted graph")
    try:
        contents = require_precision(out, precision, kept=kept)
    except BuildError:
        out.unlink(missing_ok=True)
        raise
    recorded: dict[str, Any] | None = None
    if calibration is not None and measured is not None:
        recorded = {"images": calibration_are, "count": len(calibration), "method": measured}
    return PrecisionInfo(
        precision=precision,
        rest=rest,
        kept=kept,
        **contents,
        calibration=recorded,
        per_channel=True if precision in QUANTISED else None,
        runs_here=rest != "bf16",
        runs_not_because=_NO_BF16 if rest == "bf16" else None,
    )


def _require_fp32(model: ir.Model, source: Path) -> None:
    halves = {ir.DataType[ONNX_TYPES[precision]] for precision in HALVES}
    for node in model.graph:
        types = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}
        if node.op_type == "QuantizeLinear" or not halves.isdisjoint(types):
            raise ConfigError(f"{source}: not an fp32 file; convert the fp32 file that it was made from")


def _require_layers(graph: ir.Graph, keep: Collection[str]) -> None:
    """Checks that every name in ``keep`` is that of a layer or a part of the model."""
    names = [layer_name(node) for node in graph]
    unknown = [name for name in keep if not any(is_within(layer, (name,)) for layer in names)]
    if unknown:
        products = [layer_name(node) for node in graph if node.op_type in ("Gemm", "MatMul", "Conv")]
        raise ConfigError(f"there is no layer {choices(unknown)} to keep; the layers are {enumerate_names(products)}")


def _beyond_fp16(model: ir.Model, calibration: Array | None) -> dict[str, str]:
    """Layers with inputs, outputs or weights beyond fp16's range, each with the reason."""
    graph, sizes = model.graph, dict[str, float]()
    if calibration is not None:
        floats = [str(value.name) for node in graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]
        sizes = largest(model, [*floats, str(graph.inputs[0].name)], calibration)
    for name, value in graph.initializers.items():
        if value.dtype == ir.DataType.FLOAT:
            top = float(np.abs(numbers(value)).max(initial=0))
            # Weights do not depend on the images, so they need no headroom.
            sizes[name] = top if not top <= FP16_MAX else 0.0
    beyond = {name: size for name, size in sizes.items() if not size * HEADROOM <= FP16_MAX}
    reasons: dict[str, str] = {}
    for node in graph:
        names = (value.name for value in (*node.inputs, *node.outputs) if value is not None)
        worst = [beyond[name] for name in names if name in beyond]
        if worst:
            reasons.setdefault(layer_name(node), f"reads or writes {max(worst):.3g}, and fp16 ends at {FP16_MAX:.0f}")
    return reasons


def _split_layers(graph: ir.Graph, precision: str, keep: Collection[str]) -> tuple[list[ir.Node], dict[str, str]]:
    """The Linear layers to quantise, and the layers that are kept, each with the reason."""
    kept: dict[str, str] = {}
    layers: list[ir.Node] = []
    for node in graph:
        name, linear = layer_name(node), is_linear(node)
        if not linear and node.op_type != "Conv":
            continue
        if is_within(name, keep):
            kept[name] = _REQUESTED
        elif not linear:
            kept[name] = "a convolution: it is the first layer and little of the work"
        elif node.outputs[0].is_graph_output():
            kept[name] = "the classifier: it is little work, and quantising it would coarsen the logits"
        else:
            layers.append(node)
    if not layers:
        left = f"all are kept ({enumerate_names(kept)})" if kept else "the graph has none"
        raise BuildError(f"no Linear layer can be converted to {precision}: {left}")
    return layers, kept
