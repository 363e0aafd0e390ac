"""Runtimes that run an artifact, and builders that compile one; a file each, chosen here by the artifact's suffix."""

from __future__ import annotations

from pathlib import Path

from growtas.errors import UsageError, choices
from growtas.export.runtimes.base import Session

SUFFIXES = (".safetensors", ".pt2", ".onnx", ".xml", ".plan")


def open_session(path: str | Path, *, threads: int | None = None, runtime: str | None = None, trusted: bool = False) -> Session:
    """Load an artifact in the runtime that its suffix asks for.

    Args:
        path: a ``.safetensors`` (torch), ``.pt2`` (torch.export), ``.onnx`` (ONNX Runtime, or OpenVINO), ``.xml`` with its ``.bin``
            beside it (OpenVINO) or ``.plan`` (TensorRT or TensorRT-RTX) file.
        threads: CPU threads; by default all that this process may use.
        runtime: for an ONNX file, ``onnxruntime`` or ``openvino``; onnxruntime if not given. For a plan, ``tensorrt`` or
            ``tensorrt-rtx``; what its manifest says if not given.
        trusted: load a plan that has no manifest, which is refused otherwise; see :mod:`growtas.export.tensorrt.load`.

    Raises:
        CheckpointError: the file can't be loaded.
        DeviceError: a plan, and no GPU at hand, or another than it was built for, or another version of the runtime.
        MissingExtra: the runtime is not installed.
        UsageError: another suffix.
    """
    path = Path(path)
    if path.suffix == ".xml" or (path.suffix == ".onnx" and runtime == "openvino"):
        from growtas.export.runtimes.openvino import OpenVINOSession

        return OpenVINOSession(path, threads=threads)
    if path.suffix == ".onnx":
        from growtas.export.runtimes.onnxruntime import OnnxRuntimeSession

        return OnnxRuntimeSession(path, threads=threads)
    if path.suffix == ".safetensors":
        from growtas.export.runtimes.torch import TorchSession

        return TorchSession(path, threads=threads)
    if path.suffix == ".pt2":
        from growtas.export.runtimes.torch_export import ProgramSession

        return ProgramSession(path, threads=threads)
    if path.suffix == ".plan":
        from growtas.export.tensorrt.open import open_plan

        return open_plan(path, runtime=runtime, trusted=trusted)
    raise UsageError(f"{path}: not an artifact; legal are files that end in {choices(SUFFIXES)}")
