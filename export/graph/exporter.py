"""Exports a static ViT as an ONNX file with a dynamic batch, which has only operators of the standard domain."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from growtas.errors import BuildError, ConfigError
from growtas.export.graph.edit import constant, describe, operand, remove_unused, save_model
from growtas.export.graph.inference_vit import deployable
from growtas.export.graph.versions import least_ir_version
from growtas.files import ensure_writable
from growtas.nn.vit import VisionTransformer

INPUT, OUTPUT, BATCH = "images", "logits", "batch"
DEFAULT_OPSET = 20
# From opset 23 on the exporter uses an Attention operator, which TensorRT can't build in fp32.
OPSETS = range(18, 23)
# Largest batch that the exporter is told; the graph itself has no limit.
_TRACED_MAX_BATCH = 1 << 16


def export_onnx(
    model: VisionTransformer,
    path: str | Path,
    *,
    opset: int = DEFAULT_OPSET,
    ir_version: int | None = None,
    preprocess: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Writes a static ViT as ONNX.

    The input ``images`` is ``(batch, in_chans, image_size, image_size)`` and the output ``logits`` ``(batch, num_classes)``, both
    float32. The batch is dynamic; it is traced at 2, so that nothing is specialised to one image.

    Args:
        ir_version: IR version of the file; by default the lowest that the opset needs, because most runtimes can read it.
        preprocess, class_names: for the file's metadata; see :func:`growtas.export.graph.edit.describe`.

    Raises:
        ConfigError: the opset is not in :data:`OPSETS`.
        BuildError: the exporter failed, or the graph holds an operator outside the standard domain.
        OutputError: the file can't be written.
    """
    if opset not in OPSETS:
        raise ConfigError(
            f"opset is {opset}; legal are {OPSETS.start} to {OPSETS.stop - 1} (TensorRT can build fp32 attention up to 22)"
        )
    ensure_writable(Path(path).parent)
    exported = export_model(model, opset=opset)
    exported.ir_version = ir_version or exported.ir_version
    describe(exported, preprocess=preprocess, class_names=class_names)
    save_model(exported, path, "the exported graph")


def export_model(model: VisionTransformer, *, opset: int = DEFAULT_OPSET) -> ir.Model:
    """Returns the graph that :func:`export_onnx` writes.

    Raises:
        BuildError: as :func:`export_onnx`.
    """
    exported = slim(_trace(model, opset))
    _require_plain(exported, model, opset)
    return exported


def _trace(model: VisionTransformer, opset: int) -> onnx.ModelProto:
    architecture = model.architecture
    example = (torch.zeros(2, architecture.in_chans, architecture.image_size, architecture.image_size),)
    dynamic = ({0: torch.export.Dim(BATCH, min=1, max=_TRACED_MAX_BATCH)},)
    with quiet():
        try:
            traced = torch.export.export(deployable(model), example, dynamic_shapes=dynamic, strict=False)
            # The exporter traces the program a second time to decompose operators that it can't translate. It can translate every
            # operator of deployable modules, so this is skipped: AutoFormer-T's published subnet took 14 s of CPU time with it and
            # 8 s without, with the same nodes. An unknown operator is still an error.
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
        except Exception as error:  # the exceptions of tracing and translating share no base class
            raise BuildError(f"the ONNX exporter failed: {' '.join(str(error).split())[:200]}") from error
    assert exported is not None
    return exported.model_proto


def slim(proto: onnx.ModelProto) -> ir.Model:
    """Folds constants and removes unused nodes and source locations (file names, line numbers).

    The IR version becomes the lowest that the opset needs.
    """
    import onnxslim

    with quiet():
        model = ir.from_proto(onnxslim.slim(proto))
    _keep_sizes_as_lists(model)
    ClearMetadataAndDocStringPass()(model)
    model.ir_version = least_ir_version(model.opset_imports[""])
    return model


def _keep_sizes_as_lists(model: ir.Model) -> None:
    """Removes the Squeeze and Reshape with which the exporter turns a size into a scalar and back into a list of one."""
    for reshape in tuple(model.graph):
        shape = constant(operand(reshape, 1)) if reshape.op_type == "Reshape" else None
        squeeze = operand(reshape).producer() if shape is not None and shape.tolist() == [-1] else None
        sizes = operand(squeeze).producer() if squeeze is not None and squeeze.op_type == "Squeeze" else None
        if sizes is not None and sizes.op_type == "Shape" and _shape_length(sizes) == 1:
            reshape.outputs[0].replace_all_uses_with(sizes.outputs[0])
    remove_unused(model)


def _shape_length(shape: ir.Node) -> int | None:
    """The number of sizes that a ``Shape`` node returns, if its attributes determine it; else None."""
    start, end = shape.attributes.get_int("start", 0), shape.attributes.get_int("end", -1)
    return end - start if 0 <= start <= end else None


def _require_plain(exported: ir.Model, model: VisionTransformer, opset: int) -> None:
    """Checks the operators, opset, input and output of an exported graph, because exporters' versions differ."""
    foreign = sorted({f"{node.domain}::{node.op_type}" for node in exported.graph if node.domain})
    version = exported.opset_imports.get("")
    if foreign or exported.functions or version != opset:
        reason = ", ".join(foreign) or f"functions {[name for _, name, _ in exported.functions]}, opset {version}"
        raise BuildError(f"the exported graph is not plain ONNX of opset {opset}: {reason}")
    architecture = model.architecture
    images = (BATCH, architecture.in_chans, architecture.image_size, architecture.image_size)
    logits = (BATCH, architecture.num_classes or model.embed_dim)
    graph = exported.graph
    for end, values, name, shape in (("input", graph.inputs, INPUT, images), ("output", graph.outputs, OUTPUT, logits)):
        actual = [(value.name, tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape or ())) for value in values]
        if actual != [(name, shape)]:
            raise BuildError(f"the exported graph's {end} is {actual}, not {name} {shape}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporter's warnings and logs, which are for its developers; errors are still raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # torch 2.9's exporter uses deprecated parts of torch, about which a user can do nothing.
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, module=r"(torch|onnxscript|onnx_ir|copyreg)(\.|$)")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
