"""Subnets of a space built for one runtime and timed against each other, for a measured profile."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from growtas.errors import DeviceError, choices
from growtas.export.benchmark.timing import measure_in_turns
from growtas.export.formats import PLAN
from growtas.export.graph.assemble import Assembler, export_graph, signature
from growtas.export.open import open_session
from growtas.export.quantization.convert import convert
from growtas.export.runtimes.base import RuntimeInfo, Session, is_installed
from growtas.export.tensorrt import library
from growtas.export.tensorrt.builder import Shapes, builder_of
from growtas.export.verification.images import noise
from growtas.latency.estimate import RUNTIMES
from growtas.latency.measured.paired import Block
from growtas.nn.architecture import Architecture
from growtas.progress import Progress
from growtas.space import SearchSpace
from growtas.subnet import Subnet

_CALIBRATION_IMAGES = 2
_CACHED_GRAPHS = 12


def check_runtime(runtime: str, precision: str) -> None:
    """Refuses a runtime or precision that can't be measured here, before any work.

    Raises:
        DeviceError: an unknown runtime, a precision that it isn't measured in, no openvino, or no GPU for a plan.
        MissingExtra: the runtime's package is not installed.
    """
    if runtime not in RUNTIMES:
        raise DeviceError(f"--runtime is {runtime!r}; legal are {choices(RUNTIMES)}")
    if precision not in RUNTIMES[runtime]:
        raise DeviceError(f"--precision is {precision!r}; {runtime} is measured in {choices(RUNTIMES[runtime])}")
    if runtime == "openvino" and not is_installed("openvino"):
        raise DeviceError("--runtime openvino needs the package openvino, which is not installed: pip install 'growtas[openvino]'")
    if runtime in PLAN.runtimes:
        here = library.local_target()
        if here is None:
            raise DeviceError(
                f"--runtime {runtime} needs an NVIDIA GPU with a driver on this machine; without one, use onnxruntime"
            )
        builder_of(runtime).check((here,), precision)


class ArchitectureTurns:
    """Times subnets against each other; what :class:`growtas.latency.measured.campaign.Campaign` calls.

    Args:
        space: geometry of the images.
        subnets: those whose graphs are assembled from pieces; any other one is exported when it is timed.
        runtime: of :data:`RUNTIMES`; see :func:`check_runtime`.
        precision: what export would ship; see :func:`check_runtime`.
        batch: images a run.
        threads: CPU threads.
        rounds, seconds: blocks of each subnet, and their length at least.
    """

    def __init__(
        self,
        space: SearchSpace,
        subnets: Sequence[Subnet],
        *,
        runtime: str,
        precision: str = "fp32",
        batch: int,
        threads: int,
        rounds: int = 9,
        seconds: float = 0.1,
    ) -> None:
        self.space, self.runtime, self.precision, self.batch, self.threads = space, runtime, precision, batch, threads
        self.rounds, self.seconds = rounds, seconds
        self._assembler, self._announced = Assembler(space, subnets), frozenset(subnets)
        self._exporter_for_each = False
        # A subnet is timed more than once, and the reference always.
        self._export = functools.lru_cache(_CACHED_GRAPHS)(
            lambda subnet: export_graph(Architecture.of(space, subnet)).SerializeToString()
        )

    def check_against_exporter(self, subnet: Subnet, progress: Progress) -> None:
        """Compares the assembled graph of a subnet with the exporter's; if they differ, every subnet is exported from now on."""
        self._exporter_for_each = signature(self._assembler.graph(subnet)) != self.signature(subnet)
        if self._exporter_for_each:
            why = "graphs put together from blocks differ from exported ones here"
            progress.note(f"{why}; exporting each subnet, which takes longer")

    def signature(self, subnet: Subnet) -> str:
        """Digest of what the exporter writes for a subnet, names and weights aside; see
        :func:`growtas.export.graph.assemble.signature`.

        Raises:
            BuildError: the exporter failed.
        """
        import onnx

        return signature(onnx.load_from_string(self._export(subnet)))

    def info(self, subnet: Subnet) -> RuntimeInfo:
        """Runtime, version, device and threads, from a session that is loaded for it.

        Raises:
            BuildError, CheckpointError: the subnet can't be built or loaded.
        """
        with self.session(subnet) as session:
            return session.info

    def __call__(self, subnets: Sequence[Subnet]) -> list[list[Block]]:
        """The blocks of each subnet in each round, shape ``(len(subnets), rounds)``.

        Raises:
            BuildError, CheckpointError: a subnet can't be built or loaded.
        """
        with contextlib.ExitStack() as stack:
            sessions = [stack.enter_context(self.session(subnet)) for subnet in subnets]
            timers = [session.timer(noise(self.batch, session.image_shape)) for session in sessions]
            return measure_in_turns(timers, rounds=self.rounds, seconds=self.seconds)

    def session(self, subnet: Subnet) -> Session:
        """The subnet, built and loaded.

        Raises:
            BuildError, CheckpointError: it can't be built or loaded.
        """
        assembled = subnet in self._announced and not self._exporter_for_each
        graph = self._assembler.graph(subnet).SerializeToString() if assembled else self._export(subnet)
        if self.precision != "fp32":
            graph = self._converted(graph)
        if self.runtime == "onnxruntime":
            from growtas.export.runtimes.onnxruntime import OnnxRuntimeSession

            return OnnxRuntimeSession(graph, threads=self.threads)
        if self.runtime == "openvino":
            from growtas.export.runtimes.openvino import OpenVINOSession

            return OpenVINOSession(graph, threads=self.threads)
        return plan_session(graph, self.runtime, self.batch, precision=self.precision)

    def _converted(self, graph: bytes) -> bytes:
        """A graph in the precision, as export converts it; calibrated on noise: the graph is the same but for its scales."""
        size, channels = self.space.image_size, self.space.in_chans
        with tempfile.TemporaryDirectory(prefix="growtas-") as folder:
            source, out = Path(folder, "fp32.onnx"), Path(folder, "converted.onnx")
            source.write_bytes(graph)
            convert(
                source,
                out,
                self.precision,
                calibration=noise(_CALIBRATION_IMAGES, (channels, size, size)),
                calibration_are="noise",
                rest="fp16" if self.runtime in PLAN.runtimes else "fp32",
            )
            return out.read_bytes()


