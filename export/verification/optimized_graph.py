"""Runs the graph that a plan was compiled from in ONNX Runtime, and compares it with the ONNX file.

A plan that can't run here has only the measurements of its ONNX file. Those would not show a fault in
:mod:`growtas.export.tensorrt.optimize`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from growtas.errors import CheckpointError
from growtas.export.open import open_session
from growtas.export.runtimes.base import Array
from growtas.export.runtimes.onnxruntime import OnnxRuntimeSession
from growtas.export.tensorrt.builder import BuiltPlan
from growtas.export.verification.images import VerificationImages
from growtas.export.verification.parity import DEFAULT_TOLERANCE, run_gate

TOLERANCES = {"fp32": DEFAULT_TOLERANCE, "fp16": 1e-2, "int8": 5e-2, "fp8": 5e-2}
"""The largest relative errors that pass. Both graphs hold the same weights and differ by rounding alone: AutoFormer-T's by 3e-7,
1e-4, 2e-3 and 4e-3."""


def check_optimized_graph(
    plan: BuiltPlan, onnx: Path, images: VerificationImages, *, max_batch: int, feed: Callable[[Array], Any] = lambda images: images
) -> dict[str, Any] | None:
    """Compares the graph that a plan was compiled from with its ONNX file.

    Args:
        onnx: the ONNX file, which was verified already.
        images: normalised images.
        max_batch: as for :func:`growtas.export.verification.parity.gate_batches`.
        feed: converts the images into the file's input.

    Returns:
        For the manifest: the graph's ``sha256`` and its ``parity`` with the file. If it can't be run, ``parity`` is None and
        ``not_executed_because`` gives the reason. None if the plan was compiled from the file itself.

    Raises:
        ParityError: the two differ by more than rounding.
    """
    if plan.graph is None:
        return None
    record: dict[str, Any] = {"sha256": hashlib.sha256(plan.graph).hexdigest(), "parity": None, "not_executed_because": None}
    if plan.precision not in TOLERANCES:
        return {**record, "not_executed_because": f"ONNX Runtime can't compute {plan.precision} on a CPU"}
    try:
        optimized, file = OnnxRuntimeSession(plan.graph, threads=1), open_session(onnx, threads=1)
    except CheckpointError as error:
        return {**record, "not_executed_because": str(error)}
    with optimized, file:
        report = run_gate(
            lambda batch: optimized.run(feed(batch)),
            {onnx.name: lambda batch: file.run(feed(batch))},
            images,
            subject=f"the graph that the plan of {onnx.name} was compiled from",
            max_batch=max_batch,
            tolerance=TOLERANCES[plan.precision],
        )
    return {**record, "parity": report.to_dict()}
