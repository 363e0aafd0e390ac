"""Images to run artifacts on: a run's test images or photographs for verification, and noise for timing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.data.split import evenly_spaced
from growtas.errors import ConfigError, DataError
from growtas.export.runtimes.base import Array
from growtas.runs import Run, data_title

MOST_IMAGES, MOST_IMAGES_COARSE, FEWEST_IMAGES = 512, 2000, 48
# An artifact and its reference each need about 35 ms for an image of 1.3 GMACs on one core, so 101 such images take one core 7 s.
_MACS_BUDGET, _MACS_BUDGET_ROUNDED = 130_000_000_000, 450_000_000_000


@dataclass(frozen=True, kw_only=True)
class VerificationImages:
    """Preprocessed images, with labels if the run's data is available.

    Attributes:
        images: ``(count, channels, height, width)``, float32.
        labels: the class of each image, ``(count,)``; None where the labels are unknown.
        class_names: the name of each label, in the order of the run's outputs; None without labels.
        description: description of the images for manifests.
        unlabelled_because: the reason for missing labels; None if there are labels.
        photographs: whether photographs are used instead of test images.
    """

    images: Array
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] | None = None
    description: str
    unlabelled_because: str | None = None
    photographs: bool = False

    def __post_init__(self) -> None:
        if not len(self.images):
            raise DataError(f"{self.description}: there are no images to verify anything on; name other data with --data")
        if self.labels is not None and self.labels.shape != (len(self.images),):
            raise DataError(f"{self.description}: {len(self.images)} images, but labels of shape {self.labels.shape}")
        if self.labels is None and self.unlabelled_because is None:
            raise DataError(f"{self.description}: images without labels need a reason")

    def __len__(self) -> int:
        return len(self.images)


def check_count(images: int | None) -> None:
    """Checks a requested number of images; None requests the default of :func:`images_for`.

    Raises:
        ConfigError: the number is below one.
    """
    if images is not None and images < 1:
        raise ConfigError(f"--images is {images}; it must be 1 or more (by default up to {MOST_IMAGES})")


def images_for(macs: int, precision: str = "fp32") -> int:
    """Returns the default number of images of a verification: 512 for a small network, fewer for a large one, at least 48.

    In fp32 no prediction should change, so few images are enough. Other precisions use about three times as many for a large
    network, so that one changed prediction costs less than the allowed 0.3 points. int8 and fp8 use up to 2,000: there predictions
    change in both directions, and only many images distinguish a loss of half a point from chance.

    Args:
        macs: multiply-accumulate operations for one image.
        precision: precision of the artifact.
    """
    most = MOST_IMAGES_COARSE if precision in ("int8", "fp8") else MOST_IMAGES
    budget = _MACS_BUDGET if precision == "fp32" else _MACS_BUDGET_ROUNDED
    return max(FEWEST_IMAGES, min(most, budget // max(macs, 1)))


def run_images(
    run: Run, count: int, *, data: str | None = None, data_dir: str | Path | None = None, stratified: bool = True
) -> VerificationImages:
    """Returns at most ``count`` test images of a run, always the same ones; photographs if the run's data is not available.

    Args:
        data, data_dir: data to use instead of the run's, named as for ``growtas train``.
        stratified: take the same share of every class; otherwise take images evenly spaced over the test set.

    Raises:
        DataError: the named data can't be used.
    """
    from growtas.data.evaluation import test_set

    try:
        test = test_set(run, data=data, data_dir=data_dir)
        part = test.subset(count) if stratified else test
        indices = evenly_spaced(len(part), count)
        images = part.take(indices)
    except DataError as error:
        if data is not None or data_dir is not None:
            raise
        reason = "the run has no data of its own" if run.info.get("data") is None else str(error)
        return photographs(run.info["preprocess"], count, reason)
    named = data_title(run.images(data, data_dir))
    class_names = tuple(run.info.get("class_names") or test.class_names)
    labels, unlabelled_because = None, None
    try:
        labels = part.labelled_as(class_names).labels[indices].numpy()
    except DataError:
        unlabelled_because = f"the class names of {named} differ from the run's"
    return VerificationImages(
        images=np.ascontiguousarray(images.numpy(), np.float32),
        labels=labels,
        class_names=class_names if labels is not None else None,
        description=f"{len(indices)}{f' of {len(test)}' if stratified else ''} test images of {named}",
        unlabelled_because=unlabelled_because,
    )


def photographs(preprocess: Mapping[str, Any], count: int, reason: str) -> VerificationImages:
    """Returns crops of photographs without labels; ``reason`` says why they replace the test images."""
    return VerificationImages(
        images=sample_photographs(count, preprocess),
        description=f"{count} crops of scikit-learn's sample photographs",
        unlabelled_because=reason,
        photographs=True,
    )


def spread(images: Array, count: int) -> Array:
    """Returns at most ``count`` of the images, evenly spaced, because sorted images would begin with a single class."""
    return np.ascontiguousarray(images[evenly_spaced(len(images), count)])


def sample_photographs(count: int, preprocess: Mapping[str, Any]) -> Array:
    """Returns different crops of scikit-learn's two photographs, resized and normalised like a run's images.

    Args:
        preprocess: ``image_size``, ``in_chans``, ``mean`` and ``std`` of the run.

    Returns:
        ``(count, in_chans, image_size, image_size)``, always the same for the same arguments.
    """
    import torch
    import torch.nn.functional as F
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    size, channels = int(preprocess["image_size"]), int(preprocess["in_chans"])
    generator = np.random.default_rng(0)
    crops = []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        height, width = photograph.shape[:2]
        side = int(generator.integers(height // 3, height + 1))
        top, left = int(generator.integers(0, height - side + 1)), int(generator.integers(0, width - side + 1))
        crop = torch.tensor(photograph[top : top + side, left : left + side]).permute(2, 0, 1)[None] / 255
        crops.append(F.interpolate(crop, (size, size), mode="bicubic", antialias=True).clamp(0, 1))
    images = torch.cat(crops)
    if channels == 1:
        images = images.mean(1, keepdim=True)
    mean, std = (torch.tensor(preprocess[key], dtype=torch.float32).view(1, -1, 1, 1) for key in ("mean", "std"))
    return np.ascontiguousarray(((images - mean) / std).numpy(), np.float32)


def noise(batch: int, image_shape: tuple[int, int, int]) -> Array:
    """Returns normal noise ``(batch, channels, height, width)``, always the same; latency does not depend on the image content.

    Raises:
        ConfigError: the batch is below one.
    """
    if batch < 1:
        raise ConfigError(f"batch is {batch}; it must be 1 or more")
    return np.random.default_rng(0).standard_normal((batch, *image_shape), np.float32)
