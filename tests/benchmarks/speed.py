"""The entries of the speed table."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxslim
import torch
from torch import nn

from growtas import VisionTransformer, load_space
from growtas.batch import SubnetBatch
from growtas.costs import count_costs_batch
from growtas.export.graph.exporter import DEFAULT_OPSET, export_onnx
from growtas.export.quantization.convert import convert
from growtas.export.tensorrt.builder import Shapes, TensorRTRTXBuilder
from growtas.export.verification.images import noise
from growtas.nn.vit import Attention
from growtas.sampling import sample_batch, sample_feasible
from tests.benchmarks import models
from tests.benchmarks.deployed import IMAGE, deployed
from tests.benchmarks.evaluation import evaluation, evaluation_of_photographs
from tests.benchmarks.exporting import export_time
from tests.benchmarks.feeding import data_loading
from tests.benchmarks.memory import peak_bytes
from tests.benchmarks.steps import MAC_RATIO, training
from tests.benchmarks.timing import Entry, in_turns, medians, ratio

PROCESSES = 5


def training_step() -> Iterator[Entry]:
    """Forward, backward and AdamW on 16 images of 224 px in float32.

    Medians over processes of their own: where a process's memory happens to lie moves these ratios by two percent either way, which
    more rounds in one process don't even out.
    """
    command = [sys.executable, "-m", "tests.benchmarks.steps"]
    found = [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(PROCESSES)]

    def entry(title: str, key: str, bar: float) -> Entry:
        ratios = sorted(process["ratios"][key] for process in found)
        each = " ".join(f"{value:.3f}" for value in ratios)
        return Entry(title, statistics.median(ratios), bar, f"{PROCESSES} processes: {each}; the last: {found[-1]['medians']}")

    subnet, overhead = 1.15, 1.05
    yield entry("training step, static ViT / DeiT-T, per MAC", "static / DeiT-T", subnet)
    yield entry("training step, supernet / static ViT", "supernet / static", overhead)
    yield entry("training step, supernet / DeiT-T, per MAC", "supernet / DeiT-T", round(subnet * overhead, 4))
    yield entry("training step, static ViT / naive attention", "static / naive", 0.5)


def training_memory() -> Iterator[Entry]:
    """Most bytes that are held at once in two training steps, weights, gradients and AdamW's state included."""
    peaks = {name: peak_bytes(lambda name=name: training(name), calls=2) for name in ("supernet", "static", "DeiT-T", "naive")}
    detail = ", ".join(f"{name} {peak / 1e6:.0f} MB" for name, peak in peaks.items())
    for name, title in (("static", "static ViT"), ("supernet", "supernet")):
        yield Entry(f"training memory, {title} / DeiT-T, per MAC", peaks[name] / peaks["DeiT-T"] / MAC_RATIO, 1.15, detail)


def attention_layer() -> Iterator[Entry]:
    """One attention layer with three heads, forward and backward on 16 images: where the two ways differ at all."""
    attention = models.static().blocks[0].attn
    naive = models.OracleAttention(attention)
    tokens = torch.randn(16, models.SPACE.num_tokens, models.PUBLISHED.embed_dim, requires_grad=True)
    times = in_turns(
        {"growtas": lambda: attention(tokens).sum().backward(), "naive": lambda: naive(tokens).sum().backward()},
        rounds=15,
        warmup=2,
    )
    yield Entry("training an attention layer, growtas / naive", ratio(times, "growtas", "naive"), 0.5, medians(times))


