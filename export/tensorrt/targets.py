"""What a plan is compiled for, and by which package: compute capabilities, by name or by the device that has them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from growtas.errors import ConfigError, DeviceError, choices
from growtas.export.runtimes.base import PlanBuilder

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
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
        target = f"sm{match[1]}{match[2]}"
        if target not in targets:
            targets.append(target)
    return tuple(targets)


def check_precision(targets: Sequence[str], precision: str, legal: Sequence[str] = ()) -> None:
    """Refuse a precision that a target's GPUs don't have.

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


def _capability(target: str) -> tuple[int, int]:
    """``sm120`` -> ``(12, 0)``."""
    digits = target.removeprefix("sm")
    return int(digits[:-1]), int(digits[-1])


def device_target(device: str) -> str:
    """The compute capability of a device with a shipped profile: ``a10`` -> ``sm86``.

    Raises:
        DeviceError: an unknown device (the message names the legal ones), or one that runs no plans.
    """
    from growtas.latency.modelled.profile import load_profile

    capability = None if device == "cpu" else load_profile(device).compute_capability
    if not capability:
        raise DeviceError(f"{device} runs no TensorRT plans; name a GPU with --device ({_gpus()}) or --target (such as sm86)")
    return str(capability)


def choose_builder(
    *, target: str | None, device: str | None, searched_device: str | None, precision: str
) -> tuple[PlanBuilder, tuple[str, ...]]:
    """The builder and the compute capabilities of a plan.

    What was named decides (``target``, else ``device``), then the device that the search was for, then this machine's GPU. TensorRT
    builds for the GPU at hand where both are there; everything else is TensorRT-RTX, ahead of time.

    Raises:
        ConfigError: both ``target`` and ``device``.
        DeviceError: no target, an unknown one, or one that can't be built for.
        MissingExtra: the builder's package is not installed.
    """
    from growtas.export.tensorrt import library as nvinfer
    from growtas.export.tensorrt import tensorrt_builder as tensorrt
    from growtas.export.tensorrt.rtx_builder import TensorRTRTXBuilder

    if target is not None and device is not None:
        raise ConfigError("--target and --device both name what the plan is for; give one of them")
    here = nvinfer.local_target()
    if target is not None:
        targets = parse_targets(target)
    elif device is not None:
        targets = (device_target(device),)
    elif searched_device not in (None, "cpu"):
        targets = (device_target(str(searched_device)),)
    elif here is not None:
        targets = (here,)
    else:
        why = "the subnet was searched for the cpu" if searched_device == "cpu" else "the subnet was searched for no device"
        raise DeviceError(f"a plan needs a target GPU, and {why}: name one with --device ({_gpus()}) or --target (such as sm86)")
    builder: PlanBuilder = tensorrt.TensorRTBuilder() if targets == (here,) and tensorrt.is_at_hand() else TensorRTRTXBuilder()
    builder.check(targets, precision)
    return builder, targets


def _gpus() -> str:
    """Names of the shipped profiles of GPUs, for messages."""
    from growtas.latency.modelled.profile import load_profile, profile_names

    return choices(name for name in profile_names() if name != "cpu" and load_profile(name).compute_capability)
