from __future__ import annotations

import datetime
import json
import math
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import growtas as growtas_package
from growtas.checkpoint import load_supernet, save_supernet
from growtas.costs import count_costs
from growtas.data.evaluation import search_set
from growtas.runs import Run
from growtas.sampling import sample
from growtas.space import PRESETS
from growtas.subnet import Subnet
from growtas.watch.pictures import draw_search_png
from tests.search_helpers import SPACE, fake_ms, make_run

QUICK = ("--generations", "2", "--population", "5", "--limit-images", "30")


def test_a_modelled_latency_is_called_modelled_wherever_it_is_shown(run, growtas):
    code, out, err = growtas("search", "--device", "a10", "--max-latency", "5ms", "--max-params", "100K", *QUICK)
    assert code == 0, err
    assert re.search(r"\nlatency +[\d.]+ ms \+-50% \(modelled\), p50, batch 1, fp16, tensorrt on a10 +at most 5ms", out)
    assert "modelled from the datasheet, not measured; uncertainty +-50% (p50, batch 1, fp16, tensorrt on a10)" in out
    assert "at most 5ms" in out
    assert "at most 100K" in out
    assert "next: growtas export" in out
    assert "the newest in runs/" in err
    for document in (
        json.loads((run / "search" / "subnet.json").read_text()),
        json.loads((run / "search" / "result.json").read_text())["best"],
    ):
        latency = document["latency"]
        assert (latency["kind"], latency["device"], latency["percentile"]) == ("modelled", "a10", "p50")
        assert (latency["batch"], latency["precision"], latency["runtime"]) == (1, "fp16", "tensorrt")
        assert latency["interval_ms"][0] < latency["ms"] < latency["interval_ms"][1]
    code, out, err = growtas("search", "--device", "a10", "--max-latency", "5ms", "--max-params", "100K", *QUICK, "--json")
    report = json.loads(out)
    assert (report["best"]["latency"]["kind"], report["evaluated"], report["reused"]) == ("modelled", 0, 10)
    assert "modelled from the datasheet" in report["latency_note"]


def test_what_is_written_is_what_the_export_reads(run, growtas):
    code, out, _ = growtas("search", "--max-params", "90K", "--max-macs", "2.5M", *QUICK, "--json")
    assert code == 0
    report, data = json.loads(out), json.loads((run / "search" / "subnet.json").read_text())
    subnet = Subnet.load(run / "search" / "subnet.json")
    costs = count_costs(SPACE, SPACE.validate(subnet, strict=True))
    assert (data["params"], data["macs"]) == (costs.params, costs.macs)
    assert (costs.params <= 90_000, costs.macs <= 2_500_000) == (True, True)
    assert data["limits"] == {
        "max_params": 90_000, "max_macs": 2_500_000, "max_latency_ms": None, "max_activation_bytes": None, "max_size_bytes": None,
        "batch": 1, "precision": "fp32",
    }  # fmt: skip
    assert (data["device"], data["latency"], data["space"]) == (None, None, "micro")
    assert report["command"] == "growtas search --max-params 90K --max-macs 2.5M " + " ".join((*QUICK, "--json"))
    assert (report["data"]["name"], report["growtas"]) == ("digits", growtas_package.__version__)
    assert datetime.datetime.fromisoformat(report["created"]).tzinfo is not None
    error = math.sqrt(data["accuracy"] * (1 - data["accuracy"]) / 30)
    assert data["accuracy_standard_error"] == report["best"]["accuracy_standard_error"] == pytest.approx(error)
    assert data["checkpoint_sha256"] == report["checkpoint_sha256"]
    assert 0 <= data["accuracy"] <= 1
    assert report["images"]["count"] == 30
    assert len(report["history"]) == 2
    assert (report["run"], report["run_chosen"]) == ("runs/first", "the newest in runs/")
    lines = [json.loads(line) for line in (run / "search" / "journal.jsonl").read_text().splitlines()]
    assert [line["type"] for line in lines] == ["header"] + ["evaluation"] * 10
    assert max((line["accuracy"], -line["loss"]) for line in lines[1:]) == (report["best"]["accuracy"], -report["best"]["loss"])


