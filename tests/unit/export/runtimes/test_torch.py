from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from growtas.checkpoint import save_model
from growtas.export.open import open_session
from growtas.export.runtimes.torch import TorchSession, cpu_threads
from growtas.export.runtimes.torch_export import save_program
from growtas.export.verification.images import noise
from growtas.nn.vit import VisionTransformer
from growtas.resources import available_threads

IMAGE = (3, 16, 16)
Open = Callable[..., TorchSession]


@pytest.fixture(params=["safetensors", "pt2"])
def open_file(request: pytest.FixtureRequest, model: VisionTransformer, tmp_path: Path) -> Open:
    path = tmp_path / f"model.{request.param}"
    if request.param == "pt2":
        save_program(model, path, max_batch=4)
    else:
        save_model(path, model)

    def opened(threads: int | None) -> TorchSession:
        session = open_session(path, threads=threads)
        assert isinstance(session, TorchSession)
        return session

    return opened


def test_every_run_takes_the_threads_that_were_asked_for_and_reported(open_file: Open) -> None:
    before, seen = torch.get_num_threads(), list[int]()
    with open_file(before + 1) as session:
        assert session.info.threads == before + 1
        session.module.register_forward_pre_hook(lambda module, args: seen.append(torch.get_num_threads()))
        timer = session.timer(noise(1, IMAGE))
        session.run(noise(1, IMAGE))
        timer()
        assert torch.get_num_threads() == before
        # OpenMP keeps a number for each calling thread, such as a server's.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(session.run, noise(2, IMAGE)).result()
            pool.submit(timer).result()
    assert seen == [before + 1] * 4
    assert torch.get_num_threads() == before


def test_threads_default_to_all_that_the_process_may_use(open_file: Open) -> None:
    with open_file(None) as session:
        seen = list[int]()
        session.module.register_forward_pre_hook(lambda module, args: seen.append(torch.get_num_threads()))
        session.run(noise(1, IMAGE))
        assert seen == [session.info.threads] == [available_threads()]


def test_computations_with_different_threads_at_once_each_get_theirs() -> None:
    before, seen = torch.get_num_threads(), dict[int, set[int]]()

    def compute(count: int) -> None:
        for _ in range(5):
            with cpu_threads(count):
                seen.setdefault(count, set()).add(torch.get_num_threads())
                time.sleep(0.002)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(compute, (before + 1, before + 2, before)))
    assert seen == {count: {count} for count in (before, before + 1, before + 2)}
    assert torch.get_num_threads() == before


def test_an_error_puts_the_threads_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), cpu_threads(before + 1):
        raise RuntimeError
    assert torch.get_num_threads() == before


def test_half_precision_is_that_of_weights_and_activations(model: VisionTransformer) -> None:
    images = noise(2, IMAGE)
    with TorchSession(copy.deepcopy(model), IMAGE, threads=1) as full:
        expected = full.run(images)
    with TorchSession(copy.deepcopy(model), IMAGE, threads=1, dtype=torch.bfloat16) as half:
        assert {parameter.dtype for parameter in half.module.parameters()} == {torch.bfloat16}
        logits = half.run(images)
        assert half.timer(images)() > 0
    assert logits.dtype == np.float32
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 1e-5 < error < 5e-2


COMPILES = """
import numpy, torch
from growtas.export.runtimes.torch import TorchSession
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.GELU(), torch.nn.Linear(12, 3)).eval()
images = numpy.ones((2, 3, 2, 2), numpy.float32)
got = TorchSession(network, (3, 2, 2), compiled=True, threads=1).run(images)
assert numpy.allclose(got, network(torch.from_numpy(images)).detach().numpy(), atol=1e-5)
"""


@pytest.mark.slow
def test_a_killed_compilation_does_not_break_the_later_ones(tmp_path):
    """The linker leaves an incomplete library in torch's cache."""
    for _ in range(2):
        command = [sys.executable, "-W", "ignore", "-c", COMPILES]
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_FX_GRAPH_CACHE": "0"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        libraries = list(tmp_path.rglob("*.main.so"))
        assert libraries
        for library in libraries:
            library.write_bytes(b"")
