"""From a run and a subnet to artifacts with manifests: every file passes its gates before it is moved into place."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from growtas.checkpoint import load_supernet
from growtas.costs import count_costs
from growtas.errors import ConfigError
from growtas.export.artifact import Artifact, Manifest, read_manifest
from growtas.export.formats import SUFFIXES
from growtas.export.graph.exporter import export_onnx
from growtas.export.pipeline.context import Work, paths
from growtas.export.pipeline.options import ExportOptions
from growtas.export.pipeline.source import Source, find_source
from growtas.export.pipeline.staging import move_into_place, staging
from growtas.export.pipeline.variants import add_ends, convert_precision, export_ir
from growtas.export.runtimes.open import open_session
from growtas.export.tensorrt.builder import PlanBuilder, choose_builder
from growtas.export.verification.batches import one_thread
from growtas.export.verification.images import gate_images
from growtas.export.verification.labelled_images import LabelledImages, images_for, labelled_images
from growtas.export.verification.parity import gate_batches
from growtas.nn.vit import VisionTransformer
from growtas.runs import Run
from growtas.units import format_ms

__all__ = ["Artifact", "ExportOptions", "export_subnet"]


def export_subnet(
    run: Run,
    options: ExportOptions,
    *,
    note: Callable[[str], None] = lambda text: None,
    stage: Callable[[str], None] = lambda text: None,
) -> list[Artifact]:
    """Export a subnet of a run.

    Args:
        note: told what the user should know (an older search, images that were used instead, layers that stay in fp32).
        stage: told what is being done.

    Returns:
        The artifacts, in the order torch, program, ONNX, OpenVINO, plan.

    Raises:
        ParityError: an artifact is out of tolerance; nothing was left in place.
        BuildError: an exporter or compiler failed; likewise.
        CheckpointError, ConfigError, DataError, DeviceError, MissingExtra, OutputError, SubnetError: wrong input.
    """
    formats = options.check().formats
    source = find_source(run, options.subnet, note)
    if options.top_k is not None and options.top_k > run.space.num_classes:
        raise ConfigError(f"--top-k is {options.top_k}; the model has {run.space.num_classes} classes")
    precision = _precision(options, source)
    planned: tuple[PlanBuilder, tuple[str, ...]] | None = None
    if "trt" in formats:
        searched = (source.search or {}).get("device")
        planned = choose_builder(target=options.target, device=options.device, searched_device=searched, precision=precision)
        promised = (source.search or {}).get("latency") or {}
        if promised.get("precision", precision) != precision:
            said = f"{format_ms(promised['ms'])} ({promised['kind']})"
            note(f"the search's latency, {said}, is for {promised['precision']}; this plan is {precision}")

    stage("loading the supernet")
    supernet = load_supernet(source.checkpoint)
    images = gate_images(run, sum(gate_batches(options.max_batch)), data=options.data, data_dir=options.data_dir)
    macs = count_costs(supernet.space, source.subnet).macs

    @functools.cache
    def labelled(precision: str) -> LabelledImages:
        count = options.images or images_for(macs, precision)
        return labelled_images(run, count, data=options.data, data_dir=options.data_dir)

    if images.fell_back_because:
        note(f"parity is checked on {images.description}: {images.fell_back_because}")
    with one_thread(), staging(options.out or run.path / "export") as (staged, out):
        work = Work(
            source=source,
            options=options,
            folder=staged,
            out=out,
            name=options.stem(run.space.name),
            images=images,
            labelled=labelled,
            supernet=supernet,
            stage=stage,
            note=note,
        )
        _make(work, formats, precision, planned)
        stage("moving the files into place")
        move_into_place(paths(work.made), out, work.beside)
    artifacts = [Artifact(path=out / artifact.path.name, manifest=artifact.manifest) for artifact in work.made]
    _note_leftovers(out, work.name, artifacts, note)
    return artifacts


def _precision(options: ExportOptions, source: Source) -> str:
    """What was asked for; in a plan what the search's latency was for, which else would be a promise about something else."""
    if options.precision is not None:
        return options.precision
    if "trt" not in options.formats or options.target:
        return "fp32"
    search = source.search or {}
    wanted = options.device or search.get("device")
    for each in search.get("latencies") or ():
        if each["device"] == wanted:
            return str((each["measured"] or each["predicted"])["precision"])
    latency = search.get("latency") or {}
    return str(latency.get("precision", "fp32")) if wanted == search.get("device") else "fp32"


def _make(work: Work, formats: tuple[str, ...], precision: str, planned: tuple[PlanBuilder, tuple[str, ...]] | None) -> None:
    model = work.export_torch()
    if "program" in formats:
        work.export_program(model)
    if "onnx" not in formats:
        return
    onnx = _export_onnx(work, model)
    if precision != "fp32":
        # For a GPU what surrounds quantised layers is half as well: attention is one kernel then, and for Turing TensorRT-RTX has
        # no other products.
        onnx = convert_precision(work, onnx, precision, "fp32" if planned is None else "fp16")
    plain = onnx
    if work.options.preprocess or work.options.softmax or work.options.top_k:
        onnx = add_ends(work, onnx, precision)
    if planned is not None:
        if work.options.resize:
            work.note("the plan takes normalised images of the model's size; only the ONNX file resizes pixels")
        work.export_plan(*planned, plain if work.options.resize else onnx, precision)
    if "openvino" in formats:
        export_ir(work, onnx, precision)


def _export_onnx(work: Work, model: VisionTransformer) -> Path:
    """The fp32 ONNX file, run in ONNX Runtime and compared."""
    work.stage("exporting ONNX")
    path = work.folder / f"{work.name}.onnx"
    info = export_onnx(model, path, opset=work.options.opset)
    work.stage("checking ONNX against PyTorch")
    with open_session(path, threads=1) as session:
        checked = work.check(session.run, path, "ONNX Runtime")
    graph = {"opset": info.opset, "ir_version": info.ir_version, "nodes": info.nodes, "operators": info.operators}
    work.add(path, {**checked, "executed": True, "runtime": "onnxruntime", "onnx": graph})
    return path


def _note_leftovers(out: Path, name: str, artifacts: list[Artifact], note: Callable[[str], None]) -> None:
    """Say which files of the same name are from an earlier export of something else."""
    fresh = {artifact.path.name for artifact in artifacts}
    now = artifacts[0].manifest
    for path in sorted(out.glob(f"{name}.*")):
        if path.name in fresh or path.suffix not in SUFFIXES:
            continue
        old = read_manifest(path, verify=False) or Manifest()
        if old.network != now.network:
            note(f"{path}: left from an earlier export of another subnet or checkpoint")
