"""Reports the content of a data set, and warns of unusual images, before the first step of a training."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from growtas.data.decode import DecodeRules, is_deep, largest_sample, oddities, read_header
from growtas.data.evaluation import search_indices
from growtas.data.folder import Layout
from growtas.data.images import ArraySet, ImageSet, Subset, in_threads, listed, load_as, paths_of, raise_unreadable, resolve
from growtas.data.sources import VERIFY_LIMIT, Data
from growtas.data.split import complement, evenly_spaced
from growtas.errors import DataError
from growtas.files import MAX_LINES_BYTES, open_regular, read_bytes
from growtas.progress import SILENT, Progress, tracked
from growtas.runs import data_title

SAMPLED = 200
"""Largest number of images of a split whose size and mode are read, and of a large set whose headers are read."""
_DARK = 1 / 8
"""If the largest value of images with more than 8 bits is below this share of the type's range, the report warns."""
IMBALANCE = 10
"""Ratio of the largest to the smallest class from which the report warns."""
FEW_STEPS = 200
"""Number of optimiser steps below which the report warns; the shortest recipe of growtas has about 1,300."""
FEW_IMAGES = 100
"""Number of images below which an accuracy of 50 % has a standard error of more than 5 percentage points."""
_REDUCTION = 3
"""Ratio of the images' size to the network's input size from which the report warns."""
_USUAL_SIZE = 112
"""Side in pixels from which the network's input is large enough for photographs; the report then doesn't warn."""
_Depth = tuple[float, float] | DataError | None
"""For an image with more than 8 bits: its largest value and that of its type, or the error if the rules reject it."""
_GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "F")


@dataclass(frozen=True)
class SplitReport:
    """The content of one split.

    Attributes:
        name: ``train`` (without the search images), ``search`` or ``test``.
        images: number of images.
        classes: number of the set's classes that have images in this split.
        smallest, largest: the class with the fewest and the class with the most images; of equal classes the first by label.
        fewest, median, most: least, median and largest number of images per class, over all classes of the set.
        sizes: number of sampled images by ``WIDTHxHEIGHT``, the most frequent size first.
        modes: number of sampled images by Pillow's colour mode, the most frequent mode first.
        sampled: number of sampled images.
        plain: number of sampled images that have a single colour.
    """

    name: str
    images: int
    classes: int
    smallest: str
    largest: str
    fewest: int
    median: float
    most: int
    sizes: Mapping[str, int]
    modes: Mapping[str, int]
    sampled: int
    plain: int = 0


@dataclass(frozen=True)
class DataReport:
    """The content of a data set; ``data.json`` of a run.

    Attributes:
        name: name of the data set; see :class:`growtas.data.sources.Data`.
        data_dir: folder of the data set's files; None if there are none.
        classes: number of classes.
        image_size: side of the network's input in pixels.
        in_chans: number of channels of the network's input.
        splits: reports on train, search and test.
        duplicates: test images that are also in the training set, as (test image, training image); None if the set has too many
            images for the comparison.
        warnings: one sentence for each thing that is unusual but legal.
        layout: for a folder, which parts of it are the training and the test set.
    """

    name: str
    data_dir: str | None
    classes: int
    image_size: int
    in_chans: int
    splits: tuple[SplitReport, ...]
    duplicates: tuple[tuple[str, str], ...] | None
    warnings: tuple[str, ...]
    layout: Layout | None = None

    @property
    def title(self) -> str:
        """The set's name for messages: its name, or the path of a folder."""
        return data_title({"name": self.name, "data_dir": self.data_dir})

    def to_dict(self) -> dict[str, Any]:
        """Returns the report in JSON types."""
        return dataclasses.asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """Returns the report as printable (label, value) lines."""
        where = f" in {self.data_dir}" if self.data_dir and self.title != self.data_dir else ""
        rows = [("data", f"{self.title}{where}, {self.classes} classes")]
        if self.layout is not None:
            rows.append(("folders", str(self.layout)))
        for split in self.splits:
            classes = "" if split.classes == self.classes else f" of {split.classes} classes"
            sizes = f"{split.fewest} to {split.most}, median {split.median:g}" if split.fewest < split.most else str(split.most)
            rows.append((split.name, f"{split.images:,} images{classes}, {sizes} per class"))
        train = self.splits[0]
        if train.fewest < train.most:
            rows.append(("classes", f"smallest {train.smallest} ({train.fewest}), largest {train.largest} ({train.most})"))
        modes = ", ".join(dict.fromkeys(mode for split in self.splits for mode in split.modes))
        rows.append(("images", f"sizes {_size_range(self.splits)}, modes {modes}"))
        channels = "1 channel (grey)" if self.in_chans == 1 else f"{self.in_chans} channels"
        rows.append(("network input", f"{self.image_size}x{self.image_size}, {channels}"))
        if self.duplicates is not None:
            rows.append(("duplicates", f"{len(self.duplicates) or 'no'} test images are also training images"))
        return [*rows, *(("warning", warning) for warning in self.warnings)]


