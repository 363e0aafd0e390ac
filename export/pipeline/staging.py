"""Keeps the files of an export in a temporary folder until all of them are made and checked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from growtas.errors import OutputError
from growtas.export.artifact import Artifact, manifest_path
from growtas.export.formats import side_files
from growtas.files import ensure_writable, staged


@contextlib.contextmanager
def removed_on_error(folder: Path) -> Iterator[None]:
    """Makes a folder, and removes it after an error if it was new and is empty.

    Raises:
        OutputError: the folder can't be written.
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
def staging(out: Path) -> Iterator[Path]:
    """Makes a temporary folder inside ``out``, and removes it at the end. After an error, a new ``out`` is removed too.

    Raises:
        OutputError: the folder can't be written.
    """
    with removed_on_error(out), staged(out / "export") as folder:
        folder.mkdir()
        yield folder


def move_into_place(artifacts: Iterable[Artifact], others: Iterable[Path], out: Path) -> list[Artifact]:
    """Moves finished artifacts, their side files and manifests to a folder on the same file system.

    Args:
        others: files without a manifest, which are moved first.

    Returns:
        The artifacts with their new paths.

    Raises:
        OutputError: a file can't be moved.
    """
    for path in others:
        _move(path, out)
    moved = []
    for artifact in artifacts:
        # The manifest is moved last: a new artifact with an older manifest fails the hash check, so it is never trusted.
        for path in (*side_files(artifact.path), artifact.path, manifest_path(artifact)):
            _move(path, out)
        moved.append(Artifact(path=out / artifact.path.name, manifest=artifact.manifest))
    return moved


def _move(path: Path, folder: Path) -> None:
    final = folder / path.name
    try:
        os.replace(path, final)
    except OSError as error:
        raise OutputError(f"{final}: can't be written ({error.strerror or error})") from None
