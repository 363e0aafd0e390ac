"""The rules by which images become 8-bit grey or RGB; every mode of them is in tests/integration/test_image_modes.py."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from growtas.data.decode import DecodeRules, decode, readable_suffixes
from growtas.data.images import ArraySet, ReaderSet, file_set, load_as
from growtas.data.report import odd_images
from growtas.data.sources import Data
from growtas.errors import DataError
from tests.image_writers import write_tiff

DEEP = np.arange(0, 64 * 1000, 1000, dtype=np.uint16).reshape(8, 8)


def test_rules_go_through_a_record_and_back():
    for rules in (DecodeRules(), DecodeRules(pixel_range=(0, 4095)), DecodeRules(pixel_range=(-0.5, 0.5))):
        assert DecodeRules.of({"decode": rules.to_dict()}) == rules


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"version": 2, "pixel_range": None}, "version is 2, but this growtas only supports 1; use a newer growtas"),
        ({"pixel_range": None}, "version is None"),
        ("exif", "version is 'exif'"),
        (
            {"version": 1, "pixel_range": [5, 5]},
            "pixel_range is .*; it must be null or two numbers, the value of black and the larger value",
        ),
    ],
)
def test_records_that_are_not_understood(entry, match):
    with pytest.raises(DataError, match=match):
        DecodeRules.of({"decode": entry})


def test_a_run_without_recorded_rules_is_read_by_pillows_conversion_alone(tmp_path):
    """What trainings did before there were rules: no orientation, and values above 255 clipped."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(DEEP).save(tmp_path / "deep.png", exif=exif)
    old = DecodeRules.of({"image_size": 28})
    with open(tmp_path / "deep.png", "rb") as file:
        image = decode(file)
    np.testing.assert_array_equal(np.asarray(old.apply(image, "L")), np.clip(DEEP, 0, 255))
    Image.fromarray(DEEP.astype(np.float32)).save(tmp_path / "float.tif")
    with open(tmp_path / "float.tif", "rb") as file:
        np.testing.assert_array_equal(np.asarray(old.apply(decode(file), "RGB"))[..., 1], np.clip(DEEP, 0, 255))


def test_an_image_is_turned_once_however_often_the_rules_are_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    rules, image = DecodeRules(), Image.open(tmp_path / "a.png")
    once = rules.apply(image, "RGB")
    np.testing.assert_array_equal(np.asarray(once), pixels.swapaxes(0, 1)[::-1])
    assert np.array_equal(np.asarray(rules.apply(once, "RGB")), np.asarray(once))
    assert ImageOps.exif_transpose(once).size == once.size


def test_images_above_pillows_limit_are_refused_in_a_sentence(tmp_path, monkeypatch):
    Image.new("L", (60, 50)).save(tmp_path / "a.png")
    images = file_set([str(tmp_path / "a.png")], [0])
    for limit in (2999, 1499):  # Pillow warns of the first, and raises for the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=rf"a.png: the image can't be read \(it has more than {limit:,} pixels"):
            images.load(0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    assert images.load(0).size == (60, 50)


def test_only_what_pillow_decodes_is_readable():
    suffixes = readable_suffixes()
    assert {".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".mpo"} <= suffixes
    assert not suffixes & {".pdf", ".palm", ".h5", ".hdf", ".grib", ".bufr", ".mpg", ".wmf", ".heic", ".txt", ""}


def test_a_refused_image_is_named(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "heights.tif")
    images = file_set([str(tmp_path / "heights.tif")], [0])
    with pytest.raises(DataError, match=r"heights.tif: the image can't be read \(its values are floating-point .*--pixel-range"):
        load_as(images, 0, lambda image: DecodeRules().apply(image, "L"))


def data_of(*files, test=()):
    """A data set of these files."""
    return Data(
        "folder",
        "/photos",
        file_set([str(f) for f in files], [0] * len(files)),
        file_set(list(map(str, test)), [0] * len(test)),
        ("a",),
    )


@pytest.fixture
def mixed(tmp_path):
    """Five upright images of 8 bits, three on their side, two of 12 bits in 16, one CMYK, one animation; and a text."""
    exif = Image.Exif()
    exif[0x0112] = 3
    files = [tmp_path / f"{number}.png" for number in range(8)]
    for number, file in enumerate(files):
        Image.new("RGB", (9, 9)).save(file, **({"exif": exif} if number < 3 else {}))
    for name in ("a.png", "b.png"):
        Image.fromarray((DEEP // 16).astype(np.uint16)).save(tmp_path / name)
    Image.new("CMYK", (9, 9)).save(tmp_path / "c.jpg")
    frames = [Image.new("L", (9, 9), shade) for shade in (0, 99)]
    frames[0].save(tmp_path / "d.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "e.png").write_text("no image")
    return [*files, *(tmp_path / name for name in ("a.png", "b.png", "c.jpg", "d.gif", "e.png"))]


def test_odd_images_are_counted_and_too_wide_a_range_is_said(mixed):
    said = odd_images(data_of(*mixed[2:], test=mixed[:2]), DecodeRules())
    assert said == [
        "3 of 12 images have an EXIF orientation, which is applied",
        "2 of 12 images have more than 8 bits per sample, or signed samples (mode I;16)",
        "1 of 12 images have colours of mode CMYK, which are converted to RGB without a colour profile",
        "1 of 12 images have several frames or pages; only the first is used",
        "the largest value of the images with more than 8 bits is 3,937, only 6.0% of their data type's range: they become dark "
        "images; --pixel-range 0,4095 makes 4095 white",
    ]
    assert len(odd_images(data_of(*mixed), DecodeRules(pixel_range=(0, 4095)))) == 4
    assert odd_images(data_of(*mixed), DecodeRules(pixel_range=(0, 1023)))[-1].startswith(
        "values go up to 3,937, but pixel_range ends at 1,023"
    )


def test_images_that_the_rules_refuse_are_counted_before_a_training(mixed, tmp_path):
    for number in range(3):
        write_tiff(tmp_path / f"float{number}.tif", DEEP.astype(np.float32))
    write_tiff(tmp_path / "signed.tif", DEEP.astype(np.int16) - 5)
    data = data_of(*mixed, *(tmp_path / f"float{number}.tif" for number in range(3)), test=[tmp_path / "signed.tif"])
    with pytest.raises(
        DataError, match=r"^/photos: 4 images can't be read; replace or remove .*float0.tif \(its values are floating"
    ):
        odd_images(data, DecodeRules())
    assert odd_images(data, DecodeRules(pixel_range=(-5, 60000)))


def test_sets_that_are_no_files_are_looked_at_too():
    data = Data(
        "hfds/x",
        None,
        ReaderSet([0] * 3, lambda i: Image.fromarray(DEEP), str),
        ArraySet(np.zeros((2, 8, 8), np.uint8), [0, 0], "x"),
        ("a",),
    )
    assert odd_images(data, DecodeRules()) == ["3 of 3 images have more than 8 bits per sample, or signed samples (mode I;16)"]
