import errno
import os
import re

import numpy as np
import pytest
from PIL import Image

from growtas.data.images import raise_unreadable, unreadable
from growtas.data.sources import FASHION_MNIST_CLASSES, open_data, open_recorded
from growtas.errors import DataError
from growtas.progress import Progress


def test_digits():
    from sklearn.datasets import load_digits

    data = open_data("digits")
    assert (len(data.train), len(data.test)) == (1438, 359)
    assert data.class_names == tuple("0123456789")
    digits = load_digits()
    images = np.stack([np.asarray(part.load(i)) for part in (data.train, data.test) for i in range(len(part))])
    # The two parts are the whole set, in another order, and 16 levels fill the range of a byte.
    original = np.round(digits.images * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, images)) == sorted(map(bytes, original))
    counts = np.bincount(data.test.labels)
    assert counts.min() >= 34
    assert counts.max() <= 37
    assert open_data("digits").record() == data.record()


def test_fashion_mnist(fashion):
    data = open_data("fashion-mnist", fashion)
    assert (len(data.train), len(data.test)) == (60, 20)
    assert data.class_names == FASHION_MNIST_CLASSES
    assert data.train.load(3).size == (28, 28)
    assert data.record()["data_dir"] == str(fashion)


def test_fashion_mnist_is_absent(tmp_path):
    with pytest.raises(DataError, match=r"Fashion-MNIST is not there .*apt-get install dataset-fashion-mnist"):
        open_data("fashion-mnist", tmp_path)


def test_fashion_mnist_with_more_images_than_labels(fashion, write_idx):
    write_idx(fashion / "train-labels-idx1-ubyte.gz", np.arange(59) % 10)
    with pytest.raises(DataError, match="60 images, but train-labels-idx1-ubyte.gz has 59 labels"):
        open_data("fashion-mnist", fashion)


@pytest.mark.parametrize("test_name", ["val", "test", "validation"])
def test_a_folder_with_its_own_test_set(tmp_path, write_tree, test_name):
    # The test set lacks a class: its labels must still be the training set's.
    write_tree(tmp_path, {"train/cat": 2, "train/cow": 3, "train/dog": 4, f"{test_name}/cat": 1, f"{test_name}/dog": 2})
    data = open_data(str(tmp_path))
    assert data.class_names == ("cat", "cow", "dog")
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert data.test.labels.tolist() == [0, 2, 2]
    assert data.test.describe(1) == str(tmp_path / test_name / "dog" / "0.png")
    assert open_data("folder", tmp_path).record() == data.record()


def test_a_flat_folder_is_split(tmp_path, write_tree):
    data = open_data(str(write_tree(tmp_path, {"cat": 10, "dog": 20})))
    assert np.bincount(data.test.labels).tolist() == [2, 4]
    names = [part.describe(i) for part in (data.train, data.test) for i in range(len(part))]
    assert len(set(names)) == 30


def test_classes_are_the_top_folders(tmp_path, write_tree):
    data = open_data(str(write_tree(tmp_path, {"cat/a": 3, "cat/b": 3, "dog/a": 5})))
    assert data.class_names == ("cat", "dog")
    assert np.bincount(np.concatenate([data.train.labels, data.test.labels])).tolist() == [6, 5]


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match=r"the folder is empty; put the images of each class into a sub-folder"):
        open_data(str(tmp_path))


def test_a_folder_of_loose_images(tmp_path, write_tree):
    with pytest.raises(DataError, match=r"no class folders; put the images of each class"):
        open_data(str(write_tree(tmp_path, {".": 3})))


def test_a_class_without_images(tmp_path, write_tree):
    write_tree(tmp_path, {"train/cat": 2, "train/dog": 2, "train/cow": 0, "val/cat": 1})
    (tmp_path / "train" / "cow" / "notes.txt").touch()
    with pytest.raises(
        DataError, match=r"train/cow: the class folder has no images that the installed Pillow can open; its files are 1 \.txt"
    ):
        open_data(str(tmp_path))


def test_a_single_class(tmp_path, write_tree):
    with pytest.raises(DataError, match=r"only one class folder, cat; a classifier needs 2 or more"):
        open_data(str(write_tree(tmp_path, {"cat": 9})))


def test_test_images_of_another_class(tmp_path, write_tree):
    write_tree(tmp_path, {"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/fox": 1})
    with pytest.raises(DataError, match=r"val: class fox is not in .*train, which has cat or dog"):
        open_data(str(tmp_path))


def test_val_without_train(tmp_path, write_tree):
    with pytest.raises(DataError, match=r"val/ without train/"):
        open_data(str(write_tree(tmp_path, {"val/cat": 2, "val/dog": 2})))


def test_a_class_folder_that_may_not_be_read_is_not_an_empty_one(tmp_path, write_tree, monkeypatch):
    root, scandir = write_tree(tmp_path, {"cat": 5, "dog": 5}), os.scandir

    def closed(path="."):
        if os.fspath(path).endswith("dog"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DataError, match=r"dog: the folder can't be read \(Permission denied\)$"):
        open_data(str(root))


