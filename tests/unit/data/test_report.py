import json
import shutil

import numpy as np
import pytest
from PIL import Image

from growtas.data import report as report_module
from growtas.data.evaluation import cut_search_split
from growtas.data.images import ArraySet, ReaderSet, Subset
from growtas.data.preprocess import preprocess_record
from growtas.data.report import check_data, find_duplicates
from growtas.data.sources import open_data
from growtas.errors import DataError
from growtas.space import PRESETS
from tests.image_writers import write_tiff

MICRO = PRESETS["micro"]


def check(data, **space):
    return check_data(data, cut_search_split(data, 0), preprocess_record(MICRO.replace(**space), data))


def warning(report, words):
    found = [text for text in report.warnings if words in text]
    assert len(found) <= 1
    return found[0] if found else None


def save(path, mode="RGB", size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(abs(hash(str(path))) % 2**32).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def test_digits():
    report = check(open_data("digits"))
    train, search, test = report.splits
    assert [split.name for split in report.splits] == ["train", "search", "test"]
    assert (train.images, search.images, test.images) == (1438 - 287, 287, 359)
    assert {split.classes for split in report.splits} == {10}
    assert (train.sizes, train.modes, train.sampled) == ({"8x8": 200}, {"L": 200}, 200)
    assert report.duplicates == ()
    assert json.loads(json.dumps(report.to_dict()))["splits"][2]["most"] == test.most == 37
    assert warning(report, "enlarged") == "images as small as 8x8 are enlarged to the network's 28 pixels"
    rows = dict(report.rows())
    assert rows["data"] == "digits, 10 classes"
    assert rows["test"] == "359 images, 35 to 37, median 36 per class"
    assert rows["images"] == "sizes 8x8, modes L"
    assert rows["network input"] == "28x28, 3 channels"
    assert [label for label, _ in report.rows()].count("warning") == 2


def test_counts_are_those_of_the_files(tmp_path, write_tree):
    write_tree(tmp_path, {"train/ant": 10, "train/bee": 120, "train/cow": 30, "val/ant": 3, "val/cow": 5}, (40, 30))
    report = check(open_data(str(tmp_path)))
    train, search, test = report.splits
    assert (train.fewest, train.median, train.most, train.smallest, train.largest) == (8, 24, 96, "ant", "bee")
    assert (search.fewest, search.median, search.most) == (2, 6, 24)
    assert (test.images, test.classes, test.fewest, test.smallest, test.most, test.largest) == (8, 2, 0, "bee", 5, "cow")
    assert warning(report, "uneven") == "the classes are uneven: bee has 96 training images, ant only 8"
    assert warning(report, "no image") == "test: 1 of 3 classes have no image (bee)"
    assert warning(report, "enlarged") is None
    assert ("test", "8 images of 2 classes, 0 to 5, median 3 per class") in report.rows()
    assert ("classes", "smallest ant (8), largest bee (96)") in report.rows()
    assert ("data", f"{tmp_path}, 3 classes") in report.rows()


@pytest.mark.parametrize(("many", "warned"), [(100, False), (101, True)])
def test_imbalance(many, warned):
    labels = np.array([0] * 10 + [1] * many)
    images = ArraySet(np.zeros((len(labels), 28, 28), np.uint8), labels, "set")
    data = open_data("digits")
    data = type(data)("set", None, images, images, ("a", "b"))
    report = check_data(data, {"search": []}, preprocess_record(MICRO, data))
    assert (warning(report, "uneven") is not None) == warned


@pytest.mark.parametrize(
    ("mode", "in_chans", "words"),
    [
        ("RGB", 3, None),
        ("L", 3, r"grey images (L) are converted to RGB"),
        ("L", 1, None),
        ("RGB", 1, "colour images (RGB) are converted to grey"),
        ("RGBA", 3, "20 of 20 images have transparency (mode RGBA), which is dropped"),
        ("LA", 1, "20 of 20 images have transparency (mode LA), which is dropped"),
        ("P", 3, None),
    ],
)
def test_modes(tmp_path, mode, in_chans, words):
    for name in ("a", "b"):
        for number in range(10):
            save(tmp_path / name / f"{number}.png", mode)
    report = check(open_data(str(tmp_path)), in_chans=in_chans)
    assert report.splits[0].modes == {mode: report.splits[0].images}
    of_modes = [text for text in report.warnings if "standard error" not in text]
    assert [words in text for text in of_modes] == ([True] if words else [])


def test_transparent_palettes(tmp_path):
    for name in ("a", "b"):
        for number in range(10):
            save(tmp_path / name / f"{number}.png", "P", transparency=3)
    assert warning(check(open_data(str(tmp_path))), "transparency") == (
        "20 of 20 images have transparency (mode P), which is dropped: a transparent pixel keeps its stored colour"
    )


def test_many_sizes(tmp_path):
    for name in ("a", "b"):
        for number in range(10):
            save(tmp_path / name / f"{number}.png", size=(60 - number, 30 + number))
    report = check(open_data(str(tmp_path)))
    assert ("images", "sizes 60x30 to 51x39 (10 different), modes RGB") in report.rows()
    assert sum(sum(split.sizes.values()) for split in report.splits) == 20
    save(tmp_path / "a" / "3.png", size=(90, 27))
    assert (
        warning(check(open_data(str(tmp_path))), "enlarged") == "images as small as 90x27 are enlarged to the network's 28 pixels"
    )


def test_duplicates_between_training_and_test(tmp_path, write_tree):
    write_tree(tmp_path, {"train/cat": 5, "train/lynx": 5, "val/cat": 0})
    save(tmp_path / "val" / "cat" / "other.png")
    shutil.copy(tmp_path / "train" / "lynx" / "2.png", tmp_path / "val" / "cat" / "copy.png")
    raw = (tmp_path / "train" / "cat" / "1.png").read_bytes()
    (tmp_path / "val" / "cat" / "same-size.png").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    data = open_data(str(tmp_path))
    want = ((str(tmp_path / "val/cat/copy.png"), str(tmp_path / "train/lynx/2.png")),)
    assert find_duplicates(data.train, data.test) == want
    report = check(data)
    assert report.duplicates == want
    assert warning(report, "byte for byte").startswith("1 of 3 test images are also training images")
    assert ("duplicates", "1 test images are also training images") in report.rows()


def test_duplicates_in_memory():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 4, 4)).astype(np.uint8)
    pixels[7] = pixels[2]
    images = ArraySet(pixels, np.zeros(9), "set")
    train, test = Subset(images, np.arange(6)), Subset(images, np.array([8, 7]))
    assert find_duplicates(train, test) == (("set, image 7", "set, image 2"),)


