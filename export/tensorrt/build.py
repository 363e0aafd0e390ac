"""Compiling a plan: what TensorRT 10, TensorRT 11 and TensorRT-RTX have in common.

Networks are strongly typed in all three: the types of the ONNX file are the plan's, and no builder flag changes them. Sources:
NVIDIA's TensorRT documentation, "Strongly Typed Networks" and the migration guide to 11.0.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from growtas.errors import BuildError
from growtas.export.runtimes.base import BuildOptions, BuiltPlan
from growtas.export.tensorrt.cache import TimingCache
from growtas.export.tensorrt.library import Module, capturing_logger, last_error, parser_error, reported_bytes
from growtas.export.tensorrt.optimize import plan_graphs
from growtas.export.tensorrt.plan_precision import inspect_network, require_precision


def build_plan(
    trt: Module,
    onnx: Path,
    targets: tuple[str, ...],
    options: BuildOptions,
    *,
    runtime: str,
    configure: Callable[[Module, Any], None] = lambda trt, config: None,
    timing_cache: TimingCache | None = None,
) -> BuiltPlan:
    """Compile an ONNX file; fp32 products are exact (no TF32).

    Of the graphs that :func:`growtas.export.tensorrt.optimize.plan_graphs` gives, that one's plan is kept that needs the least
    memory for activations; TensorRT itself, which times kernels on the GPU for minutes, is given the first alone.

    Args:
        trt: the module.
        onnx: a model with one input, ``images``.
        targets: recorded in the result.
        options: see there.
        runtime: the package's name in manifests.
        configure: sets what differs between the packages on the builder's config.
        timing_cache: read before, written after; an unusable one is as good as none.

    Raises:
        BuildError: the parser or the compiler refused the graph, or it isn't in the precision asked for.
    """
    start = time.perf_counter()
    file, graphs = onnx.read_bytes(), plan_graphs(onnx)
    plans = [
        replace(
            _compile(trt, onnx, graph, targets, options, runtime, configure, timing_cache), graph=None if graph == file else graph
        )
        for graph in (graphs[:1] if runtime == "tensorrt" else graphs)
    ]
    best = min(plans, key=lambda plan: plan.activation_memory_bytes or 0)
    return replace(best, seconds=time.perf_counter() - start)


def _compile(
    trt: Module,
    onnx: Path,
    graph: bytes,
    targets: tuple[str, ...],
    options: BuildOptions,
    runtime: str,
    configure: Callable[[Module, Any], None],
    timing_cache: TimingCache | None,
) -> BuiltPlan:
    """One graph's plan; see :func:`build_plan`."""
    start = time.perf_counter()
    logger = capturing_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags(trt, runtime))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        raise BuildError(f"{onnx.name}: {runtime} can't parse the ONNX file ({parser_error(parser) or last_error(logger)})")
    # Before the compiler's seconds: the types are settled when the file is parsed.
    inspection = inspect_network(trt, network)
    require_precision(inspection, options.precision, onnx.name)
    config = builder.create_builder_config()
    configure(trt, config)
    _set_flags(trt, config, options)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    given, batches = network.get_input(0), options.batches
    image = tuple(given.shape)[1:]
    if min(image) < 1:
        raise BuildError(f"{onnx.name}: height and width of its input are free, and a plan's are fixed; export it without --resize")
    profile = builder.create_optimization_profile()
    profile.set_shape(given.name, (batches.min, *image), (batches.opt, *image), (batches.max, *image))
    if config.add_optimization_profile(profile) < 0:
        raise BuildError(f"{onnx.name}: {runtime} takes no batches {batches.min} to {batches.max} ({last_error(logger)})")
    if timing_cache is not None:
        config.set_timing_cache(config.create_timing_cache(timing_cache.read()), False)
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise BuildError(f"{onnx.name}: {runtime} can't build a plan for {', '.join(targets)} ({last_error(logger)})")
    if timing_cache is not None:
        timing_cache.write(bytes(config.get_timing_cache().serialize()))
    return BuiltPlan(
        data=bytes(data),
        runtime=runtime,
        runtime_version=str(trt.__version__),
        targets=targets,
        activation_memory_bytes=reported_bytes(logger.messages, "Total Activation Memory"),
        weights_memory_bytes=reported_bytes(logger.messages, "Total Weights Memory"),
        seconds=time.perf_counter() - start,
        settings=options.recorded,
        precision=options.precision,
        batches=batches,
        inspection=inspection.to_dict(),
        timing_cache=timing_cache.path.name if timing_cache is not None else None,
    )


def network_flags(trt: Module, runtime: str) -> int:
    """Flags of ``create_network``: TensorRT 10 has to be told that the types are binding, the others know nothing else."""
    if runtime == "tensorrt" and int(str(trt.__version__).split(".")[0]) == 10:
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0


def _set_flags(trt: Module, config: Any, options: BuildOptions) -> None:
    # TF32 rounds inputs to 10 bits, about 1e-3 relative: that is another precision than the fp32 that was asked for, and than the
    # fp32 that mixed precision leaves to sensitive layers.
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.strip:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
