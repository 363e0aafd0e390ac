"""Compiles ONNX files to plans: TensorRT 10 and 11 for this machine's GPU, TensorRT-RTX ahead of time for every GPU that it knows.

Networks are strongly typed in all three: a plan has the types of its ONNX file, and no builder flag changes them. Sources: NVIDIA's
TensorRT documentation, "Strongly Typed Networks" and the migration guide to 11.0.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from growtas.errors import BuildError, ConfigError, DeviceError, choices
from growtas.export.runtimes.base import is_installed
from growtas.export.tensorrt import library
from growtas.export.tensorrt.cache import CacheFile, CacheKey, driver_version
from growtas.export.tensorrt.library import Module
from growtas.export.tensorrt.optimize import plan_graphs
from growtas.export.tensorrt.plan_precision import inspect_network, require_precision
from growtas.export.tensorrt.targets import (
    check_rtx_targets,
    check_target_precision,
    device_target,
    gpus_with_profiles,
    parse_targets,
)
from growtas.latency.at_hand import devices_at_hand


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The batch sizes of a plan.

    Attributes:
        min: smallest batch that the plan accepts.
        opt: batch that the plan is tuned for.
        max: largest batch that the plan accepts.

    Raises:
        ConfigError: the sizes are not ``1 <= min <= opt <= max``.
    """

    min: int = 1
    opt: int = 1
    max: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ConfigError(
                f"the smallest, tuned and largest batches of a plan are {self.min}, {self.opt} and {self.max}; "
                f"they must be 1 or more, and each at least as large as the one before"
            )


@dataclass(frozen=True, kw_only=True)
class BuiltPlan:
    """A compiled plan, not yet on disk.

    Attributes:
        data: the serialised plan, exactly as the runtime reads it, without a header.
        runtime: package that can load the plan, ``tensorrt`` or ``tensorrt-rtx``.
        runtime_version: version of this package.
        targets: compute capabilities that the plan was built for.
        activation_memory_bytes: device memory for activations at the largest batch, as the builder reports it; None if unknown.
        weights_memory_bytes: device memory for weights, as the builder reports it; None if unknown.
        seconds: duration of the build.
        precision: requested precision, which the compiled network was checked for.
        batches: batch sizes of the plan.
        settings: builder settings that affect the numbers.
        inspection: types of the products, as JSON data; see :mod:`growtas.export.tensorrt.plan_precision`.
        graph: the serialised ONNX graph that was compiled, if it is an equivalent one and not the file itself.
    """

    data: bytes = field(repr=False)
    runtime: str
    runtime_version: str
    targets: tuple[str, ...]
    activation_memory_bytes: int | None
    weights_memory_bytes: int | None
    seconds: float = 0.0
    precision: str
    batches: Shapes
    # TF32 rounds inputs to 10 bits, about 1e-3 relative. That is coarser than the requested fp32, and than the fp32 that sensitive
    # layers need in mixed precision.
    settings: dict[str, object] = field(default_factory=lambda: {"tf32": False})
    inspection: dict[str, object] | None = None
    graph: bytes | None = field(default=None, repr=False)


