"""The devices at hand: the CPU and the first GPU of this machine."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from functools import cache
from pathlib import Path

CPU = "cpu"
_BRANDS = {"nvidia", "tesla", "geforce", "jetson", "graphics", "gpu", "generation", "nvgpu"}
# The same chip is sold with different sockets and memories, as in A100-SXM4-80GB and H100 80GB HBM3.
_FORM = re.compile(r"sxm\d*|pcie|nvl|\d+gb|hbm\w*")


def devices_at_hand() -> dict[str, str]:
    """Returns the full names of this machine's devices by their names for ``--device``."""
    gpu = gpu_name()
    return {CPU: cpu_name()} | ({device_name(gpu): gpu} if gpu else {})


@cache
def cpu_name() -> str:
    """Returns the CPU's marketing name if the system tells it, else its family."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def gpu_name() -> str | None:
    """Returns the driver's name of the first GPU that this process may use, such as ``NVIDIA A10``; None without a GPU.

    It calls the driver's library, because importing torch takes more than a second.
    """
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    failed = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDeviceGetName(name, len(name), device)
    return None if failed else name.value.decode(errors="replace").strip() or None


def device_name(full_name: str) -> str:
    """Returns the name for ``--device``: ``a10`` for ``NVIDIA A10``, ``rtx-4090`` for ``NVIDIA GeForce RTX 4090``.

    The brand, the socket and the memory are left out. All other words make a different device: an A10G, a laptop's RTX 4090 and a
    slice of an A100 have their own names.

    Args:
        full_name: the driver's name, or ``cpu``.
    """
    # The name of a slice contains its memory: A100-SXM4-40GB MIG 1g.5gb.
    whole, mig, part = full_name.lower().partition(" mig ")
    words = [word for word in _words(whole) if word not in _BRANDS and not _FORM.fullmatch(word)]
    if len(words) > 1 and words[0] == "rtx" and re.fullmatch(r"a\d+", words[1]):  # NVIDIA RTX A6000 is an A6000
        del words[0]
    return "-".join([*words, *_words(mig + part)]) or "gpu"


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text)
