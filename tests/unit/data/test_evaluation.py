import numpy as np
import pytest
import torch

from growtas.data.evaluation import EvaluationSet, cut_search_split, search_set
from growtas.data.evaluation import test_set as open_test_set
from growtas.data.images import ReaderSet
from growtas.data.preprocess import evaluation_transform, preprocess_record
from growtas.data.sources import open_data
from growtas.errors import CheckpointError, DataError
from growtas.files import write_json
from growtas.nn.supernet import Supernet
from growtas.runs import create_run
from growtas.search.evaluation.evaluator import SubnetEvaluator, fingerprint
from growtas.search.evaluation.racing import Racing
from growtas.search.evolution import EvolutionConfig, evolve
from growtas.search.journal import Journal
from growtas.search.scoring import Scorer
from growtas.space import PRESETS

MICRO = PRESETS["micro"]


def make_run(root, data, space=MICRO, *, imported=False, split=True):
    space = space.replace(num_classes=len(data.class_names))
    info = {
        "state": "imported" if imported else "finished",
        "space": space.to_dict(),
        "data": None if imported else data.record(),
        "preprocess": preprocess_record(space, data),
    }
    run = create_run(root, None, info)
    if split and not imported:
        write_json(run.path / "split.json", cut_search_split(data, 0))
    return run


def test_the_search_split_is_a_fifth_of_the_training_set_and_stratified():
    data = open_data("digits")
    split = cut_search_split(data, 5)
    assert len(split["search"]) == 287
    assert split["train_size"] == 1438
    assert split["seed"] == 5
    assert sum(split["per_class"].values()) == 287
    assert set(split["per_class"].values()) <= {27, 28, 29, 30}
    assert cut_search_split(data, 5, 100)["per_class"] == dict.fromkeys("0123456789", 10)
    assert cut_search_split(data, 5) == split != cut_search_split(data, 6)


def test_too_few_images_for_a_split(tmp_path, write_tree):
    data = open_data(str(write_tree(tmp_path, {"train/a": 2, "train/b": 2, "val/a": 1})))
    with pytest.raises(DataError, match="4 training images are too few"):
        cut_search_split(data, 0)


def test_tiny_classes_keep_an_image_and_the_split_says_what_it_took(tmp_path, write_tree):
    counts = {"one": 1, "two": 2, "many": 41, "more": 56}
    write_tree(tmp_path, {f"train/{name}": count for name, count in counts.items()} | {"val/one": 1})
    data = open_data(str(tmp_path))
    for seed in range(5):
        split = cut_search_split(data, seed)
        taken = np.bincount(data.train.labels[split["search"]], minlength=4)
        assert split["per_class"] == dict(zip(data.class_names, taken.tolist(), strict=True))
        assert split["per_class"] == {"many": 8, "more": 11, "one": 0, "two": 1}
        assert len(set(split["search"])) == 20


def test_sets_of_a_run(tmp_path):
    data = open_data("digits")
    run = make_run(tmp_path, data)
    search, test = search_set(run), open_test_set(run)
    assert (len(search), len(test)) == (287, 359)
    assert search.class_names == tuple("0123456789")
    assert search.labels.dtype == torch.int64
    transform = evaluation_transform(run.info["preprocess"])
    indices = cut_search_split(data, 0)["search"]
    assert search.labels.tolist() == data.train.labels[indices].tolist()
    want = torch.stack([transform(data.train.load(i)) for i in indices[3:6]])
    torch.testing.assert_close(search.images(3, 6), want, rtol=0, atol=1e-6)
    torch.testing.assert_close(test.images(358, 400), transform(data.test.load(358))[None], rtol=0, atol=1e-6)


def test_batches_cover_the_set_in_order():
    data = open_data("digits")
    images = EvaluationSet(data.test, preprocess_record(MICRO, data), data.class_names)
    batches = list(images.batches(100))
    assert [len(batch) for batch, _ in batches] == [100, 100, 100, 59]
    assert torch.equal(torch.cat([labels for _, labels in batches]), images.labels)
    assert torch.equal(torch.cat([batch for batch, _ in batches]), images.images(0, 359))


def test_a_subset_is_stratified_and_fixed():
    data = open_data("digits")
    images = EvaluationSet(data.test, preprocess_record(MICRO, data), data.class_names)
    part = images.subset(50)
    assert np.bincount(part.labels).tolist() == [5] * 10
    assert torch.equal(part.images(0, 50), images.subset(50).images(0, 50))
    assert images.subset(1000) is images
    single = images.subset(10)  # an image of each class
    assert len(single.subset(4)) == 4


def test_an_imported_run_needs_data(tmp_path):
    run = make_run(tmp_path, open_data("digits"), imported=True)
    for opener in (search_set, open_test_set):
        with pytest.raises(DataError, match=r"the run was imported and records no data set; name one with --data"):
            opener(run)
    assert len(search_set(run, data="digits")) == 287
    assert len(open_test_set(run, data="digits")) == 359


