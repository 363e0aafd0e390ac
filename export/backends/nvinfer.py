"""What TensorRT and TensorRT-RTX have in common: parsing, building, and running a plan.

Both packages have the same Python API under different module names, so the functions here take the module. Only the choice of
compute capabilities differs; it lives in the two backends.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from growtas.errors import BuildError, CheckpointError, DeviceError
from growtas.export.backends.base import Array, BuiltPlan, RuntimeInfo, Timer
from growtas.export.backends.pytorch import cuda_timer
from growtas.export.onnx import INPUT, OUTPUT, read_input_shape

# The module `tensorrt` or `tensorrt_rtx`; neither ships types.
Module = Any


def build_plan(
    trt: Module,
    onnx: Path,
    targets: tuple[str, ...],
    *,
    runtime: str,
    max_batch: int,
    configure: Callable[[Module, Any], None],
) -> BuiltPlan:
    """Compile an ONNX file for batches 1 to ``max_batch``, optimised for batch 1, with exact fp32 (no TF32).

    Args:
        trt: the module.
        onnx: an fp32 model with one input, ``images``.
        targets: recorded in the result.
        runtime: the package's name in manifests.
        configure: sets what differs between the two packages on the builder's config.

    Raises:
        BuildError: the parser or the compiler refused the graph.
    """
    start = time.perf_counter()
    logger = capturing_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        raise BuildError(f"{onnx.name}: {runtime} can't parse the ONNX file ({_parser_error(parser) or last_error(logger)})")
    config = builder.create_builder_config()
    configure(trt, config)
    # TF32 rounds inputs to 10 bits, about 1e-3 relative: that is another precision than the fp32 that was asked for.
    config.clear_flag(trt.BuilderFlag.TF32)
    image = read_input_shape(onnx)
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, (1, *image), (1, *image), (max_batch, *image))
    config.add_optimization_profile(profile)
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise BuildError(f"{onnx.name}: {runtime} can't build a plan for {', '.join(targets)} ({last_error(logger)})")
    return BuiltPlan(
        data=bytes(data),
        runtime=runtime,
        runtime_version=str(trt.__version__),
        targets=targets,
        activation_memory_bytes=reported_bytes(logger.messages, "Total Activation Memory"),
        weights_memory_bytes=reported_bytes(logger.messages, "Total Weights Memory"),
        seconds=time.perf_counter() - start,
        settings={"tf32": False},
    )


def capturing_logger(trt: Module) -> Any:
    """A logger that keeps messages of level INFO and worse as ``(severity name, text)`` in ``messages``, and prints nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[str, str]] = []

        def log(self, severity: Any, message: str) -> None:
            if severity.name != "VERBOSE":
                self.messages.append((severity.name, message))

    return Logger()


def reported_bytes(messages: list[tuple[str, str]], what: str) -> int | None:
    """The number in the last message ``WHAT: N bytes``; None without one."""
    pattern = re.compile(re.escape(what) + r":\s*(\d+) bytes")
    found = [int(match[1]) for _, text in messages if (match := pattern.search(text))]
    return found[-1] if found else None


def last_error(logger: Any) -> str:
    """The last error that a logger caught, on one line."""
    errors = [text for severity, text in logger.messages if severity in ("ERROR", "INTERNAL_ERROR")]
    return _one_line(errors[-1]) if errors else "no reason given"


def _parser_error(parser: Any) -> str | None:
    """The parser's first error, with the node that it stumbled over."""
    if not parser.num_errors:
        return None
    error = parser.get_error(0)
    return f"{error.node_operator()} {error.node_name()}: {_one_line(error.desc())}"


def _one_line(text: str) -> str:
    text = re.sub(r"\[[\w.:]*\.cpp[^\]]*\]\s*", "", text)
    return " ".join(re.sub(r"^.*?Error Code \d+: ", "", text).split())[:200]


def local_target() -> str | None:
    """Compute capability of this machine's GPU, such as ``sm86``; None without a usable GPU."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}"


def why_not_here(targets: tuple[str, ...]) -> str | None:
    """Why plans for these targets can't be executed on this machine; None if they can."""
    here = local_target()
    if here is None:
        return "no NVIDIA GPU with a driver on this machine"
    if here not in targets:
        return f"the GPU of this machine is {here}, the plan is for {', '.join(targets)}"
    return None


class PlanSession:
    """A plan on this machine's GPU.

    Raises:
        CheckpointError: the runtime can't load the plan.
        DeviceError: no GPU.
    """

    def __init__(self, trt: Module, path: Path, runtime: str) -> None:
        if local_target() is None:
            raise DeviceError(f"{path}: the plan can't run here: no NVIDIA GPU with a driver on this machine")
        self._logger = capturing_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        try:
            self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        except OSError as error:
            raise CheckpointError(f"{path}: the plan can't be read ({error.strerror})") from None
        if self._engine is None:
            raise CheckpointError(f"{path}: {runtime} {trt.__version__} can't load the plan ({last_error(self._logger)})")
        self._context = self._engine.create_execution_context()
        self.info = RuntimeInfo(runtime=runtime, version=str(trt.__version__), device=torch.cuda.get_device_name(), threads=0)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the input."""
        _, channels, height, width = self._engine.get_tensor_shape(INPUT)
        return int(channels), int(height), int(width)

    def _prepare(self, images: Array) -> tuple[Callable[[], None], torch.Tensor]:
        """Place images; return what enqueues one execution on torch's current stream, and the tensor it fills."""
        placed = torch.from_numpy(images).cuda()
        if not self._context.set_input_shape(INPUT, tuple(placed.shape)):
            raise CheckpointError(f"the plan takes no images of shape {tuple(placed.shape)} ({last_error(self._logger)})")
        logits = torch.empty(tuple(self._context.get_tensor_shape(OUTPUT)), dtype=torch.float32, device="cuda")

        def launch() -> None:
            # The addresses are set anew each time: timers of several batches share this context.
            self._context.set_input_shape(INPUT, tuple(placed.shape))
            self._context.set_tensor_address(INPUT, placed.data_ptr())
            self._context.set_tensor_address(OUTPUT, logits.data_ptr())
            if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                raise BuildError(f"the plan's execution failed ({last_error(self._logger)})")

        return launch, logits

    def run(self, images: Array) -> Array:
        """Logits of images; see :class:`growtas.export.backends.base.Session`."""
        launch, logits = self._prepare(images)
        launch()
        torch.cuda.current_stream().synchronize()
        return np.asarray(logits.cpu().numpy(), np.float32)

    def timer(self, images: Array) -> Timer:
        """A run timed by CUDA events; see :class:`growtas.export.backends.base.Session`."""
        launch, _ = self._prepare(images)
        return cuda_timer(launch)

    def __enter__(self) -> PlanSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # The context must go before its engine, and the engine before the runtime.
        del self._context, self._engine, self._runtime
