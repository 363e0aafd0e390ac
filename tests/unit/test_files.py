from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pytest

from growtas.errors import CheckpointError, OutputError
from growtas.files import append_json_line, check_folder, ensure_writable, read_json, read_json_lines, replacing, sha256, write_json


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
