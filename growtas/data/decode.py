"""Decodes images to 8-bit grey or RGB, with the same rules for training, verification, calibration and prediction.

- The EXIF orientation is applied, as in image viewers.
- Grey images with 16 or 32 bits and colour images with 16 bits are scaled: 0 becomes 0, and the largest value of the file's data
  type becomes 255. ``pixel_range`` declares other values of black and white, for example 0 and 4095 for a camera that stores 12
  bits in 16-bit files. Values outside are clipped.
- Floating-point images and signed images with negative values need a declared ``pixel_range``, because their white is unknown.
- Transparency is dropped: a transparent pixel keeps its stored colour.
- Pillow converts palettes, CMYK, YCbCr and LAB, without colour profiles. Of an animation, the first frame is used.

A run records its rules as ``decode`` in its preprocessing record. Older runs have no such entry; their images are read as in their
training, by Pillow's conversion alone.
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

from growtas.errors import DataError, brief, cause
from growtas.fields import Rule, real

VERSION = 1
"""Version of the rules; a run without an entry has version 0."""
_NUMBER = real(-float("inf")).accepts
PIXEL_RANGE = Rule(
    lambda value: (
        value is None or (isinstance(value, list | tuple) and len(value) == 2 and all(map(_NUMBER, value)) and value[0] < value[1])
    ),
    "null or two numbers, the value of black and the larger value of white, as in [0, 4095]",
)
_SAMPLE_FORMAT, _SIGNED, _PHOTOMETRIC, _WHITE_IS_ZERO, _BITS, _PLANAR, _APART = 339, 2, 262, 0, 258, 284, 2
_UPRIGHT = 1
_GREY_ALPHA = "LA;16B"
_LOW_BYTES = "growtas.low_bytes"
"""Key in ``Image.info`` of the lower bytes of 16-bit colours; Pillow itself keeps only the upper bytes."""
_TOP = "growtas.top"
"""Key in ``Image.info`` of the largest value that a PGM declares; Pillow scales it to 65,535."""
_UPPER_ONLY = "growtas.upper_only"
"""Key in ``Image.info`` of 16-bit images whose lower bytes can't be read."""
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""The other byte order, by the byte order at the end of Pillow's raw mode: big, little, or native."""
_DEEP_COLOUR = ("RGB;16", "RGBA;16", "RGBX;16", _GREY_ALPHA)
_NOT_READ = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PCD", "WMF")
"""Formats that Pillow recognises but decodes only with another program, and PCD, whose suffix usually means a point cloud."""
_LONGEST = 32
"""Ratio of the long side to the short side, about, above which only the middle of an image is resized."""


@dataclass(frozen=True)
class DecodeRules:
    """How a decoded file becomes 8-bit grey or RGB.

    Attributes:
        version: :data:`VERSION`, or 0 for runs that recorded none.
        pixel_range: values of black and white in images with more than 8 bits per sample; None for the data type's range.
    """

    version: int = VERSION
    pixel_range: tuple[float, float] | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> DecodeRules:
        """Reads the rules from a preprocessing record.

        Raises:
            DataError: A newer growtas wrote the record, or its ``pixel_range`` is invalid.
        """
        entry = record.get("decode")
        if entry is None:
            return cls(version=0)
        if not isinstance(entry, Mapping) or entry.get("version") != VERSION:
            version = entry.get("version") if isinstance(entry, Mapping) else entry
            raise DataError(
                f"preprocess.decode.version is {brief(version)}, but this growtas only supports {VERSION}; use a newer growtas"
            )
        declared = entry.get("pixel_range")
        PIXEL_RANGE.check("preprocess.decode.pixel_range", declared, DataError)
        return cls(pixel_range=tuple(declared) if declared is not None else None)

    def to_dict(self) -> dict[str, Any]:
        """Returns the ``decode`` entry of the preprocessing record."""
        return {"version": self.version, "pixel_range": list(self.pixel_range) if self.pixel_range else None}

    def describe(self) -> str:
        """Describes the rules for users who preprocess images themselves."""
        if self.version == 0:
            return "Pillow's convert: EXIF orientation ignored, values above 255 clipped"
        ends = "from 0 to the type's largest" if self.pixel_range is None else "from {:g} to {:g}".format(*self.pixel_range)
        return f"EXIF orientation applied, transparency dropped, values of more than 8 bits scaled {ends} to 0..255"

    def apply(self, image: Image.Image, mode: str) -> Image.Image:
        """Converts an image to an upright one of mode L or RGB.

        Args:
            image: the result of :func:`decode`, or any other Pillow image.
            mode: ``L`` or ``RGB``.

        Raises:
            DataError: The rules reject the image; the message is the reason without the image's name.
        """
        if isinstance(image, ImageFile.ImageFile) and image.tile:
            _load(image)
        orientation = _orientation(image)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # the same colours as a conversion to RGB, without Pillow's warning
        if self.version == 0:
            return image.convert(mode)
        if _has_deep_planes(image):
            raise DataError("its colours have more than 8 bits in separate planes, which Pillow reads wrongly; convert it")
        if self.pixel_range is not None and _UPPER_ONLY in image.info:
            raise DataError(
                f"pixel_range can't be applied, because Pillow reads only the upper 8 of its 16 bits (mode {image.mode}); convert "
                "it to RGB or grey"
            )
        eight_bits = self._scaled(image) if is_deep(image) else image
        upright = eight_bits.convert(mode)
        upright.info = {}  # without tags, nothing can rotate the upright image again
        if orientation != _UPRIGHT:
            upright.getexif()[ExifTags.Base.Orientation] = orientation
            upright = ImageOps.exif_transpose(upright)
        return upright

    def _scaled(self, image: Image.Image) -> Image.Image:
        """Scales an image with more than 8 bits per sample to 8 bits."""
        values, (low, high) = _samples(image)
        if self.pixel_range is not None:
            low, high = self.pixel_range
        elif image.mode == "F":
            raise DataError(
                "its values are floating-point numbers (mode F), and no pixel_range gives the values of black and white; "
                "train with --pixel-range LOW,HIGH"
            )
        elif values.size and values.min() < 0:
            raise DataError(
                f"its values are signed and go down to {values.min()}, and no pixel_range gives the values of black and white; "
                f"train with --pixel-range LOW,HIGH"
            )
        if image.mode == "F" and np.isnan(values).any():
            raise DataError("some of its values are not a number (NaN)")
        if values.dtype in ("<u2", ">u2"):  # a lookup table needs less memory than a float per value
            scaled = _levels(np.arange(65536), low, high)[values]
        else:
            scaled = _levels(values, low, high)
        # Pillow inverts images that store white as zero only if they have 8 bits.
        return Image.fromarray(255 - scaled if _tags(image).get(_PHOTOMETRIC) == _WHITE_IS_ZERO else scaled)


