"""The targets of a plan: compute capabilities, by name or by device, and the precisions that each has."""

from __future__ import annotations

import re
from collections.abc import Sequence

from growtas.errors import DeviceError, choices
from growtas.export.quantization.precisions import PRECISIONS
from growtas.latency.modelled.profile import load_profile, profile_names

RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
"""The compute capabilities that TensorRT-RTX compiles for."""
# GPUs of well-known targets that TensorRT-RTX lacks, for messages.
_ELSEWHERE = {"sm87": "Jetson Orin", "sm90": "H100", "sm100": "B200"}
# The first compute capability with matrix products of a type; older GPUs have none. Source: NVIDIA's CUDA C++ Programming Guide,
# "Arithmetic Instructions"; the compiler refuses older GPUs for the same reason.
_SINCE = {"bf16": ((8, 0), "Ampere"), "fp8": ((8, 9), "Ada")}
_TARGET = re.compile(r"(?:sm_?)?(\d{1,2})\.?(\d)", re.IGNORECASE)


def parse_targets(text: str) -> tuple[str, ...]:
    """Parses a list of targets: ``sm86,sm89`` -> ``("sm86", "sm89")``. It also accepts ``8.6`` and ``SM_86``.

    Raises:
        DeviceError: the text is not a list of compute capabilities.
    """
    targets: list[str] = []
    for part in text.split(","):
        match = _TARGET.fullmatch(part.strip())
        if match is None:
            raise DeviceError(
                f"--target {text!r}: {part.strip()!r} is not a compute capability; write for example sm86, or sm86,sm89"
            )
        targets.append(f"sm{match[1]}{match[2]}")
    return tuple(dict.fromkeys(targets))


def check_target_precision(targets: Sequence[str], precision: str, legal: Sequence[str] = ()) -> None:
    """Checks that the GPUs of all targets have a precision.

    Args:
        legal: targets that the message may suggest; it names those that have the precision.

    Raises:
        DeviceError: a target lacks the precision; the message gives the reason.
    """
    if precision not in PRECISIONS:
        raise DeviceError(f"--precision is {precision!r}; legal are {choices(PRECISIONS)}")
    if precision not in _SINCE:
        return
    since, generation = _SINCE[precision]
    lacking = [target for target in targets if _capability(target) < since]
    if lacking:
        having = [target for target in legal if _capability(target) >= since]
        instead = f"legal targets for {precision} are {choices(having)}" if having else "use fp16 or int8 instead"
        first = f"sm{since[0]}{since[1]} ({generation})"
        raise DeviceError(f"{precision} matrix products came with {first}, and {choices(lacking)} has none; {instead}")


def check_rtx_targets(targets: Sequence[str], precision: str) -> None:
    """Checks that TensorRT-RTX can compile for all targets.

    Raises:
        DeviceError: it can't compile for a target; the message gives the reason and the legal targets.
    """
    for target in targets:
        if target not in RTX_TARGETS:
            name = f"{target} ({_ELSEWHERE[target]})" if target in _ELSEWHERE else target
            raise DeviceError(
                f"TensorRT-RTX builds no plans for {name}; legal targets are {choices(RTX_TARGETS)}. "
                f"TensorRT builds plans for other GPUs, on a machine that has such a GPU"
            )
    # Tried with 1.7.1: "FP32 GEMM is not supported" while compiling for Turing.
    if precision == "fp32" and "sm75" in targets:
        legal = choices(target for target in RTX_TARGETS if target != "sm75")
        raise DeviceError(
            f"TensorRT-RTX compiles no fp32 matrix products for sm75 (T4, Turing); legal targets for fp32 are {legal}, "
            f"and legal precisions for sm75 are fp16 or int8"
        )
    check_target_precision(targets, precision, legal=RTX_TARGETS)


def _capability(target: str) -> tuple[int, int]:
    """Turns ``sm120`` into ``(12, 0)``."""
    digits = target.removeprefix("sm")
    return int(digits[:-1]), int(digits[-1])


def device_target(device: str) -> str:
    """Returns the compute capability of a device with a shipped profile: ``a10`` -> ``sm86``.

    Raises:
        DeviceError: the device is unknown (the message names the legal ones), or can't run plans.
    """
    capability = None if device == "cpu" else load_profile(device).compute_capability
    if not capability:
        gpus = choices(gpus_with_profiles())
        raise DeviceError(f"{device} can't run TensorRT plans; name a GPU with --device ({gpus}) or --target (such as sm86)")
    return str(capability)


def gpus_with_profiles() -> list[str]:
    """Returns the names of the GPUs with a shipped profile, for messages."""
    return [name for name in profile_names() if name != "cpu" and load_profile(name).compute_capability]
