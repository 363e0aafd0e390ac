"""Loads the subjects of a benchmark, runs each once, and collects their measurements, or the reason why there are none."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from growtas.data.cache import cache_folder
from growtas.errors import BuildError, ConfigError, DeviceError, GrowtasError, cause
from growtas.export.artifact import Artifact, Manifest, PlanRecord
from growtas.export.benchmark import baselines
from growtas.export.benchmark.inputs import ImageInput, bytes_moved, image_input
from growtas.export.benchmark.peaks import weight_bytes
from growtas.export.benchmark.power import Consumption
from growtas.export.benchmark.sessions import open_subject
from growtas.export.benchmark.subjects import Subject
from growtas.export.formats import ONNX, PLAN
from growtas.export.runtimes.base import PartsTimer, Session, TimedParts, Timer, TimerParts
from growtas.export.tensorrt import library
from growtas.files import scratch_folder
from growtas.progress import Progress


@dataclass(kw_only=True)
class BatchRuns:
    """The runs of one subject at one batch size.

    Attributes:
        timer: runs the batch once and returns milliseconds.
        parts_timer: returns host, transfer and device times; None if the session can't separate them.
        io_bytes: size of a run's inputs and outputs in bytes.
        samples: milliseconds of all runs, one list per finished round.
        parts: the separate times of some runs.
        power: energy of the runs.
    """

    timer: Timer
    parts_timer: PartsTimer | None
    io_bytes: int
    samples: list[list[float]] = field(default_factory=list)
    parts: list[TimerParts] = field(default_factory=list)
    power: Consumption = field(default_factory=Consumption)


@dataclass(kw_only=True)
class Entry:
    """One subject under measurement.

    Attributes:
        not_runnable_because: the reason why nothing is measured; None if ``session`` is open.
        failure: the error with this reason; None if it was no error, such as a plan for a GPU that this machine lacks.
        input: the images for the measurement.
        runs: the runs by batch size.
        weight_bytes: size of the weights; None without the roofline.
        memory: load time and memory; see :func:`growtas.export.benchmark.memory.probe`.
    """

    subject: Subject
    session: Session | None = None
    not_runnable_because: str | None = None
    failure: GrowtasError | None = None
    input: ImageInput | None = None
    runs: dict[int, BatchRuns] = field(default_factory=dict)
    weight_bytes: int | None = None
    memory: dict[str, Any] | None = None

    def set_aside(self, error: GrowtasError) -> None:
        """Records the reason why nothing is measured, and drops the runs so far."""
        self.not_runnable_because, self.failure, self.input = str(error), error, None
        self.runs.clear()

    @property
    def device(self) -> str:
        """The device of the loaded session."""
        assert self.session is not None
        return self.session.info.device


def with_graphs(subjects: Sequence[Subject], stack: contextlib.ExitStack, progress: Progress) -> list[Entry]:
    """Makes an entry of each subject. A timm model is exported if its runtime needs the graph, and otherwise only described.

    Args:
        stack: removes the exported files at the end, if there is no cache.
    """
    graphs: dict[str, Artifact] = {}
    entries = [Entry(subject=subject) for subject in subjects]
    for entry in entries:
        subject, timm = entry.subject, entry.subject.timm
        if timm is None:
            continue
        try:
            if subject.runtime not in ONNX.runtimes:
                manifest = Manifest.from_dict(baselines.describe(timm, baselines.create(timm)))
                entry.subject = replace(subject, manifest=manifest)
                continue
            if timm not in graphs:
                progress.stage(f"exporting {subject.name}")
                cache = cache_folder()
                folder = cache / "bench" if cache else stack.enter_context(scratch_folder())
                graphs[timm] = baselines.exported(timm, folder)
            entry.subject = replace(subject, path=graphs[timm].path, manifest=graphs[timm].manifest)
        except GrowtasError as error:
            entry.set_aside(error)
    return entries


def _check_plan(entry: Entry, batch: int) -> None:
    """Marks a plan for another GPU as not runnable, and refuses a plan that was built for smaller batches."""
    path, plan = entry.subject.path, (entry.subject.manifest or Manifest()).plan or PlanRecord()
    if path is None or path.suffix != PLAN.suffix:
        return
    # Without a manifest the plan's targets are unknown, so loading is tried.
    entry.not_runnable_because = library.why_not_here(plan.targets or (library.local_target() or "",))
    if entry.not_runnable_because is None and batch > (plan.max_batch or batch):
        raise ConfigError(f"{path}: built for batches up to {plan.max_batch}; --batch asks for {batch}")


def load(entry: Entry, stack: contextlib.ExitStack, *, batches: Sequence[int], threads: int, device: str, weights: bool) -> None:
    """Loads a subject, places its images, compiles it and runs it once. If that fails, the entry records the reason.

    Args:
        stack: closes the session at the end.
        batches, threads, device: as for :func:`growtas.export.benchmark.sessions.open_subject`.
        weights: whether to count the bytes of the weights, for the roofline.
    """
    subject = entry.subject
    try:
        _check_plan(entry, max(batches))
        if entry.not_runnable_because is None:
            # A session that fails after loading is closed at once, so that it takes no memory during the measurements.
            with contextlib.ExitStack() as opened:
                session = opened.enter_context(open_subject(subject, threads=threads, device=device, batches=batches))
                _place(entry, session, batches, weights)
                stack.enter_context(opened.pop_all())
    except GrowtasError as error:
        entry.set_aside(error)
    except (MemoryError, RuntimeError) as error:  # the only exceptions of torch, OpenVINO and CUDA
        entry.set_aside(BuildError(f"{subject.label}: {subject.runtime} can't run it ({cause(error)})"))


def _place(entry: Entry, session: Session, batches: Sequence[int], weights: bool) -> None:
    subject, manifest = entry.subject, entry.subject.manifest or Manifest()
    entry.input = image_input(subject.path, subject.manifest, session)
    classes = manifest.output.sizes[-1] if manifest.output and manifest.output.sizes else None
    for batch in batches:
        images = entry.input.images(batch)
        timer = session.timer(images)
        timer()
        parts_timer = session.timer_parts(images) if isinstance(session, TimedParts) else None
        entry.runs[batch] = BatchRuns(timer=timer, parts_timer=parts_timer, io_bytes=bytes_moved(images, classes or 0))
    if weights:
        # A timm model in PyTorch is float32.
        entry.weight_bytes = weight_bytes(subject.path) if subject.path else 4 * (manifest.params or 0)
    entry.session = session


def judge(entries: Sequence[Entry], baseline: Subject | None, added: str | None, progress: Progress) -> str | None:
    """Tells the user what can't be measured, and fails if that is everything that the user named.

    Args:
        added: name of the baseline, if the user named it only as the baseline; it is not measured alone.

    Returns:
        The reason why the baseline can't be measured; None if it can, or if there is none.

    Raises:
        GrowtasError: the first error of an entry, if nothing that the user named can be measured. A missing device is not an error:
            such an entry is reported without measurements.
    """
    missing = next((entry for entry in entries if baseline and entry.subject.label == baseline.label and not entry.session), None)
    named = [entry for entry in entries if entry.subject.name != added]
    serious = [entry.failure for entry in named if entry.failure is not None and not isinstance(entry.failure, DeviceError)]
    raised = serious[0] if serious and not any(entry.session for entry in named) else None
    for entry in entries:
        if raised is not None and entry.failure is raised:
            continue
        if entry is missing:
            progress.note(f"no ratios: the baseline {entry.subject.label} can't be measured ({entry.not_runnable_because})")
        elif entry.failure is not None:
            progress.note(f"{entry.subject.label}: not measured: {entry.failure}")
    if raised is not None:
        raise raised
    return missing.not_runnable_because if missing else None
