"""Opens an artifact in a runtime, which its suffix or the caller chooses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from growtas.errors import CheckpointError, DeviceError, choices
from growtas.export.formats import ONNX, OPENVINO, PLAN, PROGRAM, TORCH, format_of
from growtas.export.runtimes.base import Session

if TYPE_CHECKING:
    # Manifests need pydantic; measuring subnets must also work on a machine without it.
    from growtas.export.artifact import Artifact

DEVICES = ("cpu", "cuda")


def open_session(
    path: str | Path, *, threads: int | None = None, runtime: str | None = None, device: str = "cpu", trusted: bool = False
) -> Session:
    """Loads an artifact into a runtime.

    Args:
        path: a ``.safetensors`` or ``.pt2`` file (PyTorch), an ``.onnx`` file (ONNX Runtime or OpenVINO), an ``.xml`` file with its
            ``.bin`` beside it (OpenVINO), or a ``.plan`` file (TensorRT or TensorRT-RTX).
        threads: CPU threads; by default all that this process may use.
        runtime: for an ONNX file, ``onnxruntime`` (the default) or ``openvino``; for a safetensors file, ``eager`` (the default) or
            ``compile``; for a plan, ``tensorrt`` or ``tensorrt-rtx`` (the default is recorded in its manifest).
        device: ``cpu`` or ``cuda``, for PyTorch and ONNX Runtime. Plans always run on a GPU, and OpenVINO always on the CPU.
        trusted: load a plan without a manifest, which is otherwise refused; see :mod:`growtas.export.tensorrt.load`.

    Raises:
        CheckpointError: the file can't be loaded.
        DeviceError: the file can't run on this machine: a plan finds no GPU, another GPU or another version of the runtime, or
            ``compile`` finds no C++ compiler.
        MissingExtra: the runtime is not installed.
        UsageError: the suffix is not that of an artifact.
    """
    # Each runtime is imported only where it is used, so that a measurement of one runtime's memory does not include the others.
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
        # The inference-only form is compiled: the other form chooses its kernels in Python, which breaks the compiler's graph.
        module = deployable(model) if compiled else model
        return TorchSession(module, shape, threads=threads, device=device, compiled=compiled)
    if kind is PROGRAM:
        from growtas.export.runtimes.torch_export import load_program

        return load_program(path, threads=threads, device=device)
    from growtas.export.tensorrt.load import load_plan

    return load_plan(path, runtime=runtime, trusted=trusted)


def open_artifact(artifact: Artifact, *, threads: int | None = None, runtime: str | None = None, device: str = "cpu") -> Session:
    """Loads an artifact like :func:`open_session`. If that fails, the error gives the reason from the manifest, if there is one.

    Raises:
        DeviceError: the manifest says why the artifact doesn't run on this machine; otherwise as :func:`open_session`.
        CheckpointError, MissingExtra, UsageError: as :func:`open_session`.
    """
    try:
        return open_session(artifact.path, threads=threads, runtime=runtime, device=device)
    except CheckpointError:
        # For a plan, the error of loading it already names the reason.
        reason = why_not_here(artifact) if device == "cpu" and artifact.format is not PLAN else None
        if reason is None:
            raise
        raise DeviceError(f"{artifact.path}: it can't run here: {reason}") from None


def why_not_here(artifact: Artifact) -> str | None:
    """Returns the manifest's reason why an artifact doesn't run on this machine, or None.

    A plan's manifest names the GPUs that it was built for. Other manifests say whether the artifact ran on the CPU at export.
    """
    manifest = artifact.manifest
    if artifact.format is PLAN:
        from growtas.export.artifact import PlanRecord
        from growtas.export.tensorrt.load import why_not_loadable

        return why_not_loadable(manifest.plan or PlanRecord())
    if manifest.executed is False:
        return manifest.not_executed_because or "it was not run at export"
    return None


def check_device(device: str) -> None:
    """Checks that a device is available.

    Raises:
        DeviceError: the name is unknown, or it is ``cuda`` and there is no GPU.
    """
    if device not in DEVICES:
        raise DeviceError(f"--device is {device!r}; legal are {choices(DEVICES)}")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise DeviceError("--device cuda needs an NVIDIA GPU with a driver on this machine")