def test_duplicates_are_not_looked_for_everywhere(monkeypatch):
    pixels = np.zeros((3, 4, 4), np.uint8)
    images = ArraySet(pixels, np.zeros(3), "set")
    assert len(find_duplicates(images, images)) == 3
    stream = ReaderSet([0] * 3, lambda i: Image.fromarray(pixels[i]), str)
    assert find_duplicates(images, stream) is None
    monkeypatch.setattr(report_module, "VERIFY_LIMIT", 5)
    assert find_duplicates(images, images) is None
    assert not [row for row in check(open_data("digits")).rows() if row[0] == "duplicates"]


def test_unreadable_images_are_all_counted(tmp_path, write_tree):
    write_tree(tmp_path, {"train/cat": 20, "train/dog": 20, "val/cat": 3})
    for name in ("train/cat/3.png", "train/dog/0.png", "val/cat/1.png"):
        (tmp_path / name).write_bytes(b"none")
    with pytest.raises(
        DataError, match=r"^[^\n]*: 3 images can't be read; [^\n]*cat/3\.png[^\n]*dog/0\.png[^\n]*val/cat/1\.png[^\n]*$"
    ):
        check(open_data(str(tmp_path)))


def test_images_of_16_bits_in_either_order_of_bytes(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(20):
        for name, order in (("intel", "<u2"), ("motorola", ">u2")):
            (tmp_path / name).mkdir(exist_ok=True)
            write_tiff(tmp_path / name / f"{number}.tif", rng.integers(0, 65536, (9, 9)).astype(order))
    report = check(open_data(str(tmp_path)))
    assert "grey images (I;16, I;16B) are converted to RGB" in warning(report, "grey images")
    assert warning(report, "colour") is None


def plain_pictures(root, mode="RGB"):
    """Two classes of pictures of one colour each, a shade a picture."""
    for number in range(10):
        for name in ("a", "b"):
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.new(mode, (30, 30), 20 * number).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "I;16"])
def test_pictures_of_one_colour_are_counted(tmp_path, mode):
    report = check(open_data(str(plain_pictures(tmp_path, mode))))
    assert warning(report, "single colour").startswith("all of the 20 checked images have a single colour each; look at")
    save(tmp_path / "a" / "3.png")
    save(tmp_path / "b" / "5.png")
    assert warning(check(open_data(str(tmp_path))), "single colour").startswith("18 of the 20 checked images")