@pytest.mark.parametrize(
    "content", [None, [], "x", {}, *({"search": value} for value in (None, [], ["0"], [0.5], [-1], [1438], [3, 3]))], ids=repr
)
def test_a_broken_split_is_told_with_its_place(tmp_path, content):
    run = make_run(tmp_path, open_data("digits"))
    write_json(run.path / "split.json", content)
    with pytest.raises(CheckpointError, match=r"split\.json: the search split must be an object .* numbers from 0 to 1437"):
        search_set(run)


def test_another_data_set_gets_its_own_split(tmp_path, fashion):
    run = make_run(tmp_path, open_data("digits"))
    other = search_set(run, data="fashion-mnist", data_dir=str(fashion))
    assert len(other) == 12
    assert other.class_names[0] == "T-shirt/top"


def test_the_run_s_own_data_may_have_moved(tmp_path, write_tree):
    write_tree(tmp_path / "here", {"cat": 20, "dog": 20})
    data = open_data(str(tmp_path / "here"))
    run = make_run(tmp_path / "runs", data)
    want = search_set(run).images(0, 6)
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(DataError, match=f"^{tmp_path}/here: the folder of the run's images does not exist; .* with --data-dir$"):
        search_set(run)
    for arguments in ({"data_dir": str(tmp_path / "there")}, {"data": str(tmp_path / "there")}):
        assert torch.equal(search_set(run, **arguments).images(0, 6), want)
    (tmp_path / "there" / "cat" / "3.png").unlink()
    with pytest.raises(DataError, match="the images have changed since"):
        search_set(run, data_dir=str(tmp_path / "there"))


def test_another_number_of_classes_is_refused(tmp_path, write_tree):
    run = make_run(tmp_path / "runs", open_data("digits"))
    write_tree(tmp_path / "pets", {"cat": 20, "dog": 20})
    with pytest.raises(DataError, match=r"pets: 2 classes, but the run .* has 10"):
        open_test_set(run, data=str(tmp_path / "pets"))


def test_images_can_be_picked():
    data = open_data("digits")
    images = EvaluationSet(data.test, preprocess_record(MICRO, data), data.class_names)
    picked = np.array([300, 4, 4, 17])
    assert torch.equal(images.take(picked), torch.cat([images.images(i, i + 1) for i in picked]))


def test_a_search_touches_no_test_image(tmp_path, write_tree, monkeypatch):
    write_tree(tmp_path / "data", {f"{part}/{name}": 15 for part in ("train", "val") for name in ("cat", "dog")})
    data = open_data(str(tmp_path / "data"))
    run = make_run(tmp_path / "runs", data)
    opened = []
    load = ReaderSet.load
    monkeypatch.setattr(ReaderSet, "load", lambda self, index: opened.append(self.describe(index)) or load(self, index))
    monkeypatch.setenv("GROWTAS_CACHE", "off")
    space = run.space
    torch.manual_seed(0)
    images = search_set(run)
    journal = Journal(tmp_path / "journal", "c", fingerprint(images, {}), {})
    with SubnetEvaluator(Supernet(space), images) as evaluate:
        scorer = Scorer(space, evaluate, journal, racing=Racing(2, len(images)))
        config = EvolutionConfig(generations=2, population=4, parents=2)
        evolve(space, scorer, lambda batch: np.ones(len(batch), bool), np.random.default_rng(0), config)
    assert scorer.evaluated + scorer.dropped == 8
    # Each search image is decoded once, and nothing else is.
    split = cut_search_split(data, 0)["search"]
    assert sorted(opened) == sorted(data.train.describe(index) for index in split)
    open_test_set(run).images(0, 2)
    assert len(opened) == len(split) + 2


def test_labels_follow_the_names_of_the_classes(tmp_path, write_tree):
    data = open_data(str(write_tree(tmp_path, {"train/cat": 3, "train/cow": 2, "train/dog": 4, "val/cow": 1, "val/dog": 2})))
    images = EvaluationSet(data.test, preprocess_record(MICRO, data), data.class_names)
    trained = ("dog", "cat", "cow")
    seen = images.labelled_as(trained)
    assert [trained[label] for label in seen.labels] == ["cow", "dog", "dog"]
    assert torch.equal(seen.images(0, 3), images.images(0, 3))
    part = seen.subset(2)
    assert [trained[label] for label in part.labels] == ["cow", "dog"]
    assert images.labelled_as(data.class_names) is images
    with pytest.raises(
        DataError,
        match=r"images \(cat, cow, dog\) are not those of the run's training \(cat, cow, fox\).*; only one of them has dog",
    ):
        images.labelled_as(("cat", "cow", "fox"))


def test_class_names_in_another_unicode_form_are_the_same(tmp_path, write_tree):
    data = open_data(str(write_tree(tmp_path, {"train/caf\u00e9": 3, "train/bar": 2, "val/bar": 1})))
    images = EvaluationSet(data.test, preprocess_record(MICRO, data), data.class_names)
    assert images.labelled_as(("cafe\u0301", "bar")).labels.tolist() == [1]
