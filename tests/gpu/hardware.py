"""The device of the steps: the GPU, or the CPU as a stand-in. ``python -m tests.gpu.hardware`` describes the machine."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "numpy")

Size = TypeVar("Size")


@dataclass(frozen=True)
class Hardware:
    """The GPU, or with ``stand_in`` this machine's CPU and smaller sizes, to try the steps without a GPU."""

    stand_in: bool

    @property
    def device(self) -> str:
        """The device's name for torch."""
        return "cpu" if self.stand_in else "cuda"

    def size(self, gpu: Size, stand_in: Size) -> Size:
        """Chooses between the sizes for the GPU and for the stand-in."""
        return stand_in if self.stand_in else gpu

    def wait(self) -> None:
        """Waits until all launched work is done."""
        import torch

        if not self.stand_in:
            torch.cuda.synchronize()

    def peak_bytes(self, prepare: Callable[[], Callable[[], object]], *, calls: int) -> int:
        """Measures the peak of tensor bytes while ``prepare`` makes a program and the program is called ``calls`` times."""
        import torch

        from tests.benchmarks.memory import peak_bytes

        if self.stand_in:
            return peak_bytes(prepare, calls=calls)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        program = prepare()
        for _ in range(calls):
            program()
        self.wait()
        return torch.cuda.max_memory_allocated() - before


def machine() -> dict[str, str]:
    """Describes the GPU, its driver and the versions. Without a GPU that PyTorch can use, ``no GPU`` gives the reason."""
    facts: dict[str, str] = {}
    try:
        import torch
    except ImportError as error:
        facts["no GPU"] = f"{sys.executable} can't import PyTorch ({error})"
    else:
        if torch.cuda.is_available():
            major, minor = torch.cuda.get_device_capability()
            facts |= {"GPU": torch.cuda.get_device_name(), "capability": f"{major}.{minor}", "driver": _driver()}
            facts["CUDA"] = str(torch.version.cuda)
        else:
            facts["no GPU"] = f"PyTorch {torch.__version__} sees none"
    facts["Python"] = platform.python_version()
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.split("\n")[0].strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(machine()) + "\n")
