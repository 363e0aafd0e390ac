from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from growtas.errors import CheckpointError, OutputError
from growtas.files import (
    append_json_line,
    check_folder,
    check_output_file,
    ensure_writable,
    read_json,
    read_json_lines,
    replacing,
    sha256,
    write_json,
)


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "x").touch()
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "x").touch()
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "x").exists()


def test_a_place_that_is_no_folder_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file/sub: the output folder can't be written"):
        ensure_writable(tmp_path / "file" / "sub")
    with pytest.raises(OutputError):
        write_json(tmp_path / "file" / "a.json", {})


def test_a_torn_last_line_is_left_out_and_a_broken_one_before_is_an_error(tmp_path):
    path = tmp_path / "j.jsonl"
    assert read_json_lines(path) == []
    append_json_line(path, {"a": 1})
    append_json_line(path, {"a": 2})
    with path.open("a") as file:
        file.write('{"a": ')
    assert read_json_lines(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": \n{"a": 2}\n')
    with pytest.raises(CheckpointError, match="line 1 is not JSON"):
        read_json_lines(path)


def test_unreadable_json_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no\.json: the run file can't be read \(No such file"):
        read_json(tmp_path / "no.json", "run file")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"bad\.json: the file is not JSON \(line 1"):
        read_json(tmp_path / "bad.json")


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"growtas")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"growtas").hexdigest()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le", "utf-32"])
def test_other_encodings_are_named(tmp_path, encoding):
    path = tmp_path / "a.json"
    mark = "" if encoding in ("utf-16", "utf-32") else "\ufeff"
    path.write_text(mark + '{"a": 1}', encoding=encoding)
    with pytest.raises(CheckpointError, match=r"a\.json: the file can't be read \(it is not text in UTF-8\); save it as UTF-8"):
        read_json(path)


def test_what_is_no_text_and_what_is_nested_too_deeply_are_named(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfa\x00")
    with pytest.raises(CheckpointError, match=r"a\.json: the file can't be read \(it is not text in UTF-8\)"):
        read_json(tmp_path / "a.json")
    for text in ("[" * 100_000, "1" * 5000):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"a\.json: the file is not JSON that (growtas accepts|Python can parse)"):
            read_json(tmp_path / "a.json")


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "\u00fc\ufeff"}\n', encoding="utf-8-sig")
    assert read_json(path) == {"a": "\u00fc\ufeff"}
    assert read_json_lines(path) == [{"a": "\u00fc\ufeff"}]


def test_a_folder_that_is_not_there_can_be_checked(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "none", tmp_path / "file"):
        check_folder(folder)


def test_what_is_not_finite_is_null_in_every_file(tmp_path):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    data = {"a": [math.nan, 1.5, {"b": (math.inf, -math.inf)}], "c": np.float64("nan"), "d": "NaN"}
    expected = {"a": [None, 1.5, {"b": [None, None]}], "c": None, "d": "NaN"}
    write_json(tmp_path / "a.json", data)
    append_json_line(tmp_path / "b.jsonl", data)
    for name in ("a.json", "b.jsonl"):
        assert json.loads((tmp_path / name).read_text(), parse_constant=refuse) == expected


def test_file_names_that_are_not_utf8_go_through_json_and_back(tmp_path):
    names = {"file": "caf\udce9.png", "note": "café 🐶", "backslash": "\\udce9"}
    write_json(tmp_path / "a.json", names)
    append_json_line(tmp_path / "a.jsonl", names)
    assert read_json(tmp_path / "a.json") == names
    assert read_json_lines(tmp_path / "a.jsonl") == [names]
    assert "café 🐶" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "data.json", tmp_path / "link.json"
    link.symlink_to(target)
    for content in (1, 2):  # at first the link leads to nothing
        write_json(check_output_file(link), content)
        assert link.is_symlink()
        assert read_json(target) == content
    assert [path.name for path in target.parent.iterdir()] == ["data.json"]


def test_a_link_that_no_user_named_is_replaced(tmp_path):
    """Somebody else's run must not lead what growtas writes to another file of the user."""
    own, link = tmp_path / "own.json", tmp_path / "run.json"
    own.write_text("1")
    link.symlink_to(own)
    write_json(link, 2)
    assert (own.read_text(), link.is_symlink(), read_json(link)) == ("1", False, 2)


def test_a_fifo_gets_the_content_and_stays(tmp_path):
    fifo, read = tmp_path / "fifo", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: read.append(fifo.read_text()))
    reader.start()
    check_output_file(fifo)
    write_json(fifo, {"a": 1})
    reader.join(10)
    assert json.loads(read[0]) == {"a": 1}
    assert fifo.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


@pytest.mark.parametrize("piped", [True, False])
def test_standard_output_is_written_to_and_not_replaced(tmp_path, piped):
    code = "from growtas.files import write_json; print('before', flush=True); write_json('/dev/stdout', [1]); print('after')"
    before = os.stat("/dev/stdout", follow_symlinks=False)
    if piped:
        text = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout
    else:
        with open(tmp_path / "out", "a") as file:
            subprocess.run([sys.executable, "-c", code], stdout=file, check=True, timeout=60)
        text = (tmp_path / "out").read_text()
    assert text == "before\n[\n  1\n]\nafter\n"
    assert os.stat("/dev/stdout", follow_symlinks=False) == before


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="this system has no /dev/shm that can be written")
def test_a_file_in_shared_memory_is_an_ordinary_file():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for content in (1, 2):
            write_json(Path(folder) / "a.json", content)
        assert read_json(Path(folder) / "a.json") == 2


def test_a_device_that_takes_nothing_is_named():
    with pytest.raises(OutputError, match="/dev/full: can't be written .No space left on device"):
        write_json("/dev/full", [1])
    assert Path("/dev/full").is_char_device()


KILLED = """
import os, signal, sys
from growtas.files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.mkdir()
    (temporary / "x").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_write_removes_what_a_killed_process_left(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "killed")], check=False, timeout=60)
    assert done.returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    with replacing(tmp_path / "alive") as temporary:
        temporary.touch()
        assert [path.name for path in tmp_path.iterdir()] == [temporary.name]
        write_json(tmp_path / "other", 1)
        assert temporary.exists()  # its owner lives
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alive", "other"]
