"""Subnets of a space built for one runtime and timed against each other, for a measured profile."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from growtas.errors import DeviceError, choices
from growtas.export.benchmark.timing import TURN_ROUNDS, TURN_SECONDS, measure_in_turns
from growtas.export.graph.assemble import Assembler, export_graph, signature
from growtas.export.open import open_session
from growtas.export.runtimes.base import RuntimeInfo, Session, is_installed
from growtas.export.tensorrt import library
from growtas.export.tensorrt.builder import Shapes, builder_of
from growtas.export.verification.images import noise
from growtas.nn.architecture import Architecture
from growtas.space import SearchSpace
from growtas.subnet import Subnet

RUNTIMES = ("onnxruntime", "tensorrt", "tensorrt-rtx", "openvino")
PRECISION = "fp32"
_KEPT = 12


def check_runtime(runtime: str, precision: str) -> None:
    """Refuse a runtime or precision that can't be measured here, before any work.

    Raises:
        DeviceError: an unknown runtime, another precision than growtas builds, no openvino, or no GPU for a plan.
        MissingExtra: the runtime's package is not installed.
    """
    if runtime not in RUNTIMES:
        raise DeviceError(f"--runtime is {runtime!r}; legal are {choices(RUNTIMES)}")
    if precision != PRECISION:
        raise DeviceError(f"--precision is {precision!r}; the artifacts that growtas builds, and so measures, are {PRECISION}")
    if runtime == "openvino":
        if not is_installed("openvino"):
            raise DeviceError(
                "--runtime openvino needs the package openvino, which is not installed: pip install 'growtas[openvino]'"
            )
    elif runtime != "onnxruntime":
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
        batch: int,
        threads: int,
        rounds: int = TURN_ROUNDS,
        seconds: float = TURN_SECONDS,
    ) -> None:
        self.space, self.runtime, self.batch, self.threads = space, runtime, batch, threads
        self.rounds, self.seconds = rounds, seconds
        self._assembler, self._announced = Assembler(space, subnets), frozenset(subnets)
        self._exported: dict[Subnet, bytes] = {}
        self._exporter_for_each = False

    def check_against_exporter(self, subnet: Subnet) -> bool:
        """Whether the assembled graph of a subnet is what the exporter writes; if not, every subnet is exported from now on."""
        self._exporter_for_each = signature(self._assembler.graph(subnet)) != self.signature(subnet)
        return not self._exporter_for_each

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
        with tempfile.TemporaryDirectory(prefix="growtas-") as folder, self._session(subnet, Path(folder)) as session:
            return session.info

    def __call__(self, subnets: Sequence[Subnet]) -> list[list[float]]:
        """Median milliseconds of each subnet in each round, shape ``(len(subnets), rounds)``.

        Raises:
            BuildError, CheckpointError: a subnet can't be built or loaded.
        """
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="growtas-")))
            sessions = [stack.enter_context(self._session(subnet, folder)) for subnet in subnets]
            timers = [session.timer(noise(self.batch, session.image_shape)) for session in sessions]
            return measure_in_turns(timers, rounds=self.rounds, seconds=self.seconds)

    def _session(self, subnet: Subnet, folder: Path) -> Session:
        assembled = subnet in self._announced and not self._exporter_for_each
        graph = self._assembler.graph(subnet).SerializeToString() if assembled else self._export(subnet)
        if self.runtime == "onnxruntime":
            from growtas.export.runtimes.onnxruntime import OnnxRuntimeSession

            return OnnxRuntimeSession(graph, threads=self.threads)
        if self.runtime == "openvino":
            from growtas.export.runtimes.openvino import OpenVINOSession

            return OpenVINOSession(graph, threads=self.threads)
        return plan_session(graph, self.runtime, self.batch, folder)

    def _export(self, subnet: Subnet) -> bytes:
        """What the exporter writes; the last ones are kept, since a subnet is timed more than once and the reference always."""
        graph = self._exported.pop(subnet, None) or export_graph(Architecture.of(self.space, subnet)).SerializeToString()
        self._exported[subnet] = graph
        while len(self._exported) > _KEPT:
            del self._exported[next(iter(self._exported))]
        return graph


def plan_session(model: bytes, runtime: str, batch: int, folder: Path, *, precision: str = PRECISION) -> Session:
    """Compile an ONNX model for this machine's GPU and load it; the files are gone when this returns.

    Args:
        model: the ONNX file's bytes.
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        batch: the largest batch that it takes, and the one that it is tuned for.
        folder: for the files.
        precision: what most of the model's weights are multiplied in.

    Raises:
        BuildError, CheckpointError: it can't be built or loaded, or isn't in that precision.
        DeviceError: no GPU, or one that the runtime or the precision isn't for.
        MissingExtra: the package is not installed.
    """
    target, builder = str(library.local_target()), builder_of(runtime)
    builder.check((target,), precision)
    onnx, plan = folder / "model.onnx", folder / "model.plan"
    onnx.write_bytes(model)
    # Kernels are chosen for one batch: a plan that is tuned for another says nothing about what this one can take.
    built = builder.build(onnx, (target,), batches=Shapes(opt=batch, max=batch), precision=precision)
    plan.write_bytes(built.data)
    try:
        return open_session(plan, runtime=runtime, trusted=True)
    finally:
        onnx.unlink()
        plan.unlink()


def check_device(name: str, known: Sequence[str], device: str) -> None:
    """Refuse to call a measurement by a known device's name if it ran on another.

    Args:
        name: what the user calls this machine.
        known: names of GPUs that have a shipped profile.
        device: what the runtime ran on, ``cpu`` or the GPU's name.

    Raises:
        DeviceError: the name is another device's.
    """
    words = device.lower().replace("-", " ").split()
    if name == "cpu" and device != "cpu":
        raise DeviceError(f"--device cpu: this runtime runs on {device}; name it otherwise")
    if name in known and not any(name.replace("-", " ").split() == words[i : i + len(name.split("-"))] for i in range(len(words))):
        raise DeviceError(f"--device {name}: this runtime runs on {device}, not on such a GPU; give it a name of its own")
