"""A table of image modes through the readers of training, verification and prediction: equal pixels, or the same refusal.

What is expected is computed here with NumPy from the array that was written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from growtas import api
from growtas.data.loaders import FileLoader
from growtas.data.pixels import Pixels
from growtas.data.preprocess import preprocess_record, training_transform
from growtas.data.sources import Data, open_data
from growtas.errors import DataError
from growtas.export.verification.images import run_images
from growtas.runs import create_run
from growtas.space import PRESETS
from tests.image_writers import write_png16, write_tiff
from tests.unit.export.serving.helpers import CLASSES, SIZE, artifact

RNG = np.random.default_rng(0)
SHAPE = (SIZE, SIZE)
GREY = RNG.integers(0, 256, SHAPE, np.uint8)
COLOUR = RNG.integers(0, 256, (*SHAPE, 3), np.uint8)
ALPHA = RNG.integers(0, 256, SHAPE, np.uint8)
BITS = RNG.integers(0, 2, SHAPE).astype(bool)
DEEP = RNG.integers(0, 65536, SHAPE, np.uint16)
DEEP_COLOUR = RNG.integers(0, 65536, (*SHAPE, 4), np.uint16)
TWELVE = RNG.integers(0, 4096, SHAPE, np.uint16)
DEEPER = RNG.integers(0, 2**32, SHAPE, np.uint32)
FLOATS = RNG.normal(0.5, 0.4, SHAPE).astype(np.float32)
SIGNED = RNG.integers(-1000, 3000, SHAPE).astype(np.int16)
PALETTE = RNG.integers(0, 256, (4, 3), np.uint8)
PLACES = RNG.integers(0, 4, SHAPE, np.uint8)
INK = RNG.integers(0, 256, (*SHAPE, 4), np.uint8)
YCC = np.stack([RNG.integers(60, 190, SHAPE), *(RNG.integers(100, 156, (2, *SHAPE)))], 2).astype(np.uint8)
LIGHTNESS = RNG.integers(0, 256, SHAPE, np.uint8)


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Levels 0 to 255 of values between ``low`` and ``high``, in three equal channels where they are grey."""
    levels = np.clip(np.rint((values.astype(np.float64) - low) / (high - low) * 255), 0, 255).astype(np.uint8)
    return levels if levels.ndim == 3 else three(levels)


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, 2)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What a viewer shows, after the EXIF standard's own words for where the stored first row and first column lie."""
    return {
        1: pixels,  # row at the top, column at the left
        2: pixels[:, ::-1],  # top, right
        3: pixels[::-1, ::-1],  # bottom, right
        4: pixels[::-1],  # bottom, left
        5: pixels.swapaxes(0, 1),  # left, top
        6: pixels.swapaxes(0, 1)[:, ::-1],  # right, top
        7: pixels.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
        8: pixels.swapaxes(0, 1)[::-1],  # left, bottom
    }[orientation]


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def palette(transparency: Any = None, **options: Any) -> Callable[[Path], None]:
    image = Image.fromarray(PLACES, "L")
    image = Image.frombytes("P", image.size, PLACES.tobytes())
    image.putpalette(PALETTE.tobytes())
    return lambda path: image.save(path, **({"transparency": transparency} if transparency is not None else {}), **options)


def saved(pixels: np.ndarray, mode: str | None = None, **options: Any) -> Callable[[Path], None]:
    image = Image.fromarray(pixels) if mode is None else Image.frombytes(mode, SHAPE, np.ascontiguousarray(pixels).tobytes())
    return lambda path: image.save(path, **options)


def animated(**options: Any) -> Callable[[Path], None]:
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    return lambda path: frames[0].save(path, save_all=True, append_images=frames[1:], **options)


def gif(path: Path) -> None:
    first, second = (Image.frombytes("P", SHAPE, places.tobytes()) for places in (PLACES, 3 - PLACES))
    for frame in (first, second):
        frame.putpalette(PALETTE.tobytes())
    first.save(path, save_all=True, append_images=[second], format="GIF", optimize=False)


