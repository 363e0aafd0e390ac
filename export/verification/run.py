"""Verifies finished artifacts again, against the checkpoint of the run that they were made from, or against another artifact."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.errors import BuildError, CheckpointError, DeviceError, GrowtasError, MissingExtra, ParityError, UsageError, choices
from growtas.export.artifact import Artifact, Manifest, manifest_path, read_manifest
from growtas.export.formats import ONNX, artifacts_in
from growtas.export.graph.contents import own_description
from growtas.export.graph.tensors import HalfRange
from growtas.export.open import open_artifact
from growtas.export.quantization.thresholds import Thresholds, thresholds_for
from growtas.export.runtimes.base import Array
from growtas.export.signature import check_preprocess
from growtas.export.verification.agreement import Verification, check_fp16_range, measure_artifact
from growtas.export.verification.batches import one_thread
from growtas.export.verification.bisect import Bisection, bisect_artifact, bisect_onnx
from growtas.export.verification.images import VerificationImages, check_count, images_for, photographs, run_images, spread
from growtas.export.verification.inputs import ArtifactInput, artifact_input
from growtas.export.verification.reference import (
    Reference,
    artifact_reference,
    check_checkpoint,
    check_unchanged,
    static_vit_reference,
)
from growtas.progress import SILENT, Progress
from growtas.runs import Run, find_run, run_of
from growtas.subnet import Subnet

_BISECT_IMAGES, _REFERENCE_IMAGES = 8, 8
_BATCHES = (1, 3, 8)


@dataclass(frozen=True, kw_only=True)
class ArtifactVerification:
    """The result of verifying one artifact.

    Attributes:
        path: the artifact.
        precision: precision of the artifact.
        problem: one sentence on why it failed; None if it passed or was not run.
        not_run_because: the reason why it can't run on this machine; None if it was run.
        verification: measurements on the images; None if they were not reached.
        half_range: largest values of fp16 tensors; None in fp32, for other formats than ONNX, or if it was not reached.
        bisection: the layers' errors; None unless ``bisect`` was requested.
        no_bisection_because: the reason why the requested ``bisect`` was not possible.
    """

    path: Path
    precision: str
    problem: str | None = None
    not_run_because: str | None = None
    verification: Verification | None = None
    half_range: HalfRange | None = None
    bisection: Bisection | None = None
    no_bisection_because: str | None = None

    @property
    def passed(self) -> bool | None:
        """Whether the artifact passed; None if it was not run and no problem was found without running it."""
        return False if self.problem else (None if self.not_run_because else True)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "path": str(self.path),
            "precision": self.precision,
            "passed": self.passed,
            "problem": self.problem,
            "not_run_because": self.not_run_because,
            "verification": self.verification and self.verification.to_dict(),
            "half_range": self.half_range and self.half_range.to_dict(),
            "bisection": self.bisection and self.bisection.to_dict(),
            "no_bisection_because": self.no_bisection_because,
        }


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """The results of verifying artifacts.

    Attributes:
        run: the run that they were compared with; None without one.
        against: the artifact that they were compared with; None where it was the run's checkpoint.
        artifacts: one result per artifact.
    """

    run: Run | None
    against: Path | None
    artifacts: tuple[ArtifactVerification, ...]

    @property
    def error(self) -> GrowtasError | None:
        """A ParityError if an artifact failed, a DeviceError if no artifact could be run, None otherwise."""
        problems = [result.problem for result in self.artifacts if result.problem]
        if problems:
            several = f"{len(problems)} of {len(self.artifacts)} artifacts failed; " if len(problems) > 1 else ""
            return ParityError(f"{several}{problems[0]}")
        first = self.artifacts[0]
        if all(result.not_run_because for result in self.artifacts):
            return DeviceError(f"nothing was verified: {first.path.name} can't be run here: {first.not_run_because}")
        return None

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "run": str(self.run.path) if self.run else None,
            "against": str(self.against) if self.against else None,
            "passed": self.error is None,
            "artifacts": [result.to_dict() for result in self.artifacts],
        }


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
        artifacts: files, folders with artifacts, or run folders (for their export folder); by default those of the run.
        run: the run to compare with; by default the one that contains the artifacts, or the newest in ``./runs`` without artifacts.
        against: another artifact to compare with, instead of the run's checkpoint.
        images: number of test images; by default that of :func:`growtas.export.verification.images.images_for`.
        bisect: also compare intermediate outputs, and name the first layer that differs.
        max_error: largest relative error of the logits that passes; by default, as for the next three, that of the precision.
        min_cosine: least cosine of an image's logits with the reference's.
        min_agreement: least share of images with the same predicted class, 0 to 1.
        max_accuracy_drop: largest loss of accuracy in percentage points.
        data, data_dir: data to use instead of the run's, named as for ``growtas train``.

    Returns:
        One result per artifact. A failed artifact raises nothing; ``error`` of the report says what failed.

    Raises:
        CheckpointError: an artifact is absent or, without ``against``, has no manifest; a checkpoint or manifest is unreadable.
        ConfigError: a threshold or the number of images is out of range.
        DataError: the named data can't be used.
        UsageError: there are no artifacts, there is neither a run nor another artifact to compare with, or there are no images.
    """
    paths = [file for artifact in artifacts or () for file in artifacts_in(artifact)]
    for path in paths:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such artifact")
    source_run = _find_run(run, paths, progress)
    check_count(images)
    if not paths and source_run is not None:
        paths = artifacts_in(source_run.path)
    if source_run is None and against is None:
        raise UsageError(
            f"{paths[0]}: it is not in a run's export folder; name its run with --run, or another artifact with --against"
        )
    if source_run is None and (data is not None or data_dir is not None):
        raise UsageError("--data and --data-dir replace a run's images, but there is no run here; name it with --run")
    verifier = _Verifier(
        run=source_run,
        against=None if against is None else Path(against),
        count=images,
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
    manifests = [verifier.read_manifest(path) for path in paths]
    results = []
    for path, manifest in zip(paths, manifests, strict=True):
        progress.stage(f"verifying {path.name}")
        results.append(verifier.verify(path, manifest))
    return VerifyReport(run=source_run, against=verifier.against, artifacts=tuple(results))


def _find_run(run: Run | str | Path | None, paths: Sequence[Path], progress: Progress) -> Run | None:
    if run is not None:
        return run if isinstance(run, Run) else find_run(run)
    if not paths:
        newest = find_run(None)
        progress.note(f"run: {newest.path} (the newest)")
        return newest
    runs = {folder.resolve(): folder for path in paths if (folder := run_of(path)) is not None}
    if len(runs) > 1:
        raise UsageError(f"the artifacts are in several runs, {choices(runs.values())}; verify one run at a time")
    return Run(next(iter(runs.values()))) if runs else None


@dataclass(kw_only=True)
class _Verifier:
    """Verifies artifacts one by one. Images and references that several artifacts need are loaded once."""

    run: Run | None
    against: Path | None
    count: int | None
    bisect: bool
    data: str | None
    data_dir: str | None
    overrides: Mapping[str, float | None]
    images: dict[int, VerificationImages] = dataclasses.field(default_factory=dict)
    references: dict[Path | Subnet, Reference] = dataclasses.field(default_factory=dict)

    def read_manifest(self, path: Path) -> Manifest | None:
        manifest = read_manifest(path, verify=False)
        if self.against is not None:
            return manifest or own_description(path)
        if manifest is None:
            message = "there is no manifest beside it, so its source is unknown; name a reference with --against"
            raise CheckpointError(f"{path}: {message}")
        if manifest.subnet is None or not isinstance(manifest.to_dict().get("source"), dict):
            raise CheckpointError(f"{manifest_path(path)}: it lacks the source or the subnet; export the artifact again")
        return manifest

    def verify(self, path: Path, manifest: Manifest | None) -> ArtifactVerification:
        known = manifest or Manifest()
        precision = known.precision or "fp32"
        result = ArtifactVerification(path=path, precision=precision)
        thresholds = thresholds_for(precision).override(**self.overrides)
        preprocess: Any = self.run.info.get("preprocess") if self.run else known.preprocess
        if self.run is not None:
            check_preprocess(preprocess, f"{self.run.path / 'run.json'}: the record of the preprocessing (preprocess)")
        elif preprocess is None:
            raise UsageError(f"{path}: the preprocessing of its images is not recorded; name the run with --run")
        try:
            check_unchanged(path, manifest)
            converter = artifact_input(path, manifest, preprocess)
            reference = self._reference(path, known, preprocess)
        except ParityError as error:
            return dataclasses.replace(result, problem=str(error))
        count = self.count or images_for(known.macs or 0, precision)
        images = converter.round_to_pixels(self._load_images(count, preprocess))
        try:
            result = self._measure(result, known, converter, images, thresholds, reference)
        except (DeviceError, MissingExtra) as error:
            return dataclasses.replace(result, not_run_because=str(error))
        except CheckpointError as error:
            # If the runtime lacks kernels for a type, the file is not at fault.
            if "find an implementation" in str(error):
                return dataclasses.replace(result, not_run_because=str(error))
            return dataclasses.replace(result, problem=str(error))
        return self._bisect(result, converter, spread(images.images, _BISECT_IMAGES), reference) if self.bisect else result

    def _load_images(self, count: int, preprocess: Mapping[str, Any]) -> VerificationImages:
        if self.run is None:
            return photographs(preprocess, count, "no run was named")
        if count not in self.images:
            self.images[count] = run_images(self.run, count, data=self.data, data_dir=self.data_dir)
        return self.images[count]

    def _reference(self, path: Path, manifest: Manifest, preprocess: Mapping[str, Any]) -> Reference:
        key: Path | Subnet
        if self.against is not None:
            key = self.against
            if key not in self.references:
                self.references[key] = artifact_reference(key, preprocess)
        else:
            assert self.run is not None
            check_checkpoint(path, manifest.source, self.run)
            key = self.run.space.validate(Subnet.from_dict(manifest.subnet or {}, source=f"{path}'s manifest"))
            if key not in self.references:
                images = self._load_images(_REFERENCE_IMAGES, preprocess).images
                self.references[key] = static_vit_reference(self.run.supernet_file, key, images)
        return self.references[key]

    def _measure(
        self,
        result: ArtifactVerification,
        manifest: Manifest,
        converter: ArtifactInput,
        images: VerificationImages,
        thresholds: Thresholds,
        reference: Reference,
    ) -> ArtifactVerification:
        path = result.path
        with one_thread(), open_artifact(Artifact(path=path, manifest=manifest), threads=1) as session:
            runtime = session.info.runtime

            def run(batch: Array) -> Array:
                try:
                    return session.run(batch)
                except Exception as error:  # runtimes' exceptions share no base class
                    raise CheckpointError(f"{path}: {runtime} can't run it ({' '.join(str(error).split())[:160]})") from None

            verification = measure_artifact(
                converter.logits(run),
                reference.logits,
                images,
                precision=result.precision,
                thresholds=thresholds,
                subject=f"{path.name} in {runtime}",
                batches=(manifest.input and manifest.input.batch.checked) or _BATCHES,
                class_names=manifest.class_names,
                reference_is=reference.name,
            )
        result = dataclasses.replace(result, verification=verification, problem=verification.summary or None)
        if path.suffix != ONNX.suffix or result.precision == "fp32":
            return result
        try:
            return dataclasses.replace(result, half_range=check_fp16_range(path, images, converter))
        except ParityError as error:
            return dataclasses.replace(result, problem=str(error))

    def _bisect(
        self, result: ArtifactVerification, converter: ArtifactInput, images: Array, reference: Reference
    ) -> ArtifactVerification:
        path, against, precision = result.path, self.against, result.precision
        try:
            if reference.model is not None:
                bisection = bisect_artifact(path, reference.model, images, precision=precision, feed=converter.convert)
            elif against is not None and against.suffix == path.suffix == ONNX.suffix:
                feeds = {"feed": converter.convert, "other_feed": reference.feed}
                bisection = bisect_onnx(path, against, images, precision=precision, **feeds)
            else:
                raise UsageError("layers can be compared with a static ViT, or between two ONNX files")
        except (BuildError, CheckpointError, UsageError) as error:
            return dataclasses.replace(result, no_bisection_because=str(error))
        return dataclasses.replace(result, bisection=bisection)