def test_a_limit_may_count_the_relative_position(run, growtas):
    code, out, err = growtas("search", "--max-macs-with-relative-position", "2.5M", *QUICK, "--json")
    assert code == 0, err
    best, limits = json.loads(out)["best"], json.loads(out)["limits"]
    assert limits["max_macs_with_relative_position"] == 2_500_000
    assert best["macs"] < best["macs_with_relative_position"] <= 2_500_000
    code, out, err = growtas("search", "--max-macs-with-relative-position", "2.5M", *QUICK)
    assert "with relative position" in out
    assert "at most 2.5M" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_search_stopped_in_the_middle_goes_on(run, growtas, monkeypatch, number):
    from growtas.search.journal import Journal

    record, done = Journal.record, []

    def stop(self, subnet, evaluation, **extra):
        if len(done) == 6:
            signal.raise_signal(number)
        done.append(subnet)
        record(self, subnet, evaluation, **extra)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "record", stop)
        code, _, err = growtas("search", *QUICK)
    assert code == 128 + number
    assert "6 evaluations are kept" in err
    assert "Traceback" not in err
    assert not (run / "search" / "subnet.json").exists()
    with open(run / "search" / "journal.jsonl", "a") as file:
        file.write('{"type": "evalu')
    code, out, _ = growtas("search", *QUICK, "--json")
    report = json.loads(out)
    assert (code, report["evaluated"], report["reused"]) == (0, 4, 6)
    code, out, _ = growtas("search", "--out", "elsewhere", *QUICK, "--json")
    assert json.loads(out)["best"] == report["best"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--max-params", "6"), "no subnet of micro has at most 6 params; the smallest has"),
        (("--max-macs", "1.2e3"), "no subnet of micro has at most 1.2e3 MACs; the smallest has"),
        (("--max-macs-with-relative-position", "10K"), "at most 10K MACs with the relative position; the smallest has"),
        (("--device", "a10", "--max-latency", "5"), "number without a unit"),
        (("--max-latency", "5ms"), "--max-latency needs --device: cpu to measure on this machine, or a10"),
        (("--device", "a11", "--max-latency", "5ms"), "legal are cpu, a10, a100"),
        (("--device", "a1O", "--max-latency", "5ms"), "--device is 'a1O', which is not a known device; did you mean a10?"),
        (("--device", "t4", "--precision", "tf32"), "t4 has no precision 'tf32'"),
        (("--device", "cpu", "--precision", "fp16"), "the precision of cpu must be fp32"),
        (("--generations", "0"), "generations is 0"),
        (("--population", "0"), "population is 0"),
        (("--device", "a10", "--batch", "0"), "--batch is 0"),
        (("--batch", "4"), "--batch has no effect without --device or --max-activation-memory"),
        (("--replay", "--data", "digits"), "--data has no effect with --replay, which evaluates nothing"),
        (("--replay", "--limit-images", "9"), "--limit-images has no effect with --replay"),
        (("--replay", "--population", "9"), "--population has no effect with --replay"),
        (("--limit-images", "0"), "--limit-images is 0"),
        (("--max-params", "10K"), "no subnet of micro has at most 10K params; the smallest has"),
        (("--device", "a10", "--max-latency", "1us"), "modelled latency (p50, batch 1, fp16, tensorrt on a10); the smallest has"),
        (("--space", "autoformer-t"), "no run of the space autoformer-t in runs/"),
        (("nowhere",), "nowhere: no run here"),
        (("--device", "a10:5"), "number without a unit"),
        (("--device", "a10:5ms", "--device", "a10:6ms"), "--device a10 occurs twice"),
        (("--device", "a10:5ms", "--device", "t4:1us"), "modelled latency (p50, batch 1, fp16, tensorrt on t4); the smallest has"),
        (("--max-size", "10kB"), "no subnet of micro has at most 10kB of weights in fp32; the smallest has"),
        (("--max-activation-memory", "1MB", "--batch", "4"), "activation memory (modelled, batch 4, fp32); the smallest has"),
        (("--max-size", "12M"), "--max-size '12M' has the unit 'M'; legal are B, kB"),
        (("--objective", "speed"), "legal are accuracy or pareto"),
        (("--front", "accuracy,params"), "--front needs --objective pareto"),
        (("--replay", "--no-predictor"), "--no-predictor has no effect with --replay"),
        (("--objective", "pareto", "--front", "accuracy,latency"), "a latency needs --device"),
    ],
)
def test_wrong_input_gets_one_sentence_and_exit_code_2(run, growtas, arguments, said):
    code, out, err = growtas("search", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("growtas:")]) == 1
    assert not (run / "search" / "journal.jsonl").exists()


