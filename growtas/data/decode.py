"""Decodes images to 8-bit grey or RGB: one set of rules for training, verification, calibration and prediction.

- The EXIF orientation is applied, so that an image is seen as viewers show it.
- Grey images of 16 and 32 bits and colour images of 16 bits are scaled: 0 becomes 0, and the largest number of the file's type
  becomes 255. A declared ``pixel_range`` names other ends, for example 0 to 4095 for a camera that stores 12 bits in files of 16
  bits. Values outside are clipped.
- Floating-point images, and signed ones with negative values, are refused without a declared range: nobody knows what is white.
- Transparency is dropped: a transparent pixel has the colour that is stored in it.
- Palettes, CMYK, YCbCr and LAB are converted by Pillow, without colour profiles. Of an animation the first frame is taken.

A run records its rules as ``decode`` in its preprocessing record. Runs that were made before the rules have no such entry: their
images are read as their training read them, by Pillow's conversion alone.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from growtas.errors import DataError
from growtas.fields import Rule, real

VERSION = 1
"""Of the rules; a run without an entry is of version 0."""
_NUMBER = real(-float("inf")).accepts
PIXEL_RANGE = Rule(
    lambda value: (
        value is None or (isinstance(value, list | tuple) and len(value) == 2 and all(map(_NUMBER, value)) and value[0] < value[1])
    ),
    "two numbers, the value of black and the larger one of white, as in [0, 4095], or null",
)
_SAMPLE_FORMAT, _SIGNED, _PHOTOMETRIC, _WHITE_IS_ZERO, _BITS, _PLANAR, _APART = 339, 2, 262, 0, 258, 284, 2
_UPRIGHT = 1
_GREY_ALPHA = "LA;16B"
_LOW_BYTES = "growtas.low_bytes"
"""Key in ``Image.info`` of the lower halves of 16-bit colours, of which Pillow keeps the upper ones only."""
_TOP = "growtas.top"
"""Key in ``Image.info`` of the largest value of a PGM's own type, which Pillow stretches to 65,535."""
_UPPER_ONLY = "growtas.upper_only"
"""Key in ``Image.info`` of 16-bit images whose lower halves can't be had."""
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""Of the bytes of a sample, as Pillow writes it at the end of a raw mode: big, little, or the machine's own."""
_DEEP_COLOUR = ("RGB;16", "RGBA;16", "RGBX;16", _GREY_ALPHA)
_NOT_READ = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PCD", "WMF")
"""Formats that Pillow recognises, but decodes only with somebody else's program; and PCD, whose ending is commonly that of point
clouds."""
_LONGEST = 32
"""How many times its short side the long side of an image is, about, where only the middle is resized."""


@dataclass(frozen=True)
class DecodeRules:
    """How a decoded file becomes 8-bit grey or RGB.

    Attributes:
        version: :data:`VERSION`, or 0 for runs that recorded none.
        pixel_range: values of black and white in images of more than 8 bits a sample; None for the ends of the type.
    """

    version: int = VERSION
    pixel_range: tuple[float, float] | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> DecodeRules:
        """The rules of a preprocessing record.

        Raises:
            DataError: the record is of a newer growtas, or its range is not one.
        """
        entry = record.get("decode")
        if entry is None:
            return cls(version=0)
        if not isinstance(entry, Mapping) or entry.get("version") != VERSION:
            version = entry.get("version") if isinstance(entry, Mapping) else entry
            raise DataError(f"preprocess.decode.version is {version!r}, and this growtas knows {VERSION}; use a newer growtas")
        declared = entry.get("pixel_range")
        PIXEL_RANGE.check("preprocess.decode.pixel_range", declared, DataError)
        return cls(pixel_range=tuple(declared) if declared is not None else None)

    def to_dict(self) -> dict[str, Any]:
        """The record's entry."""
        return {"version": self.version, "pixel_range": list(self.pixel_range) if self.pixel_range else None}

    def describe(self) -> str:
        """The rules in words, for those who prepare images themselves."""
        if self.version == 0:
            return "as Pillow's convert gives it: no EXIF orientation, values above 255 clipped"
        ends = "from 0 to the type's largest" if self.pixel_range is None else "from {:g} to {:g}".format(*self.pixel_range)
        return f"EXIF orientation applied, transparency dropped, values of more than 8 bits scaled {ends} to 0..255"

    def apply(self, image: Image.Image, mode: str) -> Image.Image:
        """An upright image of mode L or RGB.

        Args:
            image: as :func:`decode` gives it, or any other of Pillow's.
            mode: ``L`` or ``RGB``.

        Raises:
            DataError: the rules refuse the image; the message is the reason alone, without the image's name.
        """
        if isinstance(image, ImageFile.ImageFile) and image.tile:
            _load(image)
        orientation = _orientation(image)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # the same colours as straight to RGB, without Pillow's warning
        if self.version == 0:
            return image.convert(mode)
        if _has_deep_planes(image):
            raise DataError("its colours have more than 8 bits and lie in separate planes, which Pillow reads wrongly; convert it")
        if self.pixel_range is not None and _UPPER_ONLY in image.info:
            raise DataError(
                f"its samples have 16 bits, of which Pillow gives the upper 8 only (mode {image.mode}), so that pixel_range can't "
                "be applied; convert it to RGB or grey"
            )
        eight_bits = self._scaled(image) if is_deep(image) else image
        upright = eight_bits.convert(mode)
        upright.info = {}  # what is upright must not be turned again by whoever reads its tags
        if orientation != _UPRIGHT:
            upright.getexif()[ExifTags.Base.Orientation] = orientation
            upright = ImageOps.exif_transpose(upright)
        return upright

    def _scaled(self, image: Image.Image) -> Image.Image:
        """An image of more than 8 bits a sample, scaled to 8."""
        values, (low, high) = _samples(image)
        if self.pixel_range is not None:
            low, high = self.pixel_range
        elif image.mode == "F":
            raise DataError(
                "its values are floating-point numbers (mode F), and no pixel_range says which of them is black and which white; "
                "train with --pixel-range LOW,HIGH"
            )
        elif values.size and values.min() < 0:
            raise DataError(
                f"its values are signed and go down to {values.min()}, and no pixel_range says which of them is black and which "
                f"white; train with --pixel-range LOW,HIGH"
            )
        if image.mode == "F" and np.isnan(values).any():
            raise DataError("some of its values are not a number (NaN)")
        if values.dtype in ("<u2", ">u2"):  # a table is smaller than a float a value
            scaled = _levels(np.arange(65536), low, high)[values]
        else:
            scaled = _levels(values, low, high)
        # Pillow inverts what is stored with white as zero in 8 bits, but not in more.
        return Image.fromarray(255 - scaled if _tags(image).get(_PHOTOMETRIC) == _WHITE_IS_ZERO else scaled)