@pytest.mark.parametrize(
    ("size", "space", "suggested"),
    [
        ((400, 300), 28, 112),  # a multiple of the space's size, so that its patches fit
        ((90, 400), 28, 84),  # no more pixels than the images have
        ((84, 84), 28, 84),
        ((83, 400), 28, None),
        ((400, 300), 48, 144),
        ((4000, 3000), 224, None),
    ],
)
def test_photographs_in_a_small_network(tmp_path, size, space, suggested):
    for name in ("a", "b"):
        for number in range(3):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.effect_noise(size, 50 + number).save(tmp_path / name / f"{number}.png")
    found = warning(check(open_data(str(tmp_path)), image_size=space, patch_size=4), "are lost")
    if suggested is None:
        assert found is None
    else:
        assert f"the network's input has {space}: small details are lost; --image-size {suggested} keeps" in found
        assert MICRO.replace(image_size=space).resized(suggested).image_size == suggested


@pytest.mark.parametrize(("images", "points"), [(11, 15), (100, None), (99, 5)])
def test_a_small_test_set(images, points):
    rng = np.random.default_rng(0)
    sets = [ArraySet(rng.integers(0, 256, (n, 28, 28), np.uint8), np.arange(n) % 2, "set") for n in (1000, images)]
    data = type(open_data("digits"))("set", None, *sets, ("a", "b"))
    found = [text for text in check(data).warnings if "standard error" in text]
    assert len(found) == (points is not None)
    if points is not None:
        assert found[0].startswith(
            f"test: the printed accuracies are on {images} images, with a standard error of up to {points} percentage points"
        )


def test_few_steps():
    data = open_data("digits")
    split, record = cut_search_split(data, 0), preprocess_record(MICRO, data)
    few, enough = (check_data(data, split, record, steps=steps) for steps in (60, 200))
    assert "the whole training has 60 steps, too few to learn much" in warning(few, "steps")
    assert "use 4 times as many epochs (--epochs)" in warning(few, "steps")
    assert warning(enough, "steps") is None
    assert "has 1 step, too few" in warning(check_data(data, split, record, steps=1), "too few")


def test_the_report_says_how_a_folder_was_understood(tmp_path, write_tree):
    write_tree(tmp_path, {"Train/cat": 10, "Train/dog": 10, "Val/cat": 2, "test/dog": 3, "__MACOSX": 1})
    report = check(open_data(str(tmp_path)))
    assert ("folders", "Train/ is the training set, test/ is the test set") in report.rows()
    assert report.warnings[0] == "test/ is the test set; Val/ beside it is not used"
    content = json.loads(json.dumps(report.to_dict()))["layout"]
    assert (content["train"], content["test"], content["unused"]) == ("Train", "test", ["Val"])
    assert content["skipped"] == {"__MACOSX": 1}
    flat = check(open_data(str(write_tree(tmp_path / "flat", {"cat": 10, "dog": 10}))))
    assert ("folders", "the class folders are the training set, a fifth of which is the test set") in flat.rows()
