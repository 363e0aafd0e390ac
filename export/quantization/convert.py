"""Converts a finished fp32 ONNX file to another precision. Precision lives in the file: plans and IRs are built from it."""

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
from growtas.export.quantization.calibration import Array, clipping_points, largest
from growtas.export.quantization.half import cast_floats, over_range
from growtas.export.quantization.inspect import require_precision
from growtas.export.quantization.layout import reshape_norms, restore_batch_axis
from growtas.export.quantization.precisions import HALVES, ONNX_TYPES, PRECISIONS, QUANTISED
from growtas.export.quantization.qdq import Quantisation, merge_linears, quantise_linears

RESTS = ("fp32", *HALVES)
DEFAULT_METHOD = "minmax"
_ASKED = "asked for"
_BF16_OPSET = 22
_NO_BF16 = "ONNX Runtime's CPU provider computes nothing in bf16; a plan for a GPU is built from this file"


@dataclass(frozen=True, kw_only=True)
class PrecisionInfo:
    """How a file was converted, and what it holds.

    Attributes:
        precision: of the layers that were converted.
        rest: of what is neither a converted layer nor kept; the same as ``precision`` in fp32, fp16 and bf16.
        kept: layers that stayed higher, each with the reason.
        operators, layers, initializers: as :func:`growtas.export.quantization.inspect.require_precision` finds them in the file.
        calibration: which images, how many, by which method; None where none were used.
        per_channel: whether each output channel of a weight has a scale of its own; None where nothing is quantised.
        runs_here: whether ONNX Runtime's CPU provider can run the file; ``runs_not_because`` says why not.
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
        return asdict(self)


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
    """Writes a finished fp32 ONNX file in another precision, and checks that it is.

    Images and logits stay float32. The same input makes the same bytes.

    Args:
        source: an fp32 file, as :func:`growtas.export.graph.exporter.export_onnx` writes it.
        out: where to; ``source`` itself is not changed.
        precision: of :data:`~growtas.export.quantization.inspect.PRECISIONS`.
        calibration: real images ``(count, channels, height, width)``, preprocessed, float32. int8 and fp8 need them; fp16 finds by
            them what outgrows its range.
        calibration_are: which images they are, for the manifest.
        keep: layers that stay in fp32, or parts of the model such as ``blocks.3``; beside int8 and fp8 they stay in ``rest``.
        rest: for int8 and fp8, what surrounds the quantised layers: fp32 is for CPUs (int8's biases are quantised then, which
            TensorRT refuses), fp16 and bf16 are for GPUs (and for sm75 the only ones: TensorRT-RTX has no fp32 products there).
        method: of :data:`~growtas.export.quantization.calibration.METHODS`.

    Raises:
        BuildError: the conversion failed, or the result is not in the precision.
        CheckpointError: ``source`` is not an ONNX file.
        ConfigError: an unknown precision, method or layer, or no images where some are needed.
        OutputError: the file can't be written.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}; legal are {choices(PRECISIONS)}")
    if rest not in RESTS:
        raise ConfigError(f"what surrounds quantised layers is {rest!r}; legal are {choices(RESTS)}")
    if source.resolve() == out.resolve():
        raise ConfigError(f"{out}: the converted file would replace its source; name another one")
    model = load_typed_model(source)
    _require_fp32(model, source)
    kept: dict[str, str] = {}
    recorded: dict[str, Any] | None = None
    if precision in HALVES or (precision in QUANTISED and rest in HALVES):
        # Half precision is for GPUs.
        fuse_attention(model)
        model = infer_types(model)
    if precision in QUANTISED:
        if calibration is None:
            raise ConfigError(f"{precision} needs calibration images, and none were given")
        if _for_cpus(precision, rest):
            merge_linears(model)
            reshape_norms(model)
        else:
            # Not merged: q, k and v as products of their own take up to a sixth less of a plan's memory for activations.
            restore_batch_axis(model)
            model = infer_types(model)
    _require_layers(model.graph, keep)
    if precision in QUANTISED and calibration is not None:
        beyond = _beyond_fp16(model, calibration) if rest == "fp16" else {}
        # What is not quantised is as what surrounds it: fp32 in between would cost casts, and sm75 has no products in it.
        kept = _quantise(model, precision, calibration, [*keep, *beyond], rest, method) | beyond
        recorded = {"images": calibration_are, "count": len(calibration), "method": method}
        if rest != "fp32":
            # Q/DQ nodes are new: their types are not known yet.
            forget_types(model)
            model = infer_types(model)
            _halve(model, rest, beyond, source.name)
    elif precision in HALVES:
        kept = {name: _ASKED for node in model.graph if is_within(name := layer_name(node), keep)}
        if precision == "fp16":
            kept = _beyond_fp16(model, calibration) | kept
            if calibration is not None:
                recorded = {"images": calibration_are, "count": len(calibration), "method": "largest magnitude"}
        _halve(model, precision, kept, source.name)
    remove_unused(model)
    forget_types(model)
    save_model(model, out, "the converted graph")
    try:
        contents = require_precision(out, precision, kept=kept)
    except BuildError:
        out.unlink(missing_ok=True)
        raise
    blocked = "bf16" in (precision, rest if precision in QUANTISED else "")
    return PrecisionInfo(
        precision=precision,
        rest=rest if precision in QUANTISED else precision,
        kept=kept,
        **contents,
        calibration=recorded,
        per_channel=True if precision in QUANTISED else None,
        runs_here=not blocked,
        runs_not_because=_NO_BF16 if blocked else None,
    )


