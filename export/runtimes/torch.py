"""PyTorch: a module from images to logits, eager or compiled by ``torch.compile``."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from growtas.errors import DeviceError, UsageError
from growtas.export.runtimes.base import Array, RuntimeInfo, Timer
from growtas.resources import available_threads

_CHANGING_THREADS = threading.Lock()


class TorchSession:
    """A PyTorch module from images to logits, eager or compiled for each batch size that is run.

    Every run takes as many CPU threads as ``info`` says, and leaves torch's own number, which the whole process shares, as it was.

    Args:
        module: in eval mode.
        image_shape: channels, height and width of its input.
        threads: CPU threads; by default all that this process may use.
        device: ``cpu`` or ``cuda``.
        compiled: compile it by ``torch.compile``, without graph breaks.
        max_batch: the largest batch that it takes; None for any.
        runtime: the name in ``info``; ``torch`` or ``torch.compile`` by default.

    Raises:
        DeviceError: ``compiled``, and no C++ compiler works here.
    """

    def __init__(
        self,
        module: nn.Module,
        image_shape: tuple[int, int, int],
        *,
        threads: int | None = None,
        device: str = "cpu",
        compiled: bool = False,
        max_batch: int | None = None,
        runtime: str | None = None,
    ) -> None:
        if compiled:
            require_compiler(device)
        self.image_shape, self.max_batch = image_shape, max_batch
        self.module = module.to(device)
        self._device, self._compiled = device, compiled
        self.info = RuntimeInfo(
            runtime=runtime or ("torch.compile" if compiled else "torch"),
            version=torch.__version__,
            device=torch.cuda.get_device_name() if device == "cuda" else device,
            threads=0 if device == "cuda" else threads or available_threads(),
        )
        # Compiled once a shape: what was compiled for many shapes at once is slower, and is not what one would serve.
        self._call: Callable[..., Tensor] = torch.compile(self.module, fullgraph=True, dynamic=False) if compiled else self.module

    def run(self, images: Array) -> Array:
        """Logits of images; see :class:`growtas.export.runtimes.base.Session`.

        Raises:
            DeviceError: ``torch.compile`` failed.
            UsageError: more images than ``max_batch``.
        """
        return np.asarray(self._forward(self._place(images)).cpu().numpy(), np.float32)

    def timer(self, images: Array) -> Timer:
        """A timed run on placed inputs, compiled before it is returned; see :class:`growtas.export.runtimes.base.Session`.

        Raises:
            DeviceError, UsageError: as for :meth:`run`.
        """
        placed, call, threads = self._place(images), self._call, self.info.threads
        if self._compiled:
            # It looks for CUDA's compiler, and tells of it where there is none, whatever the model is compiled for.
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
            self._forward(placed)

        def on_cpu() -> float:
            with cpu_threads(threads), torch.inference_mode():
                start = time.perf_counter_ns()
                call(placed)
                return (time.perf_counter_ns() - start) / 1e6

        if self._device == "cpu":
            return on_cpu
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

        def on_gpu() -> float:
            start.record()
            with torch.inference_mode():
                call(placed)
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end))

        return on_gpu

    def _place(self, images: Array) -> Tensor:
        if self.max_batch is not None and len(images) > self.max_batch:
            raise UsageError(f"the program takes batches of 1 to {self.max_batch}, not {len(images)}; export it with --max-batch")
        return torch.from_numpy(images).to(self._device)

    def _forward(self, placed: Tensor) -> Tensor:
        with cpu_threads(self.info.threads), torch.inference_mode():
            if not self._compiled:
                return self._call(placed)
            # More batch sizes than dynamo's default limit are fine: each is asked for.
            with torch._dynamo.config.patch(recompile_limit=1024):
                try:
                    return self._call(placed)
                except Exception as error:  # the compiler's stages each have their own exceptions
                    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    raise DeviceError(f"torch.compile failed ({' '.join(reason.split())[:160]})") from error

    def __enter__(self) -> TorchSession:
        return self

    def __exit__(self, *error: object) -> None:
        del self._call, self.module


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Computes on ``count`` CPU threads inside, and puts torch's number back afterwards. 0 leaves it as it is.

    Torch keeps the number for the whole process. Computations that need another one than is set therefore run one at a time; those
    that find theirs run at once.
    """
    before = torch.get_num_threads()
    if count in (0, before):
        yield
        return
    with _CHANGING_THREADS:
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def require_compiler(device: str = "cpu") -> None:
    """Refuses ``torch.compile`` where the compiler that it needs does not work.

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
