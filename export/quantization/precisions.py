"""The precisions of artifacts, and their names in ONNX."""

from __future__ import annotations

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
"""Size of one number in each precision, in bytes."""
PRECISIONS = tuple(BYTES)
QUANTISED = ("int8", "fp8")
HALVES = ("fp16", "bf16")
ONNX_TYPES = {"fp32": "FLOAT", "fp16": "FLOAT16", "bf16": "BFLOAT16", "int8": "INT8", "fp8": "FLOAT8E4M3FN"}
"""Names of the types in ``onnx.TensorProto`` and ``onnx_ir.DataType``."""