def test_no_run_at_all(tmp_path, growtas, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = growtas("search")
    assert (code, "growtas train" in err) == (2, True)


def test_an_output_folder_that_cannot_be_written(run, growtas):
    (run / "file").write_text("")
    code, _, err = growtas("search", "--out", run / "file" / "x", *QUICK)
    assert (code, "can't be written" in err) == (2, True)


def test_an_imported_run_needs_images(tmp_path, growtas, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path, data=None, state="imported")
    code, _, err = growtas("search", *QUICK)
    assert (code, "--data" in err) == (2, True)
    code, _, err = growtas("search", "--data", "digits", *QUICK)
    assert code == 0, err


def test_other_choices_within_the_supernet(run, growtas):
    space = run.parent.parent / "narrow.yaml"
    space.write_text("embed_dim: [32, 40]\nnum_heads: [2]\nmlp_ratio: [2.0, 2.5]\ndepth: [4]\n")
    code, out, err = growtas("search", run, "--space", space, *QUICK, "--json")
    assert code == 0, err
    best = json.loads(out)["best"]
    assert best["embed_dim"] in (32, 40)
    assert set(best["num_heads"]) == {2}
    space.write_text("embed_dim: [32, 400]\nnum_heads: [2]\nmlp_ratio: [2.0]\ndepth: [4]\n")
    code, _, err = growtas("search", run, "--space", space, *QUICK)
    assert (code, "embed_dim goes up to 400" in err) == (2, True)
    code, out, err = growtas("search", "--space", "micro", *QUICK)
    assert (code, "the newest of micro in runs/" in err) == (0, True)
    assert f"next: growtas export {run.relative_to(run.parent.parent)} --format onnx" in out


def test_devices(growtas):
    folder = Path(growtas_package.__file__).parent.parent / "profiles"
    shipped = {path.stem for path in folder.glob("*.json") if path.stem != "schema" and "." not in path.stem}
    assert {"a10", "t4", "h100"} <= shipped
    code, out, _ = growtas("devices")
    assert code == 0
    assert len(re.findall(r"^cpu +AMD EPYC, 2 threads +measured +(micro|autoformer-t) .* \d\.\d% +shipped", out, re.MULTILINE)) == 2
    assert len(re.findall(r"^\S+ .* modelled .* sm\d+ .* shipped", out, re.MULTILINE)) == len(shipped)
    code, out, _ = growtas("devices", "--json")
    entries = json.loads(out)["devices"]
    assert {device["name"]: device["kind"] for device in entries} == {"cpu": "measured", **dict.fromkeys(shipped, "modelled")}
    measured = [device for device in entries if device["name"] == "cpu"][1:]
    assert {(device["space"], device["origin"], device["threads"]) for device in measured} == {
        ("micro", "shipped", 2), ("autoformer-t", "shipped", 2),
    }  # fmt: skip
    assert all(device["held_out"]["p95"] < 0.05 and device["machine"]["cpu"] == device["description"] for device in measured)


def test_a_limit_for_each_of_several_devices(run, growtas, stopwatch):
    arguments = ("search", "--device", "a10:5ms", "--device", "cpu:1.2ms", "--device", "t4", "--max-latency", "4ms", *QUICK)
    code, out, err = growtas(*arguments)
    assert code == 0, err
    data = json.loads((run / "search" / "subnet.json").read_text())
    a10, cpu, t4 = data["latencies"]
    assert [(x["device"], x["max_latency_ms"], x["judged_on"]) for x in (a10, cpu, t4)] == [
        ("a10", 5.0, "modelled"), ("cpu", 1.2, "measured"), ("t4", 4.0, "modelled"),
    ]  # fmt: skip
    assert cpu["measured"]["ms"] == fake_ms(Subnet.from_dict(data)) <= 1.2 / 1.02
    assert cpu["predicted"]["kind"] == "modelled"
    assert (a10["measured"], a10["predicted"]["ms"] <= 5, t4["predicted"]["ms"] <= 4) == (None, True, True)
    assert (data["device"], data["limits"]["max_latency_ms"]) == ("a10", 5.0)
    assert "- (not at hand)" in out


def test_a_front(run, growtas):
    command = ("search", "--objective", "pareto", "--device", "a10", "--front", "accuracy,latency,params", "--no-predictor", *QUICK)
    code, out, err = growtas(*command)
    assert code == 0, err
    front = json.loads((run / "search" / "front.json").read_text())
    result = json.loads((run / "search" / "result.json").read_text())
    assert [axis["name"] for axis in front["axes"]] == ["accuracy", "latency a10", "params"]
    assert f"front: {len(front['subnets'])} subnets" in out
    assert (result["objective"], result["evaluated"], result["front"]["hypervolume"]) == ("pareto", 10, front["hypervolume"])
    best = {key: result["best"][key] for key in ("depth", "embed_dim", "num_heads", "mlp_ratio")}
    assert best in [row["subnet"] for row in front["subnets"]]
    assert result["best"]["accuracy"] == max(row["accuracy"] for row in front["subnets"])
    code, out, _ = growtas(*command, "--json")
    assert (code, json.loads(out)["evaluated"], json.loads(out)["best"]) == (0, 0, result["best"])


@pytest.mark.parametrize(
    ("space", "found"), [("micro", True), ("micro-14px", True), ("micro-56px", False), ("autoformer-t", False)]
)
def test_a_space_is_found_at_another_image_size(run, growtas, space, found):
    make_run(Path(), "small", PRESETS["micro"].resized(14))
    code, out, err = growtas("search", "--space", space, "--max-params", "90K", *QUICK, "--json")
    assert code == (0 if found else 2)
    if found:
        report = json.loads(out)
        assert (report["run"], report["space"]) == ("runs/small", "micro-14px")
    else:
        assert f"no run of the space {space} in runs/" in err


def test_images_of_other_classes_are_refused(run, growtas):
    """Their labels are numbers of the same range, and would be counted as if they were the run's classes."""
    for label in range(10):
        folder = Path("animals") / f"animal{label}"
        folder.mkdir(parents=True)
        for number in range(5):
            Image.fromarray(np.full((8, 8), 10 * label + number, np.uint8)).save(folder / f"{number}.png")
    code, _, err = growtas("search", "--max-params", "90K", "--data", "animals", *QUICK)
    assert code == 2
    assert (
        "the classes of the images (animal0, animal1, animal2 and 7 more) are not those of the run's training (0, 1, 2 and 7" in err
    )


def test_replay_evaluates_nothing_and_says_when_the_journal_is_thin(run, growtas, monkeypatch):
    code, _, err = growtas("search", "--replay")
    assert (code, "no journal to replay" in err) == (2, True)
    growtas("search", *QUICK)
    lines = (run / "search" / "journal.jsonl").read_text()
    monkeypatch.setattr("growtas.search.evaluation.evaluator.SubnetEvaluator.__call__", None)
    known = [json.loads(line) for line in lines.splitlines() if '"evaluation"' in line]
    limit = sorted(line["params"] for line in known)[4]
    legal = [line for line in known if line["params"] <= limit]
    code, out, err = growtas("search", "--replay", "--max-params", f"{limit / 1e3}K", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["best"]["accuracy"] == max(line["accuracy"] for line in legal)
    assert report["best"]["params"] <= limit
    assert report["replay"] == {"journal": report["replay"]["journal"], "recorded": 10, "legal": 5, "enough": False}
    assert "only 5 subnets within these limits (of 10)" in err
    assert (run / "search" / "journal.jsonl").read_text() == lines
    smallest = count_costs(SPACE, SPACE.smallest).params
    code, _, err = growtas("search", "--replay", "--max-params", f"{smallest / 1e3}K")
    assert (code, "search without --replay" in err) == (2, True)


def test_memory_and_size_are_limited_and_reported(run, growtas):
    arguments = ("--max-activation-memory", "8.3MB", "--max-size", "300kB", "--batch", "2", *QUICK)
    code, out, err = growtas("search", *arguments)
    assert code == 0, err
    data = json.loads((run / "search" / "subnet.json").read_text())
    assert data["modelled_size_bytes"] == 4 * data["params"] <= 300_000
    assert data["modelled_activation_bytes"] <= 8_300_000
    assert "activation memory, modelled" in out
    assert "at most 300kB" in out


def test_leaving_candidates_early_changes_nothing_that_is_found(run, growtas):
    # Only a supernet that gets most images right loses races before their end.
    path = run / "checkpoints" / "epoch-0001" / "supernet.safetensors"
    supernet, images = load_supernet(path), search_set(Run(run))
    optimizer, rng = torch.optim.AdamW(supernet.parameters(), 3e-3), np.random.default_rng(0)
    for _ in range(100):
        some = torch.from_numpy(rng.integers(len(images), size=32))
        logits = supernet(images.take(some.numpy()), sample(SPACE, rng))
        torch.nn.functional.cross_entropy(logits, images.labels[some]).backward()
        optimizer.step()
        optimizer.zero_grad()
    save_supernet(path, supernet)
    found = []
    for extra in ((), ("--exact",)):
        arguments = ("--generations", "5", "--population", "12", "--limit-images", "150", "--max-params", "200K", *extra)
        code, out, _ = growtas("search", *arguments, "--json", "--out", f"out{len(found)}")
        assert code == 0
        found.append(json.loads(out))
    raced, exact = found
    # In a race images run in other batches, so that a loss may be rounded otherwise.
    assert raced["best"].pop("loss") == pytest.approx(exact["best"].pop("loss"), rel=1e-6)
    assert raced["best"] == exact["best"]
    assert [line["best_accuracy"] for line in raced["history"]] == [line["best_accuracy"] for line in exact["history"]]
    assert raced["dropped"] > 0
    assert (exact["dropped"], exact["evaluated"]) == (0, raced["evaluated"] + raced["dropped"])
    assert (raced["exact"], exact["exact"]) == (False, True)


def test_measured_limits_and_fronts_want_every_accuracy(run, growtas, stopwatch):
    for more in (("--device", "cpu:900ms"), ("--objective", "pareto", "--device", "a10")):
        report = json.loads(growtas("search", *QUICK, *more, "--json", "--out", "o")[1])
        assert (report["exact"], report["dropped"], report["predictor"]) == (True, 0, True)


def test_a_predictor_chooses_by_default_for_fronts_in_half_the_generations_and_can_be_left_out(run, growtas):
    cheap, reports = ("--population", "3", "--limit-images", "20", "--json"), {}
    for name, more in (
        ("predicted", ("--objective", "pareto")),
        ("plain", ("--objective", "pareto", "--no-predictor")),
        ("accuracy", ()),
        ("again", ("--objective", "pareto")),
    ):
        code, out, err = growtas("search", *cheap, *more, "--out", "again" if name == "again" else name)
        assert code == 0, err
        reports[name] = json.loads(out)
    assert [reports[name]["generations"] for name in ("predicted", "plain", "accuracy")] == [10, 20, 20]
    assert [reports[name].get("predictor") for name in ("predicted", "plain", "accuracy")] == [True, None, None]
    evaluated = {}
    for name in ("predicted", "plain", "again"):
        lines = [json.loads(line) for line in Path(name, "journal.jsonl").read_text().splitlines()]
        assert lines[0].get("predictor") is reports[name].get("predictor")
        evaluated[name] = [line["subnet"] for line in lines if line["type"] == "evaluation"]
    assert evaluated["predicted"] == evaluated["again"] != evaluated["plain"]
    assert len(evaluated["predicted"]) == 30
    assert reports["predicted"]["best"] == reports["again"]["best"]


def test_the_newest_run_that_holds_a_supernet_is_taken(run, growtas):
    root = run.parent.parent
    make_run(root, "tuned", method="finetune", created="2099-01-01T00:00:00+00:00")
    empty = make_run(root, "empty", created="2098-01-01T00:00:00+00:00")
    for path in sorted(empty.path.glob("checkpoints/*/*")):
        path.unlink()
    code, _, err = growtas("search", *QUICK)
    assert code == 0, err
    assert "skipped runs/tuned: the run has a single trained subnet" in err
    assert "skipped runs/empty: it has no checkpoint" in err
    assert "run: runs/first (the newest in runs/)" in err
    code, _, err = growtas("search", "runs/tuned", *QUICK)
    assert (code, "nothing to search" in err) == (2, True)


def test_what_is_drawn(run, growtas, monkeypatch):
    monkeypatch.setattr("growtas.api.search_results.draw_search_png", draw_search_png)
    code, out, _ = growtas("search", "--device", "a10", "--max-latency", "5ms", *QUICK)
    assert (run / "search" / "search.png").read_bytes().startswith(b"\x89PNG")
    page = (run / "search" / "report.html").read_text()
    assert page.count("<circle") > 10
    assert page.count("<svg") == page.count("</svg>") == 2
    data = json.loads((run / "search" / "subnet.json").read_text())
    for index, (heads, ratio) in enumerate(zip(data["num_heads"], data["mlp_ratio"], strict=True), start=1):
        assert f"block {index}: {heads} heads, mlp_ratio {ratio:g}" in page
        assert re.search(rf"block +{index} +{'o' * heads} +{heads} heads +=+ +mlp {ratio:g} ", out)
    monkeypatch.setattr("growtas.api.search_results.can_draw", lambda: False)
    (run / "search" / "search.png").unlink()
    code, out, _ = growtas("search", *QUICK)
    assert (code, "pip install 'growtas[watch]'" in out, (run / "search" / "search.png").exists()) == (0, True, False)


def test_a_search_without_the_compiled_kernels_says_so_and_finds_the_same(run, growtas, monkeypatch):
    from growtas.nn.evaluation import kernels

    found = []
    for out_folder, compiled in (("with", kernels._compiled), ("without", None)):
        monkeypatch.setattr(kernels, "_compiled", compiled)
        code, out, err = growtas("search", "--max-params", "90K", *QUICK, "--json", "--out", str(run / out_folder))
        assert code == 0, err
        report = json.loads(out)
        assert report["kernels"] == kernels.instructions()
        assert ("slower without the C kernels" in err) == (compiled is None)
        found.append(report["best"]["num_heads"])
    assert found[0] == found[1]
