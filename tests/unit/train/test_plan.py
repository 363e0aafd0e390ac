import itertools
import json
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from growtas.costs import count_costs
from growtas.errors import ConfigError, DeviceError
from growtas.files import read_json_lines
from growtas.growth import Subspace
from growtas.space import PRESETS, load_space
from growtas.subnet import Subnet
from growtas.train import cost_estimates as estimates
from growtas.train.cost_estimates import TimedPasses, TimeEstimate, estimate_memory, time_passes
from growtas.train.plan import learning_rates, make_plan, smallest_outside
from growtas.train.recipe import Recipe
from growtas.train.recipes import RECIPES
from growtas.train.session import start_session
from growtas.train.strategies import make_strategy
from tests.reference import plain_space

CPU = torch.device("cpu")
MICRO = PRESETS["micro"]


def plan(recipe, images=1000, space=MICRO, device=CPU, **options):
    return make_plan(recipe, space, images, device, timed=False, **options)


def every_subnet(space):
    for dim, depth in itertools.product(space.embed_dim, space.depth):
        for heads in itertools.product(space.num_heads, repeat=depth):
            for ratios in itertools.product(space.mlp_ratio, repeat=depth):
                yield Subnet(dim, heads, ratios)


# Stages and steps


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(epochs=5, batch_size=64, transitions=[2.3]),
        Recipe(epochs=6, batch_size=300, stages=3, transitions=[0.01, 5.99]),
        Recipe(epochs=7, batch_size=64, method="shrinking"),
        Recipe(epochs=3, batch_size=64, method="uniform"),
        Recipe(epochs=2, batch_size=5000),
    ],
)
def test_steps_of_stages_are_those_that_are_counted_one_by_one(recipe):
    planned = plan(recipe)
    strategy = make_strategy(recipe, MICRO)
    per_epoch = max(1000 // recipe.batch_size, 1)
    stages = [strategy.stage(step / per_epoch) for step in range(recipe.epochs * per_epoch)]
    assert [stage.steps for stage in planned.stages] == [stages.count(number) for number in sorted(set(stages))]
    assert (planned.steps_per_epoch, planned.steps) == (per_epoch, len(stages))
    assert planned.images == len(stages) * min(recipe.batch_size, 1000)
    assert sum(stage.epochs for stage in planned.stages) == pytest.approx(recipe.epochs)
    assert [stage.first_epoch for stage in planned.stages] == [stages.index(number) / per_epoch for number in sorted(set(stages))]


@pytest.mark.parametrize("caps", [[8, None], [None, 1], [8, 1]])
def test_what_growtas_plus_draws_from(tiny, caps):
    space = load_space(tiny).replace(embed_dim=(8, 12, 16), mlp_ratio=(1, 1.5, 2))
    recipe = Recipe(space=tiny, method="growtas-plus", init="x", subspaces=[caps, [None, None]], epochs=2, warmup_epochs=0)
    (stage,) = plan(recipe, space=space).stages
    inner = Subspace(*(math.inf if cap is None else cap for cap in caps))
    outside = [count_costs(space, subnet) for subnet in every_subnet(space) if not inner.holds(subnet)]
    assert stage.subnets == len(outside)
    assert (stage.smallest.params, stage.smallest.macs) == (min(c.params for c in outside), min(c.macs for c in outside))
    assert (stage.largest.params, stage.largest.macs) == (max(c.params for c in outside), max(c.macs for c in outside))
    assert smallest_outside(space, inner) == stage.smallest


def test_stages_of_growtas(tiny):
    space = load_space(tiny)
    first, second = plan(Recipe(space=tiny, epochs=4, transitions=[1]), space=space).stages
    inside = [count_costs(space, subnet) for subnet in every_subnet(space) if subnet.embed_dim == 8]
    assert (first.subnets, first.subspace) == (len(inside), Subspace(max_embed_dim=8))
    assert (first.smallest.macs, first.largest.macs) == (min(c.macs for c in inside), max(c.macs for c in inside))
    assert (second.subnets, second.subspace) == (space.size, Subspace())


def test_methods_that_decide_later_say_so():
    automatic = plan(Recipe(epochs=4, transitions="auto", method_options={"share": 0.2}))
    assert [stage.epochs for stage in automatic.stages] == [2, 2]
    assert automatic.remarks == ("the training chooses the transitions itself; this plan assumes stages of equal length",)
    preferred = plan(Recipe(epochs=2, method="prenas"))
    assert preferred.stages[0].subnets is None
    assert "prenas chooses its subnets when the training begins" in preferred.remarks[0]
    assert len(preferred.remarks) == 1
    assert "teacher" in plan(Recipe(epochs=2, method="shrinking")).remarks[0]


# Compute


def test_compute_is_what_the_training_counts(tiny, tmp_path):
    recipe = Recipe(
        space=tiny, epochs=2, warmup_epochs=0, batch_size=64, method="sandwich", method_options={"random": 0}, monitor_images=20
    )
    session = start_session(recipe, out=tmp_path / "runs", name="r", device="cpu")
    session.train()
    lines = read_json_lines(session.run.path / "metrics.jsonl")
    images = len(session.data.train) - len(session.data.train) // 5
    planned = plan(recipe, images, load_space(tiny))
    assert planned.macs == sum(line["compute"]["macs"] for line in lines)
    assert planned.steps == lines[-1]["step"]
    assert planned.passes == 2
    assert planned.lr[-1] == pytest.approx(lines[-1]["lr"])


def test_mean_macs_of_uniform_draws(tiny):
    space = load_space(tiny)
    # Each gene is uniform given those before it, so a subnet of few blocks is likelier than one of many.
    shares = {depth: 1 / (len(space.embed_dim) * len(space.depth) * 4**depth) for depth in space.depth}
    exact = sum(count_costs(space, subnet).macs * shares[subnet.depth] for subnet in every_subnet(space))
    assert sum(shares[subnet.depth] for subnet in every_subnet(space)) == pytest.approx(1)
    (stage,) = plan(Recipe(space=tiny, method="uniform", epochs=2, batch_size=1), space=space).stages
    assert stage.macs == pytest.approx(exact, rel=0.1)
    assert stage.passes == 1


def test_one_subnet_is_planned_as_such(tiny):
    space = load_space(tiny)
    subnet = Subnet(8, (1, 2), (2.0, 1.0))
    recipe = Recipe(space=tiny, method="finetune", method_options={"subnet": subnet.to_dict()}, epochs=2, batch_size=10)
    planned = plan(recipe, 100, space)
    assert planned.stages[0].subnets == 1
    assert planned.macs == count_costs(space, subnet).macs * 3 * 200
    timed = make_plan(recipe, space, 100, CPU).time
    assert timed.timed.macs == (count_costs(space, subnet).macs,)
    assert timed.seconds > 0


# Learning rate


@pytest.mark.parametrize(("warmup", "epochs"), [(0, 4), (1, 4), (0.25, 1), (20, 500)])
def test_learning_rates_by_the_formula(warmup, epochs):
    recipe = Recipe(epochs=epochs, warmup_epochs=warmup, lr=1e-3, min_lr=2e-5, warmup_lr=1e-6)
    total, warm = epochs * 10, round(warmup * 10)

    def rate(step):
        if step < warm:
            return 1e-6 + step * (1e-3 - 1e-6) / warm
        return 2e-5 + (1e-3 - 2e-5) * (1 + math.cos(math.pi * step / total)) / 2

    rates = [rate(step) for step in range(total)]
    assert learning_rates(recipe, 10) == pytest.approx((rates[0], max(rates), rates[-1]))


# Memory

_PEAK = """
import json, sys, torch
import torch.nn.functional as F
from growtas.nn.supernet import Supernet
from growtas.space import PRESETS, SearchSpace
from growtas.train.optimizer import make_optimizer
from growtas.train.recipe import Recipe

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

def step(net, optimizer, images):
    labels = torch.zeros(len(images), dtype=torch.long)
    F.cross_entropy(net(images, net.space.largest), labels).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

def make(space):
    net = Supernet(space)
    return net, make_optimizer(net, Recipe(space=space.name))

def images(space, count):
    return torch.randn(count, space.in_chans, space.image_size, space.image_size)

step(*make(PRESETS["micro"]), images(PRESETS["micro"], 1))  # what libraries keep for themselves
before = status("VmRSS")
net, optimizer = make(SearchSpace.from_dict(json.loads(sys.argv[1])))
step(net, optimizer, images(net.space, 1))
batch = images(net.space, int(sys.argv[2]))
open("/proc/self/clear_refs", "w").write("5")
step(net, optimizer, batch)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux' /proc")
@pytest.mark.parametrize(
    ("space", "images"),
    [
        (MICRO, 128),
        pytest.param(PRESETS["autoformer-t"], 4, marks=pytest.mark.slow),
        pytest.param(plain_space(MICRO, "qk_norm"), 128, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_memory_is_within_a_factor_of_one_and_a_half_of_the_real_peak(space, images):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _PEAK, json.dumps(space.to_dict()), str(images)]
    real = int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    estimated = estimate_memory(Recipe(space=space.name), space, space.largest, images, CPU).total
    assert real / 1.5 < estimated < real * 1.5


def test_what_memory_is_made_of():
    def memory(images=8, **changes):
        return estimate_memory(Recipe(**changes), MICRO, MICRO.largest, images, CPU)

    adam = memory()
    assert adam.weights == adam.gradients == 4 * count_costs(MICRO, MICRO.largest).params
    assert (adam.optimizer, adam.ema) == (2 * adam.weights, 0)
    assert memory(optimizer="sgd").optimizer == adam.weights
    assert memory(optimizer="sgd", momentum=0).optimizer == 0
    assert memory(ema_decay=0.9).ema == adam.weights
    assert memory(16).activations == 2 * adam.activations
    assert adam.total == adam.weights + adam.gradients + adam.optimizer + adam.ema + adam.activations


def test_processes_and_parts_share_the_activations():
    whole = plan(Recipe(batch_size=64))
    shared = plan(Recipe(batch_size=64, accumulate=2), processes=2)
    assert shared.memory.activations * 4 == whole.memory.activations
    assert (shared.images, shared.macs) == (whole.images, whole.macs)
    with pytest.raises(ConfigError, match="batch_size is 64, which can't be cut into 3 parts"):
        plan(Recipe(batch_size=64), processes=3)


# Time


def test_time_from_a_straight_line_over_macs():
    # 2 s a pass and image and 3 s a MAC, half a second an optimiser step.
    timed = TimedPasses(images=4, macs=(1, 2, 5), pass_seconds=(5.0, 8.0, 17.0), optimizer_seconds=0.5, passes=9)
    estimate = TimeEstimate.of(timed, [(10, 1, 3), (100, 4, 6)], images=8)
    assert estimate.seconds == pytest.approx(10 * (8 * (2 + 9) + 0.5) + 100 * (8 * (4 * 2 + 18) + 0.5))
    assert estimate.label == "estimated from 9 timed passes of 4 images on this machine"


@pytest.mark.parametrize("seconds", [(5.0, 3.0, 1.0), (1.0, 5.0, 20.0), (2.0, 2.0, 2.0)])
def test_noise_gives_no_negative_times(seconds):
    timed = TimedPasses(images=1, macs=(1, 2, 3), pass_seconds=seconds, optimizer_seconds=0.0, passes=9)
    for macs in (0.01, 1, 100):
        assert TimeEstimate.of(timed, [(1, 1, macs)], images=1).seconds >= 0


def test_passes_are_few_and_of_few_images_for_large_spaces(monkeypatch):
    timed = time_passes(Recipe(drop_path=0.1), MICRO, [MICRO.smallest, MICRO.largest], 500, CPU)
    assert (timed.images, timed.passes) == (32, 6)
    assert all(seconds > 0 for seconds in (*timed.pass_seconds, timed.optimizer_seconds))
    assert time_passes(Recipe(), MICRO, [MICRO.smallest], 2, CPU).images == 2
    monkeypatch.setattr(estimates, "_WORK_MACS", 3.5 * count_costs(MICRO, MICRO.largest).macs)
    assert time_passes(Recipe(), MICRO, [MICRO.smallest, MICRO.largest], 500, CPU).images == 3
    monkeypatch.setattr(estimates, "_WORK_MACS", 1)
    assert time_passes(Recipe(), MICRO, [MICRO.largest], 500, CPU).images == 1


def test_planning_leaves_no_trace(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    make_plan(Recipe(space=tiny, epochs=2, augment="light"), load_space(tiny), 100, CPU)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_plan_for_cuda_needs_no_gpu():
    planned = make_plan(Recipe(epochs=2), MICRO, 500, torch.device("cuda"))
    assert planned.time is None
    assert planned.remarks == ("no time is estimated because torch finds no CUDA device on this machine",)
    assert planned.device == "cuda"
    half, full = (
        estimate_memory(Recipe(amp=amp), MICRO, MICRO.largest, 64, torch.device("cuda")).activations for amp in ("auto", "fp32")
    )
    assert half < full


def test_json_form():
    content = plan(replace(RECIPES["growtas-t"](), data="x"), 100_000, PRESETS["autoformer-t"], processes=8).to_dict()
    assert content["stages"][0]["subspace"] == {"max_embed_dim": 192, "max_mlp_ratio": None}
    assert content["recipe"]["name"] == "growtas-t"
    assert content["memory_bytes"]["total"] == sum(v for k, v in content["memory_bytes"].items() if k != "total")
    assert (content["steps"], content["processes"], content["time"]) == (97 * 500, 8, None)
    assert set(content["lr"]) == {"start", "peak", "end"}


def test_wrong_recipes_are_refused():
    with pytest.raises(ConfigError, match="stages is 5"):
        plan(Recipe(stages=5))
    with pytest.raises((ConfigError, DeviceError)):
        plan(Recipe(method="growtas-plus", init="x", stages=1))
