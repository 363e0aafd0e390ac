"""Writes files atomically, and reads text and JSON files of users and of growtas."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from growtas.errors import CheckpointError, GrowtasError, OutputError, UsageError, brief
from growtas.escapes import escape_json
from growtas.processes import process_alive

MAX_YAML_BYTES = 100_000
"""PyYAML parses about so many bytes a second."""
MAX_JSON_BYTES = 64_000_000
MAX_HEADER_BYTES = 16_000_000
"""Largest JSON inside a file of weights or a program; that of a program of micro has 0.35 MB."""
MAX_LINES_BYTES = 1_000_000_000
MAX_WEIGHTS_BYTES = 16_000_000_000
"""Largest file of weights that is read into memory at once."""
READER_SECONDS = 5.0
"""How long a FIFO that is written to may have no reader."""
_MAX_LEVELS, _MAX_YAML_EVENTS = 100, 20_000
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/|data:", re.IGNORECASE)
"""With one slash, because ``Path`` removes the second slash of a URL."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, a full quota, and a limit on the size of files."""
_count = itertools.count()
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
        with staged(path / "check") as file:
            file.touch()
    except OSError as error:
        raise OutputError(f"{path}: the output folder can't be written ({error.strerror})") from None
    return path


def check_output_file(file: str | Path) -> Path:
    """Checks that a file that a user named can be written, and creates its folder if necessary. Call it before the work.

    Returns:
        The file to write: for a symbolic link the file that it leads to, so that the link stays. :func:`replacing` itself replaces
        links, because a link in a run that somebody else made must not lead to another file of the user.

    Raises:
        OutputError: The file can't be written.
    """
    path = Path(file)
    if path.is_symlink() and not _is_stream(path):
        path = Path(os.path.realpath(path))
    if _is_stream(path):
        if not os.access(path, os.W_OK):
            raise OutputError(f"{path}: the output file can't be written (no permission)")
        return path
    ensure_writable(path.parent)
    if path.is_dir():
        raise OutputError(f"{path}: the output file can't be written (it is a folder); name a file")
    return path


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


def _is_stream(path: Path) -> bool:
    """Returns whether a path is a device, a FIFO or a socket, or an open file such as ``/dev/stdout``: it can't be replaced."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    # An open file is a link, perhaps to a regular file; files in other folders of /dev, such as /dev/shm, are ordinary files.
    replaceable = stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)
    return _OPEN_FILE.fullmatch(os.path.abspath(path)) is not None or not replaceable


@contextlib.contextmanager
def replacing(path: str | Path, *, sync: bool = False) -> Iterator[Path]:
    """Yields a temporary sibling of ``path`` to write to, which replaces ``path`` if the block ends without an error.

    This works for files and folders; an existing folder gets another name just before the replacement and is removed after it.
    After an error, the sibling is removed. A symbolic link is replaced, not its target. A device or FIFO gets the content and is
    not replaced.

    Args:
        path: the file or folder to replace.
        sync: flush the content to the disk before the replacement, so that a power failure can't leave an empty file.

    Raises:
        OutputError: The file or folder can't be written.
    """
    path = Path(path)
    if _is_stream(path):
        with scratch_folder() as folder:
            yield folder / path.name
            _append(path, (folder / path.name).read_bytes())
        return
    ensure_writable(path.parent)
    with staged(path) as temporary:
        try:
            yield temporary
            if sync:
                for written in [temporary, *temporary.rglob("*")]:
                    _sync(written)
            with staged(path) as old:
                if path.is_dir() and temporary.is_dir():
                    os.rename(path, old)
                os.replace(temporary, path)
        except OSError as error:
            raise OutputError(f"{path}: can't be written ({error.strerror or error})") from None


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yields a free name beside ``path`` for a file or folder, which is removed at the end if it is still there.

    The name holds the machine and the process, so that the next call removes what killed processes of this machine left behind.

    Raises:
        OutputError: The disk is full.
    """
    sweep(path.parent)
    temporary = path.with_name(f".{path.name[:100]}.{next(_count)}.{socket.gethostname()}.{os.getpid()}.growtas.tmp")
    _remove(temporary)
    try:
        yield temporary
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OutputError(f"{path}: can't be written ({os.strerror(error.errno)})") from None
    except OutputError as error:  # about a file inside a folder
        raise OutputError(str(error).replace(str(temporary), str(path))) from None
    finally:
        _remove(temporary)


