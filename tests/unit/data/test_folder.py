"""Folders as people lay them out: what is training, what is test, what is a class, and what is left out."""

import os
import unicodedata
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from growtas.data import class_folders
from growtas.data.evaluation import search_set
from growtas.data.folder import open_folder
from growtas.data.sources import open_data
from growtas.errors import DataError

CAFE = "caf\u00e9"
CAFE_OF_MACOS = unicodedata.normalize("NFD", CAFE)


@dataclass(frozen=True)
class Case:
    """A folder and how it must be understood.

    Attributes:
        files: ``train/cat/*3`` is three images, a path with an ending is a file, ``a -> b`` a link to b from a's folder.
        train, test: images of each class; None for a test set that is cut off from the training images.
        unused: folders beside the two.
        skipped: what is left out.
        said: words of one of the notes.
        root: the data set's folder among the files.
    """

    files: str
    train: dict[str, int]
    test: dict[str, int] | None = None
    folders: tuple[str, str | None] = (".", None)
    unused: tuple[str, ...] = ()
    skipped: dict[str, int] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    root: str = "."


LAYOUTS = {
    "class folders": Case("cat/*3 dog/*4", {"cat": 3, "dog": 4}),
    "lower-case split folders": Case(
        "train/cat/*3 train/dog/*2 val/cat/*1 val/dog/*2", {"cat": 3, "dog": 2}, {"cat": 1, "dog": 2}, ("train", "val")
    ),
    "capital letters": Case("Train/cat/*3 Train/dog/*2 Test/cat/*1", {"cat": 3, "dog": 2}, {"cat": 1}, ("Train", "Test")),
    "mixed letters": Case("train/cat/*3 train/dog/*2 Val/cat/*1", {"cat": 3, "dog": 2}, {"cat": 1}, ("train", "Val")),
    "long names": Case(
        "Training_Set/cat/*2 Training_Set/dog/*2 test-images/dog/*2",
        {"cat": 2, "dog": 2}, {"dog": 2}, ("Training_Set", "test-images"),
    ),
    "names with a year": Case(
        "train2017/cat/*2 train2017/dog/*2 val2017/dog/*2", {"cat": 2, "dog": 2}, {"dog": 2}, ("train2017", "val2017")
    ),
    "plural names, photographs, numbers before": Case(
        "01_train_photos/cat/*2 01_train_photos/dog/*2 02_Tests/dog/*2",
        {"cat": 2, "dog": 2}, {"dog": 2}, ("01_train_photos", "02_Tests"),
    ),
    "held-out images": Case(
        "train_v2/cat/*2 train_v2/dog/*2 held-out/dog/*1", {"cat": 2, "dog": 2}, {"dog": 1}, ("train_v2", "held-out")
    ),
    "a folder whose name says nothing": Case(
        "train/cat/*5 train/dog/*5 unseen/cat/*2", {"cat": 5, "dog": 5}, None, ("train", None), ("unseen",),
        said=("unseen/ beside it is not used; if test images are there, name their folder test",),
    ),
    "test before validation": Case(
        "train/cat/*2 train/dog/*2 val/cat/*1 valid/cat/*1 test/cat/*4",
        {"cat": 2, "dog": 2}, {"cat": 4}, ("train", "test"), ("val", "valid"),
        said=("test/ is the test set; val/ and valid/ beside it are not used",),
    ),
    "a test set without labels, as ImageNet's": Case(
        "train/cat/*2 train/dog/*2 val/cat/*3 test/*5",
        {"cat": 2, "dog": 2}, {"cat": 3}, ("train", "val"), ("test",),
        said=("val/ is the test set; test/ beside it is not used",),
    ),
    "only a training folder": Case("TRAIN/cat/*5 TRAIN/dog/*5", {"cat": 5, "dog": 5}, None, ("TRAIN", None)),
    "other folders beside the split": Case(
        "train/cat/*2 train/dog/*2 test/cat/*1 labels/a.csv", {"cat": 2, "dog": 2}, {"cat": 1}, ("train", "test"), ("labels",),
        said=("labels/ beside it is not used",),
    ),
    "a class called train": Case(
        "bus/*3 car/*3 train/*4", {"bus": 3, "car": 3, "train": 4}, said=("train/ is taken as a class",)
    ),
    "a class called valid": Case("invalid/*3 valid/*4", {"invalid": 3, "valid": 4}, said=("valid/ is taken as a class",)),
    "what systems leave": Case(
        "cat/*2 dog/*2 .git/*1 __MACOSX/cat/*2 @eaDir/*1 $RECYCLE.BIN/*1 cat/.ipynb_checkpoints/*1 cat/._0.png cat/Thumbs.db",
        {"cat": 2, "dog": 2},
        skipped={".git": 1, "__MACOSX": 1, "@eaDir": 1, "$RECYCLE.BIN": 1, ".ipynb_checkpoints": 1, "hidden files": 1},
        said=("are not classes and were not read: ", "hidden image files (names that begin with a dot) were not read: 1"),
    ),
    "files of other endings": Case(
        "cat/*2 cat/a.GIF cat/b.jfif cat/c.avif cat/d.jp2 cat/e.heic cat/f.txt cat/g dog/*2 dog/h.HEIC",
        {"cat": 6, "dog": 2}, skipped={".heic": 2, ".txt": 1, "without an ending": 1},
        said=("files that the installed Pillow can't open as images were not read: 2 .heic, 1 .txt, 1 without an ending;",),
    ),
    "images in the root": Case(
        "cat/*2 dog/*2 a.png b.jpg notes.txt", {"cat": 2, "dog": 2}, skipped={"images beside folders": 2},
        said=("belong to no class and are not used: 2 (a.png, b.jpg)",),
    ),
    "classes with sub-folders only": Case(
        "cat/house/*2 cat/zoo/old/*1 dog/zoo/*2", {"cat": 3, "dog": 2},
        said=("images in sub-folders of a class folder belong to the class: cat/house, cat/zoo, dog/zoo",),
    ),
    "the classes a level below": Case(
        "day1/cat/*2 day1/dog/*2 day2/cat/*2 day2/dog/*1", {"day1": 4, "day2": 3},
        said=("every class (day1, day2) holds the folders cat, dog; if those are the classes",),
    ),
    "links in a circle": Case(
        "cat/*2 dog/*2 cat/all->.. cat/self->. dog/more/*1 dog/more/up->.. dog/far->../../.. root->.", {"cat": 2, "dog": 3},
        skipped={"links to a folder that is read already": 5}, said=("cat/all is a link to a folder that was read already",),
    ),
    "a test set with links to training images": Case(
        "train/cat/*3 train/dog/*3 test/cat/*1 test/cat/old.png->../../train/cat/1.png",
        {"cat": 3, "dog": 3}, {"cat": 1}, ("train", "test"), skipped={"test images that are training images": 1},
        said=("the test set leaves them out",),
    ),
    "one image, two links": Case(
        "cat/*2 cat/again.png->0.png dog/*2 dog/my.png->../cat/1.png", {"cat": 2, "dog": 2},
        skipped={"links to an image that is read already": 1, "images of two classes": 1},
        said=("dog/my.png is the same file as ",),
    ),
    "class folders that are links": Case(
        "store/a/*2 store/a/up->.. store/b/*3 set/cat->../store/a set/dog->../store/b set/gone->../nowhere", {"cat": 2, "dog": 3},
        skipped={"links to a folder that is read already": 1, "links that lead nowhere": 1}, said=("gone is a broken link",),
        root="set",
    ),
    "two Unicode forms of a class": Case(
        f"train/{CAFE_OF_MACOS}/*2 train/bar/*2 test/{CAFE}/*1", {"bar": 2, CAFE: 2}, {CAFE: 1}, ("train", "test")
    ),
}  # fmt: skip


