"""One export under way: files are made in a temporary folder, each checked as soon as it is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from growtas.checkpoint import load_model, save_model
from growtas.costs import count_costs
from growtas.export.artifact import Artifact, write_manifest
from growtas.export.formats import PLAN, PROGRAM, TORCH
from growtas.export.graph.exporter import INPUT, OUTPUT
from growtas.export.pipeline.options import ExportOptions
from growtas.export.pipeline.source import Source
from growtas.export.pipeline.standalone import load_module, module_name, write_module
from growtas.export.runtimes.base import Array, Session
from growtas.export.runtimes.open import open_session
from growtas.export.runtimes.torch import vit_session
from growtas.export.tensorrt.builder import PlanBuilder, Shapes
from growtas.export.verification.agreement import verify_artifact
from growtas.export.verification.batches import Logits, remembering
from growtas.export.verification.images import GateImages
from growtas.export.verification.labelled_images import LabelledImages
from growtas.export.verification.optimized_graph import check_optimized_graph
from growtas.export.verification.parity import ParityReport, gate_batches, run_gate
from growtas.files import replacing, sha256
from growtas.nn.architecture import Architecture
from growtas.nn.extract import extract
from growtas.nn.supernet import Supernet
from growtas.nn.vit import VisionTransformer

STATIC, SUPERNET = "static ViT", "supernet"


@dataclass(kw_only=True)
class Work:
    """What an export knows, and what it has made.

    Attributes:
        source: the subnet and the checkpoint.
        options: what was asked for.
        folder: where files are made; ``out`` is where they will lie, and ``name`` is theirs without suffix.
        images: for the strict gate of fp32.
        labelled: the images that artifacts of a precision are verified on; coarse ones need more.
        supernet: whose weights the subnet takes.
        stage: told what is being done; ``note``: what the user should know.
        made: artifacts so far; ``beside``: other files; ``references``: what artifacts are compared with.
    """

    source: Source
    options: ExportOptions
    folder: Path
    out: Path
    name: str
    images: GateImages
    labelled: Callable[[str], LabelledImages]
    supernet: Supernet
    stage: Callable[[str], None]
    note: Callable[[str], None]
    made: list[Artifact] = field(default_factory=list)
    beside: list[Path] = field(default_factory=list)
    references: dict[str, Logits] = field(default_factory=dict)

    def export_torch(self) -> VisionTransformer:
        """The static ViT as safetensors; read back, compared with the supernet, and returned for what is exported further."""
        self.stage("extracting the subnet")
        path = self.folder / f"{self.name}{TORCH.suffix}"
        save_model(path, extract(self.supernet, self.source.subnet))
        self.references = {SUPERNET: remembering(self._supernet)}
        model = load_model(path)
        static = remembering(vit_session(model, threads=1).run)
        checked = self.check(static, path, "PyTorch", against=SUPERNET)
        self.references = {STATIC: static, **self.references}
        self.add(path, {**checked, "executed": True, "runtime": "torch", "module": self._module(path, model.architecture)})
        return model

    def _module(self, weights: Path, architecture: Architecture) -> dict[str, Any]:
        """A module in plain PyTorch beside the weights; loaded, run and compared."""
        self.stage("writing the plain PyTorch module")
        info, path = self.source.run.info, weights.with_name(f"{module_name(self.name)}.py")
        described = {"preprocess": info.get("preprocess"), "class_names": info.get("class_names")}
        write_module(path, architecture, weights=weights.name, **described)
        model = load_module(path).load()

        def logits(images: Array) -> Array:
            with torch.inference_mode():
                return np.asarray(model(torch.from_numpy(images)).numpy(), np.float32)

        report = run_gate(
            logits,
            self.references,
            self.images.images,
            subject=f"{path.name} in PyTorch",
            images_are=self.images.description,
            max_batch=self.options.max_batch,
            tolerance=self.options.tolerance,
        )
        self.beside.append(path)
        return {"file": path.name, "sha256": sha256(path), "parity": report.to_dict()}

    def export_program(self, model: VisionTransformer) -> None:
        """The program of torch.export, loaded anew and compared."""
        from growtas.export.runtimes.torch_export import save_program

        self.stage("exporting a torch program")
        path = self.folder / f"{self.name}{PROGRAM.suffix}"
        save_program(model, path, max_batch=self.options.max_batch)
        with open_session(path, threads=1) as session:
            checked = self.check(session.run, path, "torch.export")
        self.add(path, {**checked, "executed": True, "runtime": "torch.export"})

    def export_plan(self, builder: PlanBuilder, targets: tuple[str, ...], onnx: Path, precision: str) -> None:
        """The plan, compiled from a checked ONNX file; run and compared where a GPU of a target is at hand."""
        from growtas.export.graph.pre_post import pixels_of
        from growtas.export.pipeline.variants import check_pixels

        self.stage(f"compiling a plan for {', '.join(targets)}")
        shapes = Shapes(opt=self.options.opt_batch, max=self.options.max_batch)
        plan = builder.build(onnx, targets, batches=shapes, precision=precision, cache_dir=self.out)
        path = onnx.with_suffix(PLAN.suffix)
        with replacing(path) as temporary:
            temporary.write_bytes(plan.data)
        why_not = builder.why_not_runnable(targets)
        self.stage("checking what the plan is compiled from")
        compiled_from = next(made.manifest for made in self.made if made.path == onnx)
        record = compiled_from.to_dict()
        takes_pixels = compiled_from.input is not None and compiled_from.input.takes_pixels
        feed = (lambda images: pixels_of(images, self.source.run.info["preprocess"])) if takes_pixels else (lambda images: images)
        arranged = check_optimized_graph(plan, onnx, self.images, max_batch=self.options.max_batch, feed=feed)
        content: dict[str, Any] = {
            **{key: record[key] for key in ("input", "postprocess") if key in record},
            # Without a run of the plan, what was checked of the ONNX file stands for what was compiled, and says so.
            "parity": None,
            "verification": None,
            "executed": why_not is None,
            "not_executed_because": why_not,
            "runtime": plan.runtime,
            "plan": {
                "runtime": plan.runtime,
                "runtime_version": plan.runtime_version,
                "targets": list(plan.targets),
                "max_batch": self.options.max_batch,
                "optimised_for_batch": plan.batches.opt,
                "activation_memory_bytes": plan.activation_memory_bytes,
                "weights_memory_bytes": plan.weights_memory_bytes,
                "build_seconds": round(plan.seconds, 3),
                "settings": plan.settings,
                "inspection": plan.inspection,
                "compiled_from": {
                    "file": onnx.name,
                    "sha256": sha256(onnx),
                    **{key: record.get(key) for key in ("parity", "verification", "executed", "not_executed_because")},
                    "arranged": arranged,
                },
            },
        }
        self.add(path, content, precision=precision)
        if why_not is None:
            self.stage("checking the plan against PyTorch")
            with open_session(path, runtime=builder.name) as session:
                check = check_pixels if takes_pixels else Work.check_session
                checked = check(self, session, path, builder.name, precision)
            self.made.pop()
            self.add(path, {**content, **checked}, precision=precision)

    def check(
        self,
        artifact: Logits,
        path: Path,
        runtime: str,
        *,
        precision: str = "fp32",
        against: str = STATIC,
        images: Callable[[Array], Array] = lambda images: images,
    ) -> dict[str, Any]:
        """Run an artifact on real images, and compare: fp32 strictly with all references, every precision on the labelled images.

        Args:
            images: what images become before both sides see them (pixels are whole numbers).

        Returns:
            ``parity`` (None but for fp32) and ``verification``, for the manifest.

        Raises:
            ParityError: it is out of a tolerance.
        """
        subject = f"{path.name} in {runtime}"
        parity: ParityReport | None = None
        if precision == "fp32":
            parity = run_gate(
                artifact,
                self.references,
                images(self.images.images),
                subject=subject,
                images_are=self.images.description,
                max_batch=self.options.max_batch,
                tolerance=self.options.tolerance,
            )
        labelled = self.labelled(precision)
        verification = verify_artifact(
            artifact,
            self.references[against],
            dataclasses.replace(labelled, images=images(labelled.images)),
            precision=precision,
            subject=subject,
            batches=gate_batches(self.options.max_batch)[::-1],
            thresholds=self.options.thresholds(precision),
            class_names=self.source.run.info.get("class_names"),
            reference_is=against,
            consequence="nothing was exported",
        )
        return {"parity": parity and parity.to_dict(), "verification": verification.to_dict()}

    def check_session(self, session: Session, path: Path, runtime: str, precision: str) -> dict[str, Any]:
        """:meth:`check` of what takes normalised images."""
        return self.check(session.run, path, runtime, precision=precision)

    def add(self, path: Path, content: Mapping[str, Any], *, precision: str = "fp32") -> None:
        """Write an artifact's manifest, and count it as made."""
        source, space = self.source, self.supernet.space
        costs = count_costs(space, source.subnet)
        shape = ["batch", space.in_chans, space.image_size, space.image_size]
        batch = {"min": 1, "max": self.options.max_batch, "checked": list(gate_batches(self.options.max_batch))}
        info = source.run.info
        common = {
            "precision": precision,
            "space": space.name,
            "subnet": source.subnet.to_dict(),
            "architecture": Architecture.of(space, source.subnet).to_dict(),
            "params": costs.params,
            "macs": costs.macs,
            "output": {"name": OUTPUT, "dtype": "float32", "shape": ["batch", space.num_classes]},
            "preprocess": info.get("preprocess"),
            "class_names": info.get("class_names"),
            "source": {
                "run": source.run.path.resolve().name,
                "checkpoint": source.checkpoint.relative_to(source.run.path).as_posix(),
                "checkpoint_sha256": source.checkpoint_sha256,
                "subnet_file": source.subnet_file.name,
            },
            "search": source.search,
        }
        entry = {"name": INPUT, "dtype": "float32", "shape": shape, **(content.get("input") or {}), "batch": batch}
        self.made.append(write_manifest(path, {**common, **content, "input": entry}))

    def _supernet(self, images: Array) -> Array:
        with torch.inference_mode():
            return np.asarray(self.supernet(torch.from_numpy(images), self.source.subnet).numpy(), np.float32)


def paths(artifacts: Iterable[Artifact]) -> list[Path]:
    """Where the artifacts lie."""
    return [artifact.path for artifact in artifacts]
