"""Opens what is benched: artifacts by their backends, PyTorch modules eager or compiled, ONNX files as plans built here."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from growtas.errors import DeviceError, choices
from growtas.export.benchmark import baselines as zoo
from growtas.export.benchmark.subjects import Subject
from growtas.export.runtimes.base import Array, RuntimeInfo, Session, Timer, available_threads
from growtas.export.runtimes.open import open_session

if TYPE_CHECKING:
    from torch import Tensor, nn

DEVICES = ("cpu", "cuda")
_TENSORRT = ("tensorrt", "tensorrt-rtx")


def check_device(device: str) -> None:
    """Refuse a device that is not at hand.

    Raises:
        DeviceError: another name, or ``cuda`` without a GPU.
    """
    if device not in DEVICES:
        raise DeviceError(f"--device is {device!r}; legal are {choices(DEVICES)}")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise DeviceError("--device cuda needs an NVIDIA GPU with a driver on this machine")


def open_subject(
    subject: Subject, *, threads: int, device: str = "cpu", max_batch: int = 1, batches: Sequence[int] = ()
) -> Session:
    """Load a subject in its runtime.

    Args:
        threads: CPU threads.
        device: ``cpu`` or ``cuda``, for PyTorch and ONNX Runtime; plans run on a GPU in any case, OpenVINO on the CPU.
        max_batch: the largest batch that is run.
        batches: those that are run; ``max_batch`` alone if not given. Where an ONNX file is to run in TensorRT, a plan is compiled
            for each, in the file's precision.

    Raises:
        BuildError, CheckpointError: it can't be built or loaded.
        DeviceError: it can't run on this machine: no GPU for a plan, no C++ compiler for torch.compile.
        MissingExtra: the runtime is not installed.
    """
    runtime, path = subject.runtime, subject.path
    if runtime == "compile":
        require_compiler(device)
    if path is None:
        model = zoo.create(str(subject.timm))
        shape = zoo.image_shape(model)
        return ModuleSession(model, shape, threads=threads, device=device, compiled=runtime == "compile")
    if path.suffix == ".safetensors":
        from growtas.export.runtimes.torch import TorchSession

        if runtime == "compile":
            from growtas.checkpoint import load_model
            from growtas.export.graph.inference_vit import deployable

            loaded = load_model(path)
            size = loaded.architecture.image_size
            shape = (loaded.architecture.in_chans, size, size)
            # The inference-only form: the other one chooses among its kernels in Python, which breaks the compiler's graph.
            return ModuleSession(deployable(loaded), shape, threads=threads, device=device, compiled=True)
        return TorchSession(path, threads=threads, device=device)
    if path.suffix == ".onnx" and runtime in _TENSORRT:
        from growtas.export.benchmark.compiled_plans import compile_plans

        return compile_plans(path, runtime, batches or (max_batch,), subject.manifest)
    if path.suffix == ".onnx" and runtime == "onnxruntime" and device == "cuda":
        from growtas.export.runtimes.onnxruntime import OnnxRuntimeSession

        return OnnxRuntimeSession(path, threads=threads, device=device)
    return open_session(path, threads=threads, runtime=runtime)


def require_compiler(device: str = "cpu") -> None:
    """Refuse ``torch.compile`` where the compiler that it needs does not work.

    Raises:
        DeviceError: with the compilers that were tried.
    """
    if device == "cuda":
        return  # Triton brings its own.
    named = os.environ.get("CXX")
    tried = [named] if named else ["g++", "clang++", "c++"]
    if not any(_compiles(command) for command in tried):
        raise DeviceError(f"torch.compile needs a C++ compiler, and none of {', '.join(tried)} works here; install one or set CXX")


def _compiles(command: str) -> bool:
    if shutil.which(command) is None:
        return False
    with tempfile.TemporaryDirectory(prefix="growtas-") as folder:
        source = Path(folder) / "one.cpp"
        source.write_text("#include <cmath>\nint main() { return std::sqrt(0.0) > 1; }\n", encoding="utf-8")
        try:
            done = subprocess.run([command, str(source), "-o", str(source.with_suffix(""))], capture_output=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return False
        return done.returncode == 0


class ModuleSession:
    """A PyTorch module from images to logits, eager or compiled by ``torch.compile`` for each batch size that is run.

    Args:
        module: in eval mode.
        image_shape: channels, height and width of its input.
        threads: torch's CPU threads while it is open.
        device: ``cpu`` or ``cuda``.
        compiled: compile it, without graph breaks.
    """

    def __init__(
        self,
        module: nn.Module,
        image_shape: tuple[int, int, int],
        *,
        threads: int | None = None,
        device: str = "cpu",
        compiled: bool = False,
    ) -> None:
        import torch

        self.image_shape = image_shape
        self._module, self._device, self._compiled = module.eval().to(device), device, compiled
        self._threads_before = torch.get_num_threads()
        self.info = RuntimeInfo(
            runtime="torch.compile" if compiled else "torch",
            version=torch.__version__,
            device=torch.cuda.get_device_name() if device == "cuda" else device,
            threads=0 if device == "cuda" else threads or available_threads(),
        )
        # Compiled once a shape: what was compiled for many shapes at once is slower, and is not what one would serve.
        self._call: Callable[..., Tensor] = torch.compile(self._module, fullgraph=True, dynamic=False) if compiled else self._module

    def run(self, images: Array) -> Array:
        """Logits of images; see :class:`growtas.export.runtimes.base.Session`.

        Raises:
            DeviceError: ``torch.compile`` failed.
        """
        import torch

        placed = torch.from_numpy(images).to(self._device)
        return np.asarray(self._forward(placed).cpu().numpy(), np.float32)

    def _forward(self, placed: Tensor) -> Tensor:
        import torch

        self._set_threads()
        with torch.inference_mode():
            if not self._compiled:
                return self._call(placed)
            # More batch sizes than dynamo's default limit are fine: each is asked for.
            with torch._dynamo.config.patch(recompile_limit=1024):
                try:
                    return self._call(placed)
                except Exception as error:  # the compiler's stages each have their own exceptions
                    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    raise DeviceError(f"torch.compile failed ({' '.join(reason.split())[:160]})") from error

    def _set_threads(self) -> None:
        import torch

        # torch has one thread count for the whole process, and other sessions may have set another.
        if self.info.threads and torch.get_num_threads() != self.info.threads:
            torch.set_num_threads(self.info.threads)

    def timer(self, images: Array) -> Timer:
        """A timed run on placed inputs, compiled before it is returned; see :class:`growtas.export.runtimes.base.Session`."""
        import torch

        placed, call = torch.from_numpy(images).to(self._device), self._call
        if self._compiled:
            # It looks for CUDA's compiler, and tells of it where there is none, whatever the model is compiled for.
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
            self._forward(placed)
        if self._device == "cuda":
            from growtas.export.runtimes.torch import cuda_timer

            def launch() -> None:
                with torch.inference_mode():
                    call(placed)

            return cuda_timer(launch)

        def once() -> float:
            self._set_threads()
            with torch.inference_mode():
                start = time.perf_counter_ns()
                call(placed)
                return (time.perf_counter_ns() - start) / 1e6

        return once

    def __enter__(self) -> ModuleSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        import torch

        del self._call, self._module
        if self.info.threads:
            torch.set_num_threads(self._threads_before)