def lay_out(root, files):
    """Writes the files of a :class:`Case`."""
    formats = {".jfif": "JPEG", ".gif": "GIF", ".avif": "AVIF", ".jp2": "JPEG2000", ".jpg": "JPEG", ".png": "PNG"}
    for name in files.split():
        name, _, target = name.partition("->")
        path = root / name
        if name.endswith(tuple(f"*{digit}" for digit in range(10))):
            folder, _, count = name.rpartition("/*")
            paths = [root / folder / f"{number}.png" for number in range(int(count))]
        else:
            paths = [path]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = formats.get(path.suffix.lower())
            if target:
                path.symlink_to(target)
            elif kind is None:
                path.write_bytes(b"")
            else:
                rng = np.random.default_rng(len(os.listdir(path.parent)))
                Image.fromarray(rng.integers(0, 256, (14, 20, 3), np.uint8)).save(path, kind)
    return root


def counts(images, class_names):
    numbers = np.bincount(images.labels, minlength=len(class_names)).tolist()
    return {name: number for name, number in zip(class_names, numbers, strict=True) if number}


@pytest.mark.parametrize("case", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(tmp_path, case):
    opened = open_folder(lay_out(tmp_path, case.files) / case.root)
    assert opened.class_names == tuple(sorted(case.train))
    assert counts(opened.train, opened.class_names) == case.train
    assert (opened.test and counts(opened.test, opened.class_names)) == case.test
    layout = opened.layout
    assert ((layout.train, layout.test), layout.unused, dict(layout.skipped)) == (case.folders, case.unused, case.skipped)
    for words in case.said:
        assert len([note for note in layout.notes if words in note]) == 1, (words, layout.notes)
    if not case.said:
        assert layout.notes == ()
    # Every image that was counted can be read.
    for images in filter(None, opened[:2]):
        assert {images.load(index).size for index in range(len(images))} == {(20, 14)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("Test/cat/*2 Test/dog/*2 Val/cat/*2", r"Test/ and Val/ without train/; a data folder holds train/"),
        ("test/cat/*2 cat/*2 dog/*2", r"test/ without train/ beside the class folders cat or dog"),
        ("cat/*2 dog/*2 test/*4", r"test/ without train/ beside the class folders cat or dog; .*if test is a class"),
        ("train/cat/*2 Training/cat/*2 test/cat/*1", r"Training/ and train/ all have names of training sets; keep only one"),
        ("pets_train/cat/*2 pets_test/cat/*2", r"pets_test/ and pets_train/ have names of training and test sets, not of"),
        ("seg_pred/*1 seg_test/a/*2 seg_train/a/*2", r"seg_test/ and seg_train/ have names of training and test sets"),
        ("petsTrain/*2 petsVal/*2 readme/a.txt", r"petsTrain/ and petsVal/ have names of training and"),
        ("cat/*3 dog/*3 kitty->cat", r"kitty: the class folder has no images but links to those of other classes"),
        ("cat/*3 dog/.a.png", r"dog: the class folder has no images that the installed Pillow can open; its files are 1 hidden"),
        ("train/*4 test/*2", r"train: no class folders; put the images of each class into a sub-folder"),
        ("train/cat/*2 train/dog/*2 test/*2", r"test: no class folders"),
        ("cat/train/*3 cat/test/*3 dog/train/*3 dog/test/*3", r"cat: the class folder holds test or train; put these folders"),
        ("set/train/cat/*2 set/test/cat/*2", r"only one class folder, set; .* if the classes are its folders test or train, use"),
        ("set/cat/*2 set/dog/*2", r"only one class folder, set; .* if the classes are its folders cat or dog, use .*/set$"),
        ("photos.zip", r"no class folders \(unpack photos.zip first\)"),
        ("cat/*2 dog/a.heic dog/b.heic dog/c.txt", r"dog: the class folder has no images that the .* are 2 \.heic"),
        ("train/cat/*2 train/dog/*2 val->train", r"val: all its 4 images are also files of .*/train; a test set needs images that"),
        ("train/cat/*2 train/dog/*2 val/cat/a.txt", r"val: its class folders have no images; a test set needs"),
        (f"{CAFE}/*2 {CAFE_OF_MACOS}/*2", rf"two folders have the name {CAFE}, in two Unicode forms"),
        ("train/cat/*2 train/dog/*2 val/Cat/*1", r"val: class Cat is not in .*/train, which has cat or dog"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, files, message):
    with pytest.raises(DataError, match=message) as caught:
        open_folder(lay_out(tmp_path, files))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cat/caf\udce9.png", "caf\udce9/0.png"])
def test_names_that_are_not_utf8_are_refused(tmp_path, name):
    lay_out(tmp_path, "cat/*2 dog/*2")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    Image.new("RGB", (9, 9)).save(tmp_path / name)
    with pytest.raises(DataError, match=r"caf\\xe9.*: the name must be UTF-8, but is not; rename it") as caught:
        open_folder(tmp_path)
    str(caught.value).encode()


def test_a_closed_folder_gets_a_sentence(tmp_path, monkeypatch):
    lay_out(tmp_path, "cat/*2 dog/*2")
    scandir = os.scandir

    def closed(folder):
        if str(folder).endswith("dog"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(class_folders.os, "scandir", closed)
    with pytest.raises(DataError, match=r"dog: the folder can't be read \(Permission denied\)"):
        open_folder(tmp_path)


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(lay_out(tmp_path, "cat/*3 dog/*3") / "cat" / "pipe.png")
    opened = open_folder(tmp_path)
    assert (len(opened.train), dict(opened.layout.skipped)) == (6, {"what is no file": 1})


def test_a_link_to_nothing_is_named_before_the_training(tmp_path):
    lay_out(tmp_path, "cat/*5 dog/*5 cat/gone.png->/nowhere/0.png cat/self.png->self.png")
    with pytest.raises(DataError, match=r"2 images can't be read; .*cat/gone\.png.*cat/self\.png"):
        open_data(str(tmp_path), check_images=True)


def test_a_run_that_records_no_rules_reads_its_folder_as_it_did(tmp_path, make_run):
    """Before there were rules, names of splits were in lower case, val went before test, and a .gif was no image."""
    lay_out(tmp_path / "data", "train/cat/*9 train/dog/*8 train/cat/a.gif val/cat/*2 test/dog/*3")
    now = open_data(str(tmp_path / "data"))
    assert (len(now.train), len(now.test)) == (18, 3)
    before = open_data(str(tmp_path / "data"), rules=1)
    assert (len(before.train), before.test.labels.tolist()) == (17, [0, 0])
    record = {key: value for key, value in before.record().items() if key != "rules"}
    run = make_run(tmp_path / "runs", before, record)
    for arguments in ({}, {"data": str(tmp_path / "data")}):
        assert len(search_set(run, **arguments)) == 3
    assert now.record()["rules"] == 2
    assert len(search_set(make_run(tmp_path / "runs", now, now.record()))) == 3
