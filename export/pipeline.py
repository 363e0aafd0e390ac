"""From a run and a subnet to artifacts with manifests: every file passes the parity gate before it is moved into place."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from growtas.checkpoint import load_supernet, save_model
from growtas.costs import count_costs
from growtas.errors import ConfigError, choices
from growtas.export.backends import open_session
from growtas.export.backends.base import Array, PlanBuilder
from growtas.export.backends.pytorch import TorchSession
from growtas.export.images import GateImages, gate_images
from growtas.export.manifest import read_manifest, write_manifest
from growtas.export.onnx import DEFAULT_OPSET, INPUT, OPSETS, OUTPUT, export_onnx
from growtas.export.parity import DEFAULT_TOLERANCE, Logits, ParityReport, gate_batches, run_gate
from growtas.export.source import Source, find_source
from growtas.export.staging import move_into_place, staging
from growtas.export.targets import choose_builder
from growtas.files import replacing, sha256
from growtas.nn.architecture import Architecture
from growtas.nn.extract import extract
from growtas.nn.supernet import Supernet
from growtas.nn.vit import VisionTransformer
from growtas.runs import Run
from growtas.units import format_ms

FORMATS = ("torch", "onnx", "trt")
PRECISION = "fp32"
STATIC, SUPERNET = "static ViT", "supernet"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to make, and how strict to be.

    Attributes:
        format: ``torch``, ``onnx`` or ``trt``; each makes what comes before it too.
        subnet: a subnet file; by default what the search of the run chose.
        target, device: what a plan is for; see :func:`growtas.export.targets.choose_builder`.
        max_batch: the largest batch that is checked, and that a plan takes.
        name: the files' name without suffix; by default ``SPACE-subnet``.
        out: folder; by default the run's ``export``.
        opset: of the ONNX file.
        tolerance: largest relative error of the gate.
        data, data_dir: images for the gate, if not the run's own.
    """

    format: str = "onnx"
    subnet: Path | None = None
    target: str | None = None
    device: str | None = None
    max_batch: int = 8
    name: str | None = None
    out: Path | None = None
    opset: int = DEFAULT_OPSET
    tolerance: float = DEFAULT_TOLERANCE
    data: str | None = None
    data_dir: str | None = None


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A finished file and its manifest."""

    path: Path
    manifest: dict[str, Any]


def export_subnet(
    run: Run,
    options: ExportOptions,
    *,
    note: Callable[[str], None] = lambda text: None,
    stage: Callable[[str], None] = lambda text: None,
) -> list[Artifact]:
    """Export a subnet of a run.

    Args:
        note: told what the user should know (an older search, images that were used instead).
        stage: told what is being done.

    Returns:
        The artifacts, in the order torch, ONNX, plan.

    Raises:
        ParityError: an artifact is out of tolerance; nothing was left in place.
        BuildError: an exporter or compiler failed; likewise.
        CheckpointError, ConfigError, DataError, DeviceError, MissingExtra, OutputError, SubnetError: wrong input.
    """
    if options.format not in FORMATS:
        raise ConfigError(f"--format is {options.format!r}; legal are {choices(FORMATS)}")
    if options.opset not in OPSETS:
        raise ConfigError(f"--opset is {options.opset}; legal are {OPSETS.start} to {OPSETS.stop - 1}")
    if options.format != "trt" and (options.target or options.device):
        raise ConfigError("--target and --device are for a plan; add --format trt")
    batches = gate_batches(options.max_batch)
    source = find_source(run, options.subnet, note)
    planned: tuple[PlanBuilder, tuple[str, ...]] | None = None
    if options.format == "trt":
        searched = (source.search or {}).get("device")
        planned = choose_builder(target=options.target, device=options.device, searched_device=searched, precision=PRECISION)
        promised = (source.search or {}).get("latency") or {}
        if promised.get("precision", PRECISION) != PRECISION:
            said = f"{format_ms(promised['ms'])} ({promised['kind']})"
            note(f"the search's latency, {said}, is for {promised['precision']}; this plan is {PRECISION}")
    name = options.name or re.sub(r"[^\w.-]+", "-", run.space.name) + "-subnet"
    if Path(name).name != name or name.startswith("."):
        raise ConfigError(f"--name is {name!r}; it must be a file name without folders")

    stage("loading the supernet")
    supernet = load_supernet(source.checkpoint)
    images = gate_images(run, sum(batches), data=options.data, data_dir=options.data_dir)
    if images.fell_back_because:
        note(f"parity is checked on {images.description}: {images.fell_back_because}")
    with _one_thread(), staging(options.out or run.path / "export") as (staged, out):
        work = _Work(source=source, options=options, folder=staged, name=name, images=images, supernet=supernet, stage=stage)
        model = work.export_torch()
        if options.format != "torch":
            work.export_onnx(model)
        if planned is not None:
            work.export_plan(*planned)
        stage("moving the files into place")
        move_into_place([artifact.path for artifact in work.made], out)
    artifacts = [Artifact(path=out / artifact.path.name, manifest=artifact.manifest) for artifact in work.made]
    _note_leftovers(out, name, artifacts, note)
    return artifacts


@dataclass(kw_only=True)
class _Work:
    """One export under way: files are made in a temporary folder, each checked as soon as it is there."""

    source: Source
    options: ExportOptions
    folder: Path
    name: str
    images: GateImages
    supernet: Supernet
    stage: Callable[[str], None]
    made: list[Artifact] = field(default_factory=list)
    references: dict[str, Logits] = field(default_factory=dict)

    def export_torch(self) -> VisionTransformer:
        """The static ViT as safetensors; read back, compared with the supernet, and returned for what is exported further."""
        self.stage("extracting the subnet")
        path = self.folder / f"{self.name}.safetensors"
        save_model(path, extract(self.supernet, self.source.subnet))
        self.references = {SUPERNET: _remembering(self._supernet)}
        session = TorchSession(path, threads=1)
        static = _remembering(session.run)
        report = self._gate(static, f"{path.name} in PyTorch")
        self._add(path, {"parity": report.to_dict(), "executed": True, "runtime": "torch"})
        self.references = {STATIC: static, **self.references}
        return session.model

    def export_onnx(self, model: VisionTransformer) -> None:
        """The ONNX file, run in ONNX Runtime and compared with both."""
        self.stage("exporting ONNX")
        path = self.folder / f"{self.name}.onnx"
        info = export_onnx(model, path, opset=self.options.opset)
        self.stage("checking ONNX against PyTorch")
        with open_session(path, threads=1) as session:
            report = self._gate(session.run, f"{path.name} in ONNX Runtime")
        graph = {"opset": info.opset, "ir_version": info.ir_version, "nodes": info.nodes, "operators": info.operators}
        self._add(path, {"parity": report.to_dict(), "executed": True, "runtime": "onnxruntime", "onnx": graph})

    def export_plan(self, builder: PlanBuilder, targets: tuple[str, ...]) -> None:
        """The plan, compiled from the checked ONNX file; run and compared where a GPU of a target is at hand."""
        self.stage(f"compiling a plan for {', '.join(targets)}")
        onnx = self.folder / f"{self.name}.onnx"
        plan = builder.build(onnx, targets, max_batch=self.options.max_batch)
        path = self.folder / f"{self.name}.plan"
        with replacing(path) as temporary:
            temporary.write_bytes(plan.data)
        why_not = builder.why_not_runnable(targets)
        parity: dict[str, Any] | None = None
        if why_not is None:
            self.stage("checking the plan against PyTorch")
            with open_session(path, runtime=builder.name) as session:
                parity = self._gate(session.run, f"{path.name} in {builder.name}").to_dict()
        content = {
            # Without a run of the plan, the ONNX file's parity stands for what was compiled, and says so.
            "parity": parity,
            "executed": why_not is None,
            "not_executed_because": why_not,
            "runtime": plan.runtime,
            "plan": {
                "runtime": plan.runtime,
                "runtime_version": plan.runtime_version,
                "targets": list(plan.targets),
                "max_batch": self.options.max_batch,
                "optimised_for_batch": 1,
                "activation_memory_bytes": plan.activation_memory_bytes,
                "weights_memory_bytes": plan.weights_memory_bytes,
                "build_seconds": round(plan.seconds, 3),
                "settings": plan.settings,
                "compiled_from": {"file": onnx.name, "sha256": sha256(onnx), "parity": self.made[-1].manifest["parity"]},
            },
        }
        self._add(path, content)

    def _supernet(self, images: Array) -> Array:
        with torch.inference_mode():
            return np.asarray(self.supernet(torch.from_numpy(images), self.source.subnet).numpy(), np.float32)

    def _gate(self, artifact: Logits, subject: str) -> ParityReport:
        return run_gate(
            artifact,
            self.references,
            self.images.images,
            subject=subject,
            images_are=self.images.description,
            max_batch=self.options.max_batch,
            tolerance=self.options.tolerance,
        )

    def _add(self, path: Path, content: Mapping[str, Any]) -> None:
        source, space = self.source, self.supernet.space
        costs = count_costs(space, source.subnet)
        shape = ["batch", space.in_chans, space.image_size, space.image_size]
        info = source.run.info
        common = {
            "precision": PRECISION,
            "space": space.name,
            "subnet": source.subnet.to_dict(),
            "architecture": Architecture.of(space, source.subnet).to_dict(),
            "params": costs.params,
            "macs": costs.macs,
            "input": {
                "name": INPUT,
                "dtype": "float32",
                "shape": shape,
                "batch": {"min": 1, "max": self.options.max_batch, "checked": list(gate_batches(self.options.max_batch))},
            },
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
        self.made.append(Artifact(path=path, manifest=write_manifest(path, {**common, **content})))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One CPU thread for torch: OpenMP's threads spin while they wait for each other, and where other work takes their cores the
    few images of the gate then take minutes (measured on two busy cores: 55 s against 1.5 s)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _remembering(function: Logits) -> Logits:
    """The function, computed once for the same images: every artifact's gate asks the references for the same batches."""
    known: dict[bytes, Array] = {}

    def remembered(images: Array) -> Array:
        key = images.tobytes()
        if key not in known:
            known[key] = function(images)
        return known[key]

    return remembered


def _note_leftovers(out: Path, name: str, artifacts: list[Artifact], note: Callable[[str], None]) -> None:
    """Say which files of the same name are from an earlier export of something else."""
    fresh = {artifact.path.name for artifact in artifacts}
    now = artifacts[0].manifest
    for suffix in (".onnx", ".plan"):
        path = out / f"{name}{suffix}"
        if path.name in fresh or not path.exists():
            continue
        old = read_manifest(path, verify=False) or {}
        if (old.get("subnet"), old.get("source", {}).get("checkpoint_sha256")) != (
            now["subnet"],
            now["source"]["checkpoint_sha256"],
        ):
            note(f"{path}: left from an earlier export of another subnet or checkpoint")
