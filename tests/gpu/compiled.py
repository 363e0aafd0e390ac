"""The comparisons of :mod:`tests.gpu.parity` through ``torch.compile``, with fewer blocks, because compiling a block is slow."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from growtas.space import load_space
from tests.gpu.cases import Cases, Outcome
from tests.gpu.hardware import Hardware
from tests.gpu.networks import NETWORKS, PRECISIONS, Comparison


def cases(hardware: Hardware, folder: Path) -> Cases:
    comparison = Comparison(load_space("autoformer-t").replace(depth=(hardware.size(2, 1),)), hardware.size(8, 2))
    torch.backends.cudnn.allow_tf32 = False
    # The stand-in only traces, because Inductor takes minutes on a CPU.
    compile_ = partial(torch.compile, backend=hardware.size("inductor", "aot_eager"))
    # The default precision of trainings comes first, because the time may run out.
    for precision in sorted(PRECISIONS):
        for name in NETWORKS:
            case = partial(_compare, comparison, name, hardware, precision, compile_)
            yield f"compiled {name} against the CPU, {precision}", case


def _compare(
    comparison: Comparison, name: str, hardware: Hardware, precision: str, compile_: Callable[[nn.Module], nn.Module]
) -> Outcome:
    graphs = torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()
    before = graphs["unique_graphs"]
    outcome = comparison.compare(name, hardware.device, precision, compile_)
    count = graphs["unique_graphs"] - before
    text = f"{outcome.result}; {count} graph{'' if count == 1 else 's'} (there should be 1)"
    return Outcome(text, {**outcome.numbers, "graphs": count}, outcome.passed and count == 1)
