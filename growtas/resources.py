"""The number of CPU threads and the memory that this process may use, limited by the machine, its container and the user.

A container's limits are those of its control group, which Linux shows as files in two versions. If a group lies inside another
one, the limits of both apply.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from growtas.errors import ConfigError

MEMBERSHIP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""Files of Linux with the control groups of this process, and the folder of the groups' files."""
STATISTICS = Path("/proc/stat")
"""File of Linux with the CPU time of the whole machine."""
_ENOUGH_IDLE = 0.75
"""Share of the CPUs of this process that must be idle before a measurement."""
_UNKNOWN_BYTES = 4 << 30
# OpenMP also accepts a list with a number for each level of nested parallel regions; the first number is for the outermost level.
_OMP_NUMBER = re.compile(r"\s*\+?([0-9]+)\s*(,\s*\+?[0-9]+\s*)*")


def available_threads() -> int:
    """Returns the number of CPU threads that this process may use: the minimum of :func:`available_cpus` and OMP_NUM_THREADS.

    Values of OMP_NUM_THREADS that OpenMP ignores (empty, 0, not a number) are ignored here too.
    """
    return int(min(available_cpus(), _omp_threads()))


def available_cpus() -> int:
    """Returns the number of CPUs for this process and its children: the minimum of CPU affinity and control groups' quotas.

    A quota is rounded down, but not below 1: 1.5 CPUs count as one, because the system would repeatedly pause one of two busy
    threads, also in the middle of a measurement.
    """
    return max(1, math.floor(min(_affinity(), _quota())))


def other_work(seconds: float = 0.3) -> str:
    """Describes the CPU time that other programs use now; returns an empty string if it is little or unknown.

    The load average would also count this program's own work, and the previous command's for a minute after its end.

    Args:
        seconds: How long the function waits and watches.
    """
    before, own = _cpu_seconds(), time.process_time()
    time.sleep(seconds)
    after, own = _cpu_seconds(), time.process_time() - own
    if before is None or after is None or sum(after) == sum(before):
        return ""
    threads = os.cpu_count() or 1
    used = threads * max(0.0, after[0] - before[0] - own) / (sum(after) - sum(before))
    if threads - used >= _ENOUGH_IDLE * available_cpus():
        return ""
    return f"other programs use {used:.1f} of this machine's {threads} CPU threads"


def _cpu_seconds() -> tuple[float, float] | None:
    """Returns the CPU time of all programs since the machine started, and the idle time of all CPUs, in seconds."""
    try:
        user, nice, system, idle, iowait, irq, softirq, steal = map(int, STATISTICS.read_text().split()[1:9])
    except (OSError, ValueError):
        return None
    tick = 1 / os.sysconf("SC_CLK_TCK")
    return tick * (user + nice + system + irq + softirq + steal), tick * (idle + iowait)


def check_threads(threads: int | None) -> None:
    """Checks the value of ``--threads``.

    Raises:
        ConfigError: The value is not between 1 and the machine's number of CPU threads.
    """
    most = os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= most:
        raise ConfigError(f"--threads is {threads}; it must be from 1 to {most}, the number of CPU threads of this machine")


def limit_openmp() -> None:
    """Limits OpenMP, and so torch, to :func:`available_threads`. Call it before importing torch.

    OpenMP respects the CPU affinity, but not a quota: in a container with 2 CPUs on a machine with 64 it would start 64 threads.
    """
    if available_cpus() < _affinity():
        os.environ["OMP_NUM_THREADS"] = str(available_threads())


@contextlib.contextmanager
def limited_torch() -> Iterator[None]:
    """Limits torch to :func:`available_threads` inside the block; a smaller number that was set before stays."""
    import torch

    before = torch.get_num_threads()
    threads = min(before, available_threads())
    if threads != before:  # even setting the same number would change how OpenMP handles nested regions
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if threads != before:
            torch.set_num_threads(before)


def usable_memory() -> int:
    """Returns the memory that this process may use in bytes: the minimum of machine and control groups, or 4 GiB if unknown."""
    sizes = list[float]()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    # Without a limit, the file contains "max" or a number larger than any machine's memory.
    for folder in _group_folders("memory"):
        sizes += [*_numbers(folder / "memory.max"), *_numbers(folder / "memory.limit_in_bytes")]
    return int(min((size for size in sizes if 0 < size < math.inf), default=_UNKNOWN_BYTES))


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _omp_threads() -> float:
    match = _OMP_NUMBER.fullmatch(os.environ.get("OMP_NUM_THREADS", ""))
    return int(match[1]) or math.inf if match else math.inf


def _quota() -> float:
    """Returns the smallest CPU quota of the control groups; infinite if none has a quota."""
    quotas = [math.inf]
    for folder in _group_folders("cpu"):
        pair = _numbers(folder / "cpu.max") or _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
        if len(pair) == 2 and min(pair) > 0:  # version 1 has -1 if there is no quota
            quotas.append(pair[0] / pair[1])
    return min(quotas)


def _numbers(file: Path) -> list[float]:
    """Reads the numbers in a file, with "max" as infinite; an empty list if the file is missing, unreadable or has other text."""
    with contextlib.suppress(OSError, ValueError):
        return [math.inf if word == "max" else int(word) for word in file.read_text(encoding="ascii").split()]
    return []


def _group_folders(controller: str) -> list[Path]:
    """Returns the folders of this process's control groups, of both versions, with all their parent groups.

    In a container without its own namespace, the path begins at the machine's root, but only the container's group exists, as the
    topmost folder.
    """
    folders = list[Path]()
    with contextlib.suppress(OSError, ValueError):  # another operating system, or an unreadable /proc
        for line in MEMBERSHIP.read_text(encoding="utf-8").splitlines():
            number, names, path = line.split(":", 2)
            # Version 2 has one hierarchy with the number 0 for all controllers; version 1 has one hierarchy for each controller.
            if number == "0" or controller in names.split(","):
                top, group = GROUPS / ("" if number == "0" else controller), Path(path.lstrip("/"))
                folders += [top / part for part in (group, *group.parents)]
    return folders
