"""Counts the images of a data set that are not upright or not of 8 bits, and finds those that the decode rules refuse."""

from __future__ import annotations

from collections import Counter

from growtas.data.decode import DecodeRules, is_deep, largest_sample, oddities, read_header
from growtas.data.images import ArraySet, ImageSet, load_as, raise_unreadable, resolve
from growtas.data.sources import VERIFY_LIMIT, Data
from growtas.data.split import evenly_spaced
from growtas.errors import DataError
from growtas.progress import SILENT, Progress, tracked

_SAMPLED = 200
"""Images that are looked at of a set that is too large for all, or whose headers can't be read alone."""
_DARK = 1 / 8
"""Share of the range that the largest value reaches at least where the range fits."""


def odd_images(data: Data, rules: DecodeRules, progress: Progress = SILENT) -> list[str]:
    """A sentence for each way in which images are odd, with their number.

    Of files the headers are read, and the pixels only where they have more than 8 bits.

    Raises:
        DataError: the rules refuse images; the message counts them and names the first.
    """
    kinds: Counter[str] = Counter()
    refused: list[DataError] = []
    largest, share, seen = 0.0, 0.0, 0
    for images in (data.train, data.test):
        for place in tracked(_places(images, len(data.train) + len(data.test)), "looking for odd images", progress):
            try:
                odd, deep = _look_at(images, place)
            except DataError:
                continue  # unreadable images are reported elsewhere
            seen += 1
            kinds.update(odd)
            if not deep:
                continue
            try:
                load_as(images, place, lambda image: rules.apply(image, "L"))
                value, top = load_as(images, place, largest_sample)
                largest, share = max(largest, value), max(share, value / top)
            except DataError as error:
                refused.append(error)
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


def _places(images: ImageSet, count: int) -> list[int]:
    """Which images to look at, where both sets together have ``count``."""
    base, _ = resolve(images)
    if isinstance(base, ArraySet):
        return []
    every = getattr(base, "paths", None) is not None and count <= VERIFY_LIMIT
    return list(range(len(images))) if every else evenly_spaced(len(images), _SAMPLED).tolist()


def _look_at(images: ImageSet, place: int) -> tuple[list[str], bool]:
    """What is odd about an image, and whether it has more than 8 bits a sample."""
    base, indices = resolve(images)
    paths = getattr(base, "paths", None)
    if paths is None:
        image = images.load(place)
        return oddities(image), is_deep(image)
    try:
        with open(paths[indices[place]], "rb") as file:
            header = read_header(file)
            return oddities(header), is_deep(header)
    except Exception as error:  # Pillow's readers raise what they like
        raise DataError(f"{images.describe(place)}: the image can't be read ({error})") from None