def plan_session(model: bytes, runtime: str, batch: int, *, precision: str = "fp32") -> Session:
    """Compiles an ONNX model for this machine's GPU and loads it; no files are left.

    Args:
        model: the ONNX file's bytes.
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        batch: the largest batch that it takes, and the one that it is tuned for.
        precision: what most of the model's weights are multiplied in.

    Raises:
        BuildError, CheckpointError: it can't be built or loaded, or isn't in that precision.
        DeviceError: no GPU, or one that the runtime or the precision isn't for.
        MissingExtra: the package is not installed.
    """
    target, builder = str(library.local_target()), builder_of(runtime)
    builder.check((target,), precision)
    with tempfile.TemporaryDirectory(prefix="growtas-") as folder:
        onnx, plan = Path(folder, "model.onnx"), Path(folder, "model.plan")
        onnx.write_bytes(model)
        # Kernels are chosen for one batch: a plan that is tuned for another says nothing about what this one can take.
        built = builder.build(onnx, (target,), batches=Shapes(opt=batch, max=batch), precision=precision)
        plan.write_bytes(built.data)
        return open_session(plan, runtime=runtime, trusted=True)


def check_device(name: str, known: Sequence[str], device: str) -> None:
    """Refuses to call a measurement by a known device's name if it ran on another.

    Args:
        name: what the user calls this machine.
        known: names of GPUs that have a shipped profile.
        device: what the runtime ran on, ``cpu`` or the GPU's name.

    Raises:
        DeviceError: the name is another device's.
    """
    words = f" {device.lower().replace('-', ' ')} "
    if name == "cpu" and device != "cpu":
        raise DeviceError(f"--device cpu: this runtime runs on {device}; name it otherwise")
    if name in known and f" {name.replace('-', ' ')} " not in words:
        raise DeviceError(f"--device {name}: this runtime runs on {device}, not on such a GPU; give it a name of its own")
