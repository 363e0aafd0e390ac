"""Compiles ONNX files to plans: TensorRT 10 and 11 for the GPU at hand, TensorRT-RTX ahead of time for any GPU that it knows.

Networks are strongly typed in all three: the types of the ONNX file are the plan's, and no builder flag changes them. Sources:
NVIDIA's TensorRT documentation, "Strongly Typed Networks" and the migration guide to 11.0.
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
    """Batches of a plan: the smallest and the largest that it takes, and the one that it is tuned for.

    Raises:
        ConfigError: not ``1 <= min <= opt <= max``.
    """

    min: int = 1
    opt: int = 1
    max: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ConfigError(
                f"a plan's batches are {self.min}, {self.opt} and {self.max} (smallest, tuned for, largest); "
                f"they must be 1 or more, each at least the one before"
            )


@dataclass(frozen=True, kw_only=True)
class BuiltPlan:
    """A compiled plan, not yet on disk.

    Attributes:
        data: the serialised plan, exactly as the runtime reads it (never with anything put before it).
        runtime, runtime_version: what can load it.
        activation_memory_bytes, weights_memory_bytes: device memory that an execution needs at the maximum batch, as the
            builder reports it; None where it didn't.
        seconds: duration of the build.
        precision: what was asked for, and found in what was compiled.
        settings: switches that shape the numerics.
        inspection: types of the products, as JSON data; see :mod:`growtas.export.tensorrt.plan_precision`.
        graph: the ONNX graph that was compiled, where it isn't the file as it is but one that computes the same, serialised.
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
    # TF32 rounds inputs to 10 bits, about 1e-3 relative. That is another precision than the fp32 that was asked for, and than the
    # fp32 that mixed precision leaves to sensitive layers.
    settings: dict[str, object] = field(default_factory=lambda: {"tf32": False})
    inspection: dict[str, object] | None = None
    graph: bytes | None = field(default=None, repr=False)


class PlanBuilder:
    """Compiles ONNX files to plans; a class for each package, whose ``name`` is the package's, as manifests have it."""

    name: str

    def check(self, targets: tuple[str, ...], precision: str) -> None:
        """Refuses what can't be built, before any work.

        Raises:
            DeviceError: a target that the builder doesn't know, or a precision that the target doesn't have.
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
        """Compiles an ONNX file into one plan for all targets; fp32 products are exact (no TF32).

        Args:
            onnx: a model with one input; its height and width are the plan's.
            targets: compute capabilities, such as ``("sm86",)``.
            batches: smallest, tuned for, largest.
            precision: what most of the file's weights are multiplied in; the build fails if they aren't.
            cache_dir: where TensorRT keeps timings of kernels between builds.

        Raises:
            BuildError: the parser or the compiler refused the graph, the message holds its reason; or the graph isn't in the
                precision asked for.
            MissingExtra: the package is not installed.
        """
        start = time.perf_counter()
        trt = library.package(self.name, "building a plan")
        graphs = self._candidates(plan_graphs(onnx))
        plans = [self._compile(trt, onnx, graph, targets, batches, precision, cache_dir) for graph in graphs]
        best = min(plans, key=lambda plan: plan.activation_memory_bytes or 0)
        return replace(best, seconds=time.perf_counter() - start)

    def why_not_runnable(self, targets: tuple[str, ...]) -> str | None:
        """Why a plan for these targets can't be executed on this machine; None if it can."""
        return library.why_not_here(targets)

    def _candidates(self, graphs: list[bytes]) -> list[bytes]:
        """The equivalent graphs to compile; the plan that needs the least memory for activations is taken."""
        return graphs

    def _configure(self, trt: Module, config: Any, targets: tuple[str, ...]) -> None:
        """Sets what differs between the packages on the builder's configuration."""
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
        # Before the compiler's seconds: the types are settled when the file is parsed.
        inspection = inspect_network(trt, network)
        require_precision(inspection, precision, onnx.name)
        config = builder.create_builder_config()
        self._configure(trt, config, targets)
        config.clear_flag(trt.BuilderFlag.TF32)
        images = network.get_input(0)
        image = tuple(images.shape)[1:]
        if min(image) < 1:
            what = "height and width of its input are free, and a plan's are fixed"
            raise BuildError(f"{onnx.name}: {what}; export it without --resize")
        profile = builder.create_optimization_profile()
        profile.set_shape(images.name, (batches.min, *image), (batches.opt, *image), (batches.max, *image))
        if config.add_optimization_profile(profile) < 0:
            reason = library.last_error(logger)
            raise BuildError(f"{onnx.name}: {self.name} takes no batches {batches.min} to {batches.max} ({reason})")
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
        """Only this machine's GPU can be a target."""
        library.package(self.name, "building a TensorRT plan")
        here = library.local_target()
        if targets != (here,):
            where = f"is {here}" if here else "is missing"
            raise DeviceError(
                f"TensorRT builds only for the GPU of the machine it runs on, which {where}; asked was {', '.join(targets)}"
            )
        check_target_precision(targets, precision)

    def _candidates(self, graphs: list[bytes]) -> list[bytes]:
        # It times kernels on the GPU for minutes: the first graph alone.
        return graphs[:1]

    def _configure(self, trt: Module, config: Any, targets: tuple[str, ...]) -> None:
        # Types and formats of layers, for whoever inspects the engine; it costs some kilobytes.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED

    def _timing_cache(self, trt: Module, targets: tuple[str, ...], cache_dir: Path | None) -> CacheFile | None:
        if cache_dir is None:
            return None
        key = CacheKey(kind="timing", package=self.name, version=str(trt.__version__), target=targets[0], driver=driver_version())
        return CacheFile(cache_dir, key)