def check_data(
    data: Data, split: Mapping[str, Any], record: Mapping[str, Any], progress: Progress = SILENT, *, steps: int | None = None
) -> DataReport:
    """Checks a data set before the training.

    Args:
        data: the data set.
        split: its search split, the content of ``split.json``.
        record: the preprocessing record.
        progress: receives each stage.
        steps: number of optimiser steps of the training.

    Raises:
        DataError: Sampled images can't be read, or the record's rules reject images; the message counts them and names the first.
    """
    search = search_indices(split)
    parts = {
        "train": Subset(data.train, complement(search, len(data.train))),
        "search": Subset(data.train, search),
        "test": data.test,
    }
    failures: list[DataError] = []
    splits = tuple(_report_on(name, images, data.class_names, progress, failures) for name, images in parts.items())
    raise_unreadable(failures, data.data_dir or data.name)
    odd = odd_images(data, DecodeRules.of(record), progress)
    duplicates = find_duplicates(data.train, data.test, progress)
    return DataReport(
        name=data.name,
        data_dir=data.data_dir,
        classes=len(data.class_names),
        image_size=record["image_size"],
        in_chans=record["in_chans"],
        splits=splits,
        duplicates=duplicates,
        warnings=(
            *(data.layout.notes if data.layout is not None else ()),
            *odd,
            *_warnings(data, parts, splits, record, duplicates or ()),
            *_small_numbers(splits, record, steps),
        ),
        layout=data.layout,
    )


def odd_images(data: Data, rules: DecodeRules, progress: Progress = SILENT) -> list[str]:
    """Returns one sentence for each way in which images differ from upright ones with 8 bits, with the number of such images.

    The headers of image files are read, and their pixels only if they have more than 8 bits. For large sets, and for images that
    are not files, only :data:`SAMPLED` images are read.

    Raises:
        DataError: The rules reject images; the message counts them and names the first.
    """
    kinds: Counter[str] = Counter()
    refused: list[DataError] = []
    largest, share, seen = 0.0, 0.0, 0
    for images in (data.train, data.test):
        if isinstance(resolve(images)[0], ArraySet):
            continue
        every = paths_of(images) is not None and len(data.train) + len(data.test) <= VERIFY_LIMIT
        places = np.arange(len(images)) if every else evenly_spaced(len(images), SAMPLED)
        for odd, depth in in_threads(_finder(images, rules), places, progress, "looking for odd images"):
            if odd is None:
                continue
            seen += 1
            kinds.update(odd)
            if isinstance(depth, DataError):
                refused.append(depth)
            elif depth is not None:
                value, top = depth
                largest, share = max(largest, value), max(share, value / top)
    raise_unreadable(refused, data.data_dir or data.name)
    sentences = [f"{count:,} of {seen:,} images have {kind}" for kind, count in kinds.most_common()]
    if rules.pixel_range is not None and largest > rules.pixel_range[1]:
        sentences.append(
            f"values go up to {largest:,g}, but pixel_range ends at {rules.pixel_range[1]:,g}: larger values become white"
        )
    if rules.pixel_range is None and 0 < share < _DARK:
        fitting = 2 ** int(largest).bit_length() - 1
        sentences.append(
            f"the largest value of the images with more than 8 bits is {largest:,g}, only {share:.1%} of their data type's range: "
            f"they become dark images; --pixel-range 0,{fitting} makes {fitting} white"
        )
    return sentences


