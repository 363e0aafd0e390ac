"""Builds subnets of a space for one runtime and times them in turns, for a measured profile."""

from __future__ import annotations

import contextlib
import functools
import hashlib
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
from growtas.files import scratch_folder
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
    """Times subnets in turns, for :class:`growtas.latency.measured.campaign.Campaign`.

    Args:
        space: the subnets' search space.
        subnets: subnets whose graphs are assembled from pieces. Every other subnet is exported when it is timed.
        runtime, precision: runtime and precision of the measurement; see
            :func:`growtas.export.benchmark.targets.check_runtime`.
        batch: images per run.
        threads: CPU threads.
        hardware: device for ONNX Runtime and PyTorch. Plans always run on a GPU, and OpenVINO always on the CPU.
        rounds: number of blocks of each subnet.
        seconds: smallest duration of a block.
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
            # Imported here, so that measuring only PyTorch does not need ONNX' packages.
            from growtas.export.graph.assemble import Assembler, export_graph

            self._assembler = Assembler(space, subnets)
            # A subnet is timed several times, and the reference in every round.
            self._export = functools.lru_cache(_CACHED_GRAPHS)(
                lambda subnet: export_graph(Architecture.of(space, subnet)).SerializeToString()
            )
            self._artifact = functools.lru_cache(_CACHED_GRAPHS)(self._build)

    def check_against_exporter(self, subnet: Subnet, progress: Progress) -> None:
        """Compares a subnet's assembled graph with the exporter's. If they differ, every subnet is exported from now on.

        In PyTorch no graphs are assembled, so this does nothing.
        """
        if self.runtime in _IN_TORCH:
            return
        from growtas.export.graph.assemble import signature

        if signature(self._assembler.graph(subnet)) != self.signature(subnet):
            self._assembled = frozenset()
            self._artifact.cache_clear()
            why = "graphs assembled from blocks differ from exported ones on this machine"
            progress.note(f"{why}; each subnet is exported instead, which takes longer")

    def signature(self, subnet: Subnet) -> str:
        """Returns a digest of the exporter's graph of a subnet, without names and weights
        (:func:`growtas.export.graph.assemble.signature`). In PyTorch it is that of the module's layers and growtas' version.

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
        """Returns runtime, version, device and threads, for which it loads a session.

        Raises:
            BuildError, CheckpointError: the subnet can't be built or loaded.
        """
        with self.session(subnet) as session:
            return session.info

    def __call__(self, subnets: Sequence[Subnet]) -> list[list[Block]]:
        """Returns the blocks of each subnet in each round, shape ``(len(subnets), rounds)``.

        Raises:
            BuildError, CheckpointError: a subnet can't be built or loaded.
        """
        with contextlib.ExitStack() as stack:
            sessions = [stack.enter_context(self.session(subnet)) for subnet in subnets]
            timers = [session.timer(noise(self.batch, session.image_shape)) for session in sessions]
            return measure_in_turns(timers, rounds=self.rounds, seconds=self.seconds)

    def session(self, subnet: Subnet) -> Session:
        """Builds and loads the subnet.

        Raises:
            BuildError, CheckpointError: the subnet can't be built or loaded.
        """
        if self.runtime in _IN_TORCH:
            return self._torch_session(subnet)
        return _open(self._artifact(subnet), self.runtime, threads=self.threads, device=self.hardware)

    def _build(self, subnet: Subnet) -> bytes:
        """The file to load: the graph in the precision, which for TensorRT is compiled to a plan."""
        graph = self._assembler.graph(subnet).SerializeToString() if subnet in self._assembled else self._export(subnet)
        if self.precision != "fp32":
            graph = self._converted(graph)
        if self.runtime not in PLAN.runtimes:
            return graph
        # Many subnets contain the same blocks: with cached timings TensorRT need not try their kernels again.
        cache = cache_folder()
        return _build_plan(graph, self.runtime, self.batch, precision=self.precision, cache_dir=cache / "plans" if cache else None)

    def _torch_session(self, subnet: Subnet) -> Session:
        """The module in the form that ``growtas bench`` runs; in half precision its weights are half precision too."""
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
        """Converts a graph to the precision like an export. It is calibrated on noise, because only the scales depend on images."""
        from growtas.export.quantization.convert import convert

        size, channels = self.space.image_size, self.space.in_chans
        with scratch_folder() as folder:
            source, out = folder / "fp32.onnx", folder / "converted.onnx"
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
    """Compiles an ONNX model for this machine's GPU and loads it, without leaving files.

    Args:
        model: the ONNX file's bytes.
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        batch: batch size that the plan is tuned for, which is also its largest one.
        precision: precision in which most of the model's weights are multiplied.

    Raises:
        BuildError, CheckpointError: the model can't be built or loaded, or is not in this precision.
        DeviceError: there is no GPU, or the GPU does not support the runtime or the precision.
        MissingExtra: the package is not installed.
    """
    return _open(_build_plan(model, runtime, batch, precision=precision), runtime)


def _build_plan(model: bytes, runtime: str, batch: int, *, precision: str, cache_dir: Path | None = None) -> bytes:
    from growtas.export.tensorrt import builder, library

    target, compiler = str(library.local_target()), builder.builder_of(runtime)
    compiler.check((target,), precision)
    # Kernels are chosen for one batch size, so the plan must be tuned for the one that is timed.
    shapes = builder.Shapes(opt=batch, max=batch)
    with scratch_folder() as folder:
        onnx = folder / "model.onnx"
        onnx.write_bytes(model)
        return compiler.build(onnx, (target,), batches=shapes, precision=precision, cache_dir=cache_dir).data


def _open(artifact: bytes, runtime: str, *, threads: int | None = None, device: Hardware = "cpu") -> Session:
    """Loads a plan, or for another runtime an ONNX file."""
    with scratch_folder() as folder:
        path = (folder / "model").with_suffix((PLAN if runtime in PLAN.runtimes else ONNX).suffix)
        path.write_bytes(artifact)
        return open_session(path, threads=threads, runtime=runtime, device=device, trusted=True)
