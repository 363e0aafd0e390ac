"""What the steps compute on: the GPU, or a stand-in. ``python -m tests.gpu.hardware`` prints what the machine is."""

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
    """The GPU; or, where ``stand_in`` is set, this machine's CPU and smaller sizes, to try the steps without a GPU."""

    stand_in: bool

    @property
    def device(self) -> str:
        """The device's name for torch."""
        return "cpu" if self.stand_in else "cuda"

    def size(self, gpu: Size, stand_in: Size) -> Size:
        """One of two sizes."""
        return stand_in if self.stand_in else gpu

    def wait(self) -> None:
        """Returns when everything that was launched is done."""
        import torch

        if not self.stand_in:
            torch.cuda.synchronize()

    def peak_bytes(self, prepare: Callable[[], Callable[[], object]], *, calls: int) -> int:
        """Most bytes of tensors at once while ``prepare`` makes a program and the program is called ``calls`` times."""
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
    """The GPU with its driver, and versions; without a GPU that PyTorch can use, the entry ``no GPU`` says why."""
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
