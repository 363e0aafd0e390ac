"""Subnets of a space built for one runtime and timed against each other, for a measured profile."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from growtas import __version__
from growtas.data.cache import cache_folder
from growtas.export.benchmark.timing import measure_in_turns
from growtas.export.formats import ONNX, PLAN
from growtas.export.graph.inference_vit import deployable
from growtas.export.open import open_session
from growtas.export.runtimes.base import RuntimeInfo, Session
from growtas.export.runtimes.torch import TorchSession
from growtas.export.verification.images import noise
from growtas.latency.estimate import Hardware
from growtas.latency.measured.paired import Block
from growtas.nn.architecture import Architecture
from growtas.nn.vit import random_network
from growtas.progress import Progress
from growtas.space import SearchSpace
from growtas.subnet import Subnet

_CALIBRATION_IMAGES = 2
_CACHED_GRAPHS = 12
_IN_TORCH = ("torch", "torch.compile", "torch.cudagraphs")
"""The runtimes that execute the module itself."""


class ArchitectureTurns:
    """Times subnets against each other; what :class:`growtas.latency.measured.campaign.Campaign` calls.

    Args:
        space: geometry of the images.
        subnets: those whose graphs are assembled from pieces; any other one is exported when it is timed.
        runtime, precision: what export would ship; see :func:`growtas.export.benchmark.targets.check_runtime`.
        batch: images a run.
        threads: CPU threads.
        hardware: where ONNX Runtime or PyTorch executes; plans run on a GPU in any case, OpenVINO on the CPU.
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
        hardware: Hardware = "cpu",
        rounds: int = 9,
        seconds: float = 0.1,
    ) -> None:
        self.space, self.runtime, self.precision, self.batch, self.threads = space, runtime, precision, batch, threads
        self.hardware, self.rounds, self.seconds = hardware, rounds, seconds
        self._assembled = frozenset(subnets)
        if runtime not in _IN_TORCH:
            # Here, since a machine that measures PyTorch alone needs none of ONNX' packages.
            from growtas.export.graph.assemble import Assembler, export_graph

            self._assembler = Assembler(space, subnets)
            # A subnet is timed more than once, and the reference always.
            self._export = functools.lru_cache(_CACHED_GRAPHS)(
                lambda subnet: export_graph(Architecture.of(space, subnet)).SerializeToString()
            )
            self._artifact = functools.lru_cache(_CACHED_GRAPHS)(self._build)

    def check_against_exporter(self, subnet: Subnet, progress: Progress) -> None:
        """Compares the assembled graph of a subnet with the exporter's; if they differ, every subnet is exported from now on.

        In PyTorch nothing is assembled.
        """
        if self.runtime in _IN_TORCH:
            return
        from growtas.export.graph.assemble import signature

        if signature(self._assembler.graph(subnet)) != self.signature(subnet):
            self._assembled = frozenset()
            self._artifact.cache_clear()
            why = "graphs put together from blocks differ from exported ones here"
            progress.note(f"{why}; exporting each subnet, which takes longer")

    def signature(self, subnet: Subnet) -> str:
        """Digest of what the exporter writes for a subnet, names and weights aside; see
        :func:`growtas.export.graph.assemble.signature`. In PyTorch, of the module's layers and the version that computes them.

        Raises:
            BuildError: the exporter failed.
        """
        if self.runtime in _IN_TORCH:
            network = random_network(Architecture.of(self.space, subnet))
            return hashlib.sha256(f"growtas {__version__}: {network}".encode()).hexdigest()
        import onnx

        from growtas.export.graph.assemble import signature

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
        if self.runtime in _IN_TORCH:
            return self._torch_session(subnet)
        return _open(self._artifact(subnet), self.runtime, threads=self.threads, device=self.hardware)

    def _build(self, subnet: Subnet) -> bytes:
        """What is loaded: the graph in the precision, for TensorRT compiled to a plan."""
        graph = self._assembler.graph(subnet).SerializeToString() if subnet in self._assembled else self._export(subnet)
        if self.precision != "fp32":
            graph = self._converted(graph)
        if self.runtime not in PLAN.runtimes:
            return graph
        # Blocks occur in many subnets: with the timings of earlier builds TensorRT needs not try their kernels again.
        cache = cache_folder()
        return _build_plan(graph, self.runtime, self.batch, precision=self.precision, cache_dir=cache / "plans" if cache else None)

    def _torch_session(self, subnet: Subnet) -> Session:
        """The module as ``growtas bench`` runs an exported one, in half precision with its weights too."""
        module, compiled = random_network(Architecture.of(self.space, subnet)), self.runtime == "torch.compile"
        shape = (self.space.in_chans, self.space.image_size, self.space.image_size)
        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self.precision]
        return TorchSession(
            deployable(module) if compiled else module,
            shape,
            threads=self.threads,
            device=self.hardware,
            compiled=compiled,
            captured=self.runtime == "torch.cudagraphs",
            dtype=dtype,
        )

    def _converted(self, graph: bytes) -> bytes:
        """A graph in the precision, as export converts it; calibrated on noise: the graph is the same but for its scales."""
        from growtas.export.quantization.convert import convert

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
    return _open(_build_plan(model, runtime, batch, precision=precision), runtime)


def _build_plan(model: bytes, runtime: str, batch: int, *, precision: str, cache_dir: Path | None = None) -> bytes:
    from growtas.export.tensorrt import builder, library

    target, compiler = str(library.local_target()), builder.builder_of(runtime)
    compiler.check((target,), precision)
    # Kernels are chosen for one batch: a plan that is tuned for another says nothing about what this one can take.
    shapes = builder.Shapes(opt=batch, max=batch)
    with tempfile.TemporaryDirectory(prefix="growtas-") as folder:
        onnx = Path(folder, "model.onnx")
        onnx.write_bytes(model)
        return compiler.build(onnx, (target,), batches=shapes, precision=precision, cache_dir=cache_dir).data


def _open(artifact: bytes, runtime: str, *, threads: int | None = None, device: Hardware = "cpu") -> Session:
    """Loads a plan, or an ONNX file for another runtime."""
    with tempfile.TemporaryDirectory(prefix="growtas-") as folder:
        path = Path(folder, "model").with_suffix((PLAN if runtime in PLAN.runtimes else ONNX).suffix)
        path.write_bytes(artifact)
        return open_session(path, threads=threads, runtime=runtime, device=device, trusted=True)
