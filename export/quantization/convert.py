"""From a finished fp32 ONNX file to one in another precision. Precision lives in the file: plans and IRs are built from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from growtas.errors import BuildError, ConfigError, choices
from growtas.export.graph.attention_fusion import fuse_attention
from growtas.export.graph.edit import (
    constants,
    enumerate_names,
    is_kept,
    is_linear,
    layer_name,
    load_graph,
    save_graph,
    tensor_types,
)
from growtas.export.quantization.calibration import clipping_points, largest
from growtas.export.quantization.half import FP16_MAX, cast_floats, over_range
from growtas.export.quantization.inspect import PRECISIONS, QUANTISED, check_precision
from growtas.export.quantization.layout import part_images, part_norms
from growtas.export.quantization.qdq import fp8, int8, merge_linears, quantise_linears
from growtas.export.runtimes.base import Array

_HALVES = ("fp16", "bf16")
RESTS = ("fp32", *_HALVES)
DEFAULT_METHOD = "minmax"
_ASKED = "asked for"
_BF16_OPSET = 22
_NO_BF16 = "ONNX Runtime's CPU provider computes nothing in bf16; a plan for a GPU is built from this file"


@dataclass(frozen=True, kw_only=True)
class PrecisionInfo:
    """What a conversion made.

    Attributes:
        precision: of the layers that were converted.
        rest: of what is neither a converted layer nor kept; the same as ``precision`` in fp32, fp16 and bf16.
        kept: layers that stayed higher, each with the reason.
        operators, layers, initializers: as :func:`growtas.export.quantization.inspect.inspect_precision` finds them in the file.
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
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """The JSON form for manifests."""
        return {
            "precision": self.precision,
            "rest": self.rest,
            "kept": dict(self.kept),
            "operators": {name: dict(counts) for name, counts in self.operators.items()},
            "layers": dict(self.layers),
            "initializers": dict(self.initializers),
            "calibration": dict(self.calibration) if self.calibration is not None else None,
            "per_channel": self.per_channel,
            "runs_here": self.runs_here,
            "runs_not_because": self.runs_not_because,
            "notes": list(self.notes),
        }


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
    """Write a finished fp32 ONNX file in another precision, and check that it is.

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
    proto = load_graph(source)
    _require_fp32(proto, source)
    kept: dict[str, str] = {}
    recorded: dict[str, Any] | None = None
    if precision in _HALVES or (precision in QUANTISED and rest in _HALVES):
        # Half precision is for GPUs.
        fuse_attention(proto)
        proto = _inferred(proto)
    if precision in QUANTISED:
        if calibration is None:
            raise ConfigError(f"{precision} needs calibration images, and none were given")
        if _for_cpus(precision, rest):
            merge_linears(proto)
            part_norms(proto)
        else:
            # Not merged: q, k and v as products of their own take up to a sixth less of a plan's memory for activations.
            part_images(proto)
            proto = _inferred(proto)
    _require_layers(proto, keep)
    if precision in QUANTISED and calibration is not None:
        beyond = _beyond_fp16(proto, calibration) if rest == "fp16" else {}
        # What is not quantised is as what surrounds it: fp32 in between would cost casts, and sm75 has no products in it.
        kept = _quantise(proto, precision, calibration, [*keep, *beyond], rest, method) | beyond
        recorded = {"images": calibration_are, "count": len(calibration), "method": method}
        if rest != "fp32":
            # Q/DQ nodes are new: their types are not known yet.
            proto = _inferred(proto)
            _halve(proto, rest, beyond, source.name)
    elif precision in _HALVES:
        kept, recorded = _half(proto, precision, calibration, calibration_are, keep, source.name)
    save_graph(proto, out)
    try:
        found = check_precision(out, precision, kept=kept)
    except BuildError:
        out.unlink(missing_ok=True)
        raise
    blocked = "bf16" in (precision, rest if precision in QUANTISED else "")
    return PrecisionInfo(
        precision=precision,
        rest=rest if precision in QUANTISED else precision,
        kept=kept,
        operators=found["operators"],
        layers=found["layers"],
        initializers=found["initializers"],
        calibration=recorded,
        per_channel=True if precision in QUANTISED else None,
        runs_here=not blocked,
        runs_not_because=_NO_BF16 if blocked else None,
    )


def _require_fp32(proto: Any, source: Path) -> None:
    import onnx

    half = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    if any(kind in half for kind in tensor_types(proto).values()) or any(n.op_type == "QuantizeLinear" for n in proto.graph.node):
        raise ConfigError(f"{source}: not an fp32 file; convert the one that it was made from")


def _require_layers(proto: Any, keep: Collection[str]) -> None:
    """Every name in ``keep`` must be one of a layer."""
    weights = constants(proto)
    names = [layer_name(node, weights) for node in proto.graph.node]
    unknown = [name for name in keep if not any(is_kept(layer, (name,)) for layer in names)]
    if unknown:
        products = [layer_name(node, weights) for node in proto.graph.node if node.op_type in ("Gemm", "MatMul", "Conv")]
        raise ConfigError(f"there is no layer {choices(unknown)} to keep; layers are {enumerate_names(products)}")


def _half(
    proto: Any, precision: str, calibration: Array | None, calibration_are: str, keep: Collection[str], subject: str
) -> tuple[dict[str, str], dict[str, Any] | None]:
    """Cast all but what is kept or outgrows fp16."""
    weights = constants(proto)
    kept = {name: _ASKED for node in proto.graph.node if is_kept(name := layer_name(node, weights), keep)}
    recorded = None
    if precision == "fp16":
        kept = _beyond_fp16(proto, calibration) | kept
        if calibration is not None:
            recorded = {"images": calibration_are, "count": len(calibration), "method": "largest magnitude"}
    _halve(proto, precision, kept, subject)
    return kept, recorded


def _beyond_fp16(proto: Any, calibration: Array | None) -> dict[str, str]:
    """Layers that read or write, or whose weights are, what fp16 can't hold; each with the reason."""
    import numpy as np
    import onnx

    weights, types = constants(proto), tensor_types(proto)
    sizes: dict[str, float] = {}
    if calibration is not None:
        floats = [o for n in proto.graph.node for o in n.output if types.get(o) == onnx.TensorProto.FLOAT]
        sizes = largest(proto, [*floats, proto.graph.input[0].name], calibration)
    for name, entry in weights.items():
        if entry.data_type == onnx.TensorProto.FLOAT:
            top = float(np.abs(onnx.numpy_helper.to_array(entry)).max(initial=0))
            # A weight is what it is: no headroom.
            sizes[name] = top if not top <= FP16_MAX else 0.0
    beyond = over_range(sizes)
    found: dict[str, str] = {}
    for node in proto.graph.node:
        worst = [beyond[name] for name in (*node.input, *node.output) if name in beyond]
        if worst:
            found.setdefault(layer_name(node, weights), f"reads or writes {max(worst):.3g}, fp16 ends at {FP16_MAX:.0f}")
    return found


