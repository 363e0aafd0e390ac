"""Prints tables of plans of AutoFormer-T's published subnet, which are built ahead of time without a GPU.

Run as ``python -m tests.gpu.plan_table``, which takes some minutes.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import onnx
import torch
from torch import nn

from growtas.errors import DeviceError
from growtas.export.graph.exporter import export_onnx
from growtas.export.tensorrt.builder import BuiltPlan, Shapes, TensorRTRTXBuilder
from tests.benchmarks.models import deit_tiny, static
from tests.unit.export.tensorrt.plan_models import PRECISIONS, make_precision

ALONE = ("sm75", "sm80", "sm86", "sm89", "sm120")
SEVERAL = ("sm80", "sm86", "sm89", "sm120")
# Kernels are compiled on the target machine. A plan contains their source, with one declaration and one definition per kernel.
_KERNEL = re.compile(rb"__global__")


def weight_bytes(path: Path) -> int:
    """Returns the bytes of all constants of an ONNX file."""
    return sum(len(entry.raw_data) for entry in onnx.load(path).graph.initializer)


def row(path: Path, targets: tuple[str, ...], precision: str) -> str:
    """Builds one plan and returns its row of the table."""
    builder = TensorRTRTXBuilder()
    try:
        builder.check(targets, precision)
    except DeviceError as error:
        return f"| {precision} | {', '.join(targets)} | refused: {str(error).split(';')[0]} | | | | | |"
    plan = builder.build(path, targets, precision=precision, batches=Shapes(max=8))
    weights, kernels = weight_bytes(path), len(_KERNEL.findall(plan.data)) // 2
    cells = [precision, ", ".join(targets), f"{plan.seconds:.1f} s", _mb(len(plan.data)), _mb(weights)]
    cells += [f"{len(plan.data) / weights:.2f}", str(kernels), _mb(plan.activation_memory_bytes or 0)]
    return f"| {' | '.join(cells)} |"


def activation(path: Path, batch: int, precision: str) -> int:
    """Returns the activation memory of a plan for sm86 whose largest batch is ``batch``."""
    plan: BuiltPlan = TensorRTRTXBuilder().build(path, ("sm86",), precision=precision, batches=Shapes(max=batch))
    return plan.activation_memory_bytes or 0


def export_timm(model: nn.Module, path: Path) -> None:
    """Exports a timm model with growtas' names of inputs and outputs."""
    images = torch.zeros(2, 3, 224, 224)
    torch.onnx.export(
        model.eval(),
        (images,),
        path,
        dynamo=True,
        opset_version=20,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["images"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )


def main() -> None:
    """Prints both tables as Markdown."""
    out = sys.stdout.write
    with tempfile.TemporaryDirectory(prefix="growtas-") as name:
        folder = Path(name)
        export_onnx(static(), folder / "af.onnx")
        export_timm(deit_tiny(), folder / "deit.onnx")
        out("| precision | targets | build | plan | weights | plan / weights | kernels | activation memory |\n")
        out("| --- | --- | --- | --- | --- | --- | --- | --- |\n")
        for precision in PRECISIONS:
            path = make_precision(folder / "af.onnx", folder / f"af-{precision}.onnx", precision)
            for targets in (*((target,) for target in ALONE), SEVERAL):
                out(row(path, targets, precision) + "\n")
                sys.stdout.flush()
        out("\n| precision | batch | subnet | DeiT-T | ratio |\n| --- | --- | --- | --- | --- |\n")
        for precision in ("fp32", "fp16", "int8"):
            other = make_precision(folder / "deit.onnx", folder / f"deit-{precision}.onnx", precision)
            for batch in (1, 8, 64):
                ours = activation(folder / f"af-{precision}.onnx", batch, precision)
                theirs = activation(other, batch, precision)
                out(f"| {precision} | {batch} | {_mb(ours)} | {_mb(theirs)} | {ours / max(theirs, 1):.2f} |\n")
                sys.stdout.flush()


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    main()
