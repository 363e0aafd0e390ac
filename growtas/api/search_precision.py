"""Accuracy and latency in the exported precision: converts finalists as an export does, and times fp32 beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from growtas.export.formats import PLAN
from growtas.export.quantization.precisions import QUANTISED
from growtas.export.runtimes.base import Array, Session, is_installed
from growtas.files import scratch_folder
from growtas.latency.estimate import gain_over_fp32
from growtas.search.journal import Conversion, Evaluation
from growtas.search.targets import Target
from growtas.subnet import Subnet

if TYPE_CHECKING:
    from growtas.data.evaluation import EvaluationSet
    from growtas.nn.supernet import Supernet

FULL = ("fp32", "tf32")
"""Precisions that execute an fp32 file without a conversion."""
_NOT_RUN = ("bf16",)
_BLOCK, _BATCH = 512, 32


def conversion_of(precision: str, runtime: str | None, *, halves: bool = False) -> Conversion | None:
    """Returns the conversion of a subnet before its accuracy is evaluated, or None if the accuracy in fp32 is used.

    Args:
        precision: the exported precision.
        runtime: the runtime that executes the export; a plan is evaluated as the ONNX file that it is built from.
        halves: convert for fp16 too. A search for one precision doesn't, because fp16 gave the same top-1 class as fp32 in all
            1,148 predictions of four subnets.
    """
    if precision not in (*QUANTISED, "fp16") or (precision == "fp16" and not halves):
        return None
    from growtas.export.pipeline.options import ExportOptions
    from growtas.export.quantization.convert import VERSION

    runs_in = "openvino" if runtime == "openvino" and is_installed("openvino") else "onnxruntime"
    options = ExportOptions()
    calibration = f"{options.calibration_images} search images, {options.calibration_method}"
    return Conversion(
        precision=precision,
        runtime=runs_in,
        rest="fp16" if precision == "fp16" or runtime in PLAN.runtimes else "fp32",
        made=f"{calibration}, converter {VERSION}, {runs_in} {metadata.version(runs_in)}",
    )


def why_not_scored(precision: str) -> str | None:
    """Returns why accuracies in a precision can't be evaluated on any machine; None if they can."""
    return f"no runtime of the CPU computes in {precision}" if precision in _NOT_RUN else None


class ConvertedEvaluator:
    """Converts subnets as an export does, and evaluates the files on the search split.

    An export keeps layers in fp32 if it misses its thresholds; this class does not, because only the export checks them.

    Args:
        supernet: the supernet that subnets are extracted from.
        images: the images on which accuracy is evaluated.
        split: the whole search split, from which an export takes its calibration images.
        threads: CPU threads.
    """

    def __init__(self, supernet: Supernet, images: EvaluationSet, split: EvaluationSet, threads: int) -> None:
        self._supernet, self._images, self._split, self._threads = supernet, images, split, threads
        self._calibration: Array | None = None

    def __call__(self, subnet: Subnet, conversions: Sequence[Conversion]) -> Iterator[Evaluation]:
        """Yields the evaluations of a subnet, one per conversion.

        Raises:
            BuildError: The subnet can't be exported or converted.
        """
        from growtas.export.graph.exporter import export_onnx
        from growtas.export.open import open_session
        from growtas.export.pipeline.options import ExportOptions
        from growtas.export.quantization.convert import convert
        from growtas.nn.extract import extract

        if self._calibration is None:
            part = self._split.subset(ExportOptions().calibration_images)
            self._calibration = part.images(0, len(part)).numpy()
        with scratch_folder() as folder:
            source, file = folder / "fp32.onnx", folder / "converted.onnx"
            export_onnx(extract(self._supernet, subnet).cpu(), source)
            for conversion in conversions:
                convert(source, file, conversion.precision, calibration=self._calibration, rest=conversion.rest)
                with open_session(file, threads=1, runtime=conversion.runtime) as session:
                    yield self._evaluate(session)

    def _evaluate(self, session: Session) -> Evaluation:
        import torch
        import torch.nn.functional as F

        from growtas.export.verification.batches import run_all

        correct, loss, count = 0, 0.0, len(self._images)
        for images, labels in self._images.batches(_BLOCK):
            outputs = run_all((session.run,), [batch.numpy() for batch in torch.split(images, _BATCH)], workers=self._threads)
            logits = torch.from_numpy(np.concatenate([output for (output,) in outputs])).double()
            finite = logits.isfinite().all(dim=1)
            correct += int((finite & (logits.argmax(dim=1) == labels)).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        return Evaluation(correct / count, loss / count)


def compare_with_fp32(precision: str, target: Target, fp32: Target, subnet: Subnet) -> dict[str, Any] | None:
    """Compares a subnet's latency in a precision with its latency in fp32 on the same device.

    Args:
        precision: the precision of ``target``.
        target: the device in that precision. If it is measured, the subnet's latency was measured before.
        fp32: the device in fp32; this function measures the subnet's latency.

    Returns:
        The device's name and the gain; see :func:`growtas.latency.estimate.gain_over_fp32`. None unless both latencies are
        measured, or both are predicted by one kind of model for one runtime: otherwise the difference would not be a gain.
    """
    latency, fp32_latency = target.latency(subnet, measure=False), fp32.latency(subnet, measure=True)
    low, full, where = latency.measured, fp32_latency.measured, "here"
    if low is None or full is None:
        if type(target.estimator) is not type(fp32.estimator):
            return None
        low, full, where = latency.predicted, fp32_latency.predicted, f"on {target.device.partition(':')[0]}"
    if low is None or full is None or low.conditions.runtime != full.conditions.runtime:
        return None
    unsteady = bool(low.unsteady or full.unsteady)
    gain = gain_over_fp32(precision, low.conditions.runtime, low.ms, full.ms, low.kind, where, unsteady=unsteady)
    return {"device": target.device, **gain}
