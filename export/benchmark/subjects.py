"""The subjects of a benchmark: an artifact or a timm model, in one runtime."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from growtas.errors import UsageError, choices
from growtas.export.artifact import Manifest
from growtas.export.benchmark.baselines import TIMM, check_name, is_model
from growtas.export.formats import PLAN, SUFFIXES, format_of

RUNTIMES = ("eager", "compile", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")
# For runtimes that need a graph, the timm model is exported.
_TIMM_RUNTIMES = ("onnxruntime", "eager", "compile", "openvino", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One artifact, or timm model, in one runtime.

    Attributes:
        name: the name that the user gave: a path, or ``timm:NAME``.
        runtime: one of :data:`RUNTIMES`.
        label: name of the subject, unique in the benchmark.
        path: the file to load; None for a timm model in PyTorch, or before its graph is exported.
        manifest: the artifact's verified manifest; None where there is none.
    """

    name: str
    runtime: str
    label: str
    path: Path | None = None
    manifest: Manifest | None = None

    @property
    def timm(self) -> str | None:
        """The timm model's name; None for an artifact."""
        return self.name.removeprefix(TIMM) if self.name.startswith(TIMM) else None


def normalise(name: str | Path) -> str:
    """Checks a user's name of a subject, and returns it as :class:`Subject` stores it.

    Raises:
        UsageError: the name is neither an artifact nor ``timm:NAME``, or timm has no such model.
    """
    text = str(name)
    if text.startswith(TIMM):
        return TIMM + check_name(text.removeprefix(TIMM))
    if Path(text).suffix not in SUFFIXES:
        hint = f"; for the timm model of that name, write {TIMM}{text}" if is_model(text) else ""
        raise UsageError(f"{text}: not an artifact; legal are files that end in {choices(SUFFIXES)}, and {TIMM}NAME{hint}")
    return text


def name_baseline(baseline: str, names: Sequence[str]) -> str | None:
    """Returns the artifact or timm model that a baseline adds to the named ones; None if the baseline is one of those.

    A baseline can be a name, a label or a runtime.

    Raises:
        UsageError: timm has no model of this name.
    """
    if baseline in RUNTIMES or any(_means(baseline, name) for name in names) or " in " in baseline:
        return None
    if Path(baseline).suffix in SUFFIXES or baseline.startswith(TIMM):
        return normalise(baseline)
    return TIMM + check_name(baseline, "--baseline")


def _means(text: str, name: str) -> bool:
    """Whether a text names an artifact: by its path, by its file name, or by the timm model's name without the prefix."""
    if name.startswith(TIMM):
        return text in (name, name.removeprefix(TIMM))
    return text in (name, Path(name).name) or os.path.realpath(text) == os.path.realpath(name)


def default_runtime(name: str, manifest: Manifest | None) -> str:
    """Returns the default runtime of an artifact: for a plan that of its manifest, otherwise that of its format."""
    recorded, runtimes = manifest and manifest.plan and manifest.plan.runtime, _runtimes_of(name)
    return recorded if recorded in runtimes else runtimes[0]


def _runtimes_of(name: str) -> tuple[str, ...]:
    return _TIMM_RUNTIMES if name.startswith(TIMM) else format_of(name).runtimes


def subjects_of(names: Sequence[str], manifests: Mapping[str, Manifest | None], runtimes: Sequence[str]) -> list[Subject]:
    """Returns every artifact in every requested runtime that can run it, in order; without a request, in its default runtime.

    Args:
        names: names from :func:`normalise`.
        manifests: the manifests by name.
        runtimes: the requested runtimes.

    Raises:
        UsageError: a runtime is unknown, none of the runtimes can run an artifact, or a runtime can run none of the artifacts.
    """
    unknown = next((runtime for runtime in runtimes if runtime not in RUNTIMES), None)
    if unknown is not None:
        raise UsageError(f"--runtime is {unknown!r}; legal are {choices(RUNTIMES)}")
    pairs: list[tuple[str, str]] = []
    for name in names:
        default = default_runtime(name, manifests.get(name))
        if not runtimes:
            pairs.append((name, default))
            continue
        # A plan was compiled for TensorRT or TensorRT-RTX; for a plan, `tensorrt` means either.
        is_plan = Path(name).suffix == PLAN.suffix
        legal = (default,) if is_plan else _runtimes_of(name)
        requested = [default if runtime == "tensorrt" and is_plan else runtime for runtime in runtimes]
        chosen = [runtime for runtime in dict.fromkeys(requested) if runtime in legal]
        if not chosen:
            raise UsageError(f"{name}: it runs in {choices(legal)}, and --runtime asks for {choices(runtimes)}")
        pairs += [(name, runtime) for runtime in chosen]
    for runtime in runtimes:
        if not any(used == runtime or (runtime == "tensorrt" and used == "tensorrt-rtx") for _, used in pairs):
            raise UsageError(f"--runtime {runtime}: none of the artifacts runs in it ({', '.join(map(str, names))})")
    # A label is the file name, or the path if several artifacts have the same file name; with the runtime if there are several.
    shorts = {name: name if name.startswith(TIMM) else Path(name).name for name in names}
    clashes, times = Counter(shorts.values()), Counter(name for name, _ in pairs)
    subjects = []
    for name, runtime in pairs:
        label = shorts[name] if clashes[shorts[name]] == 1 else name
        label = f"{label} in {runtime}" if times[name] > 1 else label
        path = None if name.startswith(TIMM) else Path(name)
        subjects.append(Subject(name=name, runtime=runtime, label=label, path=path, manifest=manifests.get(name)))
    return subjects


def find_baseline(baseline: str, subjects: Sequence[Subject]) -> Subject:
    """Returns the baseline: the first subject with this label, artifact name or runtime.

    Raises:
        UsageError: no subject matches.
    """
    tests = (
        lambda subject: subject.label == baseline,
        lambda subject: _means(baseline, subject.name),
        lambda subject: subject.runtime == baseline,
    )
    for test in tests:
        for subject in filter(test, subjects):
            return subject
    raise UsageError(f"--baseline is {baseline!r}; legal are {choices(subject.label for subject in subjects)}, and any timm model")