def test_a_set_too_small_to_test_on(tmp_path, write_tree):
    with pytest.raises(DataError, match="no test images"):
        open_data(str(write_tree(tmp_path, {"cat": 1, "dog": 1})))


@pytest.mark.parametrize("cut", [10, 200, -60])
def test_a_corrupt_image_is_found_before_the_training(tmp_path, write_tree, cut):
    path = write_tree(tmp_path, {"cat": 5, "dog": 5}) / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:cut])
    open_data(str(tmp_path))  # opening alone does not decode
    shown = []

    class Stages(Progress):
        def stage(self, name, total=None):
            shown.append(name)

    with pytest.raises(DataError, match=r"^[^\n]*dog/3\.png: the image can't be read \([^\n]*\)$"):
        open_data(str(tmp_path), progress=Stages(), check_images=True)
    assert shown[0] == "checking training images"


def test_all_corrupt_images_are_counted(tmp_path, write_tree):
    write_tree(tmp_path, {"train/cat": 90, "train/dog": 5, "val/cat": 3})
    broken = [f"train/cat/{i}.png" for i in (3, 12, 40, 77)] + ["train/dog/1.png", "val/cat/0.png", "val/cat/2.png"]
    for name in broken:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        open_data(str(tmp_path), check_images=True)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: 7 images can't be read; replace or remove {tmp_path}/train/")
    assert message.endswith("(Pillow doesn't recognise its format) and 2 more")
    assert [name for name in broken if f"{tmp_path}/{name} (Pillow doesn't" in message] == broken[:5]


def test_two_corrupt_images_are_both_named(tmp_path, write_tree):
    images = open_data(str(write_tree(tmp_path, {"cat": 5, "dog": 5}))).train
    broken = [images.describe(2), images.describe(5)]
    for path in broken:
        open(path, "wb").close()
    reason = "Pillow doesn't recognise its format"
    message = f"the images: 2 images can't be read; replace or remove {broken[0]} ({reason}), {broken[1]} ({reason})"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        raise_unreadable(unreadable(images), "the images")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "did you mean digits"),
        ("nowhere/at-all", r"'nowhere/at-all' is neither a known data set nor a folder; legal are digits, fashion-mnist, a folder"),
        ("folder", "folder needs --data-dir"),
        (
            "https://example.org/pets.zip",
            r"https://example\.org/pets\.zip: this is a URL, and only local files are read; download it",
        ),
        ("x" * 300, r"the folder can't be read \(File name too long\)"),
    ],
)
def test_an_unknown_name(name, message):
    with pytest.raises(DataError, match=message):
        open_data(name)


def test_digits_take_no_folder(tmp_path):
    with pytest.raises(DataError, match="digits is embedded and takes no --data-dir"):
        open_data("digits", tmp_path)


def test_a_changed_folder_is_noticed(tmp_path, write_tree):
    write_tree(tmp_path, {"cat": 10, "dog": 10})
    record = open_data(str(tmp_path)).record()
    open_data(str(tmp_path)).check_unchanged(record)
    Image.new("RGB", (9, 9)).save(tmp_path / "cat" / "new.png")
    (tmp_path / "cat" / "0.png").unlink()
    with pytest.raises(DataError, match="the images have changed since the run was started"):
        open_data(str(tmp_path)).check_unchanged(record)


@pytest.mark.parametrize(
    "arguments", [("https://example.org/pets",), ("s3://pets",), ("folder", "file:///pets"), ("fashion-mnist", "gs://a/b")]
)
def test_urls_are_refused_as_urls(arguments):
    with pytest.raises(DataError, match="this is a URL, and only local files are read"):
        open_data(*arguments)


def test_a_folder_takes_no_second_folder(tmp_path, write_tree):
    write_tree(tmp_path, {"cat": 5, "dog": 5})
    with pytest.raises(DataError, match=rf"^--data '{tmp_path}' takes no --data-dir; .* --data {tmp_path}/cat$"):
        open_data(str(tmp_path), tmp_path / "cat")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "pets.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"pets\.zip: this is a file, not a folder of images; unpack it"):
        open_data(str(tmp_path / "pets.zip"))


def test_recorded_images_that_are_gone(tmp_path, write_tree, fashion):
    record = open_data(str(write_tree(tmp_path / "here", {"cat": 10, "dog": 10}))).record()
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(DataError, match=rf"^{tmp_path}/here: the folder of the run's images does not exist; .* with --data-dir$"):
        open_recorded(record)
    assert open_recorded(record, tmp_path / "there").record() == {**record, "data_dir": str(tmp_path / "there")}
    write_tree(tmp_path / "other", {"cat": 9, "dog": 10})
    with pytest.raises(
        DataError, match=rf"^{tmp_path}/other: the images have changed .*it had 16 .* in {tmp_path}/here; now there are 15 and 4"
    ):
        open_recorded(record, tmp_path / "other")
    record = open_data("fashion-mnist", fashion).record()
    fashion.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"Fashion-MNIST is not there .*apt-get install"):
        open_recorded(record)