def decode(file: IO[bytes]) -> Image.Image:
    """The image in an open file, as Pillow reads it; the file is closed, whatever comes of it.

    Raises:
        DataError: it is larger than Pillow's limit, or the reason why it is not an image; without the file's name.
        Exception: whatever Pillow's decoders raise for a broken file.
    """
    with file:
        image = read_header(file)
        _load(image)
        return image


def read_header(file: IO[bytes]) -> ImageFile.ImageFile:
    """An image whose pixels are not read yet.

    Raises:
        DataError: it is larger than Pillow's limit; without the file's name.
        Exception: whatever Pillow raises for a broken file.
    """
    limit = Image.MAX_IMAGE_PIXELS
    with contextlib.suppress(Image.DecompressionBombWarning, Image.DecompressionBombError):
        image = Image.open(file)
        if limit is None or image.width * image.height <= limit:
            return image
    raise DataError(f"it has more than {limit:,} pixels, the most that Pillow takes for safe; make it smaller")


def oddities(image: Image.Image) -> list[str]:
    """What sets an image apart from an upright one of 8 bits; it may be a header alone."""
    odd = []
    if is_turned(image):
        odd.append("an EXIF orientation, which is applied")
    if image.mode == "F":
        odd.append("floating-point values (mode F)")
    elif is_deep(image):
        odd.append(f"more than 8 bits a sample, or signed ones (mode {image.mode})")
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        odd.append(f"the colours of mode {image.mode}, which are converted to RGB without a colour profile")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        odd.append(f"transparency (mode {image.mode}), which is dropped: a transparent pixel shows the colour that is stored in it")
    if getattr(image, "is_animated", False) and image.format != "MPO":
        odd.append("several frames or pages, of which the first is taken")
    return odd


def is_turned(image: Image.Image) -> bool:
    """Whether an image, or the header of one, has an EXIF orientation other than upright."""
    return _orientation(image) != _UPRIGHT


def is_deep(image: Image.Image) -> bool:
    """Whether an image, or the header of one, has more than 8 bits a sample, or signed values."""
    deep_colour = _LOW_BYTES in image.info or _raw_mode(image).startswith(_DEEP_COLOUR)
    return image.mode == "F" or image.mode.startswith("I") or deep_colour or _is_signed(image) or _has_deep_planes(image)


def largest_sample(image: Image.Image) -> tuple[float, float]:
    """The largest value of an image of more than 8 bits, and the largest that its type holds."""
    values, (_, high) = _samples(image)
    return float(values.max()), high


def readable_suffixes() -> set[str]:
    """Endings of files that this Pillow decodes by itself, in lower case with the dot."""
    suffixes = Image.registered_extensions()  # loads all of Pillow's plugins
    formats = {*Image.OPEN, "MPO"} - {*_NOT_READ}
    return {suffix for suffix, name in suffixes.items() if name in formats}