class TensorRTRTXBuilder(PlanBuilder):
    """TensorRT-RTX: compiles for one or several compute capabilities in one plan, ahead of time; needs no GPU.

    It uses no timing cache: that changes nothing in a plan of TensorRT-RTX, and makes the compiler look for a GPU (release notes of
    TensorRT-RTX 1.1).
    """

    name = "tensorrt-rtx"

    def check(self, targets: tuple[str, ...], precision: str) -> None:
        """Only targets that TensorRT-RTX has; the message names them."""
        check_rtx_targets(targets, precision)
        library.package(self.name, "building a plan ahead of time")

    def _configure(self, trt: Module, config: Any, targets: tuple[str, ...]) -> None:
        # The number comes first: setting an index beyond it is refused.
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index)


def builder_of(runtime: str) -> PlanBuilder:
    """The builder of ``tensorrt`` or ``tensorrt-rtx``."""
    return TensorRTBuilder() if runtime == TensorRTBuilder.name else TensorRTRTXBuilder()


def network_flags(trt: Module, runtime: str) -> int:
    """Flags of ``create_network``: TensorRT 10 has to be told that the types are binding, the others know nothing else."""
    if runtime == "tensorrt" and int(str(trt.__version__).split(".")[0]) == 10:
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0


def choose_builder(
    *, target: str | None, device: str | None, searched_device: str | None, precision: str, searched_runtime: str | None = None
) -> tuple[PlanBuilder, tuple[str, ...]]:
    """Chooses the builder and the compute capabilities of a plan.

    What was named decides (``target``, else ``device``), then the device that the search was for, then this machine's GPU. TensorRT
    builds for the GPU at hand where both are there; everything else is TensorRT-RTX, ahead of time.

    Args:
        searched_runtime: that the search's latency on the plan's device is of; TensorRT-RTX is taken where it is that.

    Raises:
        ConfigError: both ``target`` and ``device``.
        DeviceError: no target, an unknown one, or one that can't be built for.
        MissingExtra: the builder's package is not installed.
    """
    if target is not None and device is not None:
        raise ConfigError("--target and --device both name what the plan is for; give one of them")
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
    at_hand = targets == (here,) and is_installed("tensorrt") and searched_runtime != "tensorrt-rtx"
    chosen = builder_of("tensorrt" if at_hand else "tensorrt-rtx")
    chosen.check(targets, precision)
    return chosen, targets
