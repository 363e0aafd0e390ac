"""Verifying finished artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from growtas.errors import UsageError
from growtas.export.artifact import Artifact
from growtas.export.formats import artifact_files
from growtas.export.verification.run import Verifier, VerifyReport
from growtas.progress import SILENT, Progress
from growtas.runs import Run, find_run


def verify(
    artifacts: Sequence[Artifact | str | Path] | None = None,
    *,
    run: Run | str | Path | None = None,
    against: Artifact | str | Path | None = None,
    images: int | None = None,
    bisect: bool = False,
    max_error: float | None = None,
    min_cosine: float | None = None,
    min_agreement: float | None = None,
    max_accuracy_drop: float | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    progress: Progress = SILENT,
) -> VerifyReport:
    """Compares finished artifacts with the checkpoint of the run that they were made from, or with another artifact.

    Args:
        artifacts: by default all in the run's export folder.
        run: by default the one that the first artifact lies in, or the newest in ``./runs`` where no artifacts are named.
        against: another artifact to compare with instead of the run's checkpoint.
        images: how many test images; by default what :func:`growtas.export.verification.images.images_for` says.
        bisect: compare intermediate outputs too, and name the first layer that differs.
        max_error: largest relative error of the logits that passes; by default the precision's, as are the next three.
        min_cosine: least cosine of an image's logits with the reference's.
        min_agreement: least share of images with the same first class, 0 to 1.
        max_accuracy_drop: most percentage points of accuracy that may be lost.
        data, data_dir: other data than the run's, as ``growtas train`` names it.

    Returns:
        The results, one an artifact; ``error`` says what failed. Artifacts that fail raise nothing.

    Raises:
        CheckpointError: an artifact is absent or has no manifest; a checkpoint or manifest is unreadable.
        ConfigError: a threshold or number of images out of range.
        DataError: the data that was named can't be used.
        UsageError: no artifacts, or neither a run nor another artifact to compare with.
    """
    paths = [_path(artifact) for artifact in artifacts or ()]
    found = _find_run(run, paths, progress)
    verifier = Verifier(
        run=found,
        against=None if against is None else _path(against),
        images=images,
        bisect=bisect,
        data=data,
        data_dir=data_dir,
        overrides={
            "max_error": max_error,
            "min_cosine": min_cosine,
            "min_agreement": min_agreement,
            "max_accuracy_drop": max_accuracy_drop,
        },
    )
    if found is not None and not paths:
        folder = found.path / "export"
        paths = artifact_files(folder)
        if not paths:
            raise UsageError(f"{folder}: no artifacts to verify; make some with `growtas export {found.path}`, or name files")
    return verifier.verify(paths, progress=progress)


def _path(artifact: Artifact | str | Path) -> Path:
    return artifact.path if isinstance(artifact, Artifact) else Path(artifact)


def _find_run(run: Run | str | Path | None, paths: Sequence[Path], progress: Progress) -> Run | None:
    if isinstance(run, Run):
        return run
    if run is not None:
        return find_run(run)
    if not paths:
        newest = find_run(None)
        progress.note(f"run: {newest.path} (the newest)")
        return newest
    folder = paths[0].resolve().parent.parent
    if (folder / "run.json").is_file():
        return Run(paths[0].parent.parent if paths[0].parent.name else folder)
    return None
