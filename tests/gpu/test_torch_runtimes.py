"""PyTorch's runtimes on a GPU: eager, compiled and as CUDA graphs, in each precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from growtas.export.benchmark.stopwatch import ArchitectureTurns
from growtas.export.benchmark.targets import check_runtime
from growtas.export.verification.images import noise
from growtas.latency.at_hand import gpu_name
from growtas.latency.estimate import RUNTIMES
from tests.export_helpers import SUBNET, TINY

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
TOLERANCE = {"fp32": 5e-3, "fp16": 1e-2, "bf16": 5e-2}


def test_the_driver_and_pytorch_call_the_gpu_alike() -> None:
    assert gpu_name() == torch.cuda.get_device_name()


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("runtime", [runtime for runtime in RUNTIMES if runtime.startswith("torch")])
def test_a_runtime_computes_what_the_cpu_does_and_is_timed(runtime: str, precision: str) -> None:
    check_runtime(runtime, precision, "cuda")
    turns = ArchitectureTurns(
        TINY, [], runtime=runtime, precision=precision, batch=2, threads=1, hardware="cuda", rounds=2, seconds=0.01
    )
    on_cpu = ArchitectureTurns(TINY, [], runtime="torch", batch=2, threads=1)
    with turns.session(SUBNET) as session, on_cpu.session(SUBNET) as reference:
        assert (session.info.runtime, session.info.device, session.info.threads) == (runtime, gpu_name(), 0)
        # For other images of the same shape, a captured graph must not return the logits of the first images.
        for seed_images in (noise(2, session.image_shape), -noise(2, session.image_shape)):
            expected = reference.run(seed_images)
            error = np.abs(session.run(seed_images) - expected).max() / np.abs(expected).max()
            assert error < TOLERANCE[precision]
    assert all(block.median_ms > 0 for block in turns([SUBNET])[0])
