from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from growtas.data.evaluation import test_set as open_test_set
from growtas.errors import ConfigError, DataError
from growtas.export.verification.images import (
    VerificationImages,
    check_count,
    images_for,
    noise,
    run_images,
    sample_photographs,
    spread,
)
from growtas.runs import Run
from tests.export_helpers import DIGITS_PREPROCESS, make_run


def test_images_of_the_run_are_spread_over_its_test_set(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    result = run_images(run, 12, stratified=False)
    test = open_test_set(run)
    assert result.images.shape == (12, 3, 16, 16)
    assert result.images.dtype == np.float32
    assert result.description == "12 test images of digits"
    assert result.photographs is False
    assert np.array_equal(result.images[0], test.images(0, 1)[0].numpy())
    assert np.array_equal(result.images[-1], test.images(len(test) - 1, len(test))[0].numpy())
    assert len(np.unique(result.images.reshape(12, -1), axis=0)) == 12


def test_a_run_without_data_gets_photographs_and_says_so(tmp_path: Path) -> None:
    result = run_images(make_run(tmp_path, data=False), 5, stratified=False)
    assert result.images.shape == (5, 3, 16, 16)
    assert (result.photographs, result.unlabelled_because) == (True, "the run has no data of its own")
    assert "sample photographs" in result.description


def test_a_run_without_data_takes_the_data_that_is_named(tmp_path: Path) -> None:
    result = run_images(make_run(tmp_path, data=False), 4, data="digits", stratified=False)
    assert result.description == "4 test images of digits"
    assert result.photographs is False


def test_data_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        run_images(make_run(tmp_path), 4, data="no-such-data", stratified=False)


def test_moved_data_is_called_by_its_new_place(tmp_path: Path) -> None:
    run, moved = make_run(tmp_path), tmp_path / "moved"
    for split in ("train", "test"):
        for name in "0123456789":
            (moved / split / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (20, 20), (60 * number, 40, 90)).save(moved / split / name / f"{number}.png")
    result = run_images(run, 4, data="folder", data_dir=moved, stratified=False)
    assert result.description == f"4 test images of {moved}"
    run.update(data={"name": "folder", "data_dir": "/gone"})
    assert run.images(data_dir=moved) == {"name": "folder", "data_dir": str(moved)}
    assert run.images() == {"name": "folder", "data_dir": "/gone"}


def test_data_that_went_away_is_replaced_and_the_reason_given(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.update(data={**run.info["data"], "name": "folder", "data_dir": str(tmp_path / "gone")})
    result = run_images(run, 4, stratified=False)
    assert result.photographs
    assert "folder" in str(result.unlabelled_because)
    assert "sample photographs" in result.description


def test_photographs_are_real_different_and_always_the_same() -> None:
    images = sample_photographs(6, DIGITS_PREPROCESS)
    assert np.array_equal(images, sample_photographs(6, DIGITS_PREPROCESS))
    assert len(np.unique(images.reshape(6, -1), axis=0)) == 6
    assert np.all(np.abs(images) <= 1.0 + 1e-6)
    assert all(image.std() > 0.05 for image in images)


def test_photographs_follow_the_normalisation_and_the_channels() -> None:
    plain = sample_photographs(2, {**DIGITS_PREPROCESS, "mean": [0.0] * 3, "std": [1.0] * 3})
    shifted = sample_photographs(2, {**DIGITS_PREPROCESS, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 2.0]})
    mean, std = (torch.tensor(value).view(1, 3, 1, 1).numpy() for value in ([0.1, 0.2, 0.3], [0.5, 0.25, 2.0]))
    assert np.allclose(shifted, (plain - mean) / std, atol=1e-6)
    grey = sample_photographs(2, {"image_size": 8, "in_chans": 1, "mean": [0.0], "std": [1.0]})
    assert grey.shape == (2, 1, 8, 8)


def test_noise_is_repeatable() -> None:
    assert np.array_equal(noise(2, (3, 4, 4)), noise(2, (3, 4, 4)))
    assert noise(2, (3, 4, 4)).dtype == np.float32
    with pytest.raises(ConfigError, match="batch is 0"):
        noise(0, (3, 4, 4))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("runs"))


def test_images_are_the_test_set_s_with_their_labels(run: Run) -> None:
    found = run_images(run, 50)
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
    first, second = run_images(run, 20), run_images(run, 20)
    assert np.array_equal(first.images, second.images)


def test_more_images_than_there_are(run: Run) -> None:
    assert len(run_images(run, 10**6)) == len(open_test_set(run))


def test_a_run_without_data_has_photographs_without_labels(tmp_path: Path) -> None:
    run = make_run(tmp_path, data=False)
    found = run_images(run, 6)
    assert found.images.shape == (6, 3, 16, 16)
    assert found.labels is None
    assert found.unlabelled_because == "the run has no data of its own"
    assert run_images(run, 6, data="digits").labels is not None


def test_the_run_s_order_of_the_classes_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    plain = run_images(run, 50)
    run.update(class_names=[str(digit) for digit in reversed(range(10))])
    turned = run_images(run, 50)
    assert plain.labels is not None
    assert turned.labels is not None
    assert turned.labels.tolist() == (9 - plain.labels).tolist()
    assert turned.class_names is not None
    assert turned.class_names[0] == "9"


def test_class_names_of_the_run_may_have_another_unicode_form(tmp_path: Path) -> None:
    names = [*map(str, range(1, 10)), "caf\u00e9"]
    for shade, name in enumerate(names):
        for place in ("train", "train", "test"):
            folder = tmp_path / "data" / place / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("L", (16, 16), 20 * shade).save(folder / f"{len(list(folder.iterdir()))}.png")
    run = make_run(tmp_path)
    run.update(class_names=["cafe\u0301", *names[:-1]])
    found = run_images(run, 50, data=str(tmp_path / "data"), stratified=False)
    assert found.labels is not None
    assert found.labels.tolist() == [*range(1, 10), 0]


def test_data_with_other_classes_than_the_run_s_have_no_labels(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.update(class_names=["coat", *map(str, range(1, 10))])
    found = run_images(run, 20)
    assert found.labels is None
    assert found.unlabelled_because == "the class names of digits differ from the run's"


def test_data_that_were_named_must_be_usable(run: Run) -> None:
    with pytest.raises(DataError):
        run_images(run, 5, data="no-such-data")


def test_fewer_images_than_one_are_refused() -> None:
    check_count(None)
    check_count(1)
    with pytest.raises(ConfigError, match="--images is 0"):
        check_count(0)


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
        VerificationImages(images=images, labels=np.zeros(2, np.int64), description="x")
    with pytest.raises(DataError, match="need a reason"):
        VerificationImages(images=images, description="x")
    with pytest.raises(DataError, match="there are no images"):
        VerificationImages(images=images[:0], description="x", unlabelled_because="y")
