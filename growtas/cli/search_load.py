"""What a process of ``growtas search`` needs to evaluate subnets: the supernet and the images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from growtas.data.evaluation import EvaluationSet
    from growtas.nn.supernet import Supernet
    from growtas.runs import Run

_TAKEN = 256


@dataclass(frozen=True)
class Loaded:
    """A supernet with the images that it is searched on.

    Attributes:
        checkpoint: the supernet's file.
        digest, data_digest: of the checkpoint and of the images, by which a journal knows them.
    """

    supernet: Supernet
    images: EvaluationSet
    checkpoint: Path
    digest: str
    data_digest: str

    def decode(self) -> None:
        """Decode the images, where they are kept: those of files are in the cache then, for the other processes too.

        Raises:
            DataError: an image is unreadable.
        """
        from growtas.data.pixels import MEMORY_LIMIT

        space, count = self.supernet.space, len(self.images)
        if count * space.in_chans * space.image_size**2 <= MEMORY_LIMIT:
            for start in range(0, count, _TAKEN):
                self.images.images(start, start + _TAKEN)


def load(run: Run, checkpoint: Path, *, data: str | None, data_dir: str | None, limit_images: int | None) -> Loaded:
    """A supernet of a run, and its search split.

    Args:
        checkpoint: the supernet's file.
        data, data_dir: as for :func:`growtas.data.evaluation.search_set`.
        limit_images: take so many images only.

    Raises:
        CheckpointError: the checkpoint can't be read.
        DataError: the images are absent or changed.
    """
    from growtas.checkpoint import load_supernet
    from growtas.data.evaluation import search_set
    from growtas.files import sha256
    from growtas.search.evaluation.evaluator import fingerprint

    supernet, digest = load_supernet(checkpoint), sha256(checkpoint)
    images = search_set(run, data=data, data_dir=data_dir)
    if limit_images is not None:
        images = images.subset(limit_images)
    description = {"data": data or run.info["data"], "preprocess": run.info["preprocess"]}
    return Loaded(supernet, images, checkpoint, digest, fingerprint(images, description))
