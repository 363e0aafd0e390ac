"""Writes files atomically, and reads the texts and the JSON that people and growtas wrote."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from growtas.errors import CheckpointError, GrowtasError, OutputError, UsageError

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/|data:", re.IGNORECASE)
"""One slash: a ``Path`` of a URL has lost the other."""


def refuse_url(name: object, error: type[GrowtasError]) -> None:
    """Raises ``error`` where a name that must be a file or folder is a URL, such as ``https://...`` or ``s3://...``."""
    if _URL.match(str(name)):
        raise error(f"{name}: this is a URL, and only local files are read; download it and name the file or folder")


def ensure_writable(folder: str | Path) -> Path:
    """Create a folder if need be, and make sure that files can be written in it.

    Raises:
        OutputError: it can't be created or written; nothing is left behind.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".growtas-"):
            pass
    except OSError as error:
        raise OutputError(f"{path}: the output folder can't be written ({error.strerror})") from None
    return path


def check_output_file(file: str | Path) -> None:
    """Makes sure that an output file can be written, before the work that it is for; its folder is created if need be.

    Raises:
        OutputError: it can't.
    """
    path = Path(file)
    ensure_writable(path.parent)
    if path.is_dir():
        raise OutputError(f"{path}: the output file can't be written (it is a folder); name a file")


def check_output_folder(folder: str | Path) -> None:
    """Makes sure that an output folder can be written, or can be created; nothing is created.

    Raises:
        OutputError: it can't.
    """
    path = Path(folder).absolute()
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not nearest.is_dir():
        raise OutputError(f"{folder}: the output folder can't be written ({nearest} is not a folder)")
    ensure_writable(nearest)


@contextlib.contextmanager
def replacing(path: str | Path, *, sync: bool = False) -> Iterator[Path]:
    """A temporary sibling of ``path`` to write to; it takes the place of ``path`` when the block ends without an error.

    Works for a file, and for a folder; a folder that is there already is removed just before. On an error the sibling is removed.

    Args:
        sync: have the content on the disk first, so that a machine that loses power doesn't leave an empty file of that name.

    Raises:
        OutputError: the place can't be written.
    """
    path = Path(path)
    ensure_writable(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _remove(temporary)
    try:
        yield temporary
        if sync:
            for written in [temporary, *temporary.rglob("*")]:
                _sync(written)
        if path.is_dir() and temporary.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path}: can't be written ({error.strerror or error})") from None
    finally:
        _remove(temporary)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def json_text(data: Any, indent: int | None = None) -> str:
    """Data as JSON that every parser reads: a number that is not finite becomes null, since JSON has no word for it.

    Bytes of file names that are not UTF-8 are written as JSON's escapes, which Python's parser gives back as the same name.
    """
    text = json.dumps(finite_or_null(data), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode()


def finite_or_null(value: Any) -> Any:
    """JSON data with None in place of every number that is not finite."""
    if isinstance(value, dict):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | Path, data: Any, *, sync: bool = False) -> None:
    """Write JSON atomically, indented, with a closing newline; ``sync`` as for :func:`replacing`, numbers as :func:`json_text`."""
    with replacing(path, sync=sync) as temporary:
        temporary.write_text(json_text(data, indent=2) + "\n", encoding="utf-8")


def read_text(file: Path | Traversable, subject: str, error: type[GrowtasError] = CheckpointError) -> str:
    """The text of a UTF-8 file. A byte order mark, which some editors write, is skipped.

    Args:
        subject: what a message begins with, such as ``"runs/first/run.json: the run file"``.

    Raises:
        GrowtasError: of the class ``error``; the file is absent, unreadable, or in another encoding.
    """
    try:
        data = file.read_bytes()
    except OSError as problem:
        raise error(f"{subject} can't be read ({problem.strerror or problem})") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise error(f"{subject} can't be read (it is not text in UTF-8); save it as UTF-8") from None


def parse_json(text: str, subject: str, error: type[GrowtasError] = CheckpointError) -> Any:
    """What a JSON text says.

    Raises:
        GrowtasError: of the class ``error``; it is not JSON. The message begins with ``subject``.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        raise error(f"{subject} not JSON (line {problem.lineno}: {problem.msg})") from None
    except (RecursionError, ValueError):  # lists within lists within lists, or a number of thousands of digits
        raise error(f"{subject} not JSON that can be read") from None


def read_json(path: str | Path, what: str = "file") -> Any:
    """Read JSON that growtas wrote.

    Raises:
        CheckpointError: absent, unreadable, or not JSON; the message calls it ``what``.
    """
    subject = f"{path}: the {what}"
    return parse_json(read_text(Path(path), subject), f"{subject} is")


def check_folder(folder: str | Path, error: type[GrowtasError] = UsageError) -> None:
    """Makes sure that a folder, where there is one, can be listed: patterns match nothing in one that can't.

    Raises:
        GrowtasError: of the class ``error``; it can't.
    """
    try:
        with os.scandir(folder):
            pass
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as problem:
        raise error(f"{folder}: the folder can't be read ({problem.strerror or problem})") from None


def append_json_line(path: str | Path, data: Any) -> None:
    """Append one JSON object as a line; flushed, so that a killed process loses at most the line it was writing."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json_text(data) + "\n")


def drop_torn_line(path: str | Path) -> None:
    """Cut off what follows the last newline of a JSON-lines file, so that the next line does not continue half of one.

    A whole line that only lacks its newline is kept; a file that does not exist stays so.

    Raises:
        OutputError: the file can't be written.
    """
    try:
        with open(path, "r+b") as file:
            content = file.read()
            end = content.rfind(b"\n") + 1
            if end == len(content):
                return
            try:
                json.loads(content[end:])
                file.write(b"\n")
            except ValueError:
                file.truncate(end)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path}: can't be written ({error.strerror or error})") from None


def read_json_lines(path: str | Path) -> list[Any]:
    """All whole lines of a JSON-lines file, an empty list where there is none; a torn last line is left out."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        return []
    entries = []
    for number, line in enumerate(lines):
        if not line:
            continue
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines) - 1:
                raise CheckpointError(f"{path}: line {number + 1} is not JSON") from None
    return entries


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
