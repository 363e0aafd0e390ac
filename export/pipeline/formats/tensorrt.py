"""A plan of TensorRT or TensorRT-RTX, compiled from an ONNX file."""

from __future__ import annotations

from typing import Any

from growtas.export.formats import PLAN
from growtas.export.open import open_session
from growtas.export.pipeline.context import ExportContext
from growtas.export.tensorrt.builder import Shapes
from growtas.export.verification.optimized_graph import check_optimized_graph
from growtas.files import replacing

_CHECKS = ("parity", "verification", "executed", "not_executed_because")


def export(context: ExportContext) -> None:
    """Compiles a plan from the verified ONNX file. The plan is run and compared if this machine has a GPU of its targets.

    Raises:
        BuildError: the compiler fails.
        ParityError: the plan or the graph that it was compiled from misses its thresholds.
    """
    assert context.plan is not None
    (builder, targets), options, precision = context.plan, context.options, context.precision
    onnx = context.onnx if options.resize else context.complete_onnx
    record = onnx.manifest.to_dict()
    if options.resize:
        context.progress.note("the plan takes normalised images of the model's size; only the ONNX file resizes pixels")
    context.progress.stage(f"compiling a plan for {', '.join(targets)}")
    shapes = Shapes(opt=options.opt_batch, max=options.max_batch)
    plan = builder.build(onnx.path, targets, batches=shapes, precision=precision, cache_dir=context.out)
    path = onnx.path.with_suffix(PLAN.suffix)
    with replacing(path) as temporary:
        temporary.write_bytes(plan.data)
    context.progress.stage("checking the graph that the plan was compiled from")
    feed = context.input_of(record).convert
    optimized = check_optimized_graph(plan, onnx.path, context.parity_images, max_batch=options.max_batch, feed=feed)
    why_not = builder.why_not_runnable(targets)
    content: dict[str, Any] = {
        **{key: record[key] for key in ("input", "postprocess") if key in record},
        # A plan that was not run has no measurements of its own; those of its ONNX file are under compiled_from.
        "parity": None,
        "verification": None,
        "executed": why_not is None,
        "not_executed_because": why_not,
        "runtime": plan.runtime,
        "plan": {
            "runtime": plan.runtime,
            "runtime_version": plan.runtime_version,
            "targets": list(plan.targets),
            "max_batch": options.max_batch,
            "optimised_for_batch": plan.batches.opt,
            "activation_memory_bytes": plan.activation_memory_bytes,
            "weights_memory_bytes": plan.weights_memory_bytes,
            "build_seconds": round(plan.seconds, 3),
            "settings": plan.settings,
            "inspection": plan.inspection,
            "compiled_from": {
                "file": onnx.path.name,
                "sha256": onnx.manifest.file.sha256,
                **{key: record.get(key) for key in _CHECKS},
                "arranged": optimized,
            },
        },
    }
    context.add(path, content, precision=precision)
    if why_not is None:
        context.progress.stage("checking the plan against PyTorch")
        with open_session(path) as session:
            checks = context.check(session.run, path, builder.name, precision=precision, content=content)
        # The manifest is written a second time, now with the checks: opening the plan needed the first one.
        context.artifacts.pop()
        context.add(path, {**content, **checks}, precision=precision)
