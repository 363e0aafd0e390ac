"""What can be measured on this machine: runtimes and precisions on its CPU and on its GPU, and why the others can't."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from growtas.errors import DeviceError, GrowtasError, choices
from growtas.export.formats import PLAN
from growtas.export.runtimes.base import is_installed, require_compiler
from growtas.export.runtimes.onnxruntime import require_provider
from growtas.latency import at_hand
from growtas.latency.at_hand import CPU, device_name, devices_at_hand
from growtas.latency.estimate import RUNTIMES, Hardware


def hardware_of(device: str, runtime: str) -> Hardware:
    """Where a runtime executes what is measured under a device's name: ``cpu`` is the CPU, and any other name is the GPU.

    A runtime that has only one of them executes there. On a machine without a GPU another name is one for its CPU.

    Raises:
        DeviceError: an unknown runtime.
    """
    if runtime not in RUNTIMES:
        raise DeviceError(f"--runtime is {runtime!r}; legal are {choices(RUNTIMES)}")
    if "cuda" not in RUNTIMES[runtime]:
        return "cpu"
    return "cuda" if "cpu" not in RUNTIMES[runtime] or (device != CPU and at_hand.gpu_name() is not None) else "cpu"


def check_runtime(runtime: str, precision: str, hardware: Hardware | None = None) -> None:
    """Refuses a runtime or precision that can't be measured here, before any work.

    Args:
        hardware: where it is to execute; by default the CPU where the runtime has one.

    Raises:
        DeviceError: an unknown runtime, a precision that it isn't measured in, no openvino, no GPU for what needs one, or no C++
            compiler for ``torch.compile``.
        MissingExtra: the runtime's package is not installed.
    """
    hardware = hardware or hardware_of(CPU, runtime)
    legal = RUNTIMES[runtime].get(hardware)
    if legal is None:
        raise DeviceError(f"{runtime} is not measured on a {_NAMES[hardware]}, but on a {_NAMES[next(iter(RUNTIMES[runtime]))]}")
    if precision not in legal:
        where = f" on a {_NAMES[hardware]}" if len(RUNTIMES[runtime]) > 1 else ""
        raise DeviceError(f"--precision is {precision!r}; {runtime} is measured in {choices(legal)}{where}")
    if runtime == "openvino" and not is_installed("openvino"):
        raise DeviceError("--runtime openvino needs the package openvino, which is not installed: pip install 'growtas[openvino]'")
    if hardware == "cuda":
        _check_gpu(runtime, precision)
    if runtime == "onnxruntime":
        require_provider(hardware)
    if runtime == "torch.compile":
        require_compiler(hardware)


_NAMES = {"cpu": "CPU", "cuda": "GPU"}


@dataclass(frozen=True, kw_only=True)
class TargetHere:
    """A runtime and a precision on a device at hand.

    Attributes:
        device: what ``--device`` calls it; None for what takes a GPU, where there is none.
        why_not: why it can't be measured here; None if it can.
    """

    device: str | None
    runtime: str
    precision: str
    why_not: str | None


def targets_here() -> list[TargetHere]:
    """Every runtime and precision of the devices at hand, and whether it can be measured."""
    targets: list[TargetHere] = []
    for device in (*devices_at_hand(), *(() if at_hand.gpu_name() else (None,))):
        hardware: Hardware = "cpu" if device == CPU else "cuda"
        for runtime, on in RUNTIMES.items():
            for precision in on.get(hardware, ()) if device or "cpu" not in on else ():
                why = _why_not(runtime, precision, hardware) if device else "no NVIDIA GPU with a driver on this machine"
                targets.append(TargetHere(device=device, runtime=runtime, precision=precision, why_not=why))
    return targets


def _why_not(runtime: str, precision: str, hardware: Hardware) -> str | None:
    try:
        check_runtime(runtime, precision, hardware)
    except GrowtasError as error:
        return str(error)
    return None


def _check_gpu(runtime: str, precision: str) -> None:
    from growtas.export.tensorrt import builder, library

    here = library.local_target()
    if here is None and (name := at_hand.gpu_name()) is not None:
        raise DeviceError(f"--runtime {runtime} needs a PyTorch that can use this machine's GPU, {name}; the installed one can't")
    if here is None:
        raise DeviceError(f"--runtime {runtime} needs an NVIDIA GPU with a driver on this machine; without one, use onnxruntime")
    if runtime in PLAN.runtimes:
        builder.builder_of(runtime).check((here,), precision)


def check_device(name: str, known: Sequence[str], device: str) -> None:
    """Refuses to call a measurement by a known device's name if it ran on another.

    Args:
        name: what the user calls this machine.
        known: names that are certain devices': those with a shipped profile, and those at hand.
        device: what the runtime ran on, ``cpu`` or the GPU's name.

    Raises:
        DeviceError: the name is another device's.
    """
    if name == CPU and device != CPU:
        raise DeviceError(f"--device cpu: this runtime runs on {device}; name it otherwise")
    if name in known and device_name(device) != name:
        own = "a name of its own" if device == CPU else f"its own name, {device_name(device)}"
        raise DeviceError(f"--device {name}: this runtime runs on {device}, not on such a GPU; give it {own}")
