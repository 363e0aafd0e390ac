from __future__ import annotations

import json
import os
import re
import shlex

import onnxruntime
import pytest
import yaml

from growtas.api.search_precision import ConvertedEvaluator
from growtas.export.benchmark.stopwatch import ArchitectureTurns
from growtas.export.formats import file_stem
from growtas.export.runtimes.base import RuntimeInfo
from growtas.latency.measured.paired import Block
from growtas.resources import available_threads
from growtas.search.journal import Evaluation
from growtas.subnet import Subnet
from tests.export_helpers import make_run as make_tiny_run
from tests.search_helpers import SPACE, fake_ms

QUICK = ("--generations", "2", "--population", "5", "--limit-images", "30")


def test_cpu_measures_here_and_the_result_truly_meets_the_limit(run, growtas, stopwatch):
    arguments = ("search", "--device", "cpu", "--max-latency", "1.2ms", *QUICK)
    code, out, err = growtas(*arguments)
    assert code == 0, err
    assert re.search(r"\nlatency +[\d.]+ ms \+-2% \(measured\), p50, batch 1, fp32, onnxruntime on cpu +at most 1.2ms", out)
    assert "held-out error" in err
    assert "latency of cpu: measured on this machine (p50, batch 1, fp32, onnxruntime on cpu)" in out
    data = json.loads((run / "search" / "subnet.json").read_text())
    subnet = Subnet.from_dict(data)
    upper = 1.02 * fake_ms(subnet)
    assert data["latency"] == {
        "ms": fake_ms(subnet), "kind": "measured", "device": "cpu", "percentile": "p50", "batch": 1, "precision": "fp32",
        "runtime": "onnxruntime", "relative_uncertainty": 0.02, "interval_ms": pytest.approx([0.98 * fake_ms(subnet), upper]),
        "unsteady": False,
    }  # fmt: skip
    assert data["latencies"][0]["judged"] == {"ms": pytest.approx(upper), "kind": "measured"}
    assert upper <= 1.2
    assert subnet in stopwatch
    assert "no measured profile fits this search" in err
    assert len(stopwatch) <= 12 + len(json.loads((run / "search" / "result.json").read_text())["finalists"])
    turns = stopwatch.turns
    code, out, _ = growtas(*arguments, "--json")
    # The reference subnet alone is timed: whether the timings in the journal are of this machine as it is now.
    assert (code, stopwatch.turns, json.loads(out)["evaluated"]) == (0, turns + 1, 0)
    growtas(*arguments, "--batch", "2", "--max-latency", "3ms")
    assert stopwatch.turns > turns + 3


def test_targets_of_one_cpu_are_each_measured_in_their_runtime_and_precision(run, growtas, stopwatch, monkeypatch):
    pytest.importorskip("openvino")
    speeds = {("onnxruntime", "int8"): 0.5, ("openvino", "fp32"): 2.0, ("onnxruntime", "fp32"): 1.0}
    plain = ArchitectureTurns.__call__

    def timed(turns, subnets):
        factor = speeds[turns.runtime, turns.precision]
        return [[Block.of_runs([block.median_ms * factor]) for block in blocks] for blocks in plain(turns, subnets)]

    monkeypatch.setattr(ArchitectureTurns, "__call__", timed)
    monkeypatch.setattr(ConvertedEvaluator, "__call__", lambda self, subnet, conversions: [Evaluation(0.5, 1.0)] * len(conversions))
    code, out, err = growtas("search", "--device", "cpu:int8:0.6ms", "--device", "cpu:openvino:2.4ms", *QUICK, "--json")
    assert code == 0, err
    best = json.loads(out)["best"]
    ms = fake_ms(Subnet.from_dict(best))
    measured = [(x["device"], x["measured"]["runtime"], x["measured"]["precision"], x["measured"]["ms"]) for x in best["latencies"]]
    assert measured == [
        ("cpu:int8", "onnxruntime", "int8", pytest.approx(0.5 * ms)),
        ("cpu:openvino", "openvino", "fp32", pytest.approx(2 * ms)),
    ]
    assert 1.02 * ms <= 1.2
    export = f"growtas export {shlex.quote(str(run.relative_to(run.parent.parent)))}"
    options = ("--format onnx --precision int8", f"--format openvino --name {file_stem(SPACE.name)}-cpu-openvino")
    assert json.loads(out)["next"] == [f"{export} {option}" for option in options]


