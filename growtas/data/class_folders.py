"""Finds the image files of class folders, and remembers what it leaves out.

Every folder and every file is read once, however many links lead to it. Class names are compared in Unicode's composed form (NFC):
macOS writes file names decomposed, Linux and Windows as they are typed.
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
"""What operating systems, network drives and programs leave; names that begin with a dot are left out too."""
_PACKED = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")


class ClassFolders:
    """Reads the class folders of a data set.

    Args:
        root: the data set's folder.

    Attributes:
        subfolders: the folders inside of each class folder that has some.
        remarks: a sentence for each thing that a person may not expect.

    Raises:
        DataError: a name is not UTF-8, which neither JSON nor the labels of an artifact can hold.
    """

    def __init__(self, root: Path) -> None:
        self.subfolders: dict[str, set[str]] = {}
        self.remarks: list[str] = []
        self._endings = readable_suffixes()
        self._no_data: Counter[str] = Counter()
        self._other_files: Counter[str] = Counter()
        self._others: Counter[str] = Counter()
        self._labels: dict[str, int] = {}
        """Of the training images, by the paths of the files that they truly are."""
        _check_name(str(root))

    @property
    def skipped(self) -> dict[str, int]:
        """What was left out, and how often: a folder's name, a file's ending, or a kind of link."""
        return dict(self._no_data + self._other_files + self._others)

    def folders(self, folder: Path) -> list[str]:
        """Names of the sub-folders that may hold data, sorted."""
        return [entry.name for entry in _entries(str(folder)) if _is_folder(entry) and not is_no_data(entry.name)]

    def look_beside(self, folder: Path) -> None:
        """Counts what lies beside the sub-folders of a folder and is not read."""
        entries = _entries(str(folder))
        self._no_data.update(entry.name for entry in entries if _is_folder(entry) and is_no_data(entry.name))
        files = [entry.name for entry in entries if not _is_folder(entry) and not entry.name.startswith(".")]
        if loose := [name for name in files if _ending(name) in self._endings]:
            self._others["images beside folders"] += len(loose)
            self.remarks.append(f"images in {folder} itself are in no class and not used: {len(loose)} ({listed(loose, 2)})")
        for entry in entries:
            if entry.is_symlink() and not os.path.exists(entry.path):
                self._others["links that lead nowhere"] += 1
                self.remarks.append(f"{entry.path} is a link that leads nowhere, and is not used")

    def training_set(self, folder: Path) -> tuple[ReaderSet, tuple[str, ...]]:
        """The images of a training set, and the class names.

        Raises:
            DataError: fewer than two class folders, a class without images, or two folders of one class name.
        """
        folder_of = self._folder_of_class(folder)
        class_names = tuple(sorted(folder_of))
        if len(class_names) < 2:
            inner = self.folders(Path(folder_of[class_names[0]]))
            hint = f"; if its folders {choices(inner[:3])} are what you mean, name {folder_of[class_names[0]]}" if inner else ""
            raise DataError(f"{folder}: only one class folder, {class_names[0]}; a classifier needs 2 or more{hint}")
        paths: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(class_names):
            found = self._images(folder_of[name])
            images = [path for path, true in found if self._is_new(path, true, label)]
            if not images:
                why = " but links to those of other classes" if found else _instead(folder_of[name])
                raise DataError(f"{folder_of[name]}: the class folder has no images{why}")
            paths += images
            labels += [label] * len(images)
        return file_set(paths, labels), class_names

    def test_set(self, folder: Path, train_folder: Path, class_names: Sequence[str]) -> ReaderSet:
        """The images of a test set with the labels of the training set, which must have been read; none of its files is among them.

        Raises:
            DataError: a class that the training set lacks, or no images but those of the training set.
        """
        folder_of = self._folder_of_class(folder)
        unknown = sorted(set(folder_of) - set(class_names))
        if unknown:
            raise DataError(
                f"{folder}: class {choices(unknown[:3])} is not in {train_folder}, which has {choices(class_names[:10])}"
            )
        images = [(*found, name) for name in sorted(folder_of) for found in self._images(folder_of[name])]
        own = [(path, class_names.index(name)) for path, true, name in images if true not in self._labels]
        shared = len(images) - len(own)
        if not own:
            what = f"all its {shared} images are files of {train_folder} too" if shared else "its class folders have no images"
            raise DataError(f"{folder}: {what}; a test set needs images that the training does not see")
        if shared:
            self._others["test images that are training images"] = shared
            self.remarks.append(
                f"{shared} images of {folder} are files of {train_folder} too, by links; they are left out of the test"
            )
        paths, labels = zip(*own, strict=True)
        return file_set(paths, labels)

    def notes(self) -> list[str]:
        """The remarks, and a sentence for each kind of thing that was left out."""
        notes = list(self.remarks)
        if self._no_data:
            names = listed([f"{name} ({count})" if count > 1 else name for name, count in self._no_data.most_common()], 5)
            notes.append(f"hidden folders and those that systems leave are no classes and were not read: {names}")
        if hidden := self._others["hidden files"]:
            notes.append(f"hidden image files, whose names begin with a dot, were not read: {hidden}")
        if self._other_files:
            endings = listed([f"{count} {ending}" for ending, count in self._other_files.most_common()], 5)
            notes.append(
                f"files that this Pillow does not open as images were not read: {endings}; convert those that are images, "
                f"for example to PNG"
            )
        return notes

    def _folder_of_class(self, folder: Path) -> dict[str, str]:
        """The folder of each class, by the class name in composed form."""
        names = self.folders(folder)
        if not names:
            files = [entry.name for entry in _entries(str(folder))]
            what = "no class folders" if files else "the folder is empty"
            packed = "".join(f" (unpack {name} first)" for name in files if name.lower().endswith(_PACKED))
            raise DataError(f"{folder}: {what}{packed}; images belong into a sub-folder a class, as in {folder}/CLASS/image.png")
        folder_of: dict[str, str] = {}
        above = _with_parents(folder)
        for name in names:
            place = os.path.join(folder, name)
            _check_name(place)
            composed = unicodedata.normalize("NFC", name)
            if composed in folder_of:
                raise DataError(f"{folder}: two folders are called {composed}, in two Unicode forms; put their images into one")
            if not self._is_read(place, above):
                folder_of[composed] = place
        return folder_of

    def _is_read(self, place: str, read: set[str]) -> bool:
        """Whether a folder is one that is read already, or holds such a one; it is remarked then."""
        if os.path.realpath(place) not in read:
            return False
        self._others["links to a folder that is read already"] += 1
        self.remarks.append(f"{place} leads to a folder that is read already, and was not read again")
        return True

    def _images(self, folder: str) -> list[tuple[str, str]]:
        """The image files of a class folder, however deep they lie, sorted by folder and name; each with its true path."""
        # Where the class folder is a link, a link inside of it may lead up from where that one leads to.
        read = _with_parents(os.path.dirname(folder)) | _with_parents(os.path.dirname(os.path.realpath(folder)))
        places: list[str] = [folder]
        links: list[str] = []
        found: list[tuple[str, str, str]] = []
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
                        found.append((place, entry.name, true))
                elif is_no_data(entry.name):
                    self._no_data[entry.name] += 1
                else:
                    (links if entry.is_symlink() else places).append(entry.path)
        return [(os.path.join(place, name), true) for place, name, true in sorted(found)]

    def _is_image(self, entry: os.DirEntry[str]) -> bool:
        ending = _ending(entry.name)
        if ending not in self._endings:
            if not is_no_data(entry.name):
                self._other_files[ending] += 1
            return False
        if entry.name.startswith("."):
            self._others["hidden files"] += 1
            return False
        # A link that leads nowhere is an image that can't be read, and is named as one.
        if entry.is_symlink() or entry.is_file():
            return True
        self._others["what is no file"] += 1
        self.remarks.append(f"{entry.path} is no file and was not read")
        return False

    def _is_new(self, path: str, true: str, label: int) -> bool:
        """Whether the file is not an image yet; one of two classes is remarked."""
        if true not in self._labels:
            self._labels[true] = label
            return True
        if self._labels[true] == label:
            self._others["links to an image that is read already"] += 1
            return False
        if not self._others["images of two classes"]:
            self.remarks.append(
                f"{path} is the same file as {true}, and counts for the class of that one only; look for links between classes"
            )
        self._others["images of two classes"] += 1
        return False


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """The content of a folder, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: the folder can't be read ({error.strerror})") from None


def _with_parents(folder: str | Path) -> set[str]:
    """The true paths of a folder and of those that it lies in."""
    place = Path(os.path.realpath(folder))
    return {str(each) for each in (place, *place.parents)}


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or into a closed folder
        return False


def is_no_data(name: str) -> bool:
    """Whether a folder or file is hidden, or one that systems and programs leave among people's data."""
    return name.startswith(".") or name.casefold() in _NO_DATA


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without an ending"


def _check_name(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise DataError(f"{shown}: the name is not UTF-8, as it must be; rename it") from None


def _instead(folder: str) -> str:
    """What lies in a class folder in place of images."""
    names = [name for _, _, files in os.walk(folder) for name in files]
    inside = Counter("hidden" if name.startswith(".") else _ending(name) for name in names)
    what = listed([f"{count} {ending}" for ending, count in inside.most_common()], 4)
    return f" that this Pillow opens; its files are {what}" if inside else "; put some into it, or remove it"
