"""Exports a subnet of a run: makes and checks every artifact in a temporary folder, then moves all of them into place."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growtas.checkpoint import load_supernet
from growtas.costs import count_costs
from growtas.errors import ConfigError
from growtas.export.artifact import Artifact, Manifest, read_manifest
from growtas.export.formats import ONNX, OPENVINO, PLAN, PROGRAM, TORCH, artifact_files
from growtas.export.pipeline.context import ExportContext
from growtas.export.pipeline.formats import onnx, openvino, program, tensorrt, torch
from growtas.export.pipeline.options import ExportOptions
from growtas.export.pipeline.source import Source, find_source
from growtas.export.pipeline.staging import move_into_place, staging
from growtas.export.signature import check_preprocess
from growtas.export.tensorrt.builder import choose_builder
from growtas.export.verification.batches import one_thread
from growtas.export.verification.images import VerificationImages, images_for, run_images
from growtas.export.verification.parity import gate_batches
from growtas.latency.at_hand import CPU, devices_at_hand
from growtas.latency.catalogue import usual_target
from growtas.latency.modelled.profile import load_profile
from growtas.progress import SILENT, Progress
from growtas.runs import Run
from growtas.units import format_ms

_MODULES = {TORCH: torch, PROGRAM: program, ONNX: onnx, PLAN: tensorrt, OPENVINO: openvino}
"""The module that makes each format, in the order in which they are made."""


def export_subnet(run: Run, options: ExportOptions, *, progress: Progress = SILENT) -> list[Artifact]:
    """Exports a subnet of a run.

    Args:
        progress: receives the stages and notes for the user: a search on an older checkpoint, substitute images, layers that stay
            in fp32.

    Returns:
        The artifacts, in the order in which they were made.

    Raises:
        ParityError: an artifact misses a tolerance; no file was left behind.
        BuildError: an exporter or compiler failed; no file was left behind.
        CheckpointError, ConfigError, DataError, DeviceError, MissingExtra, OutputError, SubnetError: the input is wrong.
    """
    source = find_source(run, options.subnet, progress)
    if options.top_k is not None and options.top_k > run.space.num_classes:
        raise ConfigError(f"--top-k is {options.top_k}; the model has {run.space.num_classes} classes")
    check_preprocess(run.info.get("preprocess"), f"{run.path / 'run.json'}: the record of the preprocessing (preprocess)")
    precision = _precision(options, source)
    if precision == "tf32":  # a mode in which GPUs compute with fp32 numbers
        precision = "fp32"
    plan = None
    if PLAN in options.made_formats:
        search, searched = source.search or {}, _searched_latency(options, source)
        plan = choose_builder(
            target=options.target,
            device=options.device,
            searched_device=search.get("device"),
            precision=precision,
            searched_runtime=None if options.target else searched.get("runtime"),
        )
        searched = searched or search.get("latency") or {}
        if searched.get("precision", precision) != precision:
            latency = f"{format_ms(searched['ms'])} ({searched['kind']})"
            progress.note(f"the search's latency, {latency}, is for {searched['precision']}; this plan is {precision}")

    progress.stage("loading the supernet")
    supernet = load_supernet(source.checkpoint)
    count = sum(gate_batches(options.max_batch))
    parity_images = run_images(run, count, data=options.data, data_dir=options.data_dir, stratified=False)
    macs = count_costs(supernet.space, source.subnet).macs

    @functools.cache
    def labelled_images(precision: str) -> VerificationImages:
        count = options.images or images_for(macs, precision)
        return run_images(run, count, data=options.data, data_dir=options.data_dir)

    if parity_images.photographs:
        progress.note(f"parity is checked on {parity_images.description}: {parity_images.unlabelled_because}")
    out = Path(options.out) if options.out else run.path / "export"
    with one_thread(), staging(out) as folder:
        context = ExportContext(
            source=source,
            options=options,
            precision=precision,
            plan=plan,
            folder=folder,
            out=out,
            parity_images=parity_images,
            labelled_images=labelled_images,
            supernet=supernet,
            progress=progress,
        )
        for entry, module in _MODULES.items():
            if entry in options.made_formats:
                module.export(context)
        progress.stage("moving the files into place")
        artifacts = move_into_place(context.artifacts, context.side_files, out)
    _note_leftovers(out, context.name, artifacts, progress)
    return artifacts


def _searched_latency(options: ExportOptions, source: Source) -> Mapping[str, Any]:
    """The search's latency on the plan's device; empty where the search was not for that device."""
    search = source.search or {}
    device = options.device or search.get("device")
    for entry in search.get("latencies") or ():
        if entry["device"] == device:
            return dict(entry["measured"] or entry["predicted"])
    return search.get("latency") or {} if device == search.get("device") else {}


def _precision(options: ExportOptions, source: Source) -> str:
    """The requested precision. A plan's default is that of the search's latency for its device, or else the device's usual one."""
    if options.precision is not None:
        return options.precision
    if PLAN not in options.made_formats or options.target:
        return "fp32"
    if searched := _searched_latency(options, source).get("precision"):
        return str(searched)
    device = options.device or (source.search or {}).get("device")
    if device is None or device in devices_at_hand():
        return usual_target(device or CPU)[1]
    # choose_builder refuses a device that can't run plans.
    return load_profile(device).precision


def _note_leftovers(out: Path, name: str, artifacts: list[Artifact], progress: Progress) -> None:
    """Tells the user which files of the same name come from an earlier export of another network."""
    fresh = {artifact.path.name for artifact in artifacts}
    for path in artifact_files(out):
        if path.name in fresh or not path.name.startswith(f"{name}."):
            continue
        old = read_manifest(path, verify=False) or Manifest()
        if old.network != artifacts[0].manifest.network:
            progress.note(f"{path}: left from an earlier export of another subnet or checkpoint")
