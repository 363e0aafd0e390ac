"""How many CPU threads and how much memory this process may use: the least that the machine, its container and the user allow.

A container's limits are those of its control group, which Linux shows as files, in two versions. A group may lie in another one,
and then the limits of both hold.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

from growtas.errors import ConfigError

MEMBERSHIP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""Where Linux says which control groups this process is in, and where their files are."""
_UNKNOWN_BYTES = 4 << 30
# OpenMP takes a list too, with a number for each level of nested parallel regions. The first is of those that are not nested.
_OMP_NUMBER = re.compile(r"\s*\+?([0-9]+)\s*(,\s*\+?[0-9]+\s*)*")


def available_threads() -> int:
    """CPU threads that this process may use: the least of :func:`available_cpus` and OMP_NUM_THREADS.

    An OMP_NUM_THREADS that OpenMP ignores (empty, 0, no number) is ignored here too.
    """
    return int(min(available_cpus(), _omp_threads()))


def available_cpus() -> int:
    """CPUs that this process and its children may use: the least of its CPU affinity and its control groups' quotas.

    A quota is rounded down, but not below 1: 1.5 CPUs count as one. Of two threads that compute all the time, one would be stopped
    again and again, in the middle of a measurement too.
    """
    return max(1, math.floor(min(_affinity(), _quota())))


def check_threads(threads: int | None) -> None:
    """Checks the value of ``--threads``.

    Raises:
        ConfigError: it is not from 1 to the number of CPU threads that the machine has.
    """
    most = os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= most:
        raise ConfigError(f"--threads is {threads}; it must be 1 or more, up to {most}, the CPU threads of this machine")


def limit_openmp() -> None:
    """Gives OpenMP, and so torch, no more threads than :func:`available_threads`. Call it before torch is imported.

    OpenMP knows the affinity, but no quota: in a container of 2 CPUs on a machine of 64 it would start 64 threads.
    """
    if available_cpus() < _affinity():
        os.environ["OMP_NUM_THREADS"] = str(available_threads())


@contextlib.contextmanager
def limited_torch() -> Iterator[None]:
    """Lets torch take :func:`available_threads` at most in the block; a smaller number that was set before stays."""
    import torch

    before = torch.get_num_threads()
    threads = min(before, available_threads())
    if threads != before:  # setting the number that it has would change what OpenMP does with nested regions
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if threads != before:
            torch.set_num_threads(before)


def usable_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its control groups' where less; 4 GiB where nothing tells."""
    sizes = list[float]()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    # Without a limit the file says "max", or a number beyond any machine's.
    for folder in _group_folders("memory"):
        sizes += [*_numbers(folder / "memory.max"), *_numbers(folder / "memory.limit_in_bytes")]
    return int(min((size for size in sizes if 0 < size < math.inf), default=_UNKNOWN_BYTES))


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _omp_threads() -> float:
    match = _OMP_NUMBER.fullmatch(os.environ.get("OMP_NUM_THREADS", ""))
    return int(match[1]) or math.inf if match else math.inf


def _quota() -> float:
    """CPUs that the control groups grant at a time; infinite where none has a quota."""
    quotas = [math.inf]
    for folder in _group_folders("cpu"):
        pair = _numbers(folder / "cpu.max") or _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
        if len(pair) == 2 and min(pair) > 0:  # version 1 says -1 where there is no quota
            quotas.append(pair[0] / pair[1])
    return min(quotas)


def _numbers(file: Path) -> list[float]:
    """The numbers in a file, "max" being infinite; none where the file is absent, unreadable or holds something else."""
    with contextlib.suppress(OSError, ValueError):
        return [math.inf if word == "max" else int(word) for word in file.read_text(encoding="ascii").split()]
    return []


def _group_folders(controller: str) -> list[Path]:
    """The folders of the control groups that this process is in, of both versions, each with the ones that it lies in.

    In a container without a namespace of its own, the path begins at the machine's root, and only the container's group is there,
    as the topmost folder.
    """
    folders = list[Path]()
    with contextlib.suppress(OSError, ValueError):  # another system, or a /proc that can't be read
        for line in MEMBERSHIP.read_text(encoding="utf-8").splitlines():
            number, names, path = line.split(":", 2)
            # Version 2 has one hierarchy for all controllers, whose number is 0; version 1 has one for each.
            if number == "0" or controller in names.split(","):
                top, group = GROUPS / ("" if number == "0" else controller), Path(path.lstrip("/"))
                folders += [top / part for part in (group, *group.parents)]
    return folders
