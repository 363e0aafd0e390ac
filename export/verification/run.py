"""Finished artifacts, verified again: against the checkpoint of the run that their manifests name, or against another artifact."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from growtas.errors import BuildError, CheckpointError, DeviceError, GrowtasError, MissingExtra, ParityError, UsageError
from growtas.export.artifact import Manifest, manifest_path, read_manifest
from growtas.export.graph.tensors import HalfRange, check_half_range
from growtas.export.runtimes.base import Array
from growtas.export.runtimes.open import open_session
from growtas.export.verification.agreement import Thresholds, Verification, measure_artifact, thresholds_for
from growtas.export.verification.batches import one_thread
from growtas.export.verification.bisect import Bisection, bisect_artifact, bisect_onnx
from growtas.export.verification.images import sample_photographs
from growtas.export.verification.inputs import Feed, feed_of
from growtas.export.verification.labelled_images import LabelledImages, images_for, labelled_images, spread
from growtas.export.verification.reference import Reference, References, check_hash, runtime_of
from growtas.runs import Run

_RANGE_IMAGES, _BISECT_IMAGES, _REFERENCE_IMAGES = 16, 8, 8
_BATCHES = (1, 3, 8)


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """What to verify with.

    Attributes:
        run: where checkpoint and images come from; needed unless ``against`` is given.
        against: another artifact that is the reference.
        images: how many; by default what :func:`growtas.export.verification.labelled_images.images_for` says.
        bisect: look for the first layer that differs as well.
        data, data_dir: other data than the run's.
        overrides: thresholds to replace, as :meth:`growtas.export.verification.thresholds.Thresholds.override` names them.
    """

    run: Run | None = None
    against: Path | None = None
    images: int | None = None
    bisect: bool = False
    data: str | None = None
    data_dir: str | None = None
    overrides: Mapping[str, float | None] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What came of one artifact.

    Attributes:
        path, precision: the artifact.
        problem: why it failed, one sentence; None where it passed or was not run.
        not_run_because: why it can't be run on this machine.
        verification, half_range, bisection: what was measured, as far as it came.
        no_bisection_because: why ``bisect`` was in vain.
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
        """None where it was not run and nothing else was wrong."""
        return False if self.problem else (None if self.not_run_because else True)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
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


def verify_finished(
    paths: Sequence[Path], options: VerifyOptions, *, stage: Callable[[str], None] = lambda text: None
) -> list[Finding]:
    """Verify artifacts, each on its own: one that fails does not keep the others from being looked at.

    Args:
        stage: told what is being done.

    Raises:
        CheckpointError: an artifact is absent or, without ``against``, has no manifest; a checkpoint or manifest is unreadable.
        ConfigError: a threshold or number of images out of range; an unknown precision.
        DataError: the data that was named can't be used.
        UsageError: there is neither a run nor another artifact to compare with, or no images can be had.
    """
    if options.run is None and options.against is None:
        raise UsageError(
            f"{paths[0]}: it lies in no run's export folder; name its run with --run, or another artifact with --against"
        )
    work = _Work(options)
    manifests = [work.manifest(path) for path in paths]
    findings = []
    for path, manifest in zip(paths, manifests, strict=True):
        stage(f"verifying {path.name}")
        findings.append(work.verify(path, manifest))
    return findings


class _Work:
    """The artifacts of one call: what they share is loaded once."""

    def __init__(self, options: VerifyOptions) -> None:
        self.options = options
        self.images = cache(self._images)
        self.references = References(options.run, options.against)

    def manifest(self, path: Path) -> Manifest | None:
        found = read_manifest(path, verify=False)
        if found is None and self.options.against is None:
            raise CheckpointError(
                f"{path}: no manifest beside it, which says what it was made from; name a reference with --against"
            )
        if found is None or self.options.against is not None:
            return found
        if found.subnet is None or not isinstance(found.to_dict().get("source"), dict):
            raise CheckpointError(f"{manifest_path(path)}: it names no source and no subnet; export the artifact again")
        return found

    def thresholds(self, precision: str) -> Thresholds:
        return thresholds_for(precision).override(**self.options.overrides)

    def verify(self, path: Path, manifest: Manifest | None) -> Finding:
        known = manifest or Manifest()
        precision = known.precision or "fp32"
        finding = Finding(path=path, precision=precision)
        thresholds = self.thresholds(precision)
        count = self.options.images
        if count is None:
            count = images_for(known.macs or 0, precision)
        run = self.options.run
        preprocess = run.info["preprocess"] if run else known.preprocess
        if preprocess is None:
            raise UsageError(f"{path}: nothing says how its images are preprocessed; name the run with --run")
        try:
            check_hash(path, manifest)
            feed = feed_of(path, manifest, preprocess)
            reference = self.references.of(path, manifest, preprocess, lambda: self.images(_REFERENCE_IMAGES, None).images)
        except ParityError as error:
            return dataclasses.replace(finding, problem=str(error))
        images = feed.snap(self.images(count, None if run else _key(preprocess)))
        try:
            finding = self._measure(finding, manifest, feed, images, thresholds, reference)
        except (DeviceError, MissingExtra) as error:
            return dataclasses.replace(finding, not_run_because=str(error))
        except CheckpointError as error:
            # Types that a runtime has no kernels for are no fault of the file.
            if "find an implementation" in str(error):
                return dataclasses.replace(finding, not_run_because=str(error))
            return dataclasses.replace(finding, problem=str(error))
        if self.options.bisect:
            finding = self._bisect(finding, feed, spread(images.images, _BISECT_IMAGES), reference)
        return finding

    def _measure(
        self,
        finding: Finding,
        manifest: Manifest | None,
        feed: Feed,
        images: LabelledImages,
        thresholds: Thresholds,
        reference: Reference,
    ) -> Finding:
        path = finding.path
        with one_thread(), open_session(path, threads=1, runtime=runtime_of(path, manifest)) as session:
            runtime = session.info.runtime

            def artifact(batch: Array) -> Array:
                try:
                    return session.run(feed.images(batch))
                except Exception as error:  # runtimes' exceptions share no base class
                    raise CheckpointError(f"{path}: {runtime} can't run it ({' '.join(str(error).split())[:160]})") from None

            verification = measure_artifact(
                artifact,
                reference.logits,
                images,
                precision=finding.precision,
                thresholds=thresholds,
                subject=f"{path.name} in {runtime}",
                batches=(manifest and manifest.input and manifest.input.batch.checked) or _BATCHES,
                class_names=manifest.class_names if manifest else None,
                reference_is=reference.name,
            )
        finding = dataclasses.replace(finding, verification=verification, problem=verification.summary or None)
        if path.suffix == ".onnx" and finding.precision != "fp32":
            try:
                found = check_half_range(path, feed.images(spread(images.images, _RANGE_IMAGES)), subject=path.name)
                finding = dataclasses.replace(finding, half_range=found)
            except ParityError as error:
                finding = dataclasses.replace(finding, problem=str(error))
        return finding

    def _bisect(self, finding: Finding, feed: Feed, images: Array, reference: Reference) -> Finding:
        path, against, precision = finding.path, self.options.against, finding.precision
        try:
            if reference.model is not None:
                found = bisect_artifact(path, reference.model, images, precision=precision, feed=feed.images)
            elif against is not None and against.suffix == path.suffix == ".onnx":
                theirs = reference.feed.images
                found = bisect_onnx(path, against, images, precision=precision, feed=feed.images, other_feed=theirs)
            else:
                raise UsageError("layers can be compared with a static ViT's, and an ONNX file's with another ONNX file's")
        except (BuildError, CheckpointError, UsageError) as error:
            return dataclasses.replace(finding, no_bisection_because=str(error))
        return dataclasses.replace(finding, bisection=found)

    def _images(self, count: int, preprocess: tuple[tuple[str, Any], ...] | None) -> LabelledImages:
        options = self.options
        if options.run is not None:
            return labelled_images(options.run, count, data=options.data, data_dir=options.data_dir)
        return LabelledImages(
            images=sample_photographs(count, dict(preprocess or ())),
            labels=None,
            class_names=None,
            description=f"{count} crops of scikit-learn's sample photographs",
            unlabelled_because="no run was named",
        )


def _key(preprocess: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in preprocess.items())


def worst_of(findings: Sequence[Finding]) -> GrowtasError | None:
    """The error to end with: a ParityError where an artifact failed, a DeviceError where none could be run, None otherwise."""
    failed = [finding for finding in findings if finding.problem]
    if failed:
        first = failed[0].problem
        return ParityError(first if len(failed) == 1 else f"{len(failed)} of {len(findings)} artifacts failed; {first}")
    if all(finding.not_run_because for finding in findings):
        return DeviceError(f"nothing was verified: {findings[0].path.name} can't be run here: {findings[0].not_run_because}")
    return None