def _finder(images: ImageSet, rules: DecodeRules) -> Callable[[int], tuple[list[str] | None, _Depth]]:
    """Returns a function that describes an image's oddities, or returns None for an unreadable image (reported elsewhere)."""
    paths = paths_of(images)

    def extremes(image: Image.Image) -> tuple[float, float]:
        rules.apply(image, "L")
        return largest_sample(image)

    def find(index: int) -> tuple[list[str] | None, _Depth]:
        try:
            with contextlib.nullcontext() if paths is None else open_regular(paths[index]) as file:
                image = images.load(index) if file is None else read_header(file)
                odd, deep = oddities(image), is_deep(image)
        except Exception:  # Pillow's readers raise all kinds of exceptions
            return None, None
        try:
            return odd, load_as(images, index, extremes) if deep else None
        except DataError as error:
            return odd, error

    return find


def find_duplicates(train: ImageSet, test: ImageSet, progress: Progress = SILENT) -> tuple[tuple[str, str], ...] | None:
    """Finds test images that are byte for byte equal to training images. Files are compared as files, images in memory by pixels.

    Returns:
        (test image, first equal training image) by name; None if there are more than :data:`growtas.data.sources.VERIFY_LIMIT`
        images, or if they would have to be decoded.
    """
    contents = [_contents(images) for images in (train, test)]
    if len(train) + len(test) > VERIFY_LIMIT or contents[0] is None or contents[1] is None:
        return None
    (train_sizes, read_train), (test_sizes, read_test) = contents[0], contents[1]
    # Only images with the same size as an image of the other set can be equal.
    alike = np.intersect1d(train_sizes, test_sizes)
    indices_by_digest: dict[bytes, int] = {}
    for index in tracked(np.flatnonzero(np.isin(train_sizes, alike)).tolist(), "looking for duplicates", progress):
        indices_by_digest.setdefault(read_train(index), index)
    duplicates = []
    for index in np.flatnonzero(np.isin(test_sizes, alike)).tolist():
        if (other := indices_by_digest.get(read_test(index))) is not None:
            duplicates.append((test.describe(index), train.describe(other)))
    return tuple(duplicates)


def _contents(images: ImageSet) -> tuple[NDArray[np.int64], Callable[[int], bytes]] | None:
    """Returns each image's size in bytes and a function that hashes one image; None if they are neither arrays nor files."""
    base, indices = resolve(images)
    if isinstance(base, ArraySet):
        pixels = base.pixels
        sizes = np.full(len(images), pixels[0].nbytes if len(pixels) else 0)
        return sizes, lambda index: hashlib.sha256(pixels[indices[index]].tobytes()).digest()
    paths = paths_of(images)
    if paths is None:
        return None
    chosen = [Path(path) for path in paths]
    try:
        sizes = np.array([path.stat().st_size for path in chosen], np.int64)
    except OSError as error:
        raise DataError(f"{error.filename}: the image can't be read ({error.strerror})") from None
    return sizes, lambda index: _file_digest(chosen[index])


def _file_digest(path: Path) -> bytes:
    return hashlib.sha256(read_bytes(path, f"{path}: the image", DataError, limit=MAX_LINES_BYTES)).digest()


def _report_on(
    name: str, images: ImageSet, class_names: tuple[str, ...], progress: Progress, failures: list[DataError]
) -> SplitReport:
    counts = np.bincount(images.labels, minlength=len(class_names))
    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    plain = 0
    places = evenly_spaced(len(images), SAMPLED)
    for index in tracked(places.tolist(), f"looking at {name} images", progress):
        try:
            image = images.load(index)
        except DataError as error:
            failures.append(error)
            continue
        sizes[f"{image.width}x{image.height}"] += 1
        plain += _is_plain(image)
        # A palette with transparent colours counts as mode PA.
        modes["PA" if image.mode == "P" and "transparency" in image.info else image.mode] += 1
    return SplitReport(
        name=name,
        images=len(images),
        classes=int((counts > 0).sum()),
        smallest=class_names[int(counts.argmin())],
        largest=class_names[int(counts.argmax())],
        fewest=int(counts.min()),
        median=float(np.median(counts)),
        most=int(counts.max()),
        sizes=dict(sizes.most_common()),
        modes=dict(modes.most_common()),
        sampled=len(places),
        plain=plain,
    )


