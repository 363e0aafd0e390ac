import os

import pytest
import torch

from growtas import resources
from growtas.errors import ConfigError
from growtas.resources import (
    available_cpus,
    available_threads,
    check_threads,
    limit_openmp,
    limited_torch,
    other_work,
    usable_memory,
)


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Writes a machine's control groups: what /proc says of them, and the files that lie in them."""
    monkeypatch.setattr(resources, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(resources, "GROUPS", tmp_path / "cg")

    def write(membership, files):
        (tmp_path / "membership").write_text(membership)
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    return write


def test_nothing_but_the_affinity(groups):
    groups("0::/\n", {})
    assert available_threads() == 8


def test_a_system_without_control_groups(monkeypatch, tmp_path):
    monkeypatch.setattr(resources, "MEMBERSHIP", tmp_path / "absent")
    assert available_threads() == 8
    assert usable_memory() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("limit", "threads"),
    [
        ("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("150000 100000", 1), ("299999 100000", 2),
        ("300000 50000", 6), ("6400000 100000", 8), ("", 8), ("two", 8), ("0 0", 8), ("200000", 8),
    ],
)  # fmt: skip
def test_the_quota_of_version_2(groups, limit, threads):
    groups("0::/\n", {"cg/cpu.max": limit + "\n"})
    assert available_threads() == threads


@pytest.mark.parametrize("where", ["cg/a.slice", "cg/a.slice/b.scope/c", "cg/a.slice/b.scope"])
def test_the_quota_of_any_group_above(groups, where):
    files = {f"cg/a.slice/{name}cpu.max": "max 100000\n" for name in ("", "b.scope/", "b.scope/c/")}
    groups("0::/a.slice/b.scope/c\n", {**files, f"{where}/cpu.max": "300000 100000\n", "cg/other/cpu.max": "100000 100000\n"})
    assert available_threads() == 3


@pytest.mark.parametrize(("quota", "threads"), [("-1", 8), ("250000", 2), ("400000", 4)])
def test_the_quota_of_version_1(groups, quota, threads):
    folder = "cg/cpu/docker/abc"
    files = {f"{folder}/cpu.cfs_quota_us": quota + "\n", f"{folder}/cpu.cfs_period_us": "100000\n"}
    groups("4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n", files)
    assert available_threads() == threads


def test_a_container_without_a_namespace_of_its_own(groups):
    # The path is the machine's, but only the container's own group is mounted.
    files = {"cg/cpu/cpu.cfs_quota_us": "200000\n", "cg/cpu/cpu.cfs_period_us": "100000\n"}
    groups("3:cpu,cpuacct:/docker/abc\n", files)
    assert available_threads() == 2


def test_a_namespace_whose_path_leads_above_the_top(groups):
    groups("0::/../../other\n", {"cg/cpu.max": "200000 100000\n"})
    assert available_threads() == 2


@pytest.mark.parametrize(
    ("value", "threads"),
    [("3", 3), (" 3 ", 3), ("3,2", 3), ("1", 1), ("64", 8), ("99999999999999999999", 8)]
    + [(value, 8) for value in ("", " ", "0", "-2", "abc", "2.5", "1e1", "3,", "0,3", "٣")],
)
def test_what_openmp_is_told(monkeypatch, value, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert available_threads() == threads


def test_processes_that_decode_are_not_openmps(groups, monkeypatch):
    groups("0::/\n", {"cg/cpu.max": "400000 100000\n"})
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as torchrun sets it for each of its processes
    assert (available_cpus(), available_threads()) == (4, 1)


def test_the_least_counts(groups, monkeypatch):
    groups("0::/\n", {"cg/cpu.max": "400000 100000\n"})
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert available_threads() == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert available_threads() == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5})
    assert available_threads() == 1


def test_openmp_learns_of_a_quota_only(groups, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "abc")
    limit_openmp()
    assert os.environ["OMP_NUM_THREADS"] == "abc"  # OpenMP itself says what it thinks of that
    groups("0::/\n", {"cg/cpu.max": "250000 100000\n"})
    for before, after in (("abc", "2"), ("1", "1"), ("4,2", "2")):
        monkeypatch.setenv("OMP_NUM_THREADS", before)
        limit_openmp()
        assert os.environ["OMP_NUM_THREADS"] == after


def test_torch_is_limited_for_a_while(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        with limited_torch():
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 3
        torch.set_num_threads(1)
        with limited_torch():
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_usable_memory_is_the_smallest_limit_that_is_told(groups):
    files = {"cg/memory.max": "max\n", "cg/a/memory.max": "123456789\n", "cg/a/b/memory.max": "max\n"}
    groups("0::/a/b\n", files)
    assert usable_memory() == 123456789


def test_usable_memory_in_version_1(groups):
    groups("4:memory:/docker/abc\n", {"cg/memory/docker/abc/memory.limit_in_bytes": "123456789\n"})
    assert usable_memory() == 123456789


def test_threads_that_are_asked_for(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for fine in (None, 1, 4):
        check_threads(fine)
    for wrong in (0, -1, 5, 10**12):
        with pytest.raises(ConfigError, match=f"--threads is {wrong}; it must be from 1 to 4, the number of CPU threads of this"):
            check_threads(wrong)


@pytest.mark.parametrize(
    ("ticks", "text"),
    [
        # user, nice, system, idle, iowait, irq, softirq, steal: in 1 s of 8 CPUs, of which this process may use all.
        ((0, 0, 0, 800, 0, 0, 0, 0), ""),
        ((100, 50, 49, 601, 0, 0, 0, 0), ""),
        ((100, 50, 51, 599, 0, 0, 0, 0), "other programs use 2.0 of this machine's 8 CPU threads"),
        ((0, 0, 0, 500, 0, 50, 50, 200), "other programs use 3.0 of this machine's 8 CPU threads"),
        ((200, 0, 0, 300, 300, 0, 0, 0), ""),
        ((0, 0, 0, 0, 0, 0, 0, 0), ""),
    ],
)
def test_the_cpu_time_of_other_programs(tmp_path, monkeypatch, groups, ticks, text):
    groups("0::/\n", {})
    monkeypatch.setattr(resources, "STATISTICS", tmp_path / "stat")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    start = (10, 20, 30, 40, 50, 60, 70, 80)

    def write(_seconds):
        (tmp_path / "stat").write_text("cpu  " + " ".join(str(a + b) for a, b in zip(start, ticks, strict=True)) + " 0 0\ncpu0 1\n")

    (tmp_path / "stat").write_text(f"cpu  {' '.join(map(str, start))} 0 0\ncpu0 1\n")
    monkeypatch.setattr(resources.time, "sleep", write)
    assert other_work() == text


def test_own_work_is_not_other_work(tmp_path, monkeypatch, groups):
    groups("0::/\n", {})
    monkeypatch.setattr(resources, "STATISTICS", tmp_path / "stat")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(resources.time, "sleep", lambda _: (tmp_path / "stat").write_text("cpu 500 0 0 300 0 0 0 0\n"))
    clock = iter([7.0, 12.0])
    monkeypatch.setattr(resources.time, "process_time", lambda: next(clock))
    (tmp_path / "stat").write_text("cpu 0 0 0 0 0 0 0 0\n")
    assert other_work() == ""


def test_a_system_that_does_not_tell_its_cpu_time(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "STATISTICS", tmp_path / "absent")
    assert other_work(0.0) == ""
