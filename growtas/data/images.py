"""Sets of labelled images with random access, for any kind of storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from growtas.data.decode import decode, reason
from growtas.errors import DataError
from growtas.files import open_regular
from growtas.progress import SILENT, Progress, tracked
from growtas.resources import available_threads

_Transformed = TypeVar("_Transformed")


class ImageSet(Protocol):
    """Labelled images.

    Attributes:
        labels: class of each image, shape ``(n,)``, int64.
    """

    labels: NDArray[np.int64]

    def __len__(self) -> int: ...

    def load(self, index: int) -> Image.Image:
        """Reads one image with Pillow; :class:`growtas.data.decode.DecodeRules` then makes it upright and 8 bits deep.

        Raises:
            DataError: The image can't be read; the message names it.
        """
        ...

    def describe(self, index: int) -> str:
        """Returns the name of an image for messages: its path, or its place in the set."""
        ...


class ArraySet:
    """Images in memory, as one array.

    Args:
        pixels: uint8, ``(n, height, width)`` for grey or ``(n, height, width, 3)`` for RGB.
        labels: shape ``(n,)``.
        title: name of the set for messages.
    """

    def __init__(self, pixels: NDArray[np.uint8], labels: NDArray[Any], title: str) -> None:
        self.pixels = pixels
        self.labels = np.asarray(labels, np.int64)
        self.title = title

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Image.Image:
        """Returns one image, mode L or RGB."""
        return Image.fromarray(self.pixels[index])

    def describe(self, index: int) -> str:
        """Returns the set's title and the index."""
        return f"{self.title}, image {index}"


class ReaderSet:
    """Images that a function opens one by one.

    Args:
        labels: shape ``(n,)``.
        read: returns the image at an index; all its exceptions become :class:`DataError`.
        describe: returns the name of the image at an index.
        paths: the images' files, if they are files.
    """

    def __init__(
        self,
        labels: Sequence[int] | NDArray[Any],
        read: Callable[[int], Image.Image],
        describe: Callable[[int], str],
        paths: Sequence[str] | None = None,
    ) -> None:
        self.labels = np.asarray(labels, np.int64)
        self.paths = paths
        self._read, self._describe = read, describe

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Image.Image:
        """Returns one image, decoded."""
        try:
            image = self._read(index)
            image.load()
        except Exception as error:  # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error ...
            raise DataError(f"{self.describe(index)}: the image can't be read ({reason(error)})") from None
        return image

    def describe(self, index: int) -> str:
        """Returns the file's path, or the place in the set."""
        return self._describe(index)


class Subset:
    """Some images of another set, in the order of ``indices``."""

    def __init__(self, base: ImageSet, indices: NDArray[np.int64]) -> None:
        self.base, self.indices = base, np.asarray(indices, np.int64)
        self.labels = base.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> Image.Image:
        """Returns one image of the base set."""
        return self.base.load(int(self.indices[index]))

    def describe(self, index: int) -> str:
        """Returns the name in the base set."""
        return self.base.describe(int(self.indices[index]))


def resolve(images: ImageSet) -> tuple[ImageSet, NDArray[np.int64]]:
    """Returns the set under nested subsets, and the indices into it."""
    indices = np.arange(len(images))
    while isinstance(images, Subset):
        indices, images = images.indices[indices], images.base
    return images, indices


def paths_of(images: ImageSet) -> list[str] | None:
    """Returns the file of each image; None if the images are not files."""
    base, indices = resolve(images)
    paths: Sequence[str] | None = getattr(base, "paths", None)
    return None if paths is None else [paths[index] for index in indices.tolist()]


def file_set(paths: Sequence[str], labels: Sequence[int]) -> ReaderSet:
    """Returns a set of image files with labels."""
    return ReaderSet(labels, lambda index: decode(open_regular(paths[index])), lambda index: paths[index], paths)


def load_as(images: ImageSet, index: int, transform: Callable[[Image.Image], _Transformed]) -> _Transformed:
    """Reads one image and transforms it.

    Args:
        images: the set.
        index: the image's place in the set.
        transform: transforms the image, or raises a :class:`DataError` with the reason for rejecting it.

    Raises:
        DataError: The image can't be read, or is rejected; the message names it.
    """
    image = images.load(index)
    try:
        return transform(image)
    except DataError as error:
        raise DataError(f"{images.describe(index)}: the image can't be read ({error})") from None


def unreadable(images: ImageSet, progress: Progress = SILENT, title: str = "checking images") -> list[DataError]:
    """Decodes every image once, and returns the errors of unreadable ones in order."""
    base, indices = resolve(images)
    if isinstance(base, ArraySet):
        return []

    def attempt(index: int) -> DataError | None:
        try:
            base.load(index)
        except DataError as error:
            return error
        return None

    return [failure for failure in in_threads(attempt, indices, progress, title) if failure is not None]


def in_threads(
    function: Callable[[int], _Transformed], indices: NDArray[np.int64], progress: Progress, title: str
) -> list[_Transformed]:
    """Calls a function with each index, in several threads, and returns the results in the order of the indices."""
    with ThreadPoolExecutor(available_threads()) as pool:
        chunks = np.array_split(indices, max(1, len(indices) // 64))
        return [result for chunk in tracked(chunks, title, progress) for result in pool.map(function, chunk.tolist())]


def raise_unreadable(failures: Sequence[DataError], where: str) -> None:
    """Raises one error for all unreadable images, if there are any.

    Raises:
        DataError: The error of the only unreadable image, or an error that counts the images and names the first ones.
    """
    if len(failures) == 1:
        raise failures[0]
    if failures:
        # Each message is "NAME: the image can't be read (REASON)".
        named = [str(failure).replace(": the image can't be read", "") for failure in failures]
        raise DataError(f"{where}: {len(failures)} images can't be read; replace or remove {listed(named, 5)}")


def listed(names: Sequence[str], most: int) -> str:
    """Lists the first ``most`` names and counts the others: ``a, b and 7 more``."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