def decode(file: IO[bytes]) -> Image.Image:
    """Reads the image in an open file with Pillow, and always closes the file.

    Raises:
        DataError: The image is larger than Pillow's limit; the message does not contain the file's name.
        Exception: Any exception of Pillow's decoders for a broken file.
    """
    with file:
        image = read_header(file)
        _load(image)
        return image


def read_header(file: IO[bytes]) -> ImageFile.ImageFile:
    """Opens an image without reading its pixels.

    Raises:
        DataError: The image is larger than Pillow's limit; the message does not contain the file's name.
        Exception: Any exception of Pillow for a broken file.
    """
    limit = Image.MAX_IMAGE_PIXELS
    with contextlib.suppress(Image.DecompressionBombWarning, Image.DecompressionBombError):
        image = Image.open(file)
        if limit is None or image.width * image.height <= limit:
            return image
    raise DataError(f"it has more than {limit:,} pixels, Pillow's limit for safe images; make it smaller")


def oddities(image: Image.Image) -> list[str]:
    """Describes how an image, or its header, differs from an upright image with 8 bits per sample."""
    odd = []
    if is_turned(image):
        odd.append("an EXIF orientation, which is applied")
    if image.mode == "F":
        odd.append("floating-point values (mode F)")
    elif is_deep(image):
        odd.append(f"more than 8 bits per sample, or signed samples (mode {image.mode})")
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        odd.append(f"colours of mode {image.mode}, which are converted to RGB without a colour profile")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        odd.append(f"transparency (mode {image.mode}), which is dropped: a transparent pixel keeps its stored colour")
    if getattr(image, "is_animated", False) and image.format != "MPO":
        odd.append("several frames or pages; only the first is used")
    return odd


def is_turned(image: Image.Image) -> bool:
    """Returns whether an image, or its header, has an EXIF orientation other than upright."""
    return _orientation(image) != _UPRIGHT


def is_deep(image: Image.Image) -> bool:
    """Returns whether an image, or its header, has more than 8 bits per sample or signed samples."""
    deep_colour = _LOW_BYTES in image.info or _raw_mode(image).startswith(_DEEP_COLOUR)
    return image.mode == "F" or image.mode.startswith("I") or deep_colour or _is_signed(image) or _has_deep_planes(image)


def largest_sample(image: Image.Image) -> tuple[float, float]:
    """Returns the largest value of an image with more than 8 bits, and the largest value of its data type."""
    values, (_, high) = _samples(image)
    return float(values.max()), high


def readable_suffixes() -> set[str]:
    """Returns the file suffixes that the installed Pillow decodes by itself, in lower case with the dot."""
    suffixes = Image.registered_extensions()  # loads all of Pillow's plugins
    formats = {*Image.OPEN, "MPO"} - {*_NOT_READ}
    return {suffix for suffix, name in suffixes.items() if name in formats}


