from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from growtas.data import test_set as open_test_set
from growtas.errors import ConfigError, DataError
from growtas.export.verification.labelled_images import LabelledImages, images_for, labelled_images, spread
from growtas.runs import Run
from tests.export_helpers import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("runs"))


def test_images_are_the_test_set_s_with_their_labels(run: Run) -> None:
    found = labelled_images(run, 50)
    test = open_test_set(run)
    everything = {image.tobytes(): int(label) for image, label in zip(test.images(0, len(test)).numpy(), test.labels, strict=True)}
    assert len(everything) == len(test)
    assert found.labels is not None
    assert [everything[image.tobytes()] for image in found.images] == found.labels.tolist()
    # The same share of every class.
    assert np.bincount(found.labels, minlength=10).tolist() == [5] * 10
    assert found.class_names == tuple(str(digit) for digit in range(10))
    assert found.description == f"50 of {len(test)} test images of digits"


def test_the_same_images_every_time(run: Run) -> None:
    first, second = labelled_images(run, 20), labelled_images(run, 20)
    assert np.array_equal(first.images, second.images)


def test_more_images_than_there_are(run: Run) -> None:
    assert len(labelled_images(run, 10**6)) == len(open_test_set(run))


def test_a_run_without_data_has_photographs_without_labels(tmp_path: Path) -> None:
    run = make_run(tmp_path, data=False)
    found = labelled_images(run, 6)
    assert found.images.shape == (6, 3, 16, 16)
    assert found.labels is None
    assert found.unlabelled_because == "the run has no data of its own"
    assert labelled_images(run, 6, data="digits").labels is not None


def test_the_run_s_order_of_the_classes_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    plain = labelled_images(run, 50)
    run.update(class_names=[str(digit) for digit in reversed(range(10))])
    turned = labelled_images(run, 50)
    assert plain.labels is not None
    assert turned.labels is not None
    assert turned.labels.tolist() == (9 - plain.labels).tolist()
    assert turned.class_names is not None
    assert turned.class_names[0] == "9"


def test_data_with_other_classes_than_the_run_s_have_no_labels(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.update(class_names=["coat", *map(str, range(1, 10))])
    found = labelled_images(run, 20)
    assert found.labels is None
    assert found.unlabelled_because == "the classes of digits have other names than the run's"


def test_data_that_were_named_must_be_usable(run: Run) -> None:
    with pytest.raises(DataError):
        labelled_images(run, 5, data="no-such-data")
    with pytest.raises(ConfigError, match="--images is 0"):
        labelled_images(run, 0)


def test_a_few_of_many_are_spread_over_all_of_them() -> None:
    images = np.repeat(np.arange(10, dtype=np.float32), 50).reshape(500, 1, 1, 1)  # sorted by class
    few = spread(images, 16)
    assert few.shape == (16, 1, 1, 1)
    assert sorted(set(few.ravel().tolist())) == list(range(10))
    assert spread(images, 1000).ravel().tolist() == images.ravel().tolist()
    assert spread(images, 1).shape == (1, 1, 1, 1)


def test_large_networks_take_fewer_images() -> None:
    assert images_for(7_000_000) == images_for(7_000_000, "fp16") == 512
    assert images_for(7_000_000, "int8") == 2000
    for precision in ("fp16", "bf16", "int8"):
        # AutoFormer-T: an image that changes sides is less than 0.3 points.
        assert 1 / images_for(1_283_000_000, precision) < 0.003
    assert images_for(1_300_000_000) == 100
    assert images_for(17_000_000_000) == 48


def test_labels_that_do_not_fit_are_refused() -> None:
    images = np.zeros((3, 1, 2, 2), np.float32)
    with pytest.raises(DataError, match="3 images, but labels of shape"):
        LabelledImages(images=images, labels=np.zeros(2, np.int64), class_names=None, description="x")
    with pytest.raises(DataError, match="need a reason"):
        LabelledImages(images=images, labels=None, class_names=None, description="x")
    with pytest.raises(DataError, match="there are no images"):
        LabelledImages(images=images[:0], labels=None, class_names=None, description="x", unlabelled_because="y")
