from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from growtas.data import readers
from growtas.data.decode import DecodeRules, decode
from growtas.data.images import load_as
from growtas.data.readers import open_timm
from growtas.data.sources import open_data
from growtas.errors import DataError


@pytest.fixture
def torch_fashion(tmp_path, write_idx):
    """Where torchvision looks for Fashion-MNIST's files."""
    rng = np.random.default_rng(0)
    for stem, count in (("train", 60), ("t10k", 20)):
        raw = tmp_path / "FashionMNIST" / "raw"
        write_idx(raw / f"{stem}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)))
        write_idx(raw / f"{stem}-labels-idx1-ubyte", np.arange(count) % 10)
    return tmp_path


def test_torchvision_names(torch_fashion):
    data = open_data("torch/fashion_mnist", torch_fashion)
    assert (len(data.train), len(data.test)) == (60, 20)
    assert data.class_names[-1] == "Ankle boot"
    assert data.train.labels.tolist() == [i % 10 for i in range(60)]
    assert data.train.load(0).size == (28, 28)
    assert data.record()["name"] == "torch/fashion_mnist"


def test_torchvision_image_folder(tmp_path, write_tree):
    write_tree(tmp_path, {"train/cat": 4, "train/dog": 2, "test/cat": 1, "test/dog": 1})
    data = open_data("torch/image_folder", tmp_path)
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0] * 4 + [1] * 2, [0, 1])
    assert data.test.load(1).size == (20, 14)
    assert data.test.describe(1).endswith("test/dog/0.png")
    assert data.record()["name"] == "torch/image_folder"


@pytest.mark.parametrize("name", ["torch/image_folder", "torch/folder", "Torch/Image_Folder"])
def test_classes_of_an_image_folder_are_matched_by_name(tmp_path, write_tree, name):
    write_tree(tmp_path, {"train/cat": 4, "train/cow": 3, "train/dog": 2, "test/cow": 1, "test/dog": 2})
    data = open_data(name, tmp_path)
    assert [data.class_names[label] for label in data.test.labels] == ["cow", "dog", "dog"]
    assert {data.test.describe(index).split("/")[-2] for index in range(3)} == {"cow", "dog"}


def test_an_image_folder_without_a_test_set_has_no_training_image_in_its_test(tmp_path, write_tree):
    write_tree(tmp_path, {"train/cat": 10, "train/dog": 10})
    data = open_data("torch/image_folder", tmp_path)
    assert data.class_names == ("cat", "dog")
    names = [{part.describe(index) for index in range(len(part))} for part in (data.train, data.test)]
    assert (len(names[0]), len(names[1]), names[0] & names[1]) == (16, 4, set())
    write_tree(tmp_path, {"Val/cat": 2, "Val/dog": 1})
    assert open_data("torch/image_folder", tmp_path).test.labels.tolist() == [0, 0, 1]


def test_an_image_folder_needs_its_path(tmp_path):
    with pytest.raises(DataError, match="torch/image_folder needs --data-dir"):
        open_data("torch/image_folder")
    with pytest.raises(DataError, match=f"{tmp_path}/none: there is no such folder"):
        open_data("torch/image_folder", tmp_path / "none")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(readers.PREFIXES, "wds", "growtas_no_such_package")
    with pytest.raises(
        DataError, match="wds/x needs the package growtas_no_such_package, which is not installed: pip install growtas-no-such"
    ):
        open_data("wds/x", tmp_path)


def test_torchvision_needs_a_folder():
    with pytest.raises(DataError, match="torch/cifar10 needs --data-dir"):
        open_data("torch/cifar10")


def test_a_failing_reader_becomes_a_sentence(tmp_path):
    with pytest.raises(
        DataError, match=r"torch/nonsense: the split train can't be opened \(Unknown torchvision dataset nonsense\)"
    ):
        open_data("torch/nonsense", tmp_path)


class Table(list):
    """What a Hugging Face table is to the reader: columns by name, and features with class names."""

    def __init__(self, rows):
        super().__init__(rows)
        self.features = {"label": type("ClassLabel", (), {"names": ["no", "yes"]})}

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


class HfReader:
    label_key, remap_class = "label", False

    def __init__(self, paths, labels=None, names=("no", "yes")):
        labels = labels or [i % 2 for i in range(len(paths))]
        self.dataset = Table({"path": path, "label": label} for path, label in zip(paths, labels, strict=True))
        self.dataset.features = {"label": type("ClassLabel", (), {"names": names and list(names)})}

    def __getitem__(self, index):
        return open(self.dataset[index]["path"], "rb"), self.dataset[index]["label"]

    def __len__(self):
        return len(self.dataset)


def fake_timm(monkeypatch, make):
    monkeypatch.setitem(readers.PREFIXES, "hfds", "torch")

    def create(name, split, **arguments):
        made = make(split)
        if made is None:
            raise ValueError(f"Unknown split {split}")
        return made

    monkeypatch.setattr(readers, "create_dataset", create)


def test_hugging_face_tables(tmp_path, write_tree, monkeypatch):
    from timm.data import ImageDataset

    write_tree(tmp_path, {"x": 6})
    paths = [tmp_path / "x" / f"{i}.png" for i in range(6)]
    splits = {"train": paths, "validation": paths[:2]}
    fake_timm(monkeypatch, lambda split: ImageDataset("", HfReader(splits[split])) if split in splits else None)
    train, test, names = open_timm("hfds/x", None, lambda items, title: items)
    assert names == ("no", "yes")
    assert train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    # The set has no split named test: the validation split is taken.
    assert len(test) == 2
    assert train.load(5).tobytes() == decode(paths[5].open("rb")).tobytes()
    paths[4].write_bytes(b"no image")
    with pytest.raises(DataError, match=r"hfds/x training, image 4: the image can't be read"):
        train.load(4)


