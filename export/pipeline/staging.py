"""Files that become visible only when all of them are made and checked."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from growtas.errors import OutputError
from growtas.export.artifact import manifest_path
from growtas.export.formats import side_files
from growtas.files import ensure_writable


@contextlib.contextmanager
def kept_where_it_succeeds(folder: Path) -> Iterator[None]:
    """Make a folder; after an error it is gone again where it was new and nothing is in it.

    Raises:
        OutputError: it can't be written.
    """
    was_there = folder.exists()
    ensure_writable(folder)
    try:
        yield
    except BaseException:
        if not was_there:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


@contextlib.contextmanager
def staging(out: Path) -> Iterator[tuple[Path, Path]]:
    """A temporary folder inside ``out``, and ``out``; after an error both are gone, ``out`` only where it was new.

    Raises:
        OutputError: the folder can't be written.
    """
    with kept_where_it_succeeds(out), tempfile.TemporaryDirectory(dir=out, prefix=".export-") as folder:
        yield Path(folder), out


def move_into_place(artifacts: list[Path], out: Path, beside: Iterable[Path] = ()) -> None:
    """Move finished artifacts, what belongs to them, and their manifests to a folder on the same file system.

    Args:
        beside: files without a manifest, which go first.

    Raises:
        OutputError: a file can't be moved.
    """
    for path in beside:
        _move(path, out / path.name)
    for artifact in artifacts:
        final = out / artifact.name
        # The manifest goes last: an artifact whose manifest is older does not pass its hash check.
        for path in side_files(artifact):
            _move(path, out / path.name)
        _move(artifact, final)
        _move(manifest_path(artifact), manifest_path(final))


def _move(path: Path, final: Path) -> None:
    try:
        os.replace(path, final)
    except OSError as error:
        raise OutputError(f"{final}: can't be written ({error.strerror or error})") from None