class PlanBuilder:
    """Compiles ONNX files to plans. There is one class per package; ``name`` is the package's name in manifests."""

    name: str

    def check(self, targets: tuple[str, ...], precision: str) -> None:
        """Checks before any work that a plan can be built.

        Raises:
            DeviceError: the builder doesn't know a target, or a target doesn't have the precision.
            MissingExtra: the package is not installed.
        """
        raise NotImplementedError

    def build(
        self,
        onnx: Path,
        targets: tuple[str, ...],
        *,
        batches: Shapes = Shapes(),
        precision: str = "fp32",
        cache_dir: Path | None = None,
    ) -> BuiltPlan:
        """Compiles an ONNX file into one plan for all targets. fp32 products do not use TF32.

        Args:
            onnx: a model with one input of a fixed height and width.
            targets: compute capabilities, such as ``("sm86",)``.
            batches: batch sizes of the plan.
            precision: precision in which most of the file's weights must be multiplied; otherwise the build fails.
            cache_dir: folder in which TensorRT keeps the timings of kernels between builds.

        Raises:
            BuildError: the parser or the compiler refused the graph (the message gives the reason), or the graph is not in the
                precision.
            MissingExtra: the package is not installed.
        """
        start = time.perf_counter()
        trt = library.package(self.name, "building a plan")
        graphs = self._candidates(plan_graphs(onnx))
        plans = [self._compile(trt, onnx, graph, targets, batches, precision, cache_dir) for graph in graphs]
        best = min(plans, key=lambda plan: plan.activation_memory_bytes or 0)
        return replace(best, seconds=time.perf_counter() - start)

    def why_not_runnable(self, targets: tuple[str, ...]) -> str | None:
        """Returns the reason why a plan for these targets can't run on this machine; None if it can."""
        return library.why_not_here(targets)

    def _candidates(self, graphs: list[bytes]) -> list[bytes]:
        """The equivalent graphs to compile. The plan that needs the least memory for activations is used."""
        return graphs

    def _configure(self, trt: Module, config: Any, targets: tuple[str, ...]) -> None:
        """Sets the package's own options in the builder's configuration."""
        raise NotImplementedError

    def _timing_cache(self, trt: Module, targets: tuple[str, ...], cache_dir: Path | None) -> CacheFile | None:
        return None

    def _compile(
        self,
        trt: Module,
        onnx: Path,
        graph: bytes,
        targets: tuple[str, ...],
        batches: Shapes,
        precision: str,
        cache_dir: Path | None,
    ) -> BuiltPlan:
        logger = library.capturing_logger(trt)
        builder = trt.Builder(logger)
        network = builder.create_network(network_flags(trt, self.name))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(graph):
            reason = library.parser_error(parser) or library.last_error(logger)
            raise BuildError(f"{onnx.name}: {self.name} can't parse the ONNX file ({reason})")
        # The types are known when the file is parsed, so they are checked before the slow compilation.
        inspection = inspect_network(trt, network)
        require_precision(inspection, precision, onnx.name)
        config = builder.create_builder_config()
        self._configure(trt, config, targets)
        config.clear_flag(trt.BuilderFlag.TF32)
        images = network.get_input(0)
        image = tuple(images.shape)[1:]
        if min(image) < 1:
            what = "height and width of its input are free, but a plan needs fixed ones"
            raise BuildError(f"{onnx.name}: {what}; export it without --resize")
        profile = builder.create_optimization_profile()
        profile.set_shape(images.name, (batches.min, *image), (batches.opt, *image), (batches.max, *image))
        if config.add_optimization_profile(profile) < 0:
            reason = library.last_error(logger)
            raise BuildError(f"{onnx.name}: {self.name} refuses batches from {batches.min} to {batches.max} ({reason})")
        timing_cache = self._timing_cache(trt, targets, cache_dir)
        if timing_cache is not None:
            config.set_timing_cache(config.create_timing_cache(timing_cache.read()), False)
        data = builder.build_serialized_network(network, config)
        if data is None:
            reason = library.last_error(logger)
            raise BuildError(f"{onnx.name}: {self.name} can't build a plan for {', '.join(targets)} ({reason})")
        if timing_cache is not None:
            timing_cache.write(bytes(config.get_timing_cache().serialize()))
        return BuiltPlan(
            data=bytes(data),
            runtime=self.name,
            runtime_version=str(trt.__version__),
            targets=targets,
            activation_memory_bytes=library.reported_bytes(logger.messages, "Total Activation Memory"),
            weights_memory_bytes=library.reported_bytes(logger.messages, "Total Weights Memory"),
            precision=precision,
            batches=batches,
            inspection=inspection.to_dict(),
            graph=None if graph == onnx.read_bytes() else graph,
        )