class Stream:
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        for i in range(self.count):
            yield Image.new("L", (8 + i, 8), i), i % 3


def test_streams_are_held_in_memory(monkeypatch):
    fake_timm(monkeypatch, lambda split: Stream(9 if split == "train" else 3))
    train, test, names = open_timm("hfds/x", None, lambda items, title: items)
    assert (len(train), len(test), names) == (9, 3, ("0", "1", "2"))
    assert train.labels.tolist() == [0, 1, 2] * 3
    assert train.load(4).size == (12, 8)
    assert train.load(4).getpixel((0, 0)) == 4


def test_a_stream_too_large_for_memory_is_refused(monkeypatch):
    monkeypatch.setattr(readers, "STREAM_LIMIT", 500)
    fake_timm(monkeypatch, lambda split: Stream(9))
    with pytest.raises(DataError, match="unpack it into class folders"):
        open_timm("hfds/x", None, lambda items, title: items)


def test_torchvisions_folders_are_read_by_the_same_rules(tmp_path):
    """torchvision's own loader would clip the 16 bits to white before anything else sees them."""
    deep = np.arange(0, 64_000, 1000, dtype=np.uint16).reshape(8, 8)
    for place in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / place).mkdir(parents=True)
        Image.fromarray(deep).save(tmp_path / place / "a.png")
    data = open_data("torch/image_folder", tmp_path)
    got = load_as(data.train, 1, lambda image: DecodeRules().apply(image, "L"))
    np.testing.assert_array_equal(np.asarray(got), np.rint(deep * (255 / 65535)))


def test_streams_are_asked_for_images_as_they_are_stored(monkeypatch):
    asked = []
    monkeypatch.setitem(readers.PREFIXES, "wds", "torch")
    monkeypatch.setattr(readers, "create_dataset", lambda name, **arguments: asked.append(arguments) or Stream(9))
    open_timm("wds/x", Path("/shards"), lambda items, title: items)
    assert {arguments["input_img_mode"] for arguments in asked} == {""}


def test_arrays_of_more_than_8_bits_are_refused(monkeypatch):
    arrays = SimpleNamespace(data=np.zeros((4, 8, 8), np.uint16), targets=[0, 1, 0, 1])
    fake_timm(monkeypatch, lambda split: arrays)
    with pytest.raises(DataError, match="hfds/x training: its pixels are uint16, but must be uint8"):
        open_timm("hfds/x", None, lambda items, title: items)


def tables(monkeypatch, tmp_path, **splits):
    """A data set of tables: for each split its labels, and the names that it numbers."""
    from timm.data import ImageDataset

    def make(split):
        if split not in splits:
            return None
        labels, names = splits[split]
        return ImageDataset("", HfReader([tmp_path / f"{i}.png" for i in range(len(labels))], labels, names))

    fake_timm(monkeypatch, make)
    return open_timm("hfds/x", None, lambda items, title: items)


def test_a_split_that_numbers_its_classes_alone(tmp_path, monkeypatch):
    train, test, names = tables(
        monkeypatch, tmp_path, train=([0, 1, 2, 2], ("cat", "cow", "dog")), test=([0, 1, 1], ("cow", "dog"))
    )
    assert [names[label] for label in train.labels] == ["cat", "cow", "dog", "dog"]
    assert [names[label] for label in test.labels] == ["cow", "dog", "dog"]


def test_labels_that_are_texts(tmp_path, monkeypatch):
    train, test, names = tables(monkeypatch, tmp_path, train=(["dog", "cat", "cow"], None), test=(["dog", "cow"], None))
    assert names == ("cat", "cow", "dog")
    assert (train.labels.tolist(), test.labels.tolist()) == ([2, 0, 1], [2, 1])


def test_a_test_split_without_labels_is_passed_over(tmp_path, monkeypatch):
    names = ("cat", "dog")
    _, test, _ = tables(monkeypatch, tmp_path, train=([0, 1], names), test=([-1, -1], names), validation=([1, 0, 1], names))
    assert test.labels.tolist() == [1, 0, 1]
    with pytest.raises(DataError, match=r"no test set among .*the images of the split test have no labels"):
        tables(monkeypatch, tmp_path, train=([0, 1], names), test=([-1, -1], names))


def test_classes_that_cannot_be_matched_are_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"hfds/x: class fox of the test set is not in the training set"):
        tables(monkeypatch, tmp_path, train=([0, 1], ("cat", "dog")), test=([0, 1], ("cat", "fox")))
    with pytest.raises(DataError, match=r"hfds/x: the test set has no class names"):
        tables(monkeypatch, tmp_path, train=([0, 1], ("cat", "dog")), test=([0, 1], None))
    # Where neither names them, numbers are all that there is.
    _, test, names = tables(monkeypatch, tmp_path, train=([0, 1], None), test=([1, 0], None))
    assert (names, test.labels.tolist()) == (("0", "1"), [1, 0])


def test_test_files_among_the_training_files_are_refused(monkeypatch):
    class Files:
        classes = ("cat", "dog")

        def __init__(self, *paths):
            self.samples = [(path, index % 2) for index, path in enumerate(paths)]
            self.targets = [label for _, label in self.samples]

        def __getitem__(self, index):
            raise NotImplementedError

    sets = {"train": Files("/x/cat/1.png", "/x/dog/1.png"), "test": Files("/x/cat/2.png", "/x/../x/dog/1.png")}
    fake_timm(monkeypatch, sets.get)
    with pytest.raises(DataError, match=r"1 of 2 test images are also training images, such as /x/../x/dog/1\.png"):
        open_timm("hfds/x", None, lambda items, title: items)
