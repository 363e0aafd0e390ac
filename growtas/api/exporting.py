"""``export``: exports a subnet as verified artifacts."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from growtas.api.search_precision import compare_with_fp32
from growtas.errors import ConfigError, DeviceError
from growtas.export.artifact import Artifact
from growtas.export.benchmark.limits import judge_limits
from growtas.export.benchmark.precision_gain import measured_gains
from growtas.export.formats import ONNX, PLAN, file_stem
from growtas.export.pipeline.model_card import CARD, same_network, write_card
from growtas.export.pipeline.options import ExportOptions
from growtas.export.pipeline.run import export_subnet
from growtas.export.pipeline.source import find_source
from growtas.export.pipeline.staging import removed_on_error
from growtas.export.pipeline.triton import check_triton, write_triton
from growtas.export.tensorrt.builder import choose_builder
from growtas.latency.catalogue import latency_estimator
from growtas.progress import SILENT, Progress
from growtas.runs import Run, find_run
from growtas.search.targets import Target
from growtas.subnet import Subnet


class ExportSettings(TypedDict, total=False):
    """Keyword options of :func:`export`; :class:`growtas.export.pipeline.options.ExportOptions` describes them."""

    formats: Sequence[str]
    precision: str | None
    keep: str
    calibration_images: int
    calibration_method: str
    target: str | None
    device: str | None
    max_batch: int
    opt_batch: int
    name: str | None
    out: str | Path | None
    opset: int
    ir_version: int | None
    tolerance: float
    images: int | None
    max_error: float | None
    min_cosine: float | None
    min_agreement: float | None
    max_accuracy_drop: float | None
    data: str | None
    data_dir: str | Path | None
    preprocess: bool
    resize: bool
    softmax: bool
    top_k: int | None


class ExportedArtifacts(list[Artifact]):
    """The artifacts of one export; each comes after the artifact that it was made from.

    Attributes:
        run: the run that was exported.
        card: the model card in the artifacts' folder; None if the folder has a README.md that growtas did not write.
        limits: for each artifact the search's latency limits, judged by
            :func:`growtas.export.benchmark.limits.judge_limits`.
        served: the artifact that was written to the Triton repository; None without a repository.
        triton: the model's folder in the Triton repository; None without a repository.
        gains: latency in the precision beside latency in fp32; see
            :func:`growtas.export.benchmark.precision_gain.measured_gains`.
    """

    def __init__(
        self,
        artifacts: Sequence[Artifact],
        *,
        run: Run,
        card: Path | None,
        limits: Sequence[Sequence[Mapping[str, Any]]],
        served: Artifact | None,
        triton: Path | None,
        gains: Sequence[dict[str, Any]],
    ) -> None:
        super().__init__(artifacts)
        self.run, self.card, self.limits, self.served, self.triton = run, card, limits, served, triton
        self.gains = tuple(gains)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "run": str(self.run.path),
            "artifacts": [
                {"path": str(artifact.path), **artifact.manifest.to_dict(), "limits": list(limits)}
                for artifact, limits in zip(self, self.limits, strict=True)
            ],
            "card": None if self.card is None else str(self.card),
            "triton": None if self.triton is None else str(self.triton),
            "compared_with_fp32": list(self.gains),
        }


def export(
    run: Run | str | Path | None = None,
    subnet: Subnet | str | Path | None = None,
    *,
    triton: str | Path | None = None,
    instances: int = 1,
    max_delay_us: int = 500,
    licence: str | None = None,
    progress: Progress = SILENT,
    **settings: Unpack[ExportSettings],
) -> ExportedArtifacts:
    """Extracts a subnet from a run's supernet and exports it: verified files with manifests, a model card, and a Triton model.

    Args:
        run: a run or its folder; by default the newest in ``./runs``.
        subnet: a subnet of the run's space, its file, or ``smallest`` or ``largest``; by default the subnet that ``search`` chose.
        triton: Triton model repository that the model is written to.
        instances: number of copies of the model that Triton runs.
        max_delay_us: microseconds that a request in Triton waits for others to share its batch.
        licence: licence of the weights and the data, for the model card.
        progress: receives stages and notes.
        settings: formats, precision and thresholds; see :class:`ExportSettings`.

    Raises:
        ParityError: An artifact is out of tolerance; no file is left behind.
        BuildError: An exporter or compiler failed; no file is left behind.
        CheckpointError, ConfigError, DataError, DeviceError, MissingExtra, OutputError, SubnetError: The input is wrong.
    """
    if not isinstance(run, Run):
        newest = run is None
        run = find_run(run)
        if newest:
            progress.note(f"run: {run.path} (the newest)")
    options = ExportOptions(subnet=Path(subnet) if isinstance(subnet, str) else subnet, **settings)
    if triton is None and (instances, max_delay_us) != (1, 500):
        raise ConfigError("--instances and --max-delay-us need a Triton repository; name one with --triton")
    if triton is not None:
        _check_triton(run, options, instances=instances, max_delay_us=max_delay_us)
    served = model = None
    with removed_on_error(Path(triton)) if triton is not None else contextlib.nullcontext():
        artifacts = export_subnet(run, options, progress=progress)
        if triton is not None:
            # Triton can load a TensorRT plan. Without one, the last ONNX file has all requested options.
            plans = [artifact for artifact in artifacts if artifact.manifest.plan and artifact.manifest.plan.runtime == "tensorrt"]
            served = [*(artifact for artifact in artifacts if artifact.format is ONNX), *plans][-1]
            progress.stage(f"writing {served.path.name} to the Triton repository")
            model = write_triton(triton, served, instances=instances, max_delay_us=max_delay_us)
    folder, manifests = artifacts[0].path.parent, [artifact.manifest for artifact in artifacts]
    card = write_card(folder, [*manifests, *same_network(folder, manifests)], licence=licence)
    if card is None:
        progress.note(f"{folder / CARD} was not written by growtas, so it was kept and no model card was written")
    progress.stage("checking the search's latency limits")
    limits = [judge_limits(artifact) for artifact in artifacts]
    if options.precision not in (None, "fp32"):
        progress.stage(f"timing fp32 and {options.precision}")
    gains = measured_gains(artifacts) or _predicted_gains(run, options, artifacts)
    for gain in gains:
        if gain["no_faster"]:
            progress.note(gain["no_faster"])
    return ExportedArtifacts(artifacts, run=run, card=card, limits=limits, served=served, triton=model, gains=gains)


def _predicted_gains(run: Run, options: ExportOptions, artifacts: Sequence[Artifact]) -> list[dict[str, Any]]:
    """Predicts the gain of a plan's precision over fp32 on its device, with one latency model for both."""
    plan = next((artifact for artifact in artifacts if artifact.format is PLAN), None)
    device = options.device or ((plan.manifest.search or {}).get("device") if plan is not None else None)
    if plan is None or device is None or options.target or plan.manifest.precision in (None, "fp32"):
        return []
    subnet, precision = Subnet.from_dict(plan.manifest.subnet or {}), str(plan.manifest.precision)
    try:
        models = [latency_estimator(device, run.space, batch=options.opt_batch, precision=p) for p in (precision, "fp32")]
    except (ConfigError, DeviceError):
        return []
    target, fp32 = (Target(device=device, estimator=model) for model in models)
    gain = compare_with_fp32(precision, target, fp32, subnet)
    return [] if gain is None else [{"file": plan.path.name, **gain}]


def _check_triton(run: Run, options: ExportOptions, *, instances: int, max_delay_us: int) -> None:
    """Raises before any work if the Triton model could not be written after it."""
    if ONNX not in options.made_formats:
        raise ConfigError("--triton needs an ONNX file or a TensorRT plan; add --format onnx")
    runtime = None
    if options.precision == "bf16" and PLAN in options.made_formats:
        searched = (find_source(run, options.subnet).search or {}).get("device")
        builder, _ = choose_builder(target=options.target, device=options.device, searched_device=searched, precision="bf16")
        runtime = builder.name
    name = options.name or file_stem(run.space.name)
    check_triton(name=name, instances=instances, max_delay_us=max_delay_us, precision=options.precision, plan_runtime=runtime)