def middle(height: int, width: int) -> tuple[slice, slice]:
    """Returns the rows and columns of an image that are resized: all of them, or only the middle of a very long image.

    The crop would remove the rest anyway: if the short side of an image of 30,000 x 1 pixels were resized to 256, the long side
    would have 7.7 million pixels.
    """
    short = min(height, width)

    def part(side: int) -> slice:
        if side <= (_LONGEST + 1) * short:
            return slice(0, side)
        # A whole number of squares, so that the new size is in proportion; as even or odd as the side, so that the middle stays.
        keep = (_LONGEST + (_LONGEST * short + side) % 2) * short
        return slice((side - keep) // 2, (side - keep) // 2 + keep)

    return part(height), part(width)


def reason(error: Exception) -> str:
    """Returns the reason in words why an image can't be decoded."""
    if isinstance(error, UnidentifiedImageError):
        return "Pillow doesn't recognise its format"
    return cause(error, 300)


def _load(image: ImageFile.ImageFile) -> None:
    """Reads the pixels of an image, and adds facts to its ``info`` that Pillow doesn't give."""
    facts: dict[str, Any] = {}
    raw, top = _raw_mode(image), _ppm_top(image)
    if image.tile and image.tile[0].codec_name == "libtiff":
        # libtiff returns samples in native byte order; Pillow takes that into account only for unsigned samples.
        _set_raw_mode(image, re.sub(r"(;\d+)B", r"\1N", raw))
    if raw.startswith(_DEEP_COLOUR):
        facts[_LOW_BYTES] = _low_bytes(image.fp)
    elif image.mode.startswith("I"):
        facts = {_TOP: top} if top else {}
    elif top > 255 or ";16" in raw:
        facts[_UPPER_ONLY] = True
    _orientation(image)  # must be read while the file is open
    image.load()
    image.info.update(facts)  # after load(), which resets it


def _levels(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Scales ``low`` to ``high`` to 0 to 255, rounds, and clips values outside."""
    return np.rint((values.astype(np.float64) - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)


def _samples(image: Image.Image) -> tuple[NDArray[Any], tuple[float, float]]:
    """Returns the values of an image with more than 8 bits per sample, and the range of its data type."""
    values, tags = np.asarray(image), _tags(image)
    if image.format == "FITS" and image.mode == "I;16":
        values = values.view(np.int16)  # the format's numbers are signed, but Pillow reads them as unsigned
    if (low_bytes := image.info.get(_LOW_BYTES)) is not None:
        return values[..., :3].astype(np.uint16) * 256 + np.asarray(low_bytes)[..., :3], (0, 65535)
    if image.mode == "F":
        return values, (0, 1)
    if (top := image.info.get(_TOP)) is not None:
        return np.rint(values * (top / 65535)), (0, top)
    sixteen = image.mode != "I" or image.format in ("PNG", "PPM")
    bits = int(tags.get(_BITS, (0,))[0]) or (16 if sixteen else 32)
    if _is_signed(image):
        if bits == 8:
            raise DataError("its samples are signed 8-bit numbers, which Pillow reads as unsigned; convert it")
        return values, (0, 2 ** (bits - 1) - 1)
    if sixteen:
        return values, (0, 2**bits - 1)
    return (values.view(np.uint32), (0, 2**32 - 1)) if tags else (values, (0, 2**31 - 1))


def _low_bytes(file: IO[bytes] | None) -> Image.Image:
    """Reads the lower bytes of a 16-bit colour image's samples, by reading the file in the other byte order."""
    assert file is not None, "the file must still be open"
    place = file.tell()
    file.seek(0)
    other = Image.open(file)
    raw = _raw_mode(other)
    # The four bytes of grey and alpha are read as R, G, B and A: G is the lower byte of grey.
    _set_raw_mode(other, "RGBA" if raw == _GREY_ALPHA else raw[:-1] + _OTHER_ORDER[raw[-1]])
    other.load()
    file.seek(place)
    return Image.merge("RGB", [other.getchannel(1)] * 3) if raw == _GREY_ALPHA else other.copy()


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """Returns the tags of a TIFF; for other formats an empty mapping."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    return tags


def _is_signed(image: Image.Image) -> bool:
    return _SIGNED in tuple(_tags(image).get(_SAMPLE_FORMAT, ())) or (image.format == "FITS" and image.mode.startswith("I"))


def _has_deep_planes(image: Image.Image) -> bool:
    tags = _tags(image)
    return len(image.getbands()) > 1 and tags.get(_PLANAR) == _APART and max(tags.get(_BITS, (0,))) > 8


def _ppm_top(image: ImageFile.ImageFile) -> int:
    """Returns the largest value that a PGM or PPM declares; 0 for other formats and if Pillow doesn't scale the values."""
    args = image.tile[0].args if image.format == "PPM" and image.tile else None
    return int(args[1]) if isinstance(args, tuple) and len(args) == 2 and isinstance(args[1], int) else 0


def _raw_mode(image: Image.Image) -> str:
    """Returns Pillow's raw mode, the layout of the samples in the file; empty if the pixels are already loaded."""
    args = next((tile.args for tile in getattr(image, "tile", ())), "")
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _set_raw_mode(image: ImageFile.ImageFile, raw: str) -> None:
    image.tile = [tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in image.tile]


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 (upright) if there is none or the tags are broken."""
    try:
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT))
    except Exception:  # broken tags raise all kinds of exceptions, and the pixels may still be intact
        return _UPRIGHT
    return orientation if 1 <= orientation <= 8 else _UPRIGHT