def _require_fp32(model: ir.Model, source: Path) -> None:
    halves = {ir.DataType[ONNX_TYPES[precision]] for precision in HALVES}
    for node in model.graph:
        types = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}
        if node.op_type == "QuantizeLinear" or not halves.isdisjoint(types):
            raise ConfigError(f"{source}: not an fp32 file; convert the one that it was made from")


def _require_layers(graph: ir.Graph, keep: Collection[str]) -> None:
    """Every name in ``keep`` must be one of a layer."""
    names = [layer_name(node) for node in graph]
    unknown = [name for name in keep if not any(is_within(layer, (name,)) for layer in names)]
    if unknown:
        products = [layer_name(node) for node in graph if node.op_type in ("Gemm", "MatMul", "Conv")]
        raise ConfigError(f"there is no layer {choices(unknown)} to keep; layers are {enumerate_names(products)}")


def _beyond_fp16(model: ir.Model, calibration: Array | None) -> dict[str, str]:
    """Layers that read or write, or whose weights are, what fp16 can't hold; each with the reason."""
    graph, sizes = model.graph, dict[str, float]()
    if calibration is not None:
        floats = [str(value.name) for node in graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]
        sizes = largest(model, [*floats, str(graph.inputs[0].name)], calibration)
    for name, value in graph.initializers.items():
        if value.dtype == ir.DataType.FLOAT:
            top = float(np.abs(numbers(value)).max(initial=0))
            # A weight is what it is: no headroom.
            sizes[name] = top if not top <= FP16_MAX else 0.0
    beyond = over_range(sizes)
    reasons: dict[str, str] = {}
    for node in graph:
        names = (value.name for value in (*node.inputs, *node.outputs) if value is not None)
        worst = [beyond[name] for name in names if name in beyond]
        if worst:
            reasons.setdefault(layer_name(node), f"reads or writes {max(worst):.3g}, fp16 ends at {FP16_MAX:.0f}")
    return reasons


def _halve(model: ir.Model, precision: str, kept: Collection[str], subject: str) -> None:
    if precision == "bf16":
        # Convolutions take bfloat16 from opset 22 on; from 18 to 22 the operators used here got more types and no other meaning.
        model.opset_imports[""] = max(model.opset_imports[""], _BF16_OPSET)
    cast_floats(model, ir.DataType[ONNX_TYPES[precision]], lambda node: is_within(layer_name(node), kept), subject)


def _quantise(model: ir.Model, precision: str, calibration: Array, keep: Collection[str], rest: str, method: str) -> dict[str, str]:
    """Puts Q/DQ around all Linear layers but those that are kept; returns these with the reasons."""
    kept: dict[str, str] = {}
    layers: list[ir.Node] = []
    for node in model.graph:
        name, linear = layer_name(node), is_linear(node)
        if not linear and node.op_type != "Conv":
            continue
        if is_within(name, keep):
            kept[name] = _ASKED
        elif not linear:
            kept[name] = "a convolution: the first layer, little of the work"
        elif node.outputs[0].is_graph_output():
            kept[name] = "the classifier: no work to save, and the logits' own scale"
        else:
            layers.append(node)
    if not layers:
        raise BuildError(f"there is no Linear layer to be in {precision}: {enumerate_names(kept) or 'the graph has none'} stay")
    names = list(dict.fromkeys(str(operand(node).name) for node in layers))
    how = Quantisation(precision, half_scales=rest != "fp32")
    clipping = clipping_points(model, names, calibration, method)
    quantise_linears(model, layers, clipping, how, for_cpus=_for_cpus(precision, rest))
    return kept


def _for_cpus(precision: str, rest: str) -> bool:
    """Whether a quantised file is in the form for ONNX Runtime and OpenVINO, which TensorRT doesn't take."""
    return precision == "int8" and rest == "fp32"