def test_cpu_says_how_fast_the_smallest_is_where_the_limit_is_out_of_reach(run, growtas, stopwatch):
    code, _, err = growtas("search", "--device", "cpu", "--max-latency", "1us", *QUICK)
    assert (code, stopwatch) == (2, [SPACE.smallest])
    assert "measured latency (p50, batch 1, fp32, onnxruntime on cpu); the smallest has" in err


def own_profile(growtas, run):
    """A profile of SPACE in the user's folder, measured by the stopwatch."""
    space = run.parent.parent / "space.yaml"
    space.write_text(yaml.safe_dump(SPACE.to_dict()))
    counts = ("--samples", "20", "--held-out", "12", "--repeats", "3")
    code, out, err = growtas("profile", "--device", "cpu", "--space", space, *counts, "--json")
    assert code == 0, err
    assert json.loads(out)["held_out"]["p95"] < 0.05


@pytest.fixture
def profiled(run, growtas, stopwatch, monkeypatch):
    monkeypatch.setenv("GROWTAS_PROFILES", str(run.parent.parent / "mine"))
    info = RuntimeInfo(runtime="onnxruntime", version=onnxruntime.__version__, device="cpu", threads=available_threads())
    monkeypatch.setattr(ArchitectureTurns, "info", lambda turns, subnet: info)
    own_profile(growtas, run)
    stopwatch.clear()
    stopwatch.turns = 0
    return stopwatch


def test_with_a_profile_nothing_is_measured_beforehand_but_its_reference(run, growtas, profiled):
    code, _, err = growtas("search", "--device", "cpu", "--max-latency", "1.2ms", *QUICK)
    assert code == 0, err
    assert "latency model for pruning: the profile of micro" in err
    assert "its reference subnet takes" in err
    report = json.loads((run / "search" / "result.json").read_text())
    latency = report["best"]["latencies"][0]
    assert latency["predicted"]["provenance"].startswith("modelled: predicted from 20 measured subnets")
    assert latency["measured"]["ms"] == fake_ms(Subnet.from_dict(report["best"]))
    assert latency["judged"]["ms"] <= 1.2
    # Once the reference, and every finalist twice.
    assert profiled.turns == 1 + 2 * len(report["finalists"])
    assert set(profiled) == {Subnet.from_dict(finalist["subnet"]) for finalist in report["finalists"]}


def test_a_machine_that_is_slower_by_one_factor_scales_the_profile(run, growtas, profiled):
    profiled.speed = lambda turn: 1.25
    code, _, err = growtas("search", "--device", "cpu", "--max-latency", "1.2ms", *QUICK)
    assert code == 0, err
    assert (
        "the profile's reference subnet takes 1.25 times as long as in the profile, and so do the smallest and the largest" in err
    )
    best = json.loads((run / "search" / "subnet.json").read_text())
    latency = best["latencies"][0]
    assert latency["measured"]["ms"] == pytest.approx(1.25 * fake_ms(Subnet.from_dict(best)))
    assert latency["predicted"]["ms"] == pytest.approx(latency["measured"]["ms"], rel=0.1)
    assert latency["predicted"]["provenance"].endswith(", times 1.25")


def test_a_machine_that_is_another_measures_afresh(run, growtas, profiled):
    profiled.speed = lambda turn: 3.0
    code, _, err = growtas("search", "--device", "cpu", "--max-latency", "3.6ms", *QUICK)
    assert code == 0, err
    assert "is not used: the profile's reference subnet takes 3.00 times as long as in the profile" in err
    assert "12 subnets measured here" in err
    assert json.loads((run / "search" / "subnet.json").read_text())["latencies"][0]["judged"]["ms"] <= 3.6


