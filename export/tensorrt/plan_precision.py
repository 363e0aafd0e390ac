"""Reads the precision in which a plan computes from the compiler's parsed network.

Networks are strongly typed, so a plan has the types of its parsed network. These can be read without a GPU, unlike the layers of a
built engine, because loading a plan needs a driver.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from typing import Any

from growtas.errors import BuildError, ConfigError, choices
from growtas.export.quantization.precisions import HALVES, PRECISIONS, QUANTISED
from growtas.export.tensorrt.library import Module

# Smallest share of the weights that must be multiplied in the requested precision; sensitive layers may have a higher one.
MIN_SHARE = 0.5
_NAMES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"}
_PASSING = ("CAST", "SHUFFLE", "IDENTITY", "QUANTIZE", "DEQUANTIZE")


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The types of the operands of a parsed network's matrix products and convolutions.

    Attributes:
        products: number of products by the type of their operands. A quantised product has two quantised operands.
        weights: number of constant numbers by the type in which they are multiplied.
        layers: number of all layers of the network.
    """

    products: dict[str, int]
    weights: dict[str, int]
    layers: int

    def to_dict(self) -> dict[str, object]:
        """Returns the JSON form, in which ``of`` says that a parsed network was inspected."""
        return {"of": "parsed network", "layers": self.layers, "products": dict(self.products), "weights": dict(self.weights)}


def inspect_network(trt: Module, network: Any) -> Inspection:
    """Reads the types of a parsed network (an ``INetworkDefinition``)."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    products: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for layer in layers:
        if layer.type not in (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION):
            continue
        operands = [layer.get_input(i) for i in range(min(layer.num_inputs, 2))]
        kinds = [_operand_type(tensor, makers) for tensor in operands]
        # If only one operand is quantised, the product is in the other's type.
        kind = kinds[0] if len(set(kinds)) == 1 else next((k for k in kinds if k not in QUANTISED), "mixed")
        products[kind] += 1
        weights[kind] += sum(_constant_numbers(tensor, makers) for tensor in operands) + _kernel_numbers(trt, layer)
    return Inspection(products=dict(products), weights={kind: n for kind, n in weights.items() if n}, layers=len(layers))


def require_precision(inspection: Inspection, precision: str, subject: str) -> None:
    """Checks that a network is in the requested precision.

    Raises:
        BuildError: less than :data:`MIN_SHARE` of the weights is in this precision, or something is in a coarser one.
        ConfigError: the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}; legal are {choices(PRECISIONS)}")
    products = ", ".join(f"{count} in {kind}" for kind, count in sorted(inspection.products.items())) or "none"
    # Other types are allowed only if they are not coarser than the requested precision.
    odd = sorted(set(inspection.products) - {precision, "fp32", *(HALVES if precision in QUANTISED else ())})
    share = inspection.weights.get(precision, 0) / max(sum(inspection.weights.values()), 1)
    if odd or share < MIN_SHARE:
        why = f"some are in {choices(odd)}" if odd else f"{share:.0%} of the weights are in {precision} (at least {MIN_SHARE:.0%})"
        raise BuildError(f"{subject}: the graph is not in {precision}: its products are {products}, and {why}")


def _type_name(tensor: Any) -> str:
    return _NAMES.get(tensor.dtype.name, tensor.dtype.name.lower())


def _maker(tensor: Any, makers: dict[str, Any], passing: Collection[str]) -> Any:
    """The layer that makes a tensor, skipping layers that only pass it on; None for an input of the network."""
    maker = makers.get(tensor.name)
    while maker is not None and maker.type.name in passing:
        maker = makers.get(maker.get_input(0).name)
    return maker


def _operand_type(tensor: Any, makers: dict[str, Any]) -> str:
    """The type in which an operand is multiplied: that before a DequantizeLinear, or else its own type."""
    maker = _maker(tensor, makers, ("SHUFFLE", "IDENTITY"))
    return _type_name(maker.get_input(0) if maker is not None and maker.type.name == "DEQUANTIZE" else tensor)


def _constant_numbers(tensor: Any, makers: dict[str, Any]) -> int:
    """The number of values of a constant operand; 0 for any other operand."""
    maker = _maker(tensor, makers, _PASSING)
    return prod(maker.get_output(0).shape) if maker is not None and maker.type.name == "CONSTANT" else 0


def _kernel_numbers(trt: Module, layer: Any) -> int:
    """The number of values in a convolution's kernel, if the kernel belongs to the layer and is not an operand; else 0."""
    if layer.type != trt.LayerType.CONVOLUTION or layer.num_inputs > 1:
        return 0
    # get_layer returns the base class, but the kernel belongs to the derived class.
    layer.__class__ = trt.IConvolutionLayer
    return int(layer.kernel.size)
