"""Opens an artifact in the runtime that its suffix, or the caller, asks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from growtas.errors import CheckpointError, DeviceError, choices
from growtas.export.formats import ONNX, OPENVINO, PLAN, PROGRAM, TORCH, format_of
from growtas.export.runtimes.base import Session

if TYPE_CHECKING:
    # pydantic, which manifests need, is not needed to measure subnets on a machine that lacks it.
    from growtas.export.artifact import Artifact

DEVICES = ("cpu", "cuda")


def open_session(
    path: str | Path, *, threads: int | None = None, runtime: str | None = None, device: str = "cpu", trusted: bool = False
) -> Session:
    """Loads an artifact.

    Args:
        path: a ``.safetensors`` or ``.pt2`` (PyTorch), ``.onnx`` (ONNX Runtime, or OpenVINO), ``.xml`` with its ``.bin`` beside it
            (OpenVINO) or ``.plan`` (TensorRT or TensorRT-RTX) file.
        threads: CPU threads; by default all that this process may use.
        runtime: for an ONNX file, ``onnxruntime`` (the default) or ``openvino``; for a safetensors file, ``eager`` (the default) or
            ``compile``; for a plan, ``tensorrt`` or ``tensorrt-rtx`` (by default what its manifest says).
        device: ``cpu`` or ``cuda``, for PyTorch and ONNX Runtime; plans run on a GPU in any case, OpenVINO on the CPU.
        trusted: load a plan that has no manifest, which is refused otherwise; see :mod:`growtas.export.tensorrt.load`.

    Raises:
        CheckpointError: the file can't be loaded.
        DeviceError: it can't run on this machine: no GPU for a plan, another than it was built for, another version of the runtime,
            or no C++ compiler for ``compile``.
        MissingExtra: the runtime is not installed.
        UsageError: another suffix.
    """
    # Each runtime is imported where it is used: a process that measures one runtime's memory must not hold the others.
    path, kind = Path(path), format_of(path)
    if kind is OPENVINO or (kind is ONNX and runtime == "openvino"):
        from growtas.export.runtimes.openvino import OpenVINOSession

        return OpenVINOSession(path, threads=threads)
    if kind is ONNX:
        from growtas.export.runtimes.onnxruntime import OnnxRuntimeSession

        return OnnxRuntimeSession(path, threads=threads, device=device)
    if kind is TORCH:
        from growtas.checkpoint import load_model
        from growtas.export.graph.inference_vit import deployable
        from growtas.export.runtimes.torch import TorchSession

        model, compiled = load_model(path), runtime == "compile"
        shape = (model.architecture.in_chans, model.architecture.image_size, model.architecture.image_size)
        # The inference-only form: the other one chooses among its kernels in Python, which breaks the compiler's graph.
        module = deployable(model) if compiled else model
        return TorchSession(module, shape, threads=threads, device=device, compiled=compiled)
    if kind is PROGRAM:
        from growtas.export.runtimes.torch_export import load_program

        return load_program(path, threads=threads, device=device)
    from growtas.export.tensorrt.load import load_plan

    return load_plan(path, runtime=runtime, trusted=trusted)


def open_artifact(artifact: Artifact, *, threads: int | None = None, runtime: str | None = None, device: str = "cpu") -> Session:
    """Loads an artifact as :func:`open_session` does; where it can't, its manifest's reason is given, if it has one.

    Raises:
        DeviceError: the manifest says why it doesn't run on a machine like this; otherwise as :func:`open_session`.
        CheckpointError, MissingExtra, UsageError: as :func:`open_session`.
    """
    try:
        return open_session(artifact.path, threads=threads, runtime=runtime, device=device)
    except CheckpointError:
        # What a plan lacks here, loading it says itself.
        reason = why_not_here(artifact) if device == "cpu" and artifact.format is not PLAN else None
        if reason is None:
            raise
        raise DeviceError(f"{artifact.path}: it can't run here: {reason}") from None


def why_not_here(artifact: Artifact) -> str | None:
    """Why an artifact doesn't run on this machine, as far as its manifest tells; None where it tells nothing against it.

    A plan's manifest says for which GPUs it is. For the other formats it says whether the CPU ran them when they were made.
    """
    manifest = artifact.manifest
    if artifact.format is PLAN:
        from growtas.export.artifact import PlanRecord
        from growtas.export.tensorrt.load import why_not_loadable

        return why_not_loadable(manifest.plan or PlanRecord())
    if manifest.executed is False:
        return manifest.not_executed_because or "it was not run when it was made"
    return None


def check_device(device: str) -> None:
    """Refuses a device that is not at hand.

    Raises:
        DeviceError: another name, or ``cuda`` without a GPU.
    """
    if device not in DEVICES:
        raise DeviceError(f"--device is {device!r}; legal are {choices(DEVICES)}")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise DeviceError("--device cuda needs an NVIDIA GPU with a driver on this machine")
