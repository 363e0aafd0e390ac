"""A search on a machine with a GPU, which is faked: its latencies follow a function that growtas does not know."""

from __future__ import annotations

import json
import math
import random
import shlex
import zlib

import pytest
import yaml

from growtas.errors import BuildError
from growtas.export.benchmark.stopwatch import ArchitectureTurns
from growtas.export.runtimes.base import RuntimeInfo
from growtas.export.tensorrt import library
from growtas.latency import at_hand
from growtas.latency.measured.paired import Block
from growtas.subnet import Subnet
from tests.export_helpers import TINY
from tests.export_helpers import make_run as make_tiny_run
from tests.fake_runtime import FakeMachine
from tests.search_helpers import SPACE

QUICK = ("--generations", "2", "--population", "5", "--limit-images", "30")
A10 = FakeMachine(gpu="sm86", name="NVIDIA A10")


def hidden_ms(subnet):
    """Steps with the width and the heads, as kernels' tiles give them, and a part that no term of the model has."""
    wide = 1.15 if subnet.embed_dim > 32 else 1.0
    blocks = zip(subnet.num_heads, subnet.mlp_ratio, strict=True)
    terms = sum(0.05 + 0.011 * heads**1.2 + 0.02 * ratio * wide for heads, ratio in blocks)
    return 0.2 + terms + 0.01 * (zlib.crc32(str(subnet).encode()) % 5)


class Gpu:
    """The subnets that were timed on it, in which runtimes and precisions; each timing is off by up to half a percent."""

    def __init__(self, monkeypatch):
        self.timed, self.turns, self.runtimes, self.precisions, self.speed = [], 0, set(), set(), 1.0
        self.builds = math.inf
        info = RuntimeInfo(runtime="tensorrt", version=A10.version, device="NVIDIA A10", threads=0)
        monkeypatch.setattr(ArchitectureTurns, "__call__", lambda turns, subnets: self.take(turns, subnets))
        monkeypatch.setattr(ArchitectureTurns, "check_against_exporter", lambda turns, subnet, progress: None)
        monkeypatch.setattr(ArchitectureTurns, "signature", lambda turns, subnet: f"graph of {subnet}")
        monkeypatch.setattr(ArchitectureTurns, "info", lambda turns, subnet: info)

    def take(self, turns, subnets):
        assert turns.hardware == "cuda"
        self.runtimes.add(turns.runtime)
        self.turns += 1
        if self.turns > self.builds:
            raise BuildError("the compiler found no kernel")
        self.precisions.add(turns.precision)
        self.timed += [subnet for subnet in subnets[:-1] if subnet not in self.timed]
        noise = random.Random(self.turns)
        factor = turns.batch * self.speed * {"fp32": 2.0, "fp16": 1.0, "bf16": 1.0}[turns.precision]
        return [[Block.of_runs([hidden_ms(s) * factor * noise.uniform(0.995, 1.005)]) for _ in range(9)] for s in subnets]


@pytest.fixture
def gpu(monkeypatch):
    A10.install_builders(monkeypatch)
    return Gpu(monkeypatch)


def result(run):
    return json.loads((run / "search" / "result.json").read_text())


def test_an_a10_at_hand_is_measured_and_20_of_20_limits_hold(run, growtas, gpu):
    draw, kept = random.Random(7), 0
    lowest, highest = (1.1 * hidden_ms(SPACE.smallest), hidden_ms(SPACE.largest))
    for _ in range(20):
        limit = draw.uniform(lowest, highest)
        code, out, err = growtas("search", "--device", "a10", "--max-latency", f"{limit:.4f}ms", *QUICK)
        assert code == 0, err
        best = result(run)["best"]
        (latency,) = best["latencies"]
        measured, subnet = latency["measured"], Subnet.from_dict(best)
        assert (measured["device"], measured["runtime"], measured["precision"]) == ("a10", "tensorrt", "fp16")
        assert measured["ms"] == pytest.approx(hidden_ms(subnet), rel=0.01)
        assert (latency["judged_on"], latency["predicted"]["kind"]) == ("measured", "modelled")
        assert subnet in gpu.timed
        assert "subnets measured here" in err
        kept += hidden_ms(subnet) <= limit
    assert kept == 20
    assert gpu.runtimes == {"tensorrt"}
    assert "(measured), p50, batch 1, fp16, tensorrt on a10" in out
    assert (run / "search" / "a10-timings.jsonl").is_file()


def test_pytorch_is_measured_on_the_gpu_too(run, growtas, gpu):
    code, out, err = growtas("search", "--device", "a10:torch:bf16:5ms", *QUICK)
    assert code == 0, err
    assert (gpu.runtimes, gpu.precisions) == ({"torch"}, {"bf16"})
    assert "(measured), p50, batch 1, bf16, torch on a10" in out


def test_a_limit_that_no_subnet_keeps_is_refused_by_what_was_measured(run, growtas, gpu):
    code, _, err = growtas("search", "--device", "a10:1us", *QUICK)
    assert code == 2
    assert "measured latency (p50, batch 1, fp16, tensorrt on a10)" in err


