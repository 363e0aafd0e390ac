"""A static ViT as an ONNX file: dynamic batch, operators of the standard domain only, checked and slimmed."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.errors import BuildError, ConfigError
from growtas.nn.vit import VisionTransformer

INPUT, OUTPUT, BATCH = "images", "logits", "batch"
DEFAULT_OPSET = 20
# LayerNormalization came with 17; from 23 on attention maps to an operator whose fp32 form TensorRT doesn't build.
OPSETS = range(18, 23)
# The largest batch that the exporter is told of; the graph itself has no bound.
_TRACED_MAX_BATCH = 1 << 16


@dataclass(frozen=True, kw_only=True)
class OnnxInfo:
    """What was written.

    Attributes:
        opset, ir_version: of the file.
        nodes: number of nodes.
        operators: how often each operator occurs, most frequent first.
    """

    opset: int
    ir_version: int
    nodes: int
    operators: dict[str, int]


def export_onnx(model: VisionTransformer, path: str | Path, *, opset: int = DEFAULT_OPSET) -> OnnxInfo:
    """Write a static ViT as ONNX.

    The input ``images`` is ``(batch, in_chans, image_size, image_size)``, the output ``logits`` is ``(batch, num_classes)``, both
    float32; ``batch`` is dynamic (traced at 2, so that nothing is specialised to one image).

    Raises:
        ConfigError: an opset outside :data:`OPSETS`.
        BuildError: the exporter failed, or the graph holds an operator outside the standard domain.
        OutputError: the file can't be written.
    """
    import onnx

    from growtas.files import ensure_writable, replacing

    if opset not in OPSETS:
        raise ConfigError(
            f"opset is {opset}; legal are {OPSETS.start} to {OPSETS.stop - 1} (fp32 attention builds in TensorRT up to 22)"
        )
    ensure_writable(Path(path).parent)
    proto = _slim(_trace(model, opset))
    _check(proto, model, opset)
    with replacing(path) as temporary:
        onnx.save(proto, temporary)
    operators = Counter(node.op_type for node in proto.graph.node)
    return OnnxInfo(opset=opset, ir_version=proto.ir_version, nodes=len(proto.graph.node), operators=dict(operators.most_common()))


def _trace(model: VisionTransformer, opset: int) -> Any:
    import torch

    from growtas.export.graph.inference_vit import deployable

    architecture = model.architecture
    example = (torch.zeros(2, architecture.in_chans, architecture.image_size, architecture.image_size),)
    dynamic = ({0: torch.export.Dim(BATCH, min=1, max=_TRACED_MAX_BATCH)},)
    with _quiet():
        try:
            traced = torch.export.export(deployable(model), example, dynamic_shapes=dynamic, strict=False)
            # The exporter traces the program a second time to take apart what it can't translate. It can translate all that
            # deployable modules do, and that second time is half of an export: AutoFormer-T's published subnet took 14 s of CPU
            # time with it and 8 s without, with the same nodes. An operator that is unknown after all is an error.
            traced.run_decompositions = lambda *table, **settings: traced
            exported = torch.onnx.export(
                traced,
                example,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dynamic,
                input_names=[INPUT],
                output_names=[OUTPUT],
                # onnxslim does the same in a third of the time.
                optimize=False,
                verbose=False,
            )
        except Exception as error:  # tracing and translating each have their own exceptions
            raise BuildError(f"the ONNX exporter failed: {' '.join(str(error).split())[:200]}") from error
    assert exported is not None
    return exported.model_proto


def _slim(proto: Any) -> Any:
    """Fold constants and drop dead nodes; traces of the source (file names, line numbers) go too."""
    import onnxslim

    with _quiet():
        slimmed = onnxslim.slim(proto)
    _keep_sizes_as_lists(slimmed.graph)
    slimmed.ClearField("metadata_props")
    slimmed.graph.ClearField("metadata_props")
    for part in (*slimmed.graph.node, *slimmed.graph.initializer, *slimmed.graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return slimmed


def _keep_sizes_as_lists(graph: Any) -> None:
    """A size that the exporter makes a number, only to make it a list of one again, stays the list that ``Shape`` gave."""
    made_by = {output: node for node in graph.node for output in node.output}
    for node in [node for node in graph.node if node.op_type == "Reshape"]:
        squeeze = made_by.get(node.input[0])
        if squeeze is None or squeeze.op_type != "Squeeze" or _values(graph, node.input[1]) != [-1]:
            continue
        shape = made_by.get(squeeze.input[0])
        if shape is None or shape.op_type != "Shape" or _shape_length(shape) != 1:
            continue
        for reader in graph.node:
            for place, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[place] = shape.output[0]
        graph.node.remove(node)
        if not any(squeeze.output[0] in reader.input for reader in graph.node):
            graph.node.remove(squeeze)
    read = {name for node in graph.node for name in node.input}
    for constant in [constant for constant in graph.initializer if constant.name not in read]:
        graph.initializer.remove(constant)


def _shape_length(shape: Any) -> int | None:
    """How many sizes a ``Shape`` node gives, where its attributes alone say it."""
    limits = {attribute.name: attribute.i for attribute in shape.attribute}
    start, end = limits.get("start", 0), limits.get("end")
    return end - start if end is not None and 0 <= start <= end else None


def _values(graph: Any, name: str) -> list[int] | None:
    import onnx

    return next((onnx.numpy_helper.to_array(one).tolist() for one in graph.initializer if one.name == name), None)


def _check(proto: Any, model: VisionTransformer, opset: int) -> None:
    """What every exported file promises, whatever the exporter's version did."""
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise BuildError(f"the exported graph is no valid ONNX: {' '.join(str(error).split())[:200]}") from error
    foreign = sorted({f"{node.domain}::{node.op_type}" for node in proto.graph.node if node.domain not in ("", "ai.onnx")})
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if foreign or proto.functions or versions != [opset]:
        found = ", ".join(foreign) or f"functions {[f.name for f in proto.functions]}, opsets {versions}"
        raise BuildError(f"the exported graph is not plain ONNX of opset {opset}: {found}")
    architecture = model.architecture
    images = (BATCH, architecture.in_chans, architecture.image_size, architecture.image_size)
    logits = (BATCH, architecture.num_classes or model.embed_dim)
    for what, values, name, shape in (("input", proto.graph.input, INPUT, images), ("output", proto.graph.output, OUTPUT, logits)):
        got = [(value.name, _shape(value)) for value in values]
        if got != [(name, shape)]:
            raise BuildError(f"the exported graph's {what} is {got}, not {name} {shape}")


def _shape(value: Any) -> tuple[int | str, ...]:
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says to its own developers; errors still come as exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # torch 2.9's exporter uses parts of torch that it has itself deprecated; nothing that a user could act on.
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, module=r"(torch|onnxscript|onnx_ir|copyreg)(\.|$)")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
