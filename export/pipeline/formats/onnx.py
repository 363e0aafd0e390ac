"""ONNX files: the fp32 export, its other precisions, and pre- and post-processing in the graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from growtas.errors import DataError, ParityError
from growtas.export.artifact import Artifact
from growtas.export.graph.contents import read_graph
from growtas.export.graph.exporter import export_onnx
from growtas.export.graph.versions import oldest_onnxruntime
from growtas.export.open import open_session
from growtas.export.pipeline.context import ExportContext
from growtas.export.pipeline.options import KEEP_AUTO, KEEP_NONE
from growtas.export.runtimes.base import Array
from growtas.export.verification.agreement import check_fp16_range
from growtas.export.verification.images import photographs, spread
from growtas.export.verification.reference import STATIC
from growtas.runs import data_title

if TYPE_CHECKING:
    from growtas.export.quantization.convert import PrecisionInfo
    from growtas.export.quantization.sensitivity import Sensitivity


def export(context: ExportContext) -> None:
    """Exports the fp32 ONNX file, converts it to the precision, and adds pre- and post-processing to a copy.

    Raises:
        BuildError: the exporter fails.
        ParityError: a file misses its thresholds.
    """
    context.onnx = _export_fp32(context)
    if context.precision != "fp32":
        context.onnx = _convert(context, context.precision)
    options = context.options
    pre_or_post = options.preprocess or options.softmax or options.top_k
    context.complete_onnx = _add_pre_and_postprocessing(context) if pre_or_post else context.onnx


def _export_fp32(context: ExportContext) -> Artifact:
    context.progress.stage("exporting ONNX")
    path = context.folder / f"{context.name}.onnx"
    export_onnx(
        context.model,
        path,
        opset=context.options.opset,
        ir_version=context.options.ir_version,
        preprocess=context.preprocess,
        class_names=context.class_names,
    )
    context.progress.stage("checking ONNX against PyTorch")
    with open_session(path, threads=1) as session:
        checks = context.check(session.run, path, "ONNX Runtime")
    return context.add(path, {**checks, "executed": True, "runtime": "onnxruntime", "onnx": _graph(path, "fp32")})


def _graph(path: Path, precision: str) -> dict[str, Any]:
    """The manifest's description of a graph: its operators, and the versions that decide which runtimes can read it."""
    graph = read_graph(path)
    record = {key: graph[key] for key in ("opset", "ir_version", "nodes", "operators")}
    return record | {"oldest_onnxruntime": oldest_onnxruntime(record["opset"], precision)}


def _add_pre_and_postprocessing(context: ExportContext) -> Artifact:
    """Makes a copy of the ONNX file that takes pixels or has more outputs than logits, and verifies it on whole pixels."""
    from growtas.export.graph.pre_post import add_postprocess, add_preprocess

    onnx, options = context.onnx, context.options
    context.progress.stage("adding pre- and post-processing to the graph")
    path = onnx.path.with_name(f"{onnx.path.stem}.{'pixels' if options.preprocess else 'outputs'}.onnx")
    content: dict[str, Any] = {}
    source = onnx.path
    if options.softmax or options.top_k:
        # With --preprocess the outputs go into a separate file, because it is the source of two files below, if it resizes too.
        source = onnx.path.with_name(f"{onnx.path.stem}.with-outputs.onnx") if options.preprocess else path
        content["postprocess"] = add_postprocess(
            onnx.path, source, softmax=options.softmax, top_k=options.top_k, class_names=context.class_names
        )
    if options.preprocess:
        content["input"] = add_preprocess(source, path, context.preprocess)
    checks = {key: onnx.manifest.to_dict().get(key) for key in ("parity", "verification", "not_executed_because")}
    if onnx.manifest.executed:
        with open_session(path, threads=1) as session:
            checks = context.check(session.run, path, "ONNX Runtime", precision=context.precision, content=content)
    if options.resize:
        # The graph was verified on pixels of its own size. add_preprocess compares the resizing with the evaluation's.
        content["input"] = add_preprocess(source, path, context.preprocess, resize=True)
    content |= {"executed": onnx.manifest.executed, "runtime": "onnxruntime", "onnx": _graph(path, context.precision)}
    return context.add(path, {**checks, **content}, precision=context.precision)


