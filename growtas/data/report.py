"""Reports what a data set holds and what is odd about it, before the first step of a training."""

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
from growtas.progress import SILENT, Progress, tracked
from growtas.runs import data_title

SAMPLED = 200
"""Images of a split whose size and mode are looked at, at most; and of a set whose headers are not all read."""
_DARK = 1 / 8
"""Share of the type's range that the largest value of deep images reaches at least where the range fits."""
IMBALANCE = 10
"""How many times the images of the smallest class the largest may have before the report warns."""
FEW_STEPS = 200
"""Optimiser steps below which the report warns; the shortest recipe that comes with growtas has some 1,300."""
FEW_IMAGES = 100
"""Images of a set below which an accuracy of 50 % on it has a standard error of more than 5 points."""
_REDUCTION = 3
"""How many times the network's image size the images may have before the report warns of a small network."""
_USUAL_SIZE = 112
"""Pixels a side from which on photographs are commonly classified; the report warns of none that large."""
_Depth = tuple[float, float] | DataError | None
"""Of an image of more than 8 bits: its largest value and that of its type, or why the rules refuse it."""
_GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "F")


@dataclass(frozen=True)
class SplitReport:
    """What one split holds.

    Attributes:
        name: ``train`` (without the search images), ``search`` or ``test``.
        images: how many.
        classes: how many of the set's classes have images here.
        smallest, largest: the classes with the fewest and the most images; the first of them by label where several have as many.
        fewest, median, most: images a class, over all classes of the set.
        sizes: ``WIDTHxHEIGHT`` of the sampled images and how many have it, the most frequent first.
        modes: Pillow's colour modes of the sampled images, likewise.
        sampled: how many images were sampled.
        plain: how many of these have a single colour.
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
    """What a data set holds.

    Attributes:
        name, data_dir: as in :class:`growtas.data.sources.Data`.
        classes: how many the set has.
        image_size, in_chans: what the network takes.
        splits: train, search and test.
        duplicates: test images that lie in the training set too, as (test image, training image); None where it was not looked at,
            because there are too many.
        warnings: a sentence for each thing that is odd but possible.
        layout: for a folder, how it was understood.
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
        """What people call the set: its name, or the path of a folder."""
        return data_title({"name": self.name, "data_dir": self.data_dir})

    def to_dict(self) -> dict[str, Any]:
        """The report in JSON's types."""
        return dataclasses.asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """The report as (label, value) lines to print."""
        where = f" in {self.data_dir}" if self.data_dir and self.title != self.data_dir else ""
        rows = [("data", f"{self.title}{where}, {self.classes} classes")]
        if self.layout is not None:
            rows.append(("folders", str(self.layout)))
        for split in self.splits:
            classes = "" if split.classes == self.classes else f" of {split.classes} classes"
            sizes = f"{split.fewest} to {split.most}, median {split.median:g}" if split.fewest < split.most else str(split.most)
            rows.append((split.name, f"{split.images:,} images{classes}, {sizes} a class"))
        train = self.splits[0]
        if train.fewest < train.most:
            rows.append(("classes", f"smallest {train.smallest} ({train.fewest}), largest {train.largest} ({train.most})"))
        modes = ", ".join(dict.fromkeys(mode for split in self.splits for mode in split.modes))
        rows.append(("images", f"sizes {_size_range(self.splits)}, modes {modes}"))
        channels = "1 channel (grey)" if self.in_chans == 1 else f"{self.in_chans} channels"
        rows.append(("network input", f"{self.image_size}x{self.image_size}, {channels}"))
        if self.duplicates is not None:
            rows.append(("duplicates", f"{len(self.duplicates) or 'no'} test images are training images too"))
        return [*rows, *(("warning", warning) for warning in self.warnings)]


