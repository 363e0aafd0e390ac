"""What is made from the checked fp32 ONNX file: other precisions, pre- and post-processing in the graph, OpenVINO's IR."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from growtas.errors import DataError, ParityError
from growtas.export.formats import OPENVINO
from growtas.export.graph.tensors import check_half_range
from growtas.export.pipeline.context import STATIC, Work
from growtas.export.pipeline.options import KEEP_AUTO
from growtas.export.runtimes.base import Array, Session
from growtas.export.runtimes.open import open_session
from growtas.export.verification.labelled_images import spread
from growtas.progress import Progress

if TYPE_CHECKING:
    from growtas.export.quantization.convert import PrecisionInfo
    from growtas.export.quantization.sensitivity import Sensitivity

_RANGE_IMAGES = 16


def add_ends(work: Work, onnx: Path, precision: str) -> Path:
    """A copy of an ONNX file that takes pixels, or gives more than logits; verified on whole pixels."""
    from growtas.export.graph.pre_post import add_postprocess, add_preprocess

    options, record = work.options, work.source.run.info.get("preprocess")
    work.stage("putting pre- and post-processing into the graph")
    path = onnx.with_name(f"{onnx.stem}.{'pixels' if options.preprocess else 'outputs'}.onnx")
    content: dict[str, Any] = {}
    names = work.source.run.info.get("class_names")
    source = onnx
    if options.softmax or options.top_k:
        # Not the file itself where pixels come before it: resizing is put in front a second time, below.
        source = onnx.with_name(f"{onnx.stem}.with-outputs.onnx") if options.preprocess else path
        content["postprocess"] = add_postprocess(onnx, source, softmax=options.softmax, top_k=options.top_k, class_names=names)
    if options.preprocess:
        content["input"] = add_preprocess(source, path, record)
    made = next(each.manifest for each in work.made if each.path == onnx)
    checked: dict[str, Any] = {key: made.to_dict().get(key) for key in ("parity", "verification", "not_executed_because")}
    if made.executed:
        with open_session(path, threads=1) as session:
            check = check_pixels if options.preprocess else Work.check_session
            checked = check(work, session, path, "ONNX Runtime", precision)
    if options.resize:
        # The graph was verified on pixels of its own size; what resizing adds is compared with the evaluation's on its own.
        content["input"] = add_preprocess(source, path, record, resize=True)
    work.add(path, {**checked, **content, "executed": made.executed, "runtime": "onnxruntime"}, precision=precision)
    return path


def export_ir(work: Work, onnx: Path, precision: str) -> None:
    """OpenVINO's IR of an ONNX file, run there and compared."""
    from growtas.export.runtimes.openvino import write_ir

    work.stage("writing the OpenVINO IR")
    path = onnx.with_suffix(OPENVINO.suffix)
    write_ir(onnx, path)
    made = next(each.manifest for each in work.made if each.path == onnx)
    with open_session(path, threads=1) as session:
        if made.input is not None and made.input.takes_pixels:
            checked = check_pixels(work, session, path, "OpenVINO", precision)
        else:
            checked = work.check(session.run, path, "OpenVINO", precision=precision)
    content: dict[str, Any] = {key: made.to_dict()[key] for key in ("input", "postprocess") if key in made.to_dict()}
    work.add(path, {**checked, **content, "executed": True, "runtime": "openvino"}, precision=precision)


def check_pixels(work: Work, session: Session, path: Path, runtime: str, precision: str) -> dict[str, Any]:
    """Compare what takes pixels with the references on the images that these pixels are."""
    from growtas.export.graph.pre_post import pixels_of

    record = work.source.run.info["preprocess"]
    mean, std = (np.asarray(record[key], np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))

    def whole(images: Array) -> Array:
        """A data set's images are whole pixels already; crops of photographs are not."""
        pixels = pixels_of(images, record).transpose(0, 3, 1, 2).astype(np.float32)
        return np.ascontiguousarray((pixels / 255 - mean) / std, np.float32)

    # The protocol says float32; this graph takes what its manifest says.
    run: Any = session.run
    return work.check(lambda images: run(pixels_of(images, record)), path, runtime, precision=precision, images=whole)