def _convert(context: ExportContext, precision: str) -> Artifact:
    """Converts the fp32 ONNX file to another precision and verifies it, if it runs here; sensitive layers stay higher."""
    from growtas.export.quantization.convert import convert
    from growtas.export.quantization.precisions import QUANTISED

    onnx, options, progress = context.onnx, context.options, context.progress
    path = context.folder / f"{context.name}.{precision}.onnx"
    progress.stage(f"converting to {precision}")
    images, description = _calibration_images(context)
    named = () if options.keep in (KEEP_AUTO, KEEP_NONE) else options.keep.split(",")
    keep = [name.strip() for name in named if name.strip()]
    settings: dict[str, Any] = {"calibration": images, "calibration_are": description, "keep": keep}
    if precision in QUANTISED:
        # For a GPU the rest of the network is fp16: attention then becomes one kernel, and on Turing GPUs TensorRT-RTX has no other
        # matrix products.
        settings |= {"rest": "fp32" if context.plan is None else "fp16", "method": options.calibration_method}
    info = convert(onnx.path, path, precision, **settings)
    content: dict[str, Any] = {"runtime": "onnxruntime", "executed": info.runs_here}
    if not info.runs_here:
        content |= {"parity": None, "verification": None, "not_executed_because": info.runs_not_because}
        progress.note(f"{path.name} was not run: {info.runs_not_because}")
    else:
        progress.stage(f"checking {precision} against PyTorch")
        try:
            content |= _check_converted(context, path, precision)
        except ParityError:
            mixed = _find_mixed_precision(context, onnx.path, path, info, settings) if options.keep == KEEP_AUTO else None
            if mixed is None:
                raise
            info, content["sensitivity"] = mixed.info, mixed.to_dict()
            content |= _check_converted(context, path, precision)
            high = info.rest if precision in QUANTISED else "fp32"
            layers = f"{len(mixed.kept)} layers stay in {high}, or {precision} would miss: {', '.join(mixed.kept)}"
            progress.note(f"{path.name}: {layers}")
    content |= {"conversion": info.to_dict(), "onnx": _graph(path, precision)}
    return context.add(path, content, precision=precision)


def _check_converted(context: ExportContext, path: Path, precision: str) -> dict[str, Any]:
    # ONNX Runtime computes much of fp16 in fp32, so a tensor that overflows on a GPU may not overflow here. This check comes first,
    # because an overflow is the reason if the logits are wrong too.
    images = context.labelled_images(precision)
    half_range = check_fp16_range(path, images, context.input_of({}), consequence="nothing was exported")
    with open_session(path, threads=1) as session:
        checks = context.check(session.run, path, "ONNX Runtime", precision=precision)
    return {**checks, "half_range": half_range.to_dict() if half_range.tensors else None}


def _find_mixed_precision(
    context: ExportContext, onnx: Path, path: Path, info: PrecisionInfo, settings: dict[str, Any]
) -> Sensitivity | None:
    """Finds the layers that must keep a higher precision, and leaves the passing file in ``path``; None where nothing passes."""
    from growtas.export.quantization.sensitivity import RANKING_IMAGES, find_sensitive

    precision = info.precision
    few = spread(context.labelled_images(precision).images, RANKING_IMAGES)
    want = context.references[STATIC](few)

    def error(candidate: Path) -> float:
        with open_session(candidate, threads=1) as session:
            return float(np.linalg.norm(session.run(few) - want))

    def passes(candidate: Path) -> bool:
        try:
            _check_converted(context, candidate, precision)
        except ParityError:
            return False
        return True

    layers = [name for name, kind in info.layers.items() if kind == precision]
    return find_sensitive(onnx, path, precision, layers, error=error, passes=passes, progress=context.progress, **settings)


def _calibration_images(context: ExportContext) -> tuple[Array, str]:
    """Calibration images and their description: never test images, and photographs if the run's images are not available."""
    from growtas.data.evaluation import search_set

    run, options = context.source.run, context.options
    count = options.calibration_images
    try:
        images = search_set(run, data=options.data, data_dir=options.data_dir).subset(count)
    except DataError as error:
        if options.data is not None or options.data_dir is not None:
            raise
        context.progress.note(f"calibration uses scikit-learn's sample photographs: {error}")
        crops = photographs(context.preprocess, count, str(error))
        return crops.images, crops.description
    name = data_title(run.images(options.data, options.data_dir))
    pixels = np.ascontiguousarray(images.images(0, len(images)).numpy(), np.float32)
    return pixels, f"{len(pixels)} images of the search split of {name}"
