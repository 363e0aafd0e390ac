"""Versions of ONNX: the IR version that a file needs, and the oldest ONNX Runtime in which such files were tried."""

from __future__ import annotations

import onnx
from onnx.helper import OP_SET_ID_VERSION_MAP

from growtas.errors import ConfigError

# Newest IR version of the installed onnx package.
_NEWEST_IR_VERSION = int(onnx.IR_VERSION)
# Convolutions accept bfloat16 from opset 22 on, and QuantizeLinear float8 from 19 on. The opsets in between added types to the
# operators that are used here, but did not change their meaning.
LEAST_OPSETS = {"fp8": 19, "bf16": 22}
# Tried on Linux with releases 1.15.0 (the first for Python 3.11) to 1.32.0: the files load and give the newest release's results.
_OLDEST_ONNXRUNTIME = {18: "1.15.0", 19: "1.16.0", 20: "1.17.0", 21: "1.18.0", 22: "1.21.0"}
# Before 1.17, fp16 LayerNormalization is decomposed into operators of another opset; before 1.32, fp8 products are fused to integer
# ones.
_OLDEST_OF_PRECISION = {"fp16": "1.17.0", "fp8": "1.32.0"}


def least_ir_version(opset: int) -> int:
    """Returns the lowest IR version that a file of an opset of the standard domain needs."""
    return int(OP_SET_ID_VERSION_MAP.get(("ai.onnx", opset), _NEWEST_IR_VERSION))


def check_ir_version(ir_version: int, opset: int, precision: str) -> None:
    """Checks the IR version of an export.

    Args:
        opset: requested opset of the export.
        precision: precision of the export, which may need a higher opset.

    Raises:
        ConfigError: the version is lower than the opset needs, or higher than the installed onnx knows.
    """
    needed = LEAST_OPSETS.get(precision, 0)
    least = least_ir_version(max(opset, needed))
    if not least <= ir_version <= _NEWEST_IR_VERSION:
        of = f"opset {needed}, which {precision} needs," if needed > opset else f"opset {opset}"
        raise ConfigError(
            f"--ir-version is {ir_version}; legal are {least} to {_NEWEST_IR_VERSION} "
            f"({of} came with IR version {least}, the installed onnx knows {_NEWEST_IR_VERSION})"
        )


def oldest_onnxruntime(opset: int, precision: str) -> str | None:
    """Returns the oldest release of ONNX Runtime that can run files of an opset and precision, as tried; None if none can."""
    if precision == "bf16" or opset not in _OLDEST_ONNXRUNTIME:
        return None
    versions = (_OLDEST_ONNXRUNTIME[opset], _OLDEST_OF_PRECISION.get(precision, "0"))
    return max(versions, key=lambda version: [int(part) for part in version.split(".")])
