"""The OpenVINO IR of an ONNX file."""

from __future__ import annotations

from typing import Any

from growtas.export.formats import OPENVINO
from growtas.export.open import open_session
from growtas.export.pipeline.context import ExportContext


def export(context: ExportContext) -> None:
    """Converts the ONNX file to an IR, runs it in OpenVINO and compares its logits.

    Raises:
        ParityError: the IR misses its thresholds.
        MissingExtra: openvino is not installed.
    """
    from growtas.export.runtimes.openvino import write_ir

    context.progress.stage("writing the OpenVINO IR")
    onnx, precision = context.complete_onnx, context.precision
    record, path = onnx.manifest.to_dict(), onnx.path.with_suffix(OPENVINO.suffix)
    write_ir(onnx.path, path)
    content: dict[str, Any] = {key: record[key] for key in ("input", "postprocess") if key in record}
    with open_session(path, threads=1) as session:
        checks = context.check(session.run, path, "OpenVINO", precision=precision, content=content)
    context.add(path, {**checks, **content, "executed": True, "runtime": "openvino"}, precision=precision)
