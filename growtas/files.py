"""Writes files atomically, and reads text and JSON files of users and of growtas."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import math
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from growtas.errors import CheckpointError, GrowtasError, OutputError, UsageError
from growtas.escapes import escape_json
from growtas.processes import process_alive

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/|data:", re.IGNORECASE)
"""With one slash, because ``Path`` removes the second slash of a URL."""
_OPEN_FILE = re.compile(r"/dev/(stdout|stderr|fd/\d+)|/proc/.+/fd/\d+")


def refuse_url(name: object, error: type[GrowtasError]) -> None:
    """Raises ``error`` if the name of a file or folder is a URL, such as ``https://...`` or ``s3://...``."""
    if _URL.match(str(name)):
        raise error(f"{name}: this is a URL, and only local files are read; download it and name the file or folder")


def ensure_writable(folder: str | Path) -> Path:
    """Creates a folder if necessary, and checks that files can be written in it.

    Raises:
        OutputError: The folder can't be created or written; nothing is left behind.
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
    """Checks that an output file can be written, and creates its folder if necessary. Call it before the work.

    Raises:
        OutputError: The file can't be written.
    """
    path = _followed(file)
    if _is_stream(path):
        if not os.access(path, os.W_OK):
            raise OutputError(f"{path}: the output file can't be written (no permission)")
        return
    ensure_writable(path.parent)
    if path.is_dir():
        raise OutputError(f"{path}: the output file can't be written (it is a folder); name a file")


def check_output_folder(folder: str | Path) -> None:
    """Checks that an output folder can be written or created, and creates nothing.

    Raises:
        OutputError: The folder can't be written or created.
    """
    path = Path(folder).absolute()
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not nearest.is_dir():
        raise OutputError(f"{folder}: the output folder can't be written ({nearest} is not a folder)")
    ensure_writable(nearest)


def _followed(path: str | Path) -> Path:
    """Returns the path that a symbolic link leads to, so that the link stays when its target is replaced; others as they are."""
    path = Path(path)
    return Path(os.path.realpath(path)) if path.is_symlink() and not _is_stream(path) else path


def _is_stream(path: Path) -> bool:
    """Returns whether a path is a device, a FIFO or a socket, or an open file such as ``/dev/stdout``: it can't be replaced."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    # An open file may be a regular one; files in other folders of /dev, such as /dev/shm, are ordinary files.
    return _OPEN_FILE.fullmatch(os.path.abspath(path)) is not None or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextlib.contextmanager
def replacing(path: str | Path, *, sync: bool = False) -> Iterator[Path]:
    """Yields a temporary sibling of ``path`` to write to, which replaces ``path`` if the block ends without an error.

    This works for files and folders; an existing folder is removed just before the replacement. After an error, the sibling is
    removed. The target of a symbolic link is replaced, not the link. A device or FIFO gets the content and is not replaced.

    Args:
        path: the file or folder to replace.
        sync: flush the content to the disk before the replacement, so that a power failure can't leave an empty file.

    Raises:
        OutputError: The file or folder can't be written.
    """
    path = _followed(path)
    if _is_stream(path):
        with tempfile.TemporaryDirectory(prefix="growtas-") as folder:
            yield Path(folder) / path.name
            _append(path, (Path(folder) / path.name).read_bytes())
        return
    ensure_writable(path.parent)
    with staged(path) as temporary:
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


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yields a free name beside ``path`` for a file or folder, which is removed at the end if it is still there.

    The name holds the machine and the process, so that the next call removes what killed processes of this machine left behind.
    """
    sweep(path.parent)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    _remove(temporary)
    try:
        yield temporary
    finally:
        _remove(temporary)


def sweep(folder: Path) -> None:
    """Removes the temporary files and folders that processes of this machine left in a folder when they were killed."""
    host = socket.gethostname()
    for left in folder.glob(f".*.{glob.escape(host)}.*.tmp"):
        number = left.name.removesuffix(".tmp").rpartition(".")[2]
        with contextlib.suppress(OSError):
            if number.isdecimal() and process_alive({"pid": int(number), "host": host}, left.lstat().st_mtime) is False:
                _remove(left)


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
    """Returns data as standard JSON; numbers that are not finite become null, because JSON can't represent them.

    Bytes of file names that are not UTF-8, and characters that a terminal obeys, become JSON escapes such as ``\\udcff`` and
    ``\\u001b``, which Python's parser converts back to the same name.
    """
    return escape_json(json.dumps(finite_or_null(data), indent=indent, ensure_ascii=False, allow_nan=False))


def finite_or_null(value: Any) -> Any:
    """Returns JSON data in which None replaces every number that is not finite."""
    if isinstance(value, dict):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | Path, data: Any, *, sync: bool = False) -> None:
    """Writes JSON atomically, indented, with a final newline; see :func:`replacing` for ``sync`` and :func:`json_text`."""
    with replacing(path, sync=sync) as temporary:
        temporary.write_text(json_text(data, indent=2) + "\n", encoding="utf-8")


def read_text(file: Path | Traversable, subject: str, error: type[GrowtasError] = CheckpointError) -> str:
    """Reads a UTF-8 file. A byte order mark, which some editors write, is skipped.

    Args:
        file: the file.
        subject: beginning of error messages, such as ``"runs/first/run.json: the run file"``.
        error: class of the exception.

    Raises:
        GrowtasError: Of the class ``error``; the file is missing, unreadable, or in another encoding.
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
    """Parses a JSON text.

    Raises:
        GrowtasError: Of the class ``error``; the text is not JSON. The message begins with ``subject``.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        raise error(f"{subject} not JSON (line {problem.lineno}: {problem.msg})") from None
    except (RecursionError, ValueError):  # very deeply nested lists, or a number with thousands of digits
        raise error(f"{subject} not JSON that Python can parse") from None


def read_json(path: str | Path, what: str = "file") -> Any:
    """Reads a JSON file of growtas.

    Args:
        path: the file.
        what: name of the file in error messages, such as ``"run file"``.

    Raises:
        CheckpointError: The file is missing, unreadable, or not JSON.
    """
    subject = f"{path}: the {what}"
    return parse_json(read_text(Path(path), subject), f"{subject} is")


def check_folder(folder: str | Path, error: type[GrowtasError] = UsageError) -> None:
    """Checks that an existing folder can be listed; in a folder that can't be listed, patterns silently match nothing.

    Raises:
        GrowtasError: Of the class ``error``; the folder can't be listed.
    """
    try:
        with os.scandir(folder):
            pass
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as problem:
        raise error(f"{folder}: the folder can't be read ({problem.strerror or problem})") from None


def append_json_line(path: str | Path, data: Any) -> None:
    """Appends a JSON object as a line and flushes it, so that a killed process loses at most its last line.

    Raises:
        OutputError: The file can't be written.
    """
    _append(Path(path), (json_text(data) + "\n").encode())


def _append(path: Path, content: bytes) -> None:
    try:
        with open(path, "ab") as file:
            file.write(content)
    except OSError as error:
        raise OutputError(f"{path}: can't be written ({error.strerror or error})") from None


def drop_torn_line(path: str | Path) -> None:
    """Removes an incomplete last line of a JSON-lines file, so that the next line is not appended to it.

    A complete last line without a newline gets its newline. A missing file is not created.

    Raises:
        OutputError: The file can't be written.
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
    """Reads all complete lines of a JSON-lines file and skips an incomplete last line; a missing file has no lines."""
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
    """Returns the SHA-256 hash of a file in hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
