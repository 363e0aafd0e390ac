"""Versions of ONNX: the IR version that a file needs, and the oldest ONNX Runtime in which files like it were loaded and run."""

from __future__ import annotations

import onnx
from onnx.helper import OP_SET_ID_VERSION_MAP

from growtas.errors import ConfigError

# That the installed onnx package knows.
_NEWEST_IR_VERSION = int(onnx.IR_VERSION)
# Convolutions take bfloat16 from 22 on, QuantizeLinear float8 from 19 on. In between the operators used here got more types and no
# other meaning.
LEAST_OPSETS = {"fp8": 19, "bf16": 22}
# Tried on Linux with releases 1.15.0 (the first for Python 3.11) to 1.32.0: the files load, and answer as in the newest one.
_OLDEST_ONNXRUNTIME = {18: "1.15.0", 19: "1.16.0", 20: "1.17.0", 21: "1.18.0", 22: "1.21.0"}
# Before 1.17 LayerNormalization in fp16 is taken apart into operators of another opset; fp8 products are fused to integer ones.
_OLDEST_OF_PRECISION = {"fp16": "1.17.0", "fp8": "1.32.0"}


def least_ir_version(opset: int) -> int:
    """Returns the lowest IR version that a file of an opset of the standard domain needs."""
    return int(OP_SET_ID_VERSION_MAP.get(("ai.onnx", opset), _NEWEST_IR_VERSION))


def check_ir_version(ir_version: int, opset: int, precision: str) -> None:
    """Refuses an IR version that an export can't have.

    Args:
        opset, precision: of the export; the precision may raise the opset.

    Raises:
        ConfigError: it is below what the opset needs, or above what the installed onnx knows.
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
    """Returns the oldest release of ONNX Runtime in which files of an opset and precision were tried; None for none."""
    if precision == "bf16" or opset not in _OLDEST_ONNXRUNTIME:
        return None
    versions = (_OLDEST_ONNXRUNTIME[opset], _OLDEST_OF_PRECISION.get(precision, "0"))
    return max(versions, key=lambda version: [int(part) for part in version.split(".")])
