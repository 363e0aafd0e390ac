"""Several processes share the subnets of a search; real ones are started, on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap

import pytest
import torch

from growtas.errors import DeviceError
from growtas.search.evaluation.workers import SearchWorld, SharedEvaluator, search_world
from growtas.search.journal import Evaluation
from growtas.space import PRESETS

MICRO = PRESETS["micro"]

PROGRAM = textwrap.dedent(
    """
    import json, os, sys
    import numpy as np, torch
    from growtas.nn.supernet import Supernet
    from growtas.sampling import sample_batch
    from growtas.search.evaluation import evaluator as evaluation, racing, workers
    from growtas.search.evaluation.evaluator import SubnetEvaluator
    from growtas.search.evaluation.racing import Race
    from growtas.search.evaluation.workers import SharedEvaluator, search_world
    from growtas.space import PRESETS

    workers.ROUND, racing.LEAST_IMAGES = 3, 2
    # One image a batch, or parts would be put together.
    evaluation._TOKENS_A_BATCH = 17
    torch.set_num_threads(1)
    torch.manual_seed(0)
    space = PRESETS["micro"].replace(image_size=16, in_chans=1, num_classes=3)
    supernet = Supernet(space)

    class Images:
        pixels = torch.randn(40, 1, 16, 16)
        labels = torch.randint(3, (40,))
        def __len__(self): return 40
        def images(self, start, stop): return self.pixels[start:stop]
        def take(self, indices): return self.pixels[indices]

    fails = len(sys.argv) > 1
    subnets = list(sample_batch(space, 17, np.random.default_rng(0)))
    local = 0
    try:
        with search_world() as world, SharedEvaluator(SubnetEvaluator(supernet, Images()), world) as evaluate:
            inner = evaluate._local
            class Counting:
                def __call__(self, subnets, race=None):
                    global local
                    local += len(subnets)
                    if fails and world.rank == 1:
                        raise ValueError("no more")
                    return inner(subnets, race)
                def close(self): inner.close()
            evaluate._local = Counting()
            if not world.is_main:
                evaluate.serve()
            else:
                order = np.random.default_rng(1).permutation(40)
                found = [dict(evaluate(subnets))]
                needed = round(40 * max(e.accuracy for e in found[0].values()))
                found.append(dict(evaluate(subnets, Race(needed=needed, order=order))))
                lines = [[[s.to_dict(), e.accuracy, e.loss if e.complete else None, e.seen,
                           e.answers.hex() if e.answers else ""] for s, e in each.items()] for each in found]
                sys.stdout.write(json.dumps([sorted(each, key=str) for each in lines]))
    except Exception as error:
        sys.stderr.write(f"{type(error).__name__}: {error}")
    sys.stderr.write(f" evaluated {local}")
    """
)


def start(size, *arguments):
    """Outputs of the program on ``size`` processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            env={**base, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    return [process.communicate(timeout=120) for process in processes]


@pytest.mark.slow
def test_two_processes_find_what_one_finds():
    ((alone, _),) = start(1)
    first, second = start(2)
    assert json.loads(first[0]) == json.loads(alone)
    exact, raced = json.loads(alone)
    assert len(exact) == len(raced) == 17
    assert any(line[3] for line in raced)
    assert any(line[3] is None for line in raced)
    assert second[0] == ""
    # Nothing was evaluated twice, and both had about half: 17 subnets are dealt 3 + 3, 3 + 3, 3 + 2.
    assert [output[1].split()[-2:] for output in (first, second)] == [["evaluated", "18"], ["evaluated", "16"]]


def test_what_fails_in_another_process_fails_the_search_and_lets_the_others_go():
    first, second = start(2, "fail")
    assert "WorkerError: process 1 of 2 could not evaluate its subnets (ValueError: no more)" in first[1]
    assert second[1].strip() == "evaluated 3"


class Local:
    """Every subnet is right half the time."""

    closed = False

    def __call__(self, subnets, race=None):
        return ((subnet, Evaluation(0.5, 1.0)) for subnet in subnets)

    def close(self):
        self.closed = True


def test_alone_it_is_the_local_evaluator():
    local = Local()
    with SharedEvaluator(local, SearchWorld()) as evaluate:
        assert next(iter(evaluate([MICRO.smallest, MICRO.largest]))) == (MICRO.smallest, Evaluation(0.5, 1.0))
        assert not local.closed
    assert local.closed


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_it_is_closed_after_an_error(error):
    local = Local()
    with pytest.raises(error), SharedEvaluator(local, SearchWorld()):
        raise error
    assert local.closed


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (2, "cuda")])
def test_alone_a_process_takes_what_there_is(monkeypatch, gpus, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with search_world() as world:
        assert (world.rank, world.size, world.device, world.share(7), world.gather(8)) == (0, 1, device, 7, [8])


def test_each_process_needs_a_gpu_of_its_own_where_there_are_some(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with (
        pytest.raises(DeviceError, match="has 2 GPUs for 3 processes, but .* start torchrun with at most --nproc-per-node 2"),
        search_world(),
    ):
        pass
    # The first process of the machine has said it.
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as silent, search_world():
        pass
    assert silent.value.code == 0


GPUS = """
import json, sys, torch
taken = []
torch.cuda.is_available, torch.cuda.device_count, torch.cuda.set_device = lambda: True, lambda: 2, taken.append
from growtas.search.evaluation.workers import search_world
with search_world() as world:
    sys.stdout.write(json.dumps([world.device, taken, world.gather(world.device), torch.distributed.get_backend()]))
"""


@pytest.mark.slow
def test_each_process_takes_its_own_gpu(monkeypatch):
    # Without a GPU only what they would choose can be seen.
    monkeypatch.setattr("tests.unit.search.evaluation.test_workers.PROGRAM", GPUS)
    first, second = (json.loads(out) for out, _ in start(2))
    assert first == ["cuda:0", [0], ["cuda:0", "cuda:1"], "gloo"]
    assert second == ["cuda:1", [1], [], "gloo"]


def test_an_unfit_process_says_why():
    evaluate = SharedEvaluator(ValueError("no such file"), SearchWorld())
    with pytest.raises(ValueError, match="no such file"):
        list(evaluate([MICRO.smallest]))
