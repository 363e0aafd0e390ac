from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from growtas.data import test_set as open_test_set
from growtas.errors import ConfigError, DataError
from growtas.export.verification.images import gate_images, noise, sample_photographs
from tests.export_helpers import DIGITS_PREPROCESS, make_run


def test_images_of_the_run_are_spread_over_its_test_set(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    result = gate_images(run, 12)
    test = open_test_set(run)
    assert result.images.shape == (12, 3, 16, 16)
    assert result.images.dtype == np.float32
    assert result.description == "12 test images of digits"
    assert result.fell_back_because is None
    assert np.array_equal(result.images[0], test.images(0, 1)[0].numpy())
    assert np.array_equal(result.images[-1], test.images(len(test) - 1, len(test))[0].numpy())
    assert len(np.unique(result.images.reshape(12, -1), axis=0)) == 12


def test_a_run_without_data_gets_photographs_and_says_so(tmp_path: Path) -> None:
    result = gate_images(make_run(tmp_path, data=False), 5)
    assert result.images.shape == (5, 3, 16, 16)
    assert result.fell_back_because == "the run has no data of its own"
    assert "sample photographs" in result.description


def test_a_run_without_data_takes_the_data_that_is_named(tmp_path: Path) -> None:
    result = gate_images(make_run(tmp_path, data=False), 4, data="digits")
    assert result.description == "4 test images of digits"
    assert result.fell_back_because is None


def test_data_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        gate_images(make_run(tmp_path), 4, data="no-such-data")


def test_data_that_went_away_is_replaced_and_the_reason_given(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.update(data={**run.info["data"], "name": "folder", "data_dir": str(tmp_path / "gone")})
    result = gate_images(run, 4)
    assert "folder" in str(result.fell_back_because)
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