class TensorRTBuilder(PlanBuilder):
    """TensorRT 10 and 11: compiles for the GPU of this machine."""

    name = "tensorrt"

    def check(self, targets: tuple[str, ...], precision: str) -> None:
        """Checks that the only target is this machine's GPU."""
        library.package(self.name, "building a TensorRT plan")
        here = library.local_target()
        if targets != (here,):
            where = f"is {here}" if here else "is missing"
            raise DeviceError(
                f"TensorRT builds only for the GPU of this machine, which {where}; the requested target is {', '.join(targets)}"
            )
        check_target_precision(targets, precision)

    def _candidates(self, graphs: list[bytes]) -> list[bytes]:
        # A build times kernels on the GPU for minutes, so only the first graph is built.
        return graphs[:1]

    def _configure(self, trt: Module, config: Any, targets: tuple[str, ...]) -> None:
        # Stores the types and formats of layers for inspecting the engine, which costs some kilobytes.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED

    def _timing_cache(self, trt: Module, targets: tuple[str, ...], cache_dir: Path | None) -> CacheFile | None:
        if cache_dir is None:
            return None
        key = CacheKey(kind="timing", package=self.name, version=str(trt.__version__), target=targets[0], driver=driver_version())
        return CacheFile(cache_dir, key)


class TensorRTRTXBuilder(PlanBuilder):
    """TensorRT-RTX: compiles one plan for one or several compute capabilities, ahead of time and without a GPU.

    It uses no timing cache, which would not change the plan and would make the compiler look for a GPU (release notes of
    TensorRT-RTX 1.1).
    """

    name = "tensorrt-rtx"

    def check(self, targets: tuple[str, ...], precision: str) -> None:
        """Checks that TensorRT-RTX has all targets; the error names those that it has."""
        check_rtx_targets(targets, precision)
        library.package(self.name, "building a plan ahead of time")

    def _configure(self, trt: Module, config: Any, targets: tuple[str, ...]) -> None:
        # The number must be set first, because an index beyond it is refused.
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index)


def builder_of(runtime: str) -> PlanBuilder:
    """Returns the builder of ``tensorrt`` or ``tensorrt-rtx``."""
    return TensorRTBuilder() if runtime == TensorRTBuilder.name else TensorRTRTXBuilder()


def network_flags(trt: Module, runtime: str) -> int:
    """Returns the flags of ``create_network``. Only TensorRT 10 needs one for strong typing; the others always use it."""
    if runtime == "tensorrt" and int(str(trt.__version__).split(".")[0]) == 10:
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0


def choose_builder(
    *, target: str | None, device: str | None, searched_device: str | None, precision: str, searched_runtime: str | None = None
) -> tuple[PlanBuilder, tuple[str, ...]]:
    """Chooses the builder and the compute capabilities of a plan.

    The first of these decides: ``target`` or ``device``, the search's device, this machine's GPU. TensorRT builds plans for this
    machine's GPU if it is installed. TensorRT-RTX builds all other plans ahead of time.

    Args:
        target: compute capabilities, separated by commas.
        device: latency profile of a GPU.
        searched_device: device of the search.
        precision: precision of the plan.
        searched_runtime: runtime of the search's latency on the plan's device. If it is ``tensorrt-rtx``, that one is chosen.

    Raises:
        ConfigError: both ``target`` and ``device`` are given.
        DeviceError: there is no target, or it is unknown or can't be built for.
        MissingExtra: the builder's package is not installed.
    """
    if target is not None and device is not None:
        raise ConfigError("--target and --device both name the GPU of the plan; give one of them")
    here = library.local_target()
    named = device or (None if searched_device == "cpu" else searched_device)
    if target is not None:
        targets = parse_targets(target)
    elif here is not None and (named is None or named in devices_at_hand()):
        targets = (here,)
    elif named is not None:
        targets = (device_target(named),)
    else:
        why = "the subnet was searched for the cpu" if searched_device == "cpu" else "the subnet was searched for no device"
        gpus = choices(gpus_with_profiles())
        raise DeviceError(f"a plan needs a target GPU, and {why}: name one with --device ({gpus}) or --target (such as sm86)")
    on_this_gpu = targets == (here,) and is_installed("tensorrt") and searched_runtime != "tensorrt-rtx"
    plan_builder = builder_of("tensorrt" if on_this_gpu else "tensorrt-rtx")
    plan_builder.check(targets, precision)
    return plan_builder, targets