def onnx_runtime(folder: Path) -> Iterator[Entry]:
    """The exported graphs in ONNX Runtime, batch 1."""
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)

    def session(name: str, model: nn.Module) -> Callable[[], object]:
        path = folder / f"{name}.onnx"
        _export(model, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        loaded = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feed = {loaded.get_inputs()[0].name: image}
        return lambda: loaded.run(None, feed)

    programs = {
        "growtas": session("growtas", models.static()),
        "DeiT-T": session("deit", models.deit_tiny()),
        "naive": session("naive", models.naive(models.OracleAttention)),
        "public order": session("public", models.naive(models.PublicOrderAttention)),
    }
    times = in_turns(programs, rounds=15, repeats=10, warmup=5)
    yield Entry(
        "ONNX Runtime batch 1, growtas / DeiT-T, per MAC", ratio(times, "growtas", "DeiT-T") / MAC_RATIO, 1.25, medians(times)
    )
    yield Entry("ONNX Runtime batch 1, growtas / naive attention", ratio(times, "growtas", "naive"), 0.42, medians(times))


def _export(model: nn.Module, path: Path) -> None:
    """growtas' own export for its models, and the same exporter and slimming without it for the others."""
    if type(model) is VisionTransformer and isinstance(model.blocks[0].attn, Attention):
        export_onnx(model, path)
        return
    program = torch.onnx.export(
        model.eval(),
        (torch.zeros(2, 3, 224, 224),),
        dynamo=True,
        opset_version=DEFAULT_OPSET,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    onnx.save(onnxslim.slim(program.model_proto), path)


def plan_memory(folder: Path) -> Iterator[Entry]:
    """Activation memory and size of plans for SM86 from the TensorRT-RTX builder; uses the graphs of :func:`onnx_runtime`."""
    builder = TensorRTRTXBuilder()
    _name_linears(folder / "deit.onnx")
    seconds: list[float] = []
    for precision in ("fp32", "fp16", "int8"):
        files = {name: folder / f"{name}.onnx" for name in ("growtas", "deit")}
        if precision != "fp32":
            images = noise(4, IMAGE) if precision == "int8" else None
            for name, source in files.items():
                files[name] = folder / f"{name}.{precision}.plan.onnx"
                convert(source, files[name], precision, calibration=images, calibration_are="noise", rest="fp16")
        sizes: list[float] = []
        for batch in (1, 8, 64):
            plans = {
                name: builder.build(path, ("sm86",), batches=Shapes(max=batch), precision=precision) for name, path in files.items()
            }
            seconds.append(plans["growtas"].seconds)
            ours, theirs = (plan.activation_memory_bytes or 0 for plan in plans.values())
            title = f"plan for sm86, {precision}, activation memory at batch {batch}, growtas / DeiT-T"
            yield Entry(title, ours / theirs, 1.10, f"{ours:,} and {theirs:,} bytes")
            sizes = [len(plan.data) / (plan.weights_memory_bytes or 1) for plan in plans.values()]
        yield Entry(f"plan for sm86, {precision}, bytes / weights' bytes", sizes[0], 1.3, f"DeiT-T's {sizes[1]:.2f}, batch 64")
    each = " ".join(f"{value:.1f}" for value in seconds)
    yield Entry("compile a plan for sm86, slowest, seconds / 20 s", max(seconds) / 20, 1.0, f"fp32, fp16, int8 by batch: {each}")


def _name_linears(path: Path) -> None:
    """Name the constant matrices of timm's products as weights, in the file: so the conversion knows them for Linear layers."""
    proto = onnx.load(path)
    constants = {entry.name: entry for entry in proto.graph.initializer}
    for number, node in enumerate(proto.graph.node):
        weight = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is not None and len(weight.dims) == 2 and not weight.name.endswith(".weight"):
            weight.name = node.input[1] = f"linear.{number}.weight"
    onnx.save(proto, path)


def subnets() -> Iterator[Entry]:
    """Costing and sampling; the ratio is seconds over one second, and over five."""
    space = load_space("autoformer-s")
    drawn = list(sample_batch(space, 100_000, np.random.default_rng(0)))
    times = in_turns({"cost": lambda: count_costs_batch(space, SubnetBatch.from_subnets(drawn))}, rounds=5)
    yield Entry("cost 100,000 subnets of autoformer-s, seconds / 1 s", min(times["cost"]) / 1e3, 1.0, medians(times))
    for limit in (23_000_000, 14_000_000):
        times = in_turns(
            {
                "sample": lambda limit=limit: list(
                    sample_feasible(space, 10_000, np.random.default_rng(0), lambda b: count_costs_batch(space, b)[0] <= limit)
                )
            },
            rounds=3,
        )
        name = f"sample 10,000 subnets of autoformer-s under {limit // 10**6} M, seconds / 5 s"
        yield Entry(name, min(times["sample"]) / 5e3, 1.0, medians(times))


def entries() -> Iterator[Entry]:
    """All entries, as they are measured."""
    yield from subnets()
    with tempfile.TemporaryDirectory() as name:
        yield from onnx_runtime(Path(name))
        yield from plan_memory(Path(name))
        yield from deployed(Path(name), _export)
    yield from export_time()
    yield from attention_layer()
    yield from training_memory()
    yield from data_loading()
    yield from evaluation()
    yield from evaluation_of_photographs()
    yield from training_step()