@pytest.fixture
def profiled(run, growtas, gpu, monkeypatch):
    """With measured profiles of the A10 in fp16 and, made after it, in fp32."""
    monkeypatch.setenv("GROWTAS_PROFILES", str(run.parent.parent / "mine"))
    space = run.parent.parent / "space.yaml"
    space.write_text(yaml.safe_dump(SPACE.to_dict()))
    for precision in ((), ("--precision", "fp32")):
        counts = ("--samples", "20", "--held-out", "8", "--repeats", "2")
        code, _, err = growtas("profile", "--device", "a10", "--space", space, *counts, *precision)
        assert code == 0, err
    assert (run.parent.parent / "mine" / "a10.micro.tensorrt-fp16-b1.json").is_file()
    newer = run.parent.parent / "mine" / "a10.micro.tensorrt-fp32-b1.json"
    newer.write_text(json.dumps({**json.loads(newer.read_text()), "date": "2999-01-01"}))
    gpu.turns = 0
    gpu.timed.clear()
    gpu.precisions.clear()
    return gpu


def test_a_measured_profile_in_fp16_goes_before_the_datasheet(run, growtas, profiled):
    limit = 0.8 * hidden_ms(SPACE.largest)
    code, _, err = growtas("search", "--device", "a10", "--max-latency", f"{limit}ms", *QUICK)
    assert code == 0, err
    assert "latency model for pruning: the profile of micro" in err
    report = result(run)
    (latency,) = report["best"]["latencies"]
    assert latency["predicted"]["provenance"].startswith("modelled: predicted from 20 measured subnets")
    assert latency["predicted"]["precision"] == "fp16"
    assert profiled.precisions == {"fp16"}
    # Once the reference, and every finalist twice.
    assert profiled.turns == 1 + 2 * len(report["finalists"])
    assert hidden_ms(Subnet.from_dict(report["best"])) <= limit


def test_a_profile_whose_reference_takes_another_time_now_is_not_used(run, growtas, profiled):
    profiled.speed = 3.0
    limit = 2.4 * hidden_ms(SPACE.largest)
    code, _, err = growtas("search", "--device", "a10", "--max-latency", f"{limit}ms", *QUICK)
    assert code == 0, err
    assert "is not used: the profile's reference subnet takes 3.0" in err
    assert "12 subnets measured here" in err
    assert 3 * hidden_ms(Subnet.from_dict(result(run)["best"])) <= limit


def test_a_profile_of_another_card_that_has_the_name_is_not_used(run, growtas, profiled, monkeypatch):
    monkeypatch.setattr(at_hand, "gpu_name", lambda: "NVIDIA A10-PCIE-24GB")
    code, _, err = growtas("search", "--device", "a10", "--max-latency", "5ms", *QUICK)
    assert code == 0, err
    assert "it was measured on NVIDIA A10, but this machine has NVIDIA A10-PCIE-24GB" in err
    assert "`growtas profile --device a10 --space runs/first` makes one" in err


def test_off_the_device_the_search_is_as_ever(run, growtas, profiled, monkeypatch):
    monkeypatch.setattr(at_hand, "gpu_name", lambda: "NVIDIA A10G")
    code, out, err = growtas("search", "--device", "a10:fp16", "--max-latency", "5ms", *QUICK)
    assert code == 0, err
    (latency,) = result(run)["best"]["latencies"]
    assert (latency["measured"], latency["judged_on"], profiled.turns) == (None, "modelled", 0)
    assert "not measured" in out
    assert "- (not at hand)" in out


@pytest.mark.parametrize(
    ("device", "options", "said"),
    [
        ("a10", ("--max-latency", "5ms"), "building a TensorRT plan needs the package tensorrt, which is not installed"),
        ("a10", (), "building a TensorRT plan needs the package tensorrt, which is not installed"),
        ("a10:tf32", ("--max-latency", "5ms"), "--precision is 'tf32'; tensorrt is measured in fp32, fp16, bf16, int8 or fp8"),
    ],
)
def test_what_cannot_be_built_is_predicted_and_a_sentence_says_why(run, growtas, monkeypatch, device, options, said):
    """On a machine with an A10 and no TensorRT."""
    monkeypatch.setattr(at_hand, "gpu_name", lambda: "NVIDIA A10")
    monkeypatch.setattr(library, "local_target", lambda: "sm86")
    monkeypatch.setattr(library, "is_installed", lambda module: False)
    code, out, err = growtas("search", "--device", device, *options, *QUICK)
    assert code == 0, err
    (note,) = [line for line in err.splitlines() if "is a device of this machine, but can't be measured" in line]
    assert note.startswith("a10 is a device of this machine, but can't be measured: ")
    assert said in note
    assert note.endswith("its latencies are modelled from the datasheet")
    (latency,) = result(run)["best"]["latencies"]
    assert (latency["measured"], latency["predicted"]["kind"]) == (None, "modelled")
    assert said in latency["not_measured_because"]
    assert "- (not measured)" in out
    assert "- (not at hand)" not in out


