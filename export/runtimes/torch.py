"""The static ViT itself in eager PyTorch: the reference of every comparison."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from growtas.checkpoint import load_model
from growtas.export.runtimes.base import Array, RuntimeInfo, Timer, available_threads
from growtas.nn.vit import VisionTransformer


class TorchSession:
    """A static ViT from a ``.safetensors`` file, or from memory.

    Args:
        model: a file that :func:`growtas.checkpoint.save_model` wrote, or the model.
        threads: torch's CPU threads while it is open; by default all that this process may use.
        device: ``cpu`` or ``cuda``.

    Raises:
        CheckpointError: the file can't be read.
    """

    def __init__(self, model: str | Path | VisionTransformer, *, threads: int | None = None, device: str = "cpu") -> None:
        loaded = model if isinstance(model, VisionTransformer) else load_model(model)
        self.model = loaded.eval().to(device)
        self._device = device
        name = torch.cuda.get_device_name() if device == "cuda" else device
        cpu_threads = 0 if device == "cuda" else (threads or available_threads())
        self._threads_before = torch.get_num_threads()
        self.info = RuntimeInfo(runtime="torch", version=torch.__version__, device=name, threads=cpu_threads)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the input."""
        architecture = self.model.architecture
        return architecture.in_chans, architecture.image_size, architecture.image_size

    def run(self, images: Array) -> Array:
        """Logits of images; see :class:`growtas.export.runtimes.base.Session`."""
        with torch.inference_mode():
            logits = self.model(torch.from_numpy(images).to(self._device))
        return np.asarray(logits.cpu().numpy(), np.float32)

    def timer(self, images: Array) -> Timer:
        """A timed run on placed inputs; see :class:`growtas.export.runtimes.base.Session`."""
        placed, model, threads = torch.from_numpy(images).to(self._device), self.model, self.info.threads

        def once() -> float:
            # torch has one thread count for the whole process, and other sessions may have set another.
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            with torch.inference_mode():
                start = time.perf_counter_ns()
                model(placed)
                return (time.perf_counter_ns() - start) / 1e6

        return cuda_timer(lambda: _forward(model, placed)) if self._device == "cuda" else once

    def __enter__(self) -> TorchSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        del self.model
        if self.info.threads:
            torch.set_num_threads(self._threads_before)


def _forward(model: VisionTransformer, images: torch.Tensor) -> None:
    with torch.inference_mode():
        model(images)


def cuda_timer(launch: Callable[[], None]) -> Timer:
    """A timer around asynchronous work on torch's current CUDA stream, by CUDA events.

    Args:
        launch: a function without arguments that enqueues the work.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    def once() -> float:
        start.record()
        launch()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return once