def middle(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of an image that are resized: all, or of a very long image the middle, since the rest is cut away anyway.

    An image of 30,000 x 1 pixels would be 7.7 million pixels long where the short side becomes 256.
    """
    short = min(height, width)

    def kept(side: int) -> slice:
        if side <= (_LONGEST + 1) * short:
            return slice(0, side)
        # A whole number of squares, so that the new size is in proportion; even or odd as the side is: the middle stays.
        keep = (_LONGEST + (_LONGEST * short + side) % 2) * short
        return slice((side - keep) // 2, (side - keep) // 2 + keep)

    return kept(height), kept(width)


def reason(error: Exception) -> str:
    """Why an image can't be decoded, in words."""
    if isinstance(error, UnidentifiedImageError):
        return "no image format that Pillow knows"
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:300] or type(error).__name__


def _load(image: ImageFile.ImageFile) -> None:
    """Reads the pixels of an image, and notes in its ``info`` what Pillow doesn't say of them."""
    facts: dict[str, Any] = {}
    raw, top = _raw_mode(image), _ppm_top(image)
    if image.tile and image.tile[0].codec_name == "libtiff":
        # It gives samples in the machine's own order, which Pillow minds in unsigned ones alone.
        _set_raw_mode(image, re.sub(r"(;\d+)B", r"\1N", raw))
    if raw.startswith(_DEEP_COLOUR):
        facts[_LOW_BYTES] = _low_bytes(image.fp)
    elif image.mode.startswith("I"):
        facts = {_TOP: top} if top else {}
    elif top > 255 or ";16" in raw:
        facts[_UPPER_ONLY] = True
    _orientation(image)  # read while the file is open
    image.load()
    image.info.update(facts)  # loading fills it anew


def _levels(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Values from ``low`` to ``high`` as 0 to 255, rounded; what is outside is clipped."""
    return np.rint((values.astype(np.float64) - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)


def _samples(image: Image.Image) -> tuple[NDArray[Any], tuple[float, float]]:
    """The values of an image of more than 8 bits a sample, and the least and largest of its type."""
    values, tags = np.asarray(image), _tags(image)
    if image.format == "FITS" and image.mode == "I;16":
        values = values.view(np.int16)  # the format's numbers are signed, and Pillow takes them for unsigned ones
    if (low_bytes := image.info.get(_LOW_BYTES)) is not None:
        return values[..., :3].astype(np.uint16) * 256 + np.asarray(low_bytes)[..., :3], (0, 65535)
    if image.mode == "F":
        return values, (0, 1)
    if (own := image.info.get(_TOP)) is not None:
        return np.rint(values * (own / 65535)), (0, own)
    sixteen = image.mode != "I" or image.format in ("PNG", "PPM")
    bits = int(tags.get(_BITS, (0,))[0]) or (16 if sixteen else 32)
    if _is_signed(image):
        if bits == 8:
            raise DataError("its samples are signed numbers of 8 bits, which Pillow takes for unsigned ones; convert it")
        return values, (0, 2 ** (bits - 1) - 1)
    if sixteen:
        return values, (0, 2**bits - 1)
    return (values.view(np.uint32), (0, 2**32 - 1)) if tags else (values, (0, 2**31 - 1))


def _low_bytes(file: IO[bytes] | None) -> Image.Image:
    """The lower halves of a 16-bit colour image's samples, read as if its bytes were in the other order."""
    assert file is not None, "its header was read from a file that is still open"
    place = file.tell()
    file.seek(0)
    other = Image.open(file)
    raw = _raw_mode(other)
    # Grey, alpha and their lower halves are read as if they were R, G, B and A: the second is the grey's lower half.
    _set_raw_mode(other, "RGBA" if raw == _GREY_ALPHA else raw[:-1] + _OTHER_ORDER[raw[-1]])
    other.load()
    file.seek(place)
    return Image.merge("RGB", [other.getchannel(1)] * 3) if raw == _GREY_ALPHA else other.copy()


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """The tags of a TIFF; none of other formats."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    return tags


def _is_signed(image: Image.Image) -> bool:
    return _SIGNED in tuple(_tags(image).get(_SAMPLE_FORMAT, ())) or (image.format == "FITS" and image.mode.startswith("I"))


def _has_deep_planes(image: Image.Image) -> bool:
    tags = _tags(image)
    return len(image.getbands()) > 1 and tags.get(_PLANAR) == _APART and max(tags.get(_BITS, (0,))) > 8


def _ppm_top(image: ImageFile.ImageFile) -> int:
    """The largest value that a PGM or PPM allows, 0 for other formats and where Pillow doesn't stretch it."""
    args = image.tile[0].args if image.format == "PPM" and image.tile else None
    return int(args[1]) if isinstance(args, tuple) and len(args) == 2 and isinstance(args[1], int) else 0


def _raw_mode(image: Image.Image) -> str:
    """How an image's samples lie in its file, in Pillow's words; nothing where they are read already."""
    args = next((tile.args for tile in getattr(image, "tile", ())), "")
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _set_raw_mode(image: ImageFile.ImageFile, raw: str) -> None:
    image.tile = [tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in image.tile]


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 for upright, where there is none, and where the tags are broken."""
    try:
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT))
    except Exception:  # broken tags raise all kinds, and say nothing about the pixels
        return _UPRIGHT
    return orientation if 1 <= orientation <= 8 else _UPRIGHT
