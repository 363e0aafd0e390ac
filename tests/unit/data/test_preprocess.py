import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

from growtas.data.decode import middle
from growtas.data.images import ArraySet, file_set
from growtas.data.pixels import Pixels
from growtas.data.preprocess import evaluation_transform, geometry, preprocess_record, training_transform
from growtas.data.seeding import seed_globals
from growtas.data.sources import open_data
from growtas.errors import DataError
from growtas.space import PRESETS

MICRO = PRESETS["micro"]


def photo(seed=0, size=(61, 47)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8))


def test_records():
    digits = open_data("digits")
    assert preprocess_record(MICRO, digits) == {
        "image_size": 28, "in_chans": 3, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0,
        "decode": {"version": 1, "pixel_range": None},
    }  # fmt: skip
    grey = preprocess_record(MICRO.replace(in_chans=1, image_size=224, patch_size=16), digits)
    assert (grey["in_chans"], grey["mean"], grey["crop_pct"]) == (1, [0.5], 0.875)


def test_evaluation_is_resize_crop_and_normalise():
    record = {
        "image_size": 32,
        "in_chans": 3,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
        "interpolation": "bicubic",
        "crop_pct": 0.8,
    }
    by_hand = T.Compose(
        [T.Resize(40, InterpolationMode.BICUBIC), T.CenterCrop(32), T.ToTensor(), T.Normalize([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])]
    )
    torch.testing.assert_close(evaluation_transform(record)(photo()), by_hand(photo()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_any_image_mode(mode, in_chans):
    record = preprocess_record(MICRO.replace(in_chans=in_chans), open_data("digits"))
    image = photo().convert("I").convert("I;16") if mode == "I;16" else photo().convert(mode)
    tensor = evaluation_transform(record)(image)
    assert tensor.shape == (in_chans, 28, 28)
    assert tensor.isfinite().all()


def test_training_transform_is_a_function_of_the_seed():
    record = preprocess_record(MICRO, open_data("digits"))
    transform = training_transform(record, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.5, hflip=0.5, color_jitter=None)
    results = []
    for seed in (1, 1, 2):
        seed_globals(seed)
        results.append(transform(photo()))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("policy", ["rand-m10-n8-inc1", "v0"])
def test_the_strongest_augmentation_runs(policy):
    transform = training_transform(preprocess_record(MICRO, open_data("digits")), auto_augment=policy, hflip=0.0)
    for seed in range(60):
        seed_globals(seed)
        assert transform(photo(seed)).isfinite().all()


@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("grey", [True, False])
def test_pixels_of_arrays_equal_the_transform(size, in_chans, grey):
    from growtas.data.preprocess import normalise

    record = preprocess_record(MICRO.replace(image_size=size, in_chans=in_chans), open_data("digits"))
    shape = (20, 28, 28) if grey else (20, 28, 28, 3)
    images = ArraySet(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8), np.zeros(20), "noise")
    got = normalise(Pixels(images, record).take(np.array([7, 3, 3, 11])), record)
    want = torch.stack([evaluation_transform(record)(images.load(i)) for i in (7, 3, 3, 11)])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_pixels_are_decoded_once_and_when_asked_for(tmp_path, write_tree):
    write_tree(tmp_path, {"x": 20})
    paths = [str(tmp_path / "x" / f"{i}.png") for i in range(20)]
    opened = []
    images = file_set(paths, [0] * 20)
    load = images.load
    images.load = lambda index: (opened.append(index), load(index))[1]
    pixels = Pixels(images, preprocess_record(MICRO, open_data("digits")))
    first = pixels.take(np.array([4, 5]))
    assert sorted(opened) == [4, 5]
    everything = pixels.load_all()
    assert sorted(opened) == list(range(20))
    assert torch.equal(everything[4:6], first)
    (tmp_path / "x" / "0.png").unlink()
    assert torch.equal(pixels.take(np.arange(20)), everything)


def test_pixels_name_a_corrupt_image(tmp_path, write_tree):
    write_tree(tmp_path, {"x": 20})
    (tmp_path / "x" / "13.png").write_bytes(b"")
    images = file_set([str(tmp_path / "x" / f"{i}.png") for i in range(20)], [0] * 20)
    with pytest.raises(DataError, match=r"x/13\.png: the image can't be read \(Pillow doesn't recognise its format\)"):
        Pixels(images, preprocess_record(MICRO, open_data("digits"))).load_all()


def resized_whole(record, image):
    short = int(record["image_size"] / record["crop_pct"])
    steps = [T.Resize(short, InterpolationMode.BICUBIC), T.CenterCrop(record["image_size"]), T.PILToTensor()]
    return T.Compose(steps)(image.convert("RGB" if record["in_chans"] == 3 else "L"))


def noise(size):
    return Image.fromarray(np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), np.uint8))


@pytest.mark.parametrize("size", [(29, 29), (100, 37), (37, 101), (640, 20), (3, 96), (500, 333), (32, 1)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.8])
def test_pixels_are_those_of_torchvisions_resize_and_crop(size, crop_pct):
    record = {**preprocess_record(MICRO, open_data("digits")), "crop_pct": crop_pct}
    assert torch.equal(geometry(record)(noise(size)), resized_whole(record, noise(size)))


@pytest.mark.parametrize("size", [(1000, 1), (1, 1001), (702, 3), (3, 900), (5000, 50), (64, 6400), (66, 2)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.8])
def test_the_middle_of_a_very_long_image_is_that_of_the_whole(size, crop_pct):
    record = {**preprocess_record(MICRO, open_data("digits")), "crop_pct": crop_pct}
    difference = (geometry(record)(noise(size)).int() - resized_whole(record, noise(size)).int()).abs()
    # Pillow takes its two passes in the order that costs less, and clips overshoots after each: it shows in single values.
    assert (difference > 1).float().mean() < 0.002
    assert difference.max() <= 8


@pytest.mark.parametrize("short", [1, 2, 3, 10])
def test_what_is_left_of_a_very_long_image_is_long_enough_and_in_its_middle(short):
    for side in range(short, 40 * short):
        rows, columns = middle(side, short)
        assert (columns.start, columns.stop) == (0, short)
        assert 0 <= rows.start < rows.stop <= side
        assert rows.stop - rows.start >= min(side, 32 * short)
        assert abs(rows.start - (side - rows.stop)) <= 1
        assert middle(short, side) == (columns, rows)


def test_a_very_long_image_takes_little_memory():
    """3,000 x 1 pixels at 224: the whole of it in the new size would be 590 MB."""
    code = (
        "import resource; from PIL import Image; from growtas.data.preprocess import geometry, training_transform\n"
        "record = dict(image_size=224, in_chans=3, mean=[.5] * 3, std=[.5] * 3, interpolation='bicubic', crop_pct=.875)\n"
        "read, augment = geometry(record), training_transform(record)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "read(Image.new('RGB', (300, 200))), augment(Image.new('RGB', (300, 200))); before = peak()\n"
        "for size in ((3000, 1), (1, 3000)): read(Image.new('RGB', size)), augment(Image.new('RGB', size))\n"
        "print((peak() - before) // 1024)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(out) < 100