def remove_folder(folder: Path) -> None:
    """Removes a folder under another name, so that a killed process leaves the whole folder, or something for :func:`sweep`.

    Raises:
        OSError: The folder can't be renamed.
    """
    with staged(folder) as temporary:
        os.rename(folder, temporary)


def sweep(folder: Path) -> None:
    """Removes the temporary files and folders that processes of this machine left in a folder when they were killed."""
    host = socket.gethostname()
    for left in folder.glob(f".*.{glob.escape(host)}.*.growtas.tmp"):
        number = left.name.removesuffix(".growtas.tmp").rpartition(".")[2]
        with contextlib.suppress(OSError):
            if number.isdecimal() and process_alive({"pid": int(number), "host": host}, left.lstat().st_mtime) is False:
                _remove(left)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yields a new folder in the system's folder for temporary files, and removes it at the end.

    Raises:
        OutputError: The folder can't be created, or the disk is full.
    """
    with staged(Path(tempfile.gettempdir()) / "scratch") as folder:
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise OutputError(f"{folder}: the temporary folder can't be created ({error.strerror or error})") from None
        yield folder


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


class MissingEntry(CheckpointError, KeyError):
    """A file lacks an entry that is needed.

    Attributes:
        key: name of the entry.
    """

    def __init__(self, source: str, key: str) -> None:
        super().__init__(f"{source}: the entry {brief(key, quote=False)} is missing")
        self.key = key

    __str__ = Exception.__str__  # KeyError's puts the message in quotes


class FileObject(dict[str, Any]):
    """A JSON object of a file. The error about a missing key names the file."""

    __slots__ = ("source",)

    def __init__(self, entries: Iterable[tuple[str, Any]] = (), source: str = "the object") -> None:
        super().__init__(entries)
        self.source = source

    def __missing__(self, key: str) -> Any:
        raise MissingEntry(self.source, key)


def read_bytes(
    file: Path | Traversable, subject: str, error: type[GrowtasError] = CheckpointError, *, limit: int = MAX_JSON_BYTES
) -> bytes:
    """Reads a regular file, or a link to one, of a bounded size.

    Args:
        file: the file.
        subject: beginning of error messages.
        error: class of the exception.
        limit: largest legal size in bytes.

    Raises:
        GrowtasError: Of the class ``error``; the file is missing, unreadable, not a regular file, or larger than the limit.
    """
    try:
        if not isinstance(file, Path):  # a file of the package
            return file.read_bytes()
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            # One byte more than the limit, because a file may grow while it is read. Python reserves this memory.
            data = b"" if size > limit else stream.read(min(limit, max(size, MAX_JSON_BYTES)) + 1)
    except (OSError, ValueError) as problem:  # ValueError: the name contains a null character
        raise error(f"{subject} can't be read ({getattr(problem, 'strerror', None) or problem})") from None
    if max(size, len(data)) > limit:
        raise error(f"{subject} can't be read (it has {max(size, len(data)):,} bytes, and at most {limit:,} are legal)")
    return data


def open_regular(path: str | Path) -> io.BufferedReader:
    """Opens a regular file, or a link to one, for reading. Other kinds of files, which could block or never end, are refused.

    Raises:
        OSError: The file is missing, unreadable, or not a regular file.
    """
    # Without O_NONBLOCK, opening a pipe would wait for a writer.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_text(
    file: Path | Traversable, subject: str, error: type[GrowtasError] = CheckpointError, *, limit: int = MAX_JSON_BYTES
) -> str:
    """Reads a UTF-8 file. A byte order mark, which some editors write, is skipped.

    Args:
        file: the file.
        subject: beginning of error messages, such as ``"runs/first/run.json: the run file"``.
        error: class of the exception.
        limit: largest legal size in bytes.

    Raises:
        GrowtasError: Of the class ``error``; see :func:`read_bytes`, or the file has another encoding.
    """
    data = read_bytes(file, subject, error, limit=limit)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise error(f"{subject} can't be read (it is not text in UTF-8); save it as UTF-8") from None


def parse_json(text: str, subject: str, error: type[GrowtasError] = CheckpointError, *, source: str = "") -> Any:
    """Parses a JSON text.

    Args:
        text: the text.
        subject: beginning of error messages about the text.
        error: class of the exception.
        source: the file, which :class:`FileObject` names; by default ``subject``.

    Raises:
        GrowtasError: Of the class ``error``; the text is not JSON, has a key twice, or has too many levels.
    """
    source = source or subject.removesuffix(":")

    def unique(entries: list[tuple[str, Any]]) -> FileObject:
        made = FileObject(entries, source)
        if len(made) < len(entries):
            twice = Counter(key for key, _ in entries).most_common(1)[0][0]
            raise _DuplicateKey(f"the key {brief(twice)} occurs twice in an object")
        return made

    try:
        data = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as problem:
        raise error(f"{subject} not JSON (line {problem.lineno}: {problem.msg})") from None
    except _DuplicateKey as problem:
        raise error(f"{subject} not JSON that growtas accepts ({problem})") from None
    except RecursionError:
        raise error(f"{subject} not JSON that growtas accepts (more than {_MAX_LEVELS} levels)") from None
    except ValueError:
        raise error(f"{subject} not JSON that Python can parse (a number with thousands of digits)") from None
    if text.count("[") + text.count("{") <= _MAX_LEVELS:  # counting is much faster, and journals have many lines
        return data
    level: list[Any] = [data]
    for _ in range(_MAX_LEVELS):
        level = [item for outer in level for item in _items(outer)]
        if not level:
            return data
    raise error(f"{subject} not JSON that growtas accepts (more than {_MAX_LEVELS} levels)")


class _DuplicateKey(ValueError):
    pass


def _items(outer: Any) -> list[Any]:
    """Returns the objects and lists within a value."""
    items = outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ()
    return [item for item in items if isinstance(item, dict | list)]


def read_json(path: str | Path, what: str = "file") -> Any:
    """Reads a JSON file of growtas.

    Args:
        path: the file.
        what: name of the file in error messages, such as ``"run file"``.

    Raises:
        CheckpointError: The file is missing, unreadable, or not JSON. Later, if an object lacks a key: :class:`MissingEntry`.
    """
    subject = f"{path}: the {what}"
    return parse_json(read_text(Path(path), subject), f"{subject} is", source=str(path))


def read_yaml(path: Path, what: str, error: type[GrowtasError]) -> Any:
    """Reads a YAML file; see :func:`parse_yaml`."""
    return parse_yaml(read_text(path, f"{path}: the {what}", error, limit=MAX_YAML_BYTES), str(path), error)


def parse_yaml(text: str, source: str, error: type[GrowtasError]) -> Any:
    """Parses a YAML text of plain values: mappings with text as keys, lists, texts, numbers, true, false and null.

    Args:
        text: the text.
        source: beginning of error messages.
        error: class of the exception.

    Raises:
        GrowtasError: Of the class ``error``; the text is not YAML, has a key twice, has an alias (which a short text can expand
            without end), a tag such as a date, or too many levels.
    """
    import yaml

    try:
        node = _plain_node(text)
        return None if node is None else yaml.SafeLoader("").construct_document(node)
    except _RefusedYaml as problem:
        raise error(f"{source}: {problem}") from None
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        raise error(f"{source}: not YAML{f' (line {mark.line + 1})' if mark else ''}") from None
    except (ValueError, OverflowError):
        raise error(f"{source}: a number has too many digits") from None


class _RefusedYaml(ValueError):
    pass


def _plain_node(text: str) -> Any:
    """Composes a YAML document after a check of its events, which neither recurses nor expands anything."""
    import yaml

    levels = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            raise _RefusedYaml(f"line {line} has an alias (*{brief(event.anchor, quote=False)}); write the value out")
        levels += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if levels > _MAX_LEVELS or count > _MAX_YAML_EVENTS:
            raise _RefusedYaml(
                f"line {line} has more than {_MAX_LEVELS} levels or {_MAX_YAML_EVENTS:,} values; at most these are legal"
            )
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is not None:
        _check_node(node, "")
    return node


_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}


def _check_node(node: Any, path: str) -> None:
    """Refuses tags of other values, keys that are not text, and keys that occur twice, of which PyYAML would use the last."""
    line = node.start_mark.line + 1
    if node.tag not in _PLAIN_TAGS:
        raise _RefusedYaml(
            f"line {line} has a value of the type {brief(node.tag.rpartition(':')[2], quote=False)}; legal are mappings, lists, "
            "texts, numbers, true, false and null (put a text in quotes)"
        )
    if node.id == "sequence":
        for item in node.value:
            _check_node(item, path)
    elif node.id == "mapping":
        seen = set[str]()
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise _RefusedYaml(f"line {key.start_mark.line + 1} has a merge key (<<); write the values out")
            if key.id != "scalar":
                raise _RefusedYaml(f"line {key.start_mark.line + 1} has a key that is not a text")
            name = f"{path}{key.value}"
            if key.value in seen:
                raise _RefusedYaml(f"the key {brief(name, quote=False)} occurs twice; set it once")
            seen.add(key.value)
            if key.tag != "tag:yaml.org,2002:str":
                raise _RefusedYaml(
                    f"line {key.start_mark.line + 1} has the key {brief(key.value, quote=False)}, which is not a text"
                )
            _check_node(value, f"{name}.")


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
        with os.fdopen(_open_to_append(path), "ab") as file:
            file.write(content)
    except OSError as error:
        raise OutputError(f"{path}: can't be written ({error.strerror or error})") from None


def _open_to_append(path: Path) -> int:
    """Opens a file to append to it. A FIFO that no process reads would block for ever; it gets a few seconds for one."""
    flags, deadline = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), time.monotonic() + READER_SECONDS
    while True:
        try:
            handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > deadline:
                raise OSError(error.errno, "no process reads it", str(path)) from None
            time.sleep(0.05)
        else:
            os.set_blocking(handle, True)
            return handle


def drop_torn_line(path: str | Path) -> None:
    """Removes an incomplete last line of a JSON-lines file, so that the next line is not appended to it.

    A complete last line without a newline gets its newline. A missing file is not created.

    Raises:
        OutputError: The file can't be read or written.
    """
    file = Path(path)
    if not os.path.lexists(file):
        return
    content = read_bytes(file, f"{path}: can't be written, because it", OutputError, limit=MAX_LINES_BYTES)
    end = content.rfind(b"\n") + 1
    if end == len(content):
        return
    try:
        json.loads(content[end:])
        complete = True
    except (ValueError, RecursionError):
        complete = False
    try:
        with open(path, "r+b") as stream:
            if complete:
                stream.seek(0, os.SEEK_END)
                stream.write(b"\n")
            else:
                stream.truncate(end)
    except OSError as error:
        raise OutputError(f"{path}: can't be written ({error.strerror or error})") from None


def read_json_lines(path: str | Path, size: int | None = None) -> list[Any]:
    """Reads all complete lines of a JSON-lines file and skips an incomplete last line; a missing file has no lines.

    Args:
        path: the file.
        size: number of bytes to read; by default all. Only lines that end within them are complete.

    Raises:
        CheckpointError: The file can't be read, or a line other than the last is not JSON.
    """
    file = Path(path)
    if not os.path.lexists(file):
        return []
    data = read_bytes(file, f"{path}: the file", limit=MAX_LINES_BYTES)
    if size is not None:
        data = data[:size]
        data = data[: data.rfind(b"\n") + 1]
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: the file can't be read (it is not text in UTF-8)") from None
    entries = []
    for number, line in enumerate(lines):
        if not line:
            continue
        try:
            entries.append(parse_json(line, f"{path}: line {number + 1} is", source=f"{path}: line {number + 1}"))
        except CheckpointError:
            if number < len(lines) - 1:
                raise
    return entries


def sha256(path: str | Path) -> str:
    """Returns the SHA-256 hash of a regular file in hex digits.

    Raises:
        CheckpointError: The file can't be read.
    """
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: the file can't be read ({error.strerror or error})") from None
