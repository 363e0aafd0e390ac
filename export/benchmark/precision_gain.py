"""Times a converted ONNX file in turns with its fp32 file, to tell whether the precision is faster on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from growtas.errors import GrowtasError
from growtas.export.artifact import Artifact
from growtas.export.benchmark.timing import measure_in_turns
from growtas.export.formats import ONNX, OPENVINO, PLAN
from growtas.export.open import open_session
from growtas.export.verification.images import noise
from growtas.latency.estimate import gain_over_fp32

_ROUNDS, _SECONDS = 5, 0.05


def measured_gains(artifacts: Sequence[Artifact]) -> list[dict[str, Any]]:
    """Measures how much faster an export's precision is than fp32 in its CPU runtime.

    Nothing is measured if a plan was made too, because the ONNX file is then for a GPU, or if a file can't be loaded.

    Args:
        artifacts: the artifacts of one export, with the fp32 file.

    Returns:
        For the converted ONNX file its name as ``file``, and its gain from the median milliseconds of one image; see
        :func:`growtas.latency.estimate.gain_over_fp32`. The runtime is OpenVINO if the export has an IR. Empty without measurement.
    """
    formats = {artifact.format for artifact in artifacts}
    onnx = [artifact for artifact in artifacts if artifact.format is ONNX]
    converted = [artifact for artifact in onnx if artifact.manifest.precision != "fp32" and artifact.manifest.executed]
    if PLAN in formats or not converted:
        return []
    fp32, low = onnx[0], converted[0]
    runtime, precision = (OPENVINO if OPENVINO in formats else ONNX).runtimes[0], str(low.manifest.precision)
    try:
        with contextlib.ExitStack() as stack:
            sessions = [stack.enter_context(open_session(artifact.path, runtime=runtime)) for artifact in (low, fp32)]
            timers = [session.timer(noise(1, session.image_shape)) for session in sessions]
            turns = measure_in_turns(timers, rounds=_ROUNDS, seconds=_SECONDS)
    except GrowtasError:
        return []
    ms, fp32_ms = (float(np.median([block.median_ms for block in blocks])) for blocks in turns)
    return [{"file": low.path.name, **gain_over_fp32(precision, runtime, ms, fp32_ms, "measured", f"here in {runtime}")}]
