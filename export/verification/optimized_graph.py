"""Runs the graph that a plan is compiled from in ONNX Runtime, and compares it with the ONNX file.

A plan that can't run here has no numbers but the file's, and these say nothing of a fault in
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
"""The largest relative errors that pass: both hold the same weights, so it is rounding (AutoFormer-T's: 3e-7, 1e-4, 2e-3, 4e-3)."""


def check_optimized_graph(
    plan: BuiltPlan, onnx: Path, images: VerificationImages, *, max_batch: int, feed: Callable[[Array], Any] = lambda images: images
) -> dict[str, Any] | None:
    """Compares the graph that a plan was compiled from with its ONNX file.

    Args:
        onnx: the file, which is checked itself.
        images: normalised images; ``feed`` makes of them what the file takes.
        max_batch: as of :func:`growtas.export.verification.parity.gate_batches`.

    Returns:
        For the manifest: the graph's ``sha256``, and ``parity`` with the file, or None and why it was ``not_executed_because``.
        None where the plan was compiled from the file itself.

    Raises:
        ParityError: they differ by more than rounding.
    """
    if plan.graph is None:
        return None
    record: dict[str, Any] = {"sha256": hashlib.sha256(plan.graph).hexdigest(), "parity": None, "not_executed_because": None}
    if plan.precision not in TOLERANCES:
        return {**record, "not_executed_because": f"ONNX Runtime computes no {plan.precision} on a CPU"}
    try:
        arranged, file = OnnxRuntimeSession(plan.graph, threads=1), open_session(onnx, threads=1)
    except CheckpointError as error:
        return {**record, "not_executed_because": str(error)}
    with arranged, file:
        report = run_gate(
            lambda batch: arranged.run(feed(batch)),
            {onnx.name: lambda batch: file.run(feed(batch))},
            images,
            subject=f"the graph that the plan of {onnx.name} is compiled from",
            max_batch=max_batch,
            tolerance=TOLERANCES[plan.precision],
        )
    return {**record, "parity": report.to_dict()}
