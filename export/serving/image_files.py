"""Finds the image files for a prediction by names, folders and patterns."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from growtas.data.class_folders import is_no_data
from growtas.data.decode import readable_suffixes
from growtas.errors import DataError
from growtas.files import check_folder, refuse_url
from growtas.progress import SILENT, Progress


def find_images(names: Sequence[str | os.PathLike[str]], progress: Progress = SILENT) -> list[Path]:
    """Returns the image files in the order of their names; files of a folder (with its subfolders) or a pattern are sorted by name.

    A named file is always used. In a folder only files with a suffix that this Pillow can decode are used, and no hidden ones.

    Args:
        names: files, folders or patterns.
        progress: receives a note about the files of a folder that are left out.

    Raises:
        DataError: a name is empty or a URL, a folder can't be read, or a folder or pattern has no images.
    """
    files: list[Path] = []
    for item in names:
        name, path = os.fspath(item), Path(item)
        if not name:
            raise DataError("the name of an image is empty; name a file, a folder (. is this one) or a pattern")
        refuse_url(name, DataError)
        if path.is_dir():
            check_folder(path, DataError)
            files += _inside(path, progress)
        elif path.exists() or not glob.has_magic(name):
            # A missing file is reported when it is read, so that the other files are still predicted.
            files.append(path)
        else:
            matching = sorted(Path(file) for file in glob.glob(name, recursive=True) if Path(file).is_file())
            if not matching:
                raise DataError(f"{name}: no file matches this pattern")
            files += matching
    return files


def _inside(folder: Path, progress: Progress) -> list[Path]:
    """The images in a folder and its subfolders."""
    readable = readable_suffixes()
    # A broken link is reported when it is read.
    everything = sorted(file for file in folder.rglob("*") if os.path.isfile(file) or not os.path.exists(file))
    visible = [file for file in everything if not any(is_no_data(part) for part in file.relative_to(folder).parts)]
    images = [file for file in visible if file.suffix.lower() in readable]
    endings = Counter(file.suffix.lower() or "no ending" for file in visible if file.suffix.lower() not in readable)
    counts = ", ".join(f"{ending} {count}" for ending, count in endings.most_common(5))
    if not images:
        others = f"; it has only files that this Pillow doesn't decode ({counts})" if counts else ""
        raise DataError(f"{folder}: no images in this folder{others}")
    if counts:
        files = "1 file is" if endings.total() == 1 else f"{endings.total()} files are"
        progress.note(f"{folder}: {files} left out, because this Pillow doesn't decode such files ({counts})")
    return images
