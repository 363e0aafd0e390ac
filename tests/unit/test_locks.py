"""One process at a time works in a folder."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading

import pytest

from growtas.errors import OutputError, UsageError
from growtas.locks import exclusive

HOLD = """
import os, sys, time
from pathlib import Path
from growtas.locks import exclusive
with exclusive(Path(sys.argv[1]), "at work"):
    if not sys.argv[2:]:
        print("held", flush=True)
    elif not os.fork():
        print("held", flush=True)  # says it itself: it closes the parent's file only when it begins to run
        time.sleep(60)
    input()
"""


def holder(*arguments):
    """Starts a process that holds the lock until its input ends; its own process group."""
    command = [sys.executable, "-c", HOLD, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock until its input ends."""
    process = holder(tmp_path)
    yield process
    process.kill()
    process.communicate()


def test_the_owner_is_named_and_its_end_releases_the_lock(tmp_path, other):
    refused = pytest.raises(UsageError, match=rf"{tmp_path}: process {other.pid} is at work; wait for it, or stop it first")
    with refused, exclusive(tmp_path, "at work"):
        pass
    other.communicate("\n")
    with exclusive(tmp_path, "at work"):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert not list(tmp_path.iterdir())


def test_a_killed_owner_leaves_nothing_that_stands_in_the_way(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / ".lock").read_text().startswith(f"{other.pid}\n")
    with exclusive(tmp_path, "at work"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_live_process_that_got_the_number_of_a_dead_owner_does_not_hold_the_lock(tmp_path):
    (tmp_path / ".lock").write_text(f"{os.getppid()}\nhere\n")
    os.utime(tmp_path / ".lock", (0, 2**33))  # from the future, as if the clock had been turned back
    with exclusive(tmp_path, "at work"):
        pass


def test_another_call_of_this_process_does_not_get_it(tmp_path):
    said = []

    def again():
        with pytest.raises(UsageError, match=f"process {os.getpid()} is at work") as caught, exclusive(tmp_path, "at work"):
            pass
        said.append(caught.value)

    with exclusive(tmp_path, "at work"):
        again()
        thread = threading.Thread(target=again)
        thread.start()
        thread.join()
    assert len(said) == 2


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_gets_a_marker(tmp_path, monkeypatch, number):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    refused = pytest.raises(UsageError, match=f"process {os.getpid()} is at work")
    with exclusive(tmp_path, "at work"), refused, exclusive(tmp_path, "at work"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_fork_does_not_keep_the_lock_of_its_killed_parent(tmp_path):
    parent = holder(tmp_path, "fork")
    try:
        parent.kill()
        parent.wait()
        with exclusive(tmp_path, "at work"):
            pass
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate()


@pytest.mark.parametrize("kind", ["fifo", "folder", "link"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    path = tmp_path / ".lock"
    {"fifo": lambda: os.mkfifo(path), "folder": path.mkdir, "link": lambda: path.symlink_to("/dev/zero")}[kind]()
    refused = pytest.raises(OutputError, match=r"\.lock: the lock can't be written \(it is not a regular file\)")
    with refused, exclusive(tmp_path, "at work"):
        pass
    assert os.path.lexists(path)
