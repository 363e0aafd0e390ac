"""The runtimes and precisions that can be measured on this machine's CPU and GPU, and the reasons why others can't."""

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
    """Returns where a runtime executes for a device's name: on the CPU for ``cpu``, and on the GPU for any other name.

    A runtime that supports only one of them executes there. On a machine without a GPU, every name stands for the CPU.

    Raises:
        DeviceError: the runtime is unknown.
    """
    if runtime not in RUNTIMES:
        raise DeviceError(f"--runtime is {runtime!r}; legal are {choices(RUNTIMES)}")
    if "cuda" not in RUNTIMES[runtime]:
        return "cpu"
    return "cuda" if "cpu" not in RUNTIMES[runtime] or (device != CPU and at_hand.gpu_name() is not None) else "cpu"


def check_runtime(runtime: str, precision: str, hardware: Hardware | None = None) -> None:
    """Checks before any work that a runtime and precision can be measured here.

    Args:
        hardware: where the runtime executes; by default on the CPU, if it supports the CPU.

    Raises:
        DeviceError: the runtime is unknown, can't be measured in the precision, or lacks openvino, a GPU or (``torch.compile``) a
            C++ compiler.
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
    """A runtime and a precision on a device of this machine.

    Attributes:
        device: name of the device in ``--device``; None if a GPU is needed and there is none.
        runtime: name of the runtime.
        precision: name of the precision.
        why_not: the reason why it can't be measured here; None if it can.
    """

    device: str | None
    runtime: str
    precision: str
    why_not: str | None


def targets_here() -> list[TargetHere]:
    """Returns every runtime and precision of this machine's devices, and whether it can be measured."""
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
    """Checks that a measurement is not named after a known device on which it did not run.

    Args:
        name: the user's name for this machine.
        known: names of known devices: those with a shipped profile, and those of this machine.
        device: device on which the runtime ran, ``cpu`` or the GPU's name.

    Raises:
        DeviceError: the name belongs to another device.
    """
    if name == CPU and device != CPU:
        raise DeviceError(f"--device cpu: this runtime runs on {device}; use another name")
    if name in known and device_name(device) != name:
        legal = "a new name" if device == CPU else f"its own name, {device_name(device)}"
        raise DeviceError(f"--device {name}: this runtime runs on {device}, not on such a GPU; use {legal}")