def test_of_profiles_of_cpus_with_one_name_the_one_that_was_made_on_such_a_machine_is_used(run, growtas, profiled):
    (file,) = (run.parent.parent / "mine").glob("*.json")
    profile = json.loads(file.read_text())
    for sample in profile["samples"]:
        sample["p50_ms"], sample["reference_ms"] = 1.6 * sample["p50_ms"], 1.6 * sample["reference_ms"]
    slower = {name: 1.6 * value for name, value in profile["coefficients"].items()}
    later = {**profile, "coefficients": slower, "date": "2099-01-01"}
    file.with_name(f"{file.stem}-slower.json").write_text(json.dumps(later))
    code, _, err = growtas("search", "--device", "cpu", "--max-latency", "1.2ms", *QUICK)
    assert code == 0, err
    assert f"latency model for pruning: the profile of micro from {profile['date']}" in err
    assert "2099" not in err


def test_a_machine_that_gets_busy_is_refused_in_a_sentence_and_nothing_is_lost(run, growtas, profiled):
    profiled.speed = lambda turn: 1.0 if turn < 1 else 1.3
    arguments = ("search", "--device", "cpu", "--max-latency", "1.2ms", "--strict", *QUICK)
    code, out, err = growtas(*arguments)
    assert (code, out) == (1, "")
    said = [line for line in err.splitlines() if line.startswith("growtas: ")]
    assert len(said) == 1
    assert "the machine is too busy, or its clocks change" in said[0]
    assert "are saved in runs/first/search/cpu-timings.jsonl" in said[0]
    profiled.speed = lambda turn: 1.0
    code, out, err = growtas(*arguments, "--json")
    assert (code, json.loads(out)["evaluated"], json.loads(out)["reused"]) == (0, 0, 10)


@pytest.mark.parametrize(
    "more", [(), ("--objective", "pareto"), ("--device", "a10:5ms"), ("--objective", "pareto", "--device", "a10:5ms")], ids=" ".join
)
def test_a_machine_that_gets_busy_is_judged_on_pairs_and_marked(run, growtas, profiled, more):
    # Slower and slower after the first look at the reference; subnet and reference alike.
    profiled.speed = lambda turn: 1.0 + 0.1 * turn
    arguments = ("search", "--device", "cpu:1.2ms", *more, *QUICK)
    code, out, err = growtas(*arguments)
    assert code == 0, err
    assert "this machine is unsteady: the reference subnet's latency changed by" in err
    assert "(measured, unsteady)" in out
    assert "unsteady: other work was running" in out
    report = json.loads((run / "search" / "result.json").read_text())
    latency = next(latency for latency in report["best"]["latencies"] if latency["device"] == "cpu")
    measured = latency["measured"]
    assert (report["unsteady"], measured["unsteady"]) == (True, True)
    # What the subnet takes on the quiet machine, although no turn took so little.
    assert measured["ms"] == pytest.approx(fake_ms(Subnet.from_dict(report["best"])), rel=0.01)
    assert measured["interval_ms"][0] < measured["ms"] < measured["interval_ms"][1] == pytest.approx(latency["judged"]["ms"])
    assert "unsteady" not in latency["predicted"]
    assert "measured, unsteady" in (run / "search" / "report.html").read_text()
    subnet = json.loads((run / "search" / "subnet.json").read_text())
    assert any((device["measured"] or {}).get("unsteady") for device in subnet["latencies"])
    lines = [json.loads(line) for line in (run / "search" / "cpu-timings.jsonl").read_text().splitlines()]
    assert any(line.get("unsteady") and "half_width" in line for line in lines)
    # The timings are reused, by the same search and by a replay.
    profiled.speed = lambda turn: 1.0
    turns = profiled.turns
    for folder, again in (("search", arguments), ("search/replay", ("search", "--device", "cpu:1.2ms", *more, "--replay"))):
        code, _, err = growtas(*again)
        assert code == 0, err
        best = json.loads((run / folder / "result.json").read_text())["best"]
        assert Subnet.from_dict(best) == Subnet.from_dict(report["best"])
        assert best["latencies"] == report["best"]["latencies"]
    assert profiled.turns == turns + 2