def check_data(
    data: Data, split: Mapping[str, Any], record: Mapping[str, Any], progress: Progress = SILENT, *, steps: int | None = None
) -> DataReport:
    """Look at a data set before the training.

    Args:
        data: the set.
        split: its search split, as ``split.json`` has it.
        record: the preprocessing.
        progress: receives each stage.
        steps: optimiser steps of the training that is to come.

    Raises:
        DataError: sampled images are unreadable, or the record's rules refuse images; the message counts them and names the first.
    """
    search = search_indices(split)
    parts = {
        "train": Subset(data.train, complement(search, len(data.train))),
        "search": Subset(data.train, search),
        "test": data.test,
    }
    failures: list[DataError] = []
    splits = tuple(_look_at(name, images, data.class_names, progress, failures) for name, images in parts.items())
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
    """A sentence for each way in which images are not upright ones of 8 bits, with their number.

    Of files the headers are read, and the pixels only where they have more than 8 bits. Of larger sets, and of those that are no
    files, :data:`SAMPLED` images are looked at.

    Raises:
        DataError: the rules refuse images; the message counts them and names the first.
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
            f"values go up to {largest:,g}, and pixel_range ends at {rules.pixel_range[1]:,g}: what is above becomes white"
        )
    if rules.pixel_range is None and 0 < share < _DARK:
        fitting = 2 ** int(largest).bit_length() - 1
        sentences.append(
            f"the largest value of the images of more than 8 bits is {largest:,g}, which is {share:.1%} of their type's: they are "
            f"read as dark images; --pixel-range 0,{fitting} makes {fitting} white"
        )
    return sentences


def _finder(images: ImageSet, rules: DecodeRules) -> Callable[[int], tuple[list[str] | None, _Depth]]:
    """A function that says what is odd about an image; it gives None for an unreadable one, which is reported elsewhere."""
    paths = paths_of(images)

    def extremes(image: Image.Image) -> tuple[float, float]:
        rules.apply(image, "L")
        return largest_sample(image)

    def find(index: int) -> tuple[list[str] | None, _Depth]:
        try:
            with contextlib.nullcontext() if paths is None else open(paths[index], "rb") as file:
                image = images.load(index) if file is None else read_header(file)
                odd, deep = oddities(image), is_deep(image)
        except Exception:  # Pillow's readers raise what they like
            return None, None
        try:
            return odd, load_as(images, index, extremes) if deep else None
        except DataError as error:
            return odd, error

    return find


def find_duplicates(train: ImageSet, test: ImageSet, progress: Progress = SILENT) -> tuple[tuple[str, str], ...] | None:
    """Test images that are training images too, byte for byte: names of the test image and of the first training image like it.

    Files are compared as files, images in memory by their pixels.

    Returns:
        None where there are more than :data:`growtas.data.sources.VERIFY_LIMIT` images, or where they can't be compared undecoded.
    """
    contents = [_contents(images) for images in (train, test)]
    if len(train) + len(test) > VERIFY_LIMIT or contents[0] is None or contents[1] is None:
        return None
    (train_sizes, read_train), (test_sizes, read_test) = contents[0], contents[1]
    # Only what has the size of an image of the other set need be read.
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
    """Size in bytes of each image, and a function that hashes one; None where there are neither arrays nor files."""
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
    return sizes, lambda index: hashlib.sha256(chosen[index].read_bytes()).digest()


def _look_at(
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
        # A palette with transparent colours goes as the PA that it is.
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
    """Whether all pixels are alike."""
    pixels = np.asarray(image)  # Pillow's getextrema knows no big-endian samples
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
        warnings.append(f"grey images ({', '.join(grey)}) are converted to RGB, three channels alike; in_chans: 1 would need fewer")
    if record["in_chans"] == 1 and (coloured := sorted(modes - set(_GREY))):
        warnings.append(f"colour images ({', '.join(coloured)}) are converted to grey, the network's one channel")
    if duplicates:
        pairs = listed([f"{test} = {train}" for test, train in duplicates], 3)
        warnings.append(f"{len(duplicates)} of {len(data.test)} test images are training images too, byte for byte ({pairs})")
    return warnings


def _small_numbers(splits: tuple[SplitReport, ...], record: Mapping[str, Any], steps: int | None) -> list[str]:
    """What makes a training or its accuracies worth little, and what to do about it."""
    warnings = []
    train = splits[0]
    size = record["image_size"]
    sides = sorted(min(_sides(name)) for name, count in train.sizes.items() for _ in range(count))
    typical = sides[len(sides) // 2] if sides else 0
    if size < _USUAL_SIZE and typical >= _REDUCTION * size:
        larger = size * min(-(-_USUAL_SIZE // size), typical // size)
        warnings.append(
            f"half of the images have {typical} pixels or more at the shorter side, and the network sees {size}: "
            f"what is small in them is lost; --image-size {larger} shows more of it"
        )
    if plain := sum(split.plain for split in splits):
        sampled = sum(split.sampled for split in splits)
        warnings.append(
            f"{'all' if plain == sampled else plain} of the {sampled} images that were looked at have a single colour each; "
            f"look at them, and remove those that show nothing"
        )
    for split in splits[1:]:
        if 0 < split.images < FEW_IMAGES:
            error = 50 / split.images**0.5
            use = {"search": "the search chooses subnets by accuracies", "test": "the accuracies that are printed are"}[split.name]
            warnings.append(
                f"{split.name}: {use} on {split.images} images, uncertain by up to {error:.0f} points (one standard error); "
                f"have {FEW_IMAGES} or more, for example by adding {'training' if split.name == 'search' else 'test'} images"
            )
    if steps is not None and steps < FEW_STEPS:
        factor = -(-FEW_STEPS // steps)
        warnings.append(
            f"the whole training has {steps} step{'s' if steps > 1 else ''}, too few to learn much; "
            f"give {factor} times the epochs (--epochs), or a smaller --batch-size"
        )
    return warnings


def _sides(size: str) -> tuple[int, int]:
    width, height = size.split("x")
    return int(width), int(height)


def _size_range(splits: Sequence[SplitReport]) -> str:
    """The sizes of all splits: each where they are few, else the smallest and the largest by area."""
    sizes = list(dict.fromkeys(size for split in splits for size in split.sizes))
    if len(sizes) <= 3:
        return ", ".join(sizes)
    ordered = sorted(sizes, key=lambda size: int(np.prod(_sides(size))))
    return f"{ordered[0]} to {ordered[-1]} ({len(sizes)} different)"
