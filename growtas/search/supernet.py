"""Finds and loads the supernet to search: its run, the search space, the weights and the images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from growtas.errors import CheckpointError, SpaceError, UsageError
from growtas.progress import SILENT, Progress
from growtas.runs import ONE_SUBNET, RUNS, Run, find_run, list_runs
from growtas.space import PRESETS, SearchSpace, load_space, without_size

if TYPE_CHECKING:
    from growtas.data.evaluation import EvaluationSet
    from growtas.nn.supernet import Supernet

_CHUNK = 256


def find_supernet(run: str | Path | None, space: str | None, progress: Progress = SILENT) -> tuple[Run, str]:
    """Finds the run to search.

    Args:
        run: folder of the run; None for the newest run with a supernet.
        space: space that the newest run must have, a preset or a YAML file. Runs of this space at other image sizes count too.
        progress: receives a note for each newer run that is skipped.

    Returns:
        The run, and how it was chosen, in words.

    Raises:
        UsageError: there is no such run.
    """
    if run is not None:
        named = find_run(run)
        if named.info.get("method") in ONE_SUBNET:
            raise UsageError(f"{named.path}: the run has a single trained subnet, so there is nothing to search; export it")
        return named, "named"
    name = load_space(space).name if space is not None else None
    for candidate in list_runs():
        try:
            info = candidate.info
        except CheckpointError:
            progress.note(f"skipped {candidate.path}: its run.json can't be read")
            continue
        recorded = (info.get("space") or {}).get("name", "")
        if name is not None and name not in (recorded, without_size(recorded)):
            continue
        if info.get("method") in ONE_SUBNET:
            progress.note(f"skipped {candidate.path}: the run has a single trained subnet, so there is nothing to search")
        elif not candidate.checkpoints:
            progress.note(f"skipped {candidate.path}: it has no checkpoint yet")
        else:
            return candidate, f"the newest{f' of {name}' if name else ''} in {RUNS}/"
    what, option = ("with a supernet", "") if name is None else (f"of the space {name}", f" --space {space}")
    raise UsageError(f"there is no run {what} in {RUNS}/; make one with `growtas train{option}`, or name the folder of a run")


def searched_space(run: Run, space: str | None) -> SearchSpace:
    """Returns the run's space, restricted to the choices of ``space`` if that is given.

    The supernet's bounds and geometry stay the same.

    Raises:
        SpaceError: the choices exceed the supernet.
    """
    trained = run.space
    if space is None:
        return trained
    narrowed = load_space(space)
    dimensions = ("embed_dim", "num_heads", "mlp_ratio", "depth")
    if narrowed.name == without_size(trained.name) and all(
        getattr(narrowed, name) == getattr(trained, name) for name in dimensions
    ):
        return trained
    for field in dimensions:
        highest, bound = getattr(narrowed, field)[-1], getattr(trained, f"max_{field}")
        if highest > bound:
            raise SpaceError(f"--space {space}: {field} goes up to {highest:g}, but the supernet of {run.path} only to {bound:g}")
    return trained.replace(name=narrowed.name, **{field: getattr(narrowed, field) for field in dimensions})


def profiled_as(run: Run) -> str | Path:
    """Returns the value of ``growtas profile --space`` for a run's space: the name of the preset, or else the run's folder."""
    space = run.space
    preset = PRESETS.get(space.name)
    # The number of classes is ignored: the head is one of many matrix products and hardly changes latencies.
    return space.name if preset is not None and preset.replace(num_classes=space.num_classes) == space else run.path


@dataclass(frozen=True)
class LoadedSupernet:
    """A supernet with the images for its search.

    Attributes:
        supernet: the supernet.
        images: the images to evaluate on, possibly fewer than the search split.
        split: the whole search split, from which an export takes its calibration images.
        checkpoint: file of the weights.
        digest: hash of the checkpoint, by which a journal identifies it.
        data_digest: digest of the images, by which a journal identifies them.
    """

    supernet: Supernet
    images: EvaluationSet
    split: EvaluationSet
    checkpoint: Path
    digest: str
    data_digest: str

    @classmethod
    def load(
        cls, run: Run, checkpoint: Path, *, data: str | None, data_dir: str | None, limit_images: int | None
    ) -> LoadedSupernet:
        """Loads a checkpoint of a run with its search split.

        Args:
            run: the run.
            checkpoint: file of the weights.
            data, data_dir: as for :func:`growtas.data.evaluation.search_set`.
            limit_images: largest number of images; None for the whole split.

        Raises:
            CheckpointError: the checkpoint can't be read.
            DataError: the images are absent, have changed, or have other classes.
        """
        from growtas.checkpoint import load_supernet
        from growtas.data.evaluation import search_set
        from growtas.files import sha256
        from growtas.search.evaluation.evaluator import fingerprint

        supernet, digest = load_supernet(checkpoint), sha256(checkpoint)
        images = split = search_set(run, data=data, data_dir=data_dir)
        if (class_names := run.info.get("class_names")) is not None:
            images = images.labelled_as(class_names)
        if limit_images is not None:
            images = images.subset(limit_images)
        description = {"data": data or run.info["data"], "preprocess": run.info["preprocess"]}
        return cls(supernet, images, split, checkpoint, digest, fingerprint(images, description))

    def decode(self) -> None:
        """Decodes the images if they fit in memory, so that other processes find decoded files in the cache."""
        from growtas.data.pixels import MEMORY_LIMIT

        space, count = self.supernet.space, len(self.images)
        if count * space.in_chans * space.image_size**2 <= MEMORY_LIMIT:
            for _ in self.images.batches(_CHUNK):
                pass