def cut(suffix: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        Image.fromarray(RNG.integers(0, 256, (60, 60, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return write


def fits(values: np.ndarray) -> bytes:
    """A FITS file: cards of 80 bytes in blocks of 2,880, then the rows from the lowest, always big-endian and signed."""
    height, width = values.shape
    cards = {"SIMPLE": "T", "BITPIX": 8 * values.itemsize, "NAXIS": 2, "NAXIS1": width, "NAXIS2": height}
    head = "".join(f"{key:8}= {value:>20}".ljust(80) for key, value in cards.items()) + "END"
    data = values[::-1].astype(f">i{values.itemsize}").tobytes()
    return head.ljust(2880).encode() + data.ljust(2880, b"\0")


def bytes_of(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def from_ycc(values: np.ndarray) -> np.ndarray:
    """ITU-R BT.601 in full range, as JPEG has it."""
    y, blue, red = (values[..., channel].astype(np.float64) - (0, 128, 128)[channel] for channel in range(3))
    return np.rint(np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], 2)).clip(0, 255)


def from_lightness(values: np.ndarray) -> np.ndarray:
    """CIE 1976 L* to the grey of sRGB."""
    lightness = values.astype(np.float64) / 255 * 100
    linear = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    return three(np.rint(255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)))


@dataclass(frozen=True)
class Case:
    """A file and what all readers make of it.

    Attributes:
        write: writes the file.
        want: pixels ``(8, 8, 3)``; or the words of a refusal.
        pixel_range: what the run declares.
        tolerance: levels, where the conversion of colours is Pillow's.
    """

    suffix: str
    write: Callable[[Path], Any]
    want: np.ndarray | str
    pixel_range: tuple[float, float] | None = None
    tolerance: int = 0


CASES = {
    "1-bit": Case("png", saved(BITS), three(np.where(BITS, 255, 0))),
    "grey": Case("png", saved(GREY), three(GREY)),
    "grey with a range": Case("png", saved(GREY), three(GREY), (0, 4095)),
    "colour": Case("png", saved(COLOUR), COLOUR),
    "colour, bmp": Case("bmp", saved(COLOUR), COLOUR),
    "grey and alpha": Case("png", saved(np.dstack([GREY, ALPHA]), "LA"), three(GREY)),
    "colour and alpha": Case("png", saved(np.dstack([COLOUR, ALPHA]), "RGBA"), COLOUR),
    "a transparent colour": Case("png", saved(COLOUR, transparency=tuple(COLOUR[0, 0].tolist())), COLOUR),
    "palette": Case("png", palette(), PALETTE[PLACES]),
    "palette, one transparent": Case("png", palette(2), PALETTE[PLACES]),
    "palette, all transparent to a degree": Case("png", palette(bytes([0, 80, 160, 255])), PALETTE[PLACES]),
    "palette, gif": Case("png", palette(format="GIF", optimize=False), PALETTE[PLACES]),
    "cmyk": Case("tif", saved(INK, "CMYK"), np.rint((255.0 - INK[..., :3]) * (255.0 - INK[..., 3:]) / 255), tolerance=1),
    "ycbcr": Case("tif", saved(YCC, "YCbCr"), from_ycc(YCC), tolerance=2),
    "lab": Case(
        "tif", saved(np.dstack([LIGHTNESS, *[np.zeros(SHAPE, np.uint8)] * 2]), "LAB"), from_lightness(LIGHTNESS), tolerance=2
    ),
    "16-bit png": Case("png", saved(DEEP), scaled(DEEP, 0, 65535)),
    "16-bit tiff": Case("tif", saved(DEEP), scaled(DEEP, 0, 65535)),
    "16-bit tiff, big-endian": Case("tif", lambda path: write_tiff(path, DEEP.astype(">u2")), scaled(DEEP, 0, 65535)),
    "16-bit tiff, white is zero": Case(
        "tif", lambda path: write_tiff(path, DEEP, white_is_zero=True), 255 - scaled(DEEP, 0, 65535)
    ),
    "16-bit pgm": Case("pgm", bytes_of(b"P5 8 8 65535\n" + DEEP.astype(">u2").tobytes()), scaled(DEEP, 0, 65535)),
    "12-bit pgm": Case("pgm", bytes_of(b"P5 8 8 4095\n" + TWELVE.astype(">u2").tobytes()), scaled(TWELVE, 0, 4095)),
    "12-bit pgm, declared": Case(
        "pgm", bytes_of(b"P5 8 8 4095\n" + TWELVE.astype(">u2").tobytes()), scaled(TWELVE, 0, 1023), (0, 1023)
    ),
    "12-bit ppm": Case(
        "ppm",
        bytes_of(b"P6 8 8 4095\n" + (DEEP_COLOUR[..., :3] // 16).astype(">u2").tobytes()),
        scaled(DEEP_COLOUR[..., :3] // 16, 0, 4095),
    ),
    "12-bit ppm, declared": Case(
        "ppm", bytes_of(b"P6 8 8 4095\n" + DEEP_COLOUR[..., :3].astype(">u2").tobytes()), "Pillow reads only the upper 8", (0, 1023)
    ),
    "12-bit tiff": Case("tif", lambda path: write_tiff(path, TWELVE, packed=True), scaled(TWELVE, 0, 4095)),
    "8-bit stored in 16": Case("png", saved(GREY.astype(np.uint16) * 257), three(GREY)),
    "12-bit stored in 16": Case("png", saved(TWELVE), scaled(TWELVE, 0, 65535)),
    "12-bit stored in 16, declared": Case("png", saved(TWELVE), scaled(TWELVE, 0, 4095), (0, 4095)),
    "16-bit colour png": Case("png", lambda path: write_png16(path, DEEP_COLOUR[..., :3]), scaled(DEEP_COLOUR[..., :3], 0, 65535)),
    "16-bit colour and alpha": Case("png", lambda path: write_png16(path, DEEP_COLOUR), scaled(DEEP_COLOUR[..., :3], 0, 65535)),
    "16-bit grey and alpha": Case(
        "png", lambda path: write_png16(path, DEEP_COLOUR[..., :2]), scaled(three(DEEP_COLOUR[..., 0]), 0, 65535)
    ),
    "16-bit colour tiff": Case("tif", lambda path: write_tiff(path, DEEP_COLOUR[..., :3]), scaled(DEEP_COLOUR[..., :3], 0, 65535)),
    "16-bit colour tiff, big-endian": Case(
        "tif", lambda path: write_tiff(path, DEEP_COLOUR[..., :3].astype(">u2")), scaled(DEEP_COLOUR[..., :3], 0, 65535)
    ),
    "16-bit colour tiff, compressed": Case(
        "tif", lambda path: write_tiff(path, DEEP_COLOUR[..., :3], compressed=True), scaled(DEEP_COLOUR[..., :3], 0, 65535)
    ),
    "16-bit colour tiff, big-endian, compressed": Case(
        "tif",
        lambda path: write_tiff(path, DEEP_COLOUR[..., :3].astype(">u2"), compressed=True),
        scaled(DEEP_COLOUR[..., :3], 0, 65535),
    ),
    "16-bit colour tiff in planes": Case(
        "tif", lambda path: write_tiff(path, DEEP_COLOUR[..., :3], planes=True), "in separate planes"
    ),
    "16-bit tiff, big-endian, compressed": Case(
        "tif", lambda path: write_tiff(path, DEEP.astype(">u2"), compressed=True), scaled(DEEP, 0, 65535)
    ),
    "12-bit colour, declared": Case(
        "png", lambda path: write_png16(path, DEEP_COLOUR[..., :3] // 16), scaled(DEEP_COLOUR[..., :3] // 16, 0, 4095), (0, 4095)
    ),
    "12-bit grey and alpha, declared": Case(
        "png", lambda path: write_png16(path, DEEP_COLOUR[..., :2] // 16), scaled(DEEP_COLOUR[..., 0] // 16, 0, 4095), (0, 4095)
    ),
    "32-bit": Case("tif", lambda path: write_tiff(path, DEEPER), scaled(DEEPER, 0, 2**32 - 1)),
    "32-bit, declared": Case("tif", lambda path: write_tiff(path, DEEPER), scaled(DEEPER, 10**9, 3 * 10**9), (10**9, 3 * 10**9)),
    "32-bit signed": Case("tif", saved((DEEPER // 2).astype(np.int32)), scaled(DEEPER // 2, 0, 2**31 - 1)),
    "16-bit signed": Case("tif", lambda path: write_tiff(path, SIGNED), "its values are signed and go down to -"),
    "16-bit signed, declared": Case("tif", lambda path: write_tiff(path, SIGNED), scaled(SIGNED, -1000, 3000), (-1000, 3000)),
    "8-bit signed": Case("tif", lambda path: write_tiff(path, GREY.view(np.int8)), "its samples are signed 8-bit numbers"),
    "float": Case("tif", saved(FLOATS), "its values are floating-point numbers (mode F)"),
    "float, declared": Case("tif", saved(FLOATS), scaled(FLOATS, 0, 1), (0, 1)),
    "float, big-endian, compressed, declared": Case(
        "tif", lambda path: write_tiff(path, FLOATS.astype(">f4"), compressed=True), scaled(FLOATS, 0, 1), (0, 1)
    ),
    "16-bit signed, big-endian, compressed, declared": Case(
        "tif",
        lambda path: write_tiff(path, SIGNED.astype(">i2"), compressed=True),
        scaled(SIGNED, -1000, 3000),
        (-1000, 3000),
    ),
    "16-bit fits": Case("fits", bytes_of(fits(TWELVE.view(np.int16))), scaled(TWELVE, 0, 32767)),
    "16-bit fits with an offset": Case("fits", bytes_of(fits(SIGNED)), "its values are signed and go down to -"),
    "16-bit fits with an offset, declared": Case("fits", bytes_of(fits(SIGNED)), scaled(SIGNED, -1000, 3000), (-1000, 3000)),
    "float with a hole": Case(
        "tif", saved(np.where(BITS, FLOATS, np.nan).astype(np.float32)), "some of its values are not a number", (0, 1)
    ),
    **{f"exif {n}": Case("png", saved(COLOUR, exif=exif(n)), turned(COLOUR, n)) for n in range(1, 9)},
    **{f"exif {n}, 16-bit": Case("png", saved(DEEP, exif=exif(n)), turned(scaled(DEEP, 0, 65535), n)) for n in (5, 6)},
    **{f"exif {n}, tiff": Case("tif", saved(COLOUR, tiffinfo={274: n}), turned(COLOUR, n)) for n in range(1, 9)},
    **{f"exif {n}, webp": Case("webp", saved(COLOUR, lossless=True, exif=exif(n)), turned(COLOUR, n)) for n in (2, 6)},
    "16-bit cmyk, declared": Case(
        "tif", lambda path: write_tiff(path, DEEP_COLOUR), "because Pillow reads only the upper 8", (0, 4095)
    ),
    "exif 9": Case("png", saved(COLOUR, exif=exif(9)), COLOUR),
    "broken exif": Case("webp", saved(COLOUR, lossless=True, exif=b"Exif\0\0no tags"), COLOUR),
    "animated gif": Case("png", gif, PALETTE[PLACES]),
    "animated webp": Case("webp", animated(lossless=True), COLOUR),
    "animated png": Case("png", animated(), COLOUR),
    "tiff of two pages": Case("tif", animated(), COLOUR),
    "truncated png": Case("png", cut("png"), "the image can't be read"),
    "truncated jpeg": Case("jpg", cut("jpg"), "image file is truncated"),
    "truncated tiff": Case("tif", cut("tif"), "the image can't be read"),
    "no image": Case("png", bytes_of(b"hello"), "Pillow doesn't recognise its format"),
    "empty": Case("jpg", bytes_of(b""), "Pillow doesn't recognise its format"),
}


def spread_over(folder: Path, case: Case) -> tuple[Data, Path]:
    """A data set whose test images and training images are copies of the case's file."""
    file = folder / f"image.{case.suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    case.write(file)
    for place in ("train/a", "train/b", "val/a", "val/b"):
        (folder / "data" / place).mkdir(parents=True)
        (folder / "data" / place / file.name).write_bytes(file.read_bytes())
    return open_data(str(folder / "data")), file


def outcome(read: Callable[[], np.ndarray]) -> np.ndarray | str:
    try:
        return read()
    except DataError as error:
        return str(error)


def by_training_in_memory(data: Data, record: dict[str, Any]) -> np.ndarray:
    return Pixels(data.train, record).load_all()[0].permute(1, 2, 0).numpy()


def by_training_from_files(data: Data, record: dict[str, Any]) -> np.ndarray:
    """timm's transforms cut out random parts: here the part is always the whole image."""
    transform = training_transform(record, auto_augment=None, hflip=0.0, color_jitter=None, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    images, _ = next(FileLoader(data.train, transform, batch_size=2, seed=0).batches(0))
    return to_pixels(images[0])


def by_verification(run: api.Run) -> np.ndarray | str:
    images = run_images(run, 2)
    if images.photographs:  # stand in where the run's own images can't be read
        return str(images.unlabelled_because)
    return to_pixels(torch.from_numpy(images.images[0]))


def to_pixels(image: torch.Tensor) -> np.ndarray:
    """Normalised by mean 0 and deviation 1: only divided by 255."""
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def by_prediction(file: Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> np.ndarray | str:
    given: list[np.ndarray] = []

    def run(predictor: api.Predictor, images: np.ndarray) -> np.ndarray:
        given.extend(images)
        return np.zeros((len(images), CLASSES), np.float32)

    monkeypatch.setattr(api.Predictor, "run", run)
    predictions = api.predict(artifact(file.parent, pixels=True, preprocess=record), [file], threads=1)
    return predictions.errors[0] if predictions.errors else given[0]


@pytest.mark.parametrize("name", CASES)
def test_every_reader_sees_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    data, file = spread_over(tmp_path, case)
    space = PRESETS["micro"].replace(image_size=SIZE, patch_size=4, num_classes=2)
    record = {**preprocess_record(space, data, case.pixel_range), "mean": [0.0] * 3, "std": [1.0] * 3}
    info = {"state": "finished", "space": space.to_dict(), "data": data.record(), "preprocess": record, "class_names": ["a", "b"]}
    run = api.Run(create_run(tmp_path / "runs", None, info).path)
    readers = {
        "training, in memory": outcome(lambda: by_training_in_memory(data, record)),
        "training, from files": outcome(lambda: by_training_from_files(data, record)),
        "verification": by_verification(run),
        "prediction": by_prediction(file, record, monkeypatch),
    }
    for reader, got in readers.items():
        if isinstance(case.want, str):
            assert isinstance(got, str), f"{reader} accepts it"
            assert case.want in got, reader
            assert file.name in got, reader
            assert "\n" not in got, reader
        else:
            assert not isinstance(got, str), f"{reader}: {got}"
            difference = np.abs(got.astype(int) - case.want.astype(int))
            assert difference.max() <= case.tolerance, reader
    pixels = [got for got in readers.values() if not isinstance(got, str)]
    assert all(np.array_equal(other, pixels[0]) for other in pixels)