def test_a_builder_that_fails_leaves_the_prediction(tmp_path, growtas, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_tiny_run(tmp_path / "runs")
    FakeMachine(gpu="sm86", name="NVIDIA A10", refuses="the compiler found no kernel").install_builders(monkeypatch)
    for options in (("--max-latency", "5ms"), ()):
        code, _, err = growtas("search", "--device", "a10", *options, *QUICK)
        assert code == 0, err
        assert (
            "a10 is a device of this machine, but can't be measured: the compiler found no kernel; its latencies are modelled"
            in err
        )
        (latency,) = result(run.path)["best"]["latencies"]
        assert (latency["measured"], latency["predicted"]["kind"]) == (None, "modelled")


@pytest.mark.parametrize("limit", [("--max-latency", "5ms"), ()])
def test_a_finalist_that_cannot_be_built_is_judged_by_its_prediction(run, growtas, gpu, limit):
    code, _, err = growtas("search", "--device", "a10", *limit, "--out", "built", *QUICK)
    assert code == 0, err
    gpu.builds, gpu.turns = gpu.turns - 1, 0
    code, out, err = growtas("search", "--device", "a10", *limit, *QUICK)
    assert code == 0, err
    (latency,) = result(run)["best"]["latencies"]
    assert (latency["measured"], latency["not_measured_because"]) == (None, "the compiler found no kernel")
    assert latency["judged_on"] == ("modelled" if limit else None)
    assert "- (not measured)" in out
    assert "but can't be measured" not in err


def test_a_gpu_that_nobody_knows_has_a_name_and_is_measured(run, growtas, gpu, monkeypatch):
    monkeypatch.setattr(at_hand, "gpu_name", lambda: "NVIDIA H200")
    limit = 0.8 * hidden_ms(SPACE.largest)
    code, _, err = growtas("search", "--device", f"h200:{limit}ms", *QUICK)
    assert code == 0, err
    report = result(run)
    assert report["best"]["latency"]["device"] == "h200"
    assert hidden_ms(Subnet.from_dict(report["best"])) <= limit
    code, out, err = growtas("devices", "--json")
    assert code == 0, err
    here = [target for target in json.loads(out)["here"] if target["device"] == "h200" and target["runtime"] == "tensorrt"]
    assert [(target["precision"], target["why_not"]) for target in here][:2] == [("fp32", None), ("fp16", None)]
    assert here[0]["description"] == "NVIDIA H200"


def test_a_gpu_without_a_runtime_or_a_profile_is_refused_with_both_reasons(run, growtas, monkeypatch):
    monkeypatch.setattr(at_hand, "gpu_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(library, "local_target", lambda: None)
    code, _, err = growtas("search", "--device", "h200:5ms", *QUICK)
    assert code == 2
    assert "h200 can't be measured here (--runtime tensorrt needs a PyTorch that can use this machine's GPU, NVIDIA H200" in err
    assert "and h200 has no profile; measure one with `growtas profile --device h200" in err


@pytest.mark.slow
def test_the_limit_is_judged_on_the_same_target_by_export_and_bench(tmp_path, growtas, monkeypatch, no_probe):
    """Graphs are exported and plans built as on a GPU; what a plan takes follows from its file."""
    monkeypatch.chdir(tmp_path)
    run = make_tiny_run(tmp_path / "runs", space=TINY.replace(embed_dim=(16,))).path

    def size_ms(onnx):
        return len(onnx) / 1e4

    monkeypatch.setitem(ArchitectureTurns.__init__.__kwdefaults__, "seconds", 0.001)
    FakeMachine(gpu="sm86", name="NVIDIA A10", latency_ms=size_ms).install_builders(monkeypatch)
    code, out, err = growtas("search", "--device", "a10", "--max-latency", "9ms", *QUICK)
    assert code == 0, err
    assert result(run)["best"]["latency"]["kind"] == "measured"
    command = out.partition("next: growtas ")[2].splitlines()[0]
    assert command.endswith("--format trt")
    code, out, err = growtas(*shlex.split(command), "--images", "20")
    assert code == 0, err
    limit = "tiny-subnet.fp16.plan: the search's latency limit 9 ms on a10 (in the search "
    assert limit in out
    assert "measured) holds: " in out
    bench = (
        "bench",
        run / "export" / "tiny-subnet.fp16.plan",
        "--batch",
        "1",
        "--rounds",
        "1",
        "--seconds",
        "0.01",
        "--no-roofline",
    )
    code, out, err = growtas(*bench)
    assert code == 0, err
    assert limit in out
    assert "measured) holds: " in out
    # The same plan on another GPU of the same generation, and on a machine that has none.
    monkeypatch.setattr(at_hand, "gpu_name", lambda: "NVIDIA RTX A6000")
    FakeMachine(gpu="sm86", name="NVIDIA RTX A6000", latency_ms=size_ms).install_builders(monkeypatch)
    for command_ in (("export", "--format", "torch", "--images", "20"), bench):
        code, out, err = growtas(*command_)
        assert code == 0, err
        assert "on a10 (in the search" in out
        assert "was not checked: the limit is for p50, batch 1, fp16 on a10, which was not measured here" in out
