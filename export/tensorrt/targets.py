"""The targets of a plan: compute capabilities, by name or by a device that has them, and the precisions of each."""

from __future__ import annotations

import re
from collections.abc import Sequence

from growtas.errors import DeviceError, choices
from growtas.export.quantization.precisions import PRECISIONS
from growtas.latency.modelled.profile import load_profile, profile_names

RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
"""What TensorRT-RTX compiles for."""
# Why a target that people ask for is missing, where there is more to say than that it is.
_ELSEWHERE = {"sm87": "Jetson Orin", "sm90": "H100", "sm100": "B200"}
# The compute capabilities from which on GPUs have a type's matrix products; the others have none at all. NVIDIA's CUDA C++
# Programming Guide, "Arithmetic Instructions", and the fact that the compiler refuses them with the same words.
_SINCE = {"bf16": ((8, 0), "Ampere"), "fp8": ((8, 9), "Ada")}
_TARGET = re.compile(r"(?:sm_?)?(\d{1,2})\.?(\d)", re.IGNORECASE)


def parse_targets(text: str) -> tuple[str, ...]:
    """``sm86,sm89`` -> ``("sm86", "sm89")``; ``8.6`` and ``SM_86`` are understood too.

    Raises:
        DeviceError: not a list of compute capabilities.
    """
    targets: list[str] = []
    for part in text.split(","):
        match = _TARGET.fullmatch(part.strip())
        if match is None:
            raise DeviceError(f"--target {text!r}: {part.strip()!r} is no compute capability; write for example sm86, or sm86,sm89")
        targets.append(f"sm{match[1]}{match[2]}")
    return tuple(dict.fromkeys(targets))


def check_target_precision(targets: Sequence[str], precision: str, legal: Sequence[str] = ()) -> None:
    """Refuses a precision that a target's GPUs don't have.

    Args:
        legal: targets to name in the message, as far as they have it.

    Raises:
        DeviceError: with the reason.
    """
    if precision not in PRECISIONS:
        raise DeviceError(f"--precision is {precision!r}; a plan's is {choices(PRECISIONS)}")
    if precision not in _SINCE:
        return
    since, generation = _SINCE[precision]
    lacking = [target for target in targets if _capability(target) < since]
    if lacking:
        having = [target for target in legal if _capability(target) >= since]
        instead = f"legal targets for {precision} are {choices(having)}" if having else "take fp16 or int8 there"
        first = f"sm{since[0]}{since[1]} ({generation})"
        raise DeviceError(f"{precision} matrix products came with {first}, {choices(lacking)} has none; {instead}")


def check_rtx_targets(targets: Sequence[str], precision: str) -> None:
    """Refuses targets that TensorRT-RTX can't compile for, with the reason and the legal targets.

    Raises:
        DeviceError: one of them is.
    """
    for target in targets:
        if target not in RTX_TARGETS:
            name = f"{target} ({_ELSEWHERE[target]})" if target in _ELSEWHERE else target
            raise DeviceError(
                f"TensorRT-RTX builds no plans for {name}; legal targets are {choices(RTX_TARGETS)}, "
                f"and TensorRT itself builds for other GPUs on the machine that has one"
            )
    # Tried with 1.7.1: "FP32 GEMM is not supported" while compiling for Turing.
    if precision == "fp32" and "sm75" in targets:
        legal = choices(target for target in RTX_TARGETS if target != "sm75")
        raise DeviceError(
            f"TensorRT-RTX compiles no fp32 matrix products for sm75 (T4, Turing); legal targets for fp32 are {legal}, "
            f"and fp16 or int8 compile for sm75"
        )
    check_target_precision(targets, precision, legal=RTX_TARGETS)


def _capability(target: str) -> tuple[int, int]:
    """``sm120`` -> ``(12, 0)``."""
    digits = target.removeprefix("sm")
    return int(digits[:-1]), int(digits[-1])


def device_target(device: str) -> str:
    """The compute capability of a device with a shipped profile: ``a10`` -> ``sm86``.

    Raises:
        DeviceError: an unknown device (the message names the legal ones), or one that runs no plans.
    """
    capability = None if device == "cpu" else load_profile(device).compute_capability
    if not capability:
        gpus = choices(gpus_with_profiles())
        raise DeviceError(f"{device} runs no TensorRT plans; name a GPU with --device ({gpus}) or --target (such as sm86)")
    return str(capability)


def gpus_with_profiles() -> list[str]:
    """Names of the GPUs that have a shipped profile, for messages."""
    return [name for name in profile_names() if name != "cpu" and load_profile(name).compute_capability]