def convert_precision(work: Work, onnx: Path, precision: str, rest: str = "fp32") -> Path:
    """The ONNX file in another precision, verified where it runs here; layers that hurt stay higher, and are said.

    Args:
        rest: what surrounds quantised layers.

    Raises:
        ParityError: the thresholds are missed, whatever stays higher.
    """
    from growtas.export.quantization.convert import convert
    from growtas.export.quantization.precisions import QUANTISED

    options = work.options
    path = work.folder / f"{work.name}.{precision}.onnx"
    work.stage(f"converting to {precision}")
    calibration, named = _calibration(work)
    settings: dict[str, Any] = {"calibration_are": named}
    if precision in QUANTISED:
        settings |= {"rest": rest, "method": options.calibration_method}
    info = convert(onnx, path, precision, calibration=calibration, keep=options.kept, **settings)
    content: dict[str, Any] = {"runtime": "onnxruntime", "executed": info.runs_here}
    if not info.runs_here:
        content |= {"parity": None, "verification": None, "not_executed_because": info.runs_not_because}
        work.note(f"{path.name} was not run: {info.runs_not_because}")
    else:
        work.stage(f"checking {precision} against PyTorch")
        try:
            content |= _check_in_onnxruntime(work, path, precision)
        except ParityError as error:
            if options.keep != KEEP_AUTO:
                raise
            found = _mixed(work, onnx, path, precision, info, calibration, settings)
            if found is None:
                raise error from None
            info, content["sensitivity"] = found.info, found.to_dict()
            content |= _check_in_onnxruntime(work, path, precision)
            high = info.rest if precision in QUANTISED else "fp32"
            work.note(f"{path.name}: {len(found.kept)} layers stay in {high}, or {precision} would miss: {', '.join(found.kept)}")
    work.add(path, {**content, "conversion": info.to_dict()}, precision=precision)
    return path


def _check_in_onnxruntime(work: Work, path: Path, precision: str) -> dict[str, Any]:
    # What overflows on a GPU need not do so here, where ONNX Runtime computes much of fp16 in fp32. It comes first: where an
    # overflow moves the logits as well, it is the reason.
    few = spread(work.labelled(precision).images, _RANGE_IMAGES)
    found = check_half_range(path, few, subject=path.name, consequence="nothing was exported")
    with open_session(path, threads=1) as session:
        checked = work.check(session.run, path, "ONNX Runtime", precision=precision)
    return {**checked, "half_range": found.to_dict() if found.tensors else None}


def _mixed(
    work: Work,
    onnx: Path,
    path: Path,
    precision: str,
    info: PrecisionInfo,
    calibration: Array,
    settings: dict[str, Any],
) -> Sensitivity | None:
    """Look for the layers that have to stay higher; ``path`` is then the file that passes."""
    from growtas.export.quantization.sensitivity import RANKING_IMAGES, find_sensitive

    few = spread(work.labelled(precision).images, RANKING_IMAGES)
    want = work.references[STATIC](few)

    def error(candidate: Path) -> float:
        with open_session(candidate, threads=1) as session:
            return float(np.linalg.norm(session.run(few) - want))

    def passes(candidate: Path) -> bool:
        try:
            _check_in_onnxruntime(work, candidate, precision)
        except ParityError:
            return False
        return True

    return find_sensitive(
        onnx,
        path,
        precision,
        [name for name, kind in info.layers.items() if kind == precision],
        error=error,
        passes=passes,
        calibration=calibration,
        keep=work.options.kept,
        progress=_Stages(work.stage),
        **settings,
    )


class _Stages(Progress):
    """Hands on the names of stages."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show

    def stage(self, name: str, total: int | None = None) -> None:
        self._show(name)


def _calibration(work: Work) -> tuple[Array, str]:
    """Images that activations' ranges are taken from, never test images; photographs where the run has none at hand."""
    from growtas.data.evaluation import search_set
    from growtas.export.verification.images import sample_photographs

    run, options = work.source.run, work.options
    count = options.calibration_images
    try:
        images = search_set(run, data=options.data, data_dir=options.data_dir).subset(count)
    except DataError as error:
        if options.data is not None or options.data_dir is not None:
            raise
        work.note(f"calibration is on scikit-learn's sample photographs: {error}")
        return sample_photographs(count, run.info["preprocess"]), f"{count} crops of scikit-learn's sample photographs"
    named = options.data or (run.info.get("data") or {}).get("name") or "the run's data"
    found = np.ascontiguousarray(images.images(0, len(images)).numpy(), np.float32)
    return found, f"{len(found)} images of the search split of {named}"
