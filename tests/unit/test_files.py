from __future__ import annotations

import hashlib

import pytest

from growtas.errors import CheckpointError, OutputError
from growtas.files import append_json_line, ensure_writable, read_json, read_json_lines, replacing, sha256, write_json


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


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a": ' + "9" * 10_000 + "}"])
def test_json_that_python_gives_up_on_is_one_sentence(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"m\.json: the manifest is damaged"):
        read_json(tmp_path / "m.json", "manifest")
