"""Finds the image files of class folders, and records what it skips.

Every folder and every file is read once, however many links lead to it. Class names are compared in Unicode's composed form (NFC),
because macOS writes file names in decomposed form, while Linux and Windows keep the typed form.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from growtas.data.decode import readable_suffixes
from growtas.data.images import ReaderSet, file_set, listed
from growtas.errors import DataError, choices

_NO_DATA = frozenset(
    ("__macosx", "@eadir", "$recycle.bin", "recycler", "system volume information", "#recycle", "#snapshot", "@recycle",
     "@recently-snapshot", "lost+found", "__pycache__", "thumbs.db", "desktop.ini")
)  # fmt: skip
"""Names that operating systems, network drives and programs create; they are skipped, as are names that begin with a dot."""
_PACKED = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")


class ClassFolders:
    """Reads the class folders of a data set.

    Args:
        root: the data set's folder.

    Attributes:
        subfolders: names of the direct sub-folders, by class folder that has some.
        remarks: one sentence for each thing that a user may not expect.

    Raises:
        DataError: A name is not UTF-8. JSON and the labels of an artifact can't hold such a name.
    """

    def __init__(self, root: Path) -> None:
        self.subfolders: dict[str, set[str]] = {}
        self.remarks: list[str] = []
        self._endings = readable_suffixes()
        self._no_data: Counter[str] = Counter()
        self._other_files: Counter[str] = Counter()
        self._others: Counter[str] = Counter()
        self._labels: dict[str, int] = {}
        """Labels of the training images by the files' real paths."""
        _check_name(str(root))

    @property
    def skipped(self) -> dict[str, int]:
        """Number of skipped items by kind: a folder's name, a file's suffix, or a kind of link."""
        return dict(self._no_data + self._other_files + self._others)

    def folders(self, folder: Path) -> list[str]:
        """Returns the sorted names of the sub-folders that may hold data."""
        return [entry.name for entry in _entries(str(folder)) if _is_folder(entry) and not is_no_data(entry.name)]

    def look_beside(self, folder: Path) -> None:
        """Counts the items beside the sub-folders of a folder; they are not read."""
        entries = _entries(str(folder))
        self._no_data.update(entry.name for entry in entries if _is_folder(entry) and is_no_data(entry.name))
        files = [entry.name for entry in entries if not _is_folder(entry) and not entry.name.startswith(".")]
        if loose := [name for name in files if _ending(name) in self._endings]:
            self._others["images beside folders"] += len(loose)
            self.remarks.append(
                f"images directly in {folder} belong to no class and are not used: {len(loose)} ({listed(loose, 2)})"
            )
        for entry in entries:
            if entry.is_symlink() and not os.path.exists(entry.path):
                self._others["links that lead nowhere"] += 1
                self.remarks.append(f"{entry.path} is a broken link and is not used")

    def training_set(self, folder: Path) -> tuple[ReaderSet, tuple[str, ...]]:
        """Returns the images of a training set and the class names.

        Raises:
            DataError: There are fewer than two class folders, a class has no images, or two folders have the same class name.
        """
        folder_of = self._folder_of_class(folder)
        class_names = tuple(sorted(folder_of))
        if len(class_names) < 2:
            inner = self.folders(Path(folder_of[class_names[0]]))
            hint = f"; if the classes are its folders {choices(inner[:3])}, use {folder_of[class_names[0]]}" if inner else ""
            raise DataError(f"{folder}: only one class folder, {class_names[0]}; a classifier needs 2 or more{hint}")
        paths: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(class_names):
            files = self._images(folder_of[name])
            images = [path for path, true in files if self._is_new(path, true, label)]
            if not images:
                why = " but links to those of other classes" if files else _instead(folder_of[name])
                raise DataError(f"{folder_of[name]}: the class folder has no images{why}")
            paths += images
            labels += [label] * len(images)
        return file_set(paths, labels), class_names

    def test_set(self, folder: Path, train_folder: Path, class_names: Sequence[str]) -> ReaderSet:
        """Returns the images of a test set, without files of the training set, with the training set's labels.

        Call :meth:`training_set` before.

        Raises:
            DataError: A class is missing in the training set, or all images belong to the training set.
        """
        folder_of = self._folder_of_class(folder)
        unknown = sorted(set(folder_of) - set(class_names))
        if unknown:
            raise DataError(
                f"{folder}: class {choices(unknown[:3])} is not in {train_folder}, which has {choices(class_names[:10])}"
            )
        images = [(*file, name) for name in sorted(folder_of) for file in self._images(folder_of[name])]
        unseen = [(path, class_names.index(name)) for path, true, name in images if true not in self._labels]
        shared = len(images) - len(unseen)
        if not unseen:
            what = f"all its {shared} images are also files of {train_folder}" if shared else "its class folders have no images"
            raise DataError(f"{folder}: {what}; a test set needs images that are not in the training set")
        if shared:
            self._others["test images that are training images"] = shared
            self.remarks.append(f"{shared} images of {folder} are links to files of {train_folder}; the test set leaves them out")
        paths, labels = zip(*unseen, strict=True)
        return file_set(paths, labels)

    def notes(self) -> list[str]:
        """Returns the remarks, and one sentence for each kind of skipped item."""
        notes = list(self.remarks)
        if self._no_data:
            names = listed([f"{name} ({count})" if count > 1 else name for name, count in self._no_data.most_common()], 5)
            notes.append(f"hidden folders and system folders are not classes and were not read: {names}")
        if hidden := self._others["hidden files"]:
            notes.append(f"hidden image files (names that begin with a dot) were not read: {hidden}")
        if self._other_files:
            endings = listed([f"{count} {ending}" for ending, count in self._other_files.most_common()], 5)
            notes.append(
                f"files that the installed Pillow can't open as images were not read: {endings}; convert images among them, "
                f"for example to PNG"
            )
        return notes

    def _folder_of_class(self, folder: Path) -> dict[str, str]:
        """Returns the folder of each class by the class name in composed form."""
        names = self.folders(folder)
        if not names:
            files = [entry.name for entry in _entries(str(folder))]
            what = "no class folders" if files else "the folder is empty"
            packed = "".join(f" (unpack {name} first)" for name in files if name.lower().endswith(_PACKED))
            raise DataError(
                f"{folder}: {what}{packed}; put the images of each class into a sub-folder, as in {folder}/CLASS/image.png"
            )
        folder_of: dict[str, str] = {}
        above = _with_parents(folder)
        for name in names:
            place = os.path.join(folder, name)
            _check_name(place)
            composed = unicodedata.normalize("NFC", name)
            if composed in folder_of:
                raise DataError(
                    f"{folder}: two folders have the name {composed}, in two Unicode forms; put their images into one folder"
                )
            if not self._is_read(place, above):
                folder_of[composed] = place
        return folder_of

    def _is_read(self, place: str, read: set[str]) -> bool:
        """Returns whether a link leads to a folder that was read already, or to a parent of one, and remarks it."""
        if os.path.realpath(place) not in read:
            return False
        self._others["links to a folder that is read already"] += 1
        self.remarks.append(f"{place} is a link to a folder that was read already; it was not read again")
        return True

    def _images(self, folder: str) -> list[tuple[str, str]]:
        """Returns the image files of a class folder at any depth, as (path, real path), sorted by folder and name."""
        # If the class folder is itself a link, a link inside of it may lead to a parent of the link's target.
        read = _with_parents(os.path.dirname(folder)) | _with_parents(os.path.dirname(os.path.realpath(folder)))
        places: list[str] = [folder]
        links: list[str] = []
        files: list[tuple[str, str, str]] = []
        while places or links:
            place = places.pop() if places else links.pop()
            if self._is_read(place, read):
                continue
            true_place = os.path.realpath(place)
            read.add(true_place)
            if os.path.dirname(place) == folder:
                self.subfolders.setdefault(folder, set()).add(os.path.basename(place))
            for entry in _entries(place):
                if not _is_folder(entry):
                    if self._is_image(entry):
                        _check_name(entry.path)
                        true = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(true_place, entry.name)
                        files.append((place, entry.name, true))
                elif is_no_data(entry.name):
                    self._no_data[entry.name] += 1
                else:
                    (links if entry.is_symlink() else places).append(entry.path)
        return [(os.path.join(place, name), true) for place, name, true in sorted(files)]

    def _is_image(self, entry: os.DirEntry[str]) -> bool:
        ending = _ending(entry.name)
        if ending not in self._endings:
            if not is_no_data(entry.name):
                self._other_files[ending] += 1
            return False
        if entry.name.startswith("."):
            self._others["hidden files"] += 1
            return False
        # A broken link counts as an image that can't be read, and is reported as one.
        if entry.is_symlink() or entry.is_file():
            return True
        self._others["what is no file"] += 1
        self.remarks.append(f"{entry.path} is not a regular file and was not read")
        return False

    def _is_new(self, path: str, true: str, label: int) -> bool:
        """Returns whether the file was not read before; a file in two classes is remarked."""
        if true not in self._labels:
            self._labels[true] = label
            return True
        if self._labels[true] == label:
            self._others["links to an image that is read already"] += 1
            return False
        if not self._others["images of two classes"]:
            self.remarks.append(
                f"{path} is the same file as {true} and counts only for the class of that file; look for links between classes"
            )
        self._others["images of two classes"] += 1
        return False


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """Returns the content of a folder, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: the folder can't be read ({error.strerror})") from None


def _with_parents(folder: str | Path) -> set[str]:
    """Returns the real paths of a folder and of its parents."""
    place = Path(os.path.realpath(folder))
    return {str(parent) for parent in (place, *place.parents)}


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder without permission
        return False


def is_no_data(name: str) -> bool:
    """Returns whether a folder or file is hidden, or was created by an operating system or program beside the data."""
    return name.startswith(".") or name.casefold() in _NO_DATA


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without an ending"


def _check_name(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise DataError(f"{shown}: the name must be UTF-8, but is not; rename it") from None


def _instead(folder: str) -> str:
    """Describes the files in a class folder without images."""
    names = [name for _, _, files in os.walk(folder) for name in files]
    inside = Counter("hidden" if name.startswith(".") else _ending(name) for name in names)
    what = listed([f"{count} {ending}" for ending, count in inside.most_common()], 4)
    return f" that the installed Pillow can open; its files are {what}" if inside else "; put some into it, or remove it"