def _halve(proto: Any, precision: str, kept: Collection[str], subject: str) -> None:
    import onnx

    kind = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.BFLOAT16
    if precision == "bf16":
        # Convolutions take bfloat16 from opset 22 on; from 18 to 22 the operators used here got more types and no other meaning.
        for entry in proto.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = max(entry.version, _BF16_OPSET)
    weights = constants(proto)
    cast_floats(proto, kind, lambda node: is_kept(layer_name(node, weights), kept), subject)


def _quantise(proto: Any, precision: str, calibration: Array, keep: Collection[str], rest: str, method: str) -> dict[str, str]:
    """Put Q/DQ around all Linear layers but those that are kept; returns these with the reasons."""
    weights = constants(proto)
    kept: dict[str, str] = {}
    chosen: dict[str, Any] = {}
    for node in proto.graph.node:
        name = layer_name(node, weights)
        linear = is_linear(node, weights)
        if not linear and node.op_type != "Conv":
            continue
        if is_kept(name, keep):
            kept[name] = _ASKED
        elif not linear:
            kept[name] = "a convolution: the first layer, little of the work"
        elif _is_last(node, proto):
            kept[name] = "the classifier: no work to save, and the logits' own scale"
        else:
            chosen[node.name] = node
    if not chosen:
        raise BuildError(f"there is no Linear layer to be in {precision}: {enumerate_names(kept) or 'the graph has none'} stay")
    names = list(dict.fromkeys(node.input[0] for node in chosen.values()))
    how = (int8 if precision == "int8" else fp8)(half_scales=rest != "fp32")
    clipping = clipping_points(proto, names, calibration, method)
    quantise_linears(proto, clipping, lambda node: node.name in chosen, how, for_cpus=_for_cpus(precision, rest))
    return kept


def _for_cpus(precision: str, rest: str) -> bool:
    """Whether a quantised file is in the form for ONNX Runtime and OpenVINO, which TensorRT doesn't take."""
    return precision == "int8" and rest == "fp32"


def _is_last(node: Any, proto: Any) -> bool:
    return node.output[0] == proto.graph.output[0].name


def _inferred(proto: Any) -> Any:
    import onnx

    proto.graph.ClearField("value_info")
    return onnx.shape_inference.infer_shapes(proto, strict_mode=True)
