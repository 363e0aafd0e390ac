"""Accuracy and latency in the precision that ships: finalists converted as an export converts them, and fp32 timed beside them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from growtas.export.formats import PLAN
from growtas.export.quantization.precisions import QUANTISED
from growtas.export.runtimes.base import Array, Session, is_installed
from growtas.latency.estimate import gain_over_fp32
from growtas.search.journal import Conversion, Evaluation
from growtas.search.targets import Target
from growtas.subnet import Subnet

if TYPE_CHECKING:
    from growtas.data.evaluation import EvaluationSet
    from growtas.nn.supernet import Supernet

FULL = ("fp32", "tf32")
"""Precisions of an fp32 file: nothing is converted."""
_NOT_RUN = ("bf16",)
_BLOCK, _BATCH = 512, 32


def conversion_of(precision: str, runtime: str | None, *, halves: bool = False) -> Conversion | None:
    """What a network in a precision is converted to before it is scored; None where its accuracy is fp32's.

    Args:
        runtime: that it ships in; a plan is scored as the ONNX file that it is built from.
        halves: score fp16 too. It answers as fp32 does (of 1,148 answers of four subnets none was another), so a search for one
            precision doesn't.
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
    """Why accuracies in a precision can't be had on any machine of a search; None where they can."""
    return f"no runtime of the CPU computes in {precision}" if precision in _NOT_RUN else None


class ConvertedEvaluator:
    """Converts subnets as an export converts them, and evaluates the files on the search split.

    What an export keeps in fp32, where its thresholds are missed, is not tried here: that is for the subnet that is exported.

    Args:
        images: what accuracy is measured on.
        split: the whole search split, of which an export takes its calibration images.
        threads: CPU threads.
    """

    def __init__(self, supernet: Supernet, images: EvaluationSet, split: EvaluationSet, threads: int) -> None:
        self._supernet, self._images, self._split, self._threads = supernet, images, split, threads
        self._calibration: Array | None = None

    def __call__(self, subnet: Subnet, conversions: Sequence[Conversion]) -> Iterator[Evaluation]:
        """The evaluations of a subnet, one a conversion.

        Raises:
            BuildError: the subnet can't be exported or converted.
        """
        from growtas.export.graph.exporter import export_onnx
        from growtas.export.open import open_session
        from growtas.export.pipeline.options import ExportOptions
        from growtas.export.quantization.convert import convert
        from growtas.nn.extract import extract

        if self._calibration is None:
            part = self._split.subset(ExportOptions().calibration_images)
            self._calibration = part.images(0, len(part)).numpy()
        with tempfile.TemporaryDirectory(prefix="growtas-") as folder:
            source, file = Path(folder, "fp32.onnx"), Path(folder, "converted.onnx")
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
    """What a precision gains on a device, for one subnet.

    Args:
        target: the device in the precision, which has measured the subnet where it is at hand.
        fp32: the device in fp32; it measures the subnet now.

    Returns:
        The device's name, and what is gained; see :func:`growtas.latency.estimate.gain_over_fp32`. None unless both are measured,
        or predicted by one model in one runtime: what differs between two models or runtimes is no gain.
    """
    ours, theirs = target.latency(subnet, measure=False), fp32.latency(subnet, measure=True)
    low, high, where = ours.measured, theirs.measured, "here"
    if low is None or high is None:
        if type(target.estimator) is not type(fp32.estimator):
            return None
        low, high, where = ours.predicted, theirs.predicted, f"on {target.device.partition(':')[0]}"
    if low is None or high is None or low.conditions.runtime != high.conditions.runtime:
        return None
    unsteady = bool(low.unsteady or high.unsteady)
    gain = gain_over_fp32(precision, low.conditions.runtime, low.ms, high.ms, low.kind, where, unsteady=unsteady)
    return {"device": target.device, **gain}
