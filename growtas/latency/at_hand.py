"""The devices at hand: this machine's CPU, and its GPU as the driver names it."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from functools import cache
from pathlib import Path

CPU = "cpu"
_BRANDS = {"nvidia", "tesla", "geforce", "jetson", "graphics", "gpu", "generation", "nvgpu"}
# Sockets and memories, with which one chip is sold: A100-SXM4-80GB, H100 80GB HBM3.
_FORM = re.compile(r"sxm\d*|pcie|nvl|\d+gb|hbm\w*")


def devices_at_hand() -> dict[str, str]:
    """The devices that this machine has: what ``--device`` calls each, and its full name."""
    gpu = gpu_name()
    return {CPU: cpu_name()} | ({device_name(gpu): gpu} if gpu else {})


@cache
def cpu_name() -> str:
    """The CPU's marketing name where the system tells it, else its family."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def gpu_name() -> str | None:
    """What the driver calls the first GPU that this process may use, such as ``NVIDIA A10``; None without one.

    The driver's library is asked, since torch takes more than a second to import.
    """
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    failed = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDeviceGetName(name, len(name), device)
    return None if failed else name.value.decode(errors="replace").strip() or None


def device_name(full_name: str) -> str:
    """What ``--device`` calls a device: ``NVIDIA A10`` is ``a10``, and ``NVIDIA GeForce RTX 4090`` is ``rtx-4090``.

    Left out are the brand, the socket and the memory. Whatever else the driver says makes it another device: an A10G, a laptop's
    RTX 4090 and a slice of an A100 have names of their own.

    Args:
        full_name: the driver's name, or ``cpu``.
    """
    # A slice is named by its memory: A100-SXM4-40GB MIG 1g.5gb.
    whole, mig, part = full_name.lower().partition(" mig ")
    words = [word for word in _words(whole) if word not in _BRANDS and not _FORM.fullmatch(word)]
    if len(words) > 1 and words[0] == "rtx" and re.fullmatch(r"a\d+", words[1]):  # NVIDIA RTX A6000 is an A6000
        del words[0]
    return "-".join([*words, *_words(mig + part)]) or "gpu"


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text)