def _is_plain(image: Image.Image) -> bool:
    """Returns whether all pixels are equal."""
    pixels = np.asarray(image)  # Pillow's getextrema doesn't support big-endian samples
    return bool((pixels == pixels[:1, :1]).all())


def _warnings(
    data: Data,
    parts: Mapping[str, ImageSet],
    splits: tuple[SplitReport, ...],
    record: Mapping[str, Any],
    duplicates: Sequence[tuple[str, str]],
) -> list[str]:
    train = splits[0]
    warnings = []
    if train.most > IMBALANCE * train.fewest:
        warnings.append(
            f"the classes are uneven: {train.largest} has {train.most} training images, {train.smallest} only {train.fewest}"
        )
    for split in splits:
        absent = np.setdiff1d(np.arange(len(data.class_names)), parts[split.name].labels)
        if len(absent):
            names = listed([data.class_names[label] for label in absent], 5)
            warnings.append(f"{split.name}: {len(absent)} of {len(data.class_names)} classes have no image ({names})")
    if small := [size for split in splits for size in split.sizes if min(_sides(size)) < record["image_size"]]:
        smallest = min(small, key=lambda size: min(_sides(size)))
        warnings.append(f"images as small as {smallest} are enlarged to the network's {record['image_size']} pixels")
    modes = {mode for split in splits for mode in split.modes}
    if record["in_chans"] == 3 and (grey := sorted(modes & set(_GREY))):
        warnings.append(
            f"grey images ({', '.join(grey)}) are converted to RGB with three equal channels; in_chans: 1 would compute less"
        )
    if record["in_chans"] == 1 and (coloured := sorted(modes - set(_GREY))):
        warnings.append(f"colour images ({', '.join(coloured)}) are converted to grey, because the network has one channel")
    if duplicates:
        pairs = listed([f"{test} = {train}" for test, train in duplicates], 3)
        warnings.append(f"{len(duplicates)} of {len(data.test)} test images are also training images, byte for byte ({pairs})")
    return warnings


def _small_numbers(splits: tuple[SplitReport, ...], record: Mapping[str, Any], steps: int | None) -> list[str]:
    """Warns of too few pixels, images or steps for a useful training or accuracy, with advice."""
    warnings = []
    train = splits[0]
    size = record["image_size"]
    sides = sorted(min(_sides(name)) for name, count in train.sizes.items() for _ in range(count))
    typical = sides[len(sides) // 2] if sides else 0
    if size < _USUAL_SIZE and typical >= _REDUCTION * size:
        larger = size * min(-(-_USUAL_SIZE // size), typical // size)
        warnings.append(
            f"half of the images have {typical} pixels or more at the shorter side, but the network's input has {size}: "
            f"small details are lost; --image-size {larger} keeps more of them"
        )
    if plain := sum(split.plain for split in splits):
        sampled = sum(split.sampled for split in splits)
        warnings.append(
            f"{'all' if plain == sampled else plain} of the {sampled} checked images have a single colour each; "
            f"look at them, and remove those that show nothing"
        )
    for split in splits[1:]:
        if 0 < split.images < FEW_IMAGES:
            error = 50 / split.images**0.5
            use = {"search": "the search compares accuracies", "test": "the printed accuracies are"}[split.name]
            warnings.append(
                f"{split.name}: {use} on {split.images} images, with a standard error of up to {error:.0f} percentage points; "
                f"use {FEW_IMAGES} images or more, for example by adding {'training' if split.name == 'search' else 'test'} images"
            )
    if steps is not None and steps < FEW_STEPS:
        factor = -(-FEW_STEPS // steps)
        warnings.append(
            f"the whole training has {steps} step{'s' if steps > 1 else ''}, too few to learn much; "
            f"use {factor} times as many epochs (--epochs), or a smaller --batch-size"
        )
    return warnings


def _sides(size: str) -> tuple[int, int]:
    width, height = size.split("x")
    return int(width), int(height)


def _size_range(splits: Sequence[SplitReport]) -> str:
    """Lists the image sizes of all splits if they are few, or else the smallest and the largest by area."""
    sizes = list(dict.fromkeys(size for split in splits for size in split.sizes))
    if len(sizes) <= 3:
        return ", ".join(sizes)
    ordered = sorted(sizes, key=lambda size: int(np.prod(_sides(size))))
    return f"{ordered[0]} to {ordered[-1]} ({len(sizes)} different)"