def test_the_profile_that_a_note_advises_is_made_by_its_command_and_then_used(run, growtas, stopwatch, monkeypatch):
    """The run's space bears the name of a preset, and is another one: from a file, or changed for the data."""
    monkeypatch.setenv("GROWTAS_PROFILES", str(run.parent.parent / "mine"))
    info = RuntimeInfo(runtime="onnxruntime", version=onnxruntime.__version__, device="cpu", threads=available_threads())
    monkeypatch.setattr(ArchitectureTurns, "info", lambda turns, subnet: info)
    narrow = run.parent.parent / "narrow.yaml"
    narrow.write_text(yaml.safe_dump({**SPACE.to_dict(), "name": "narrow", "depth": [4, 5]}))
    for more in ((), ("--space", narrow)):
        search = ("search", run, "--device", "cpu", "--max-latency", "1.2ms", *more, *QUICK)
        code, _, err = growtas(*search)
        assert code == 0, err
        command = shlex.split(err.partition("`growtas ")[2].partition("`")[0])
        assert command[0] == "profile"
        code, _, err = growtas(*command, "--samples", "8", "--held-out", "4", "--repeats", "1")
        assert code == 0, err
        assert "latency model for pruning: the profile of micro" in growtas(*search)[2]
        for file in (run.parent.parent / "mine").iterdir():
            file.unlink()


def test_timings_of_earlier_versions_and_of_another_speed_are_not_reused(run, growtas, stopwatch):
    arguments = ("search", "--device", "cpu", "--max-latency", "1.2ms", *QUICK)
    (run / "search").mkdir()
    (run / "search" / "cpu-latency.jsonl").write_text("no JSON at all")
    assert growtas(*arguments)[0] == 0
    assert (run / "search" / "cpu-latency.jsonl").read_text() == "no JSON at all"
    turns = stopwatch.turns
    stopwatch.speed = lambda turn: 0.8
    code, _, err = growtas(*arguments)
    assert code == 0, err
    assert "are set aside" in err
    assert stopwatch.turns > turns + 3
    assert (run / "search" / "cpu-timings.old.jsonl").is_file()
    best = json.loads((run / "search" / "subnet.json").read_text())
    assert best["latency"]["ms"] == pytest.approx(0.8 * fake_ms(Subnet.from_dict(best)))


def test_cpu_without_a_limit_measures_the_winner_alone(run, growtas, stopwatch):
    code, _, err = growtas("search", "--device", "cpu", *QUICK)
    assert code == 0, err
    data = json.loads((run / "search" / "subnet.json").read_text())
    assert stopwatch == [Subnet.from_dict(data)]
    assert data["latency"]["kind"] == "measured"


def test_cpu_for_real(tmp_path, growtas, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_tiny_run(tmp_path / "runs")
    monkeypatch.setitem(ArchitectureTurns.__init__.__kwdefaults__, "seconds", 0.001)
    code, out, err = growtas("search", "--device", "cpu", *QUICK, "--json")
    assert code == 0, err
    best = json.loads(out)["best"]
    assert best["latency"]["kind"] == "measured"
    assert 0 < best["latency"]["ms"] < 10_000


def test_threads_are_honoured_and_recorded(run, growtas, stopwatch, monkeypatch):
    used = set()
    monkeypatch.setattr(
        ArchitectureTurns, "__call__", lambda turns, subnets: used.add(turns.threads) or stopwatch.take(turns, subnets)
    )
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    arguments = ("search", "--device", "cpu", "--max-latency", "1.2ms", *QUICK)
    code, _, err = growtas(*arguments, "--threads", "3")
    assert code == 0, err
    assert used == {3}
    assert json.loads((run / "search" / "result.json").read_text())["threads"] == 3
    assert "`growtas profile --device cpu --space runs/first --threads 3` makes one" in err
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code, out, err = growtas(*arguments, "--json")
    assert code == 0, err
    assert used == {3, 1}  # latencies at another number of threads are others: all are taken anew
    assert json.loads(out)["threads"] == 1


def test_a_wrong_number_of_threads_leaves_nothing(run, growtas):
    code, _, err = growtas("search", "--threads", "0")
    assert (code, err.count("\n")) == (2, 1)
    assert "--threads is 0; it must be from 1 to" in err
    assert not (run / "search").exists()
