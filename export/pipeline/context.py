"""The state of one export: its inputs, the artifacts made so far, and the check that every artifact must pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from growtas.costs import count_costs
from growtas.errors import ParityError
from growtas.export.artifact import Artifact, Manifest, write_manifest
from growtas.export.formats import file_stem
from growtas.export.graph.exporter import INPUT, OUTPUT
from growtas.export.pipeline.options import ExportOptions
from growtas.export.pipeline.source import Source
from growtas.export.runtimes.base import Array
from growtas.export.tensorrt.builder import PlanBuilder
from growtas.export.verification.agreement import measure_artifact
from growtas.export.verification.batches import Logits
from growtas.export.verification.images import VerificationImages
from growtas.export.verification.inputs import ArtifactInput, artifact_input
from growtas.export.verification.parity import ParityReport, gate_batches, run_gate
from growtas.export.verification.reference import STATIC
from growtas.nn.architecture import Architecture
from growtas.nn.supernet import Supernet
from growtas.nn.vit import VisionTransformer
from growtas.progress import Progress


@dataclass(kw_only=True)
class ExportContext:
    """The inputs and the results of an export.

    Attributes:
        precision: precision of the ONNX file and of the formats that are made from it.
        plan: the plan's builder and its compute capabilities; None where no plan is made.
        folder: temporary folder in which files are made.
        out: folder into which they are moved at the end.
        parity_images: images for the strict fp32 comparison.
        labelled_images: returns the images for verifying a precision; coarse precisions need more images.
        artifacts: artifacts made so far.
        side_files: files made so far that have no manifest.
        references: functions that artifacts are compared with, by name.
        model: the static ViT, set when it is saved.
        onnx: the ONNX file in ``precision``, set when it is made.
        complete_onnx: the same with pre- and post-processing in the graph.
    """

    source: Source
    options: ExportOptions
    precision: str
    plan: tuple[PlanBuilder, tuple[str, ...]] | None
    folder: Path
    out: Path
    parity_images: VerificationImages
    labelled_images: Callable[[str], VerificationImages]
    supernet: Supernet
    progress: Progress
    artifacts: list[Artifact] = field(default_factory=list)
    side_files: list[Path] = field(default_factory=list)
    references: dict[str, Logits] = field(default_factory=dict)
    model: VisionTransformer = field(init=False)
    onnx: Artifact = field(init=False)
    complete_onnx: Artifact = field(init=False)

    @property
    def name(self) -> str:
        """The name of the files, without suffix."""
        return self.options.name or file_stem(self.source.run.space.name)

    @property
    def preprocess(self) -> Any:
        """The run's preprocessing record; None in a run without one."""
        return self.source.run.info.get("preprocess")

    @property
    def class_names(self) -> Any:
        """One name per class; None in a run without names."""
        return self.source.run.info.get("class_names")

    def input_of(self, content: Mapping[str, Any]) -> ArtifactInput:
        """The input of an artifact, from the content of its manifest."""
        described = {"preprocess": self.preprocess, "input": content.get("input")}
        return artifact_input(self.folder, Manifest.from_dict(described), self.preprocess)

    def check_parity(self, logits: Logits, subject: str, images: VerificationImages) -> ParityReport:
        """Compares an fp32 artifact with all references by :func:`growtas.export.verification.parity.run_gate`."""
        options = self.options
        return run_gate(logits, self.references, images, subject=subject, max_batch=options.max_batch, tolerance=options.tolerance)

    def check(
        self,
        run: Callable[[Any], Array],
        path: Path,
        runtime: str,
        *,
        precision: str = "fp32",
        against: str = STATIC,
        content: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Runs an artifact on real images and compares its logits with the references.

        An fp32 artifact is compared strictly with all references; every artifact is measured on the labelled images.

        Args:
            run: computes the logits of the artifact's input.
            runtime: name of the runtime in messages.
            against: name of the reference on the labelled images.
            content: the part of the future manifest that describes the input; by default the input is the run's images.

        Returns:
            ``parity`` (None except in fp32) and ``verification``, for the manifest.

        Raises:
            ParityError: the artifact misses a tolerance.
        """
        converter, subject = self.input_of(content or {}), f"{path.name} in {runtime}"
        logits, parity = converter.logits(run), None
        if precision == "fp32":
            parity = self.check_parity(logits, subject, converter.round_to_pixels(self.parity_images)).to_dict()
        verification = measure_artifact(
            logits,
            self.references[against],
            converter.round_to_pixels(self.labelled_images(precision)),
            precision=precision,
            thresholds=self.options.thresholds(precision),
            subject=subject,
            batches=gate_batches(self.options.max_batch)[::-1],
            class_names=self.class_names,
            reference_is=against,
        )
        if not verification.passed:
            raise ParityError(f"{verification.summary}; nothing was exported")
        return {"parity": parity, "verification": verification.to_dict()}

    def add(self, path: Path, content: Mapping[str, Any], *, precision: str = "fp32") -> Artifact:
        """Writes an artifact's manifest and adds the artifact to :attr:`artifacts`."""
        source, space = self.source, self.supernet.space
        costs = count_costs(space, source.subnet)
        shape = ["batch", space.in_chans, space.image_size, space.image_size]
        batch = {"min": 1, "max": self.options.max_batch, "checked": list(gate_batches(self.options.max_batch))}
        common = {
            "precision": precision,
            "space": space.name,
            "subnet": source.subnet.to_dict(),
            "architecture": Architecture.of(space, source.subnet).to_dict(),
            "params": costs.params,
            "macs": costs.macs,
            "output": {"name": OUTPUT, "dtype": "float32", "shape": ["batch", space.num_classes]},
            "preprocess": self.preprocess,
            "class_names": self.class_names,
            "source": {
                "run": source.run.path.resolve().name,
                "checkpoint": source.checkpoint.relative_to(source.run.path).as_posix(),
                "checkpoint_sha256": source.checkpoint_sha256,
                "subnet_file": source.subnet_file and source.subnet_file.name,
            },
            "search": source.search,
        }
        entry = {"name": INPUT, "dtype": "float32", "shape": shape, **(content.get("input") or {}), "batch": batch}
        artifact = write_manifest(path, {**common, **content, "input": entry})
        self.artifacts.append(artifact)
        return artifact
