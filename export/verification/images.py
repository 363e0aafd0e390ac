"""Images to run artifacts on: real ones for the parity gate, noise for timing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from growtas.errors import ConfigError, DataError
from growtas.export.runtimes.base import Array
from growtas.runs import Run


@dataclass(frozen=True, kw_only=True)
class GateImages:
    """Preprocessed images.

    Attributes:
        images: ``(count, channels, height, width)``, float32.
        description: which images they are, for the manifest.
        fell_back_because: why they are not the run's own test images; None if they are.
    """

    images: Array
    description: str
    fell_back_because: str | None = None


def gate_images(run: Run, count: int, *, data: str | None = None, data_dir: str | None = None) -> GateImages:
    """``count`` test images of the run's data, spread over the whole set; photographs where the run has no data at hand.

    Args:
        data, data_dir: other data to take, as ``growtas train`` names it.

    Raises:
        DataError: the data that was named can't be used.
    """
    from growtas.data import test_set

    try:
        test = test_set(run, data=data, data_dir=data_dir)
        # Test sets are often sorted by class: neighbours would show one class only.
        picked = np.linspace(0, len(test) - 1, min(count, len(test))).round().astype(int).tolist()
        images = np.concatenate([test.images(index, index + 1).numpy() for index in picked])
    except DataError as error:
        if data is not None or data_dir is not None:
            raise
        reason = "the run has no data of its own" if run.info.get("data") is None else str(error)
        images = sample_photographs(count, run.info["preprocess"])
        return GateImages(
            images=images, description=f"{count} crops of scikit-learn's sample photographs", fell_back_because=reason
        )
    named = data or (run.info.get("data") or {}).get("name") or "the run's data"
    return GateImages(images=np.ascontiguousarray(images, np.float32), description=f"{len(picked)} test images of {named}")


def sample_photographs(count: int, preprocess: Mapping[str, Any]) -> Array:
    """Different crops of scikit-learn's two photographs, resized and normalised as a run's images are.

    Args:
        preprocess: ``image_size``, ``in_chans``, ``mean`` and ``std`` of the run.

    Returns:
        ``(count, in_chans, image_size, image_size)``, the same for the same arguments.
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
    """Normal noise ``(batch, channels, height, width)``, always the same: latency does not depend on what is seen.

    Raises:
        ConfigError: a batch below one.
    """
    if batch < 1:
        raise ConfigError(f"batch is {batch}; it must be 1 or more")
    return np.random.default_rng(0).standard_normal((batch, *image_shape), np.float32)
