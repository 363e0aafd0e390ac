"""Searches for int8: chosen by the accuracy of what ships, journalled, on a front, and compared with fp32."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import onnxruntime
import pytest
import torch
import yaml

from growtas.api.search_precision import ConvertedEvaluator
from growtas.batch import SubnetBatch
from growtas.checkpoint import load_supernet, save_supernet
from growtas.data.evaluation import EvaluationSet, search_set
from growtas.export.benchmark.stopwatch import ArchitectureTurns
from growtas.latency.measured.paired import Block
from growtas.latency.modelled.profile import load_profile
from growtas.latency.modelled.roofline import RooflineLatency
from growtas.nn.extract import extract
from growtas.search.journal import Evaluation
from growtas.subnet import Subnet
from tests.export_helpers import TINY, make_run
from tests.search_helpers import SPACE, fake_ms

SMALL, LARGE = Subnet(16, (2,), (3.0,)), Subnet(24, (2,), (3.0,))
TWO = {**TINY.to_dict(), "name": "two", "num_heads": [2], "mlp_ratio": [3.0], "depth": [1]}
QUICK = ("--generations", "1", "--population", "2")


@pytest.fixture
def outliers(tmp_path, monkeypatch):
    """A run whose widest subnets read a channel that is a thousand times larger than the others, which costs them int8's steps.

    The images are labelled so that the wide one of two subnets is the better in fp32.
    """
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs")
    supernet = load_supernet(run.supernet_file)
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            if name.endswith(("norm1.weight", "norm2.weight")):
                parameter[20] *= 1e3
            elif name.endswith(("qkv.weight", "fc1.weight")):
                parameter[:, 20] *= 1e-3
            elif name.endswith(("proj.weight", "fc2.weight")):
                parameter *= 4
    save_supernet(run.supernet_file, supernet)
    images = search_set(run)
    pixels = images.images(0, len(images))
    with torch.no_grad():
        wide, narrow = (extract(supernet, subnet)(pixels).argmax(1) for subnet in (LARGE, SMALL))
    labels = torch.where(torch.arange(len(images)) % 20 < 11, wide, narrow)
    plain = EvaluationSet.labelled_as

    def relabelled(self, class_names):
        changed = copy.copy(plain(self, class_names))
        if len(changed) == len(labels):  # the test images stay
            changed.labels = labels
        return changed

    monkeypatch.setattr(EvaluationSet, "labelled_as", relabelled)
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(TWO))
    return run.path, pixels.numpy(), labels.numpy()


def exported_accuracy(growtas, file, pixels, labels, *options):
    """The accuracy of an exported file on the search images, in the plain runtime."""
    code, _, err = growtas("export", "--out", file.parent, "--name", file.name.partition(".")[0], *options)
    assert code == 0, err
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": pixels})
    return float((logits.argmax(1) == labels).mean())


def test_an_int8_search_chooses_by_the_accuracy_of_what_export_ships(outliers, growtas, tmp_path, monkeypatch):
    run, pixels, labels = outliers
    search = ("search", "runs/tiny", "--space", tmp_path / "two.yaml", *QUICK, "--json")
    code, out, err = growtas(*search)
    assert code == 0, err
    in_fp32 = json.loads(out)
    assert Subnet.from_dict(in_fp32["best"]) == LARGE
    assert (in_fp32["best"]["chosen_by"], in_fp32["best"]["converted"], in_fp32["scored"]) == (["fp32"], [], [])

    code, out, err = growtas(*search, "--precision", "int8", "--max-size", "1MB")
    assert code == 0, err
    report = json.loads(out)
    best = report["best"]
    assert (Subnet.from_dict(best), best["chosen_by"]) == (SMALL, ["int8"])
    order = [(Subnet.from_dict(x["subnet"]), x["accuracy"], x["converted"][0]["accuracy"]) for x in report["scored"]]
    (first, first_fp32, first_int8), (second, second_fp32, second_int8) = order
    assert (first, second) == (LARGE, SMALL)
    assert first_fp32 > second_fp32
    assert first_int8 < second_int8
    assert (best["accuracy"], best["converted"][0]["accuracy"]) == (second_fp32, second_int8)
    assert best["converted"][0]["accuracy_standard_error"] > 0
    # No layer is kept, since the other subnet's export would miss its thresholds and keep some.
    for subnet, accuracy in ((SMALL, second_int8), (LARGE, first_int8)):
        (tmp_path / "s.json").write_text(json.dumps(subnet.to_dict()))
        loose = ("--keep", "none", "--min-cosine", "-1", "--min-agreement", "0", "--max-error", "1e9", "--max-accuracy-drop", "100")
        file = tmp_path / "out" / f"e{subnet.embed_dim}.int8.onnx"
        options = ("--subnet", tmp_path / "s.json", "--precision", "int8", *loose)
        assert exported_accuracy(growtas, file, pixels, labels, *options) == pytest.approx(accuracy)

    # The same again converts nothing, also in another folder; the table, the page and `growtas show` have both accuracies.
    monkeypatch.setattr(ConvertedEvaluator, "__call__", lambda *_: pytest.fail("converted again"))
    for more in ((), ("--out", run / "search-2")):
        code, out, err = growtas(*search, "--precision", "int8", "--max-size", "1MB", *more)
        assert (code, json.loads(out)["best"]) == (0, best), err
    code, out, err = growtas(*search[:-1], "--precision", "int8", "--max-size", "1MB")
    number = f"{100 * second_int8:.1f}"
    assert re.search(rf"\naccuracy in fp32 +{100 * second_fp32:.1f} ", out)
    assert re.search(rf"\naccuracy in int8 +{number} .*it was chosen by this", out)
    page = (run / "search" / "report.html").read_text()
    assert f'<th scope="row">accuracy in int8</th><td>{number} ' in page
    assert page.count(" in int8") >= 4
    code, out, _ = growtas("show", "runs/tiny")
    assert re.search(rf"searched +{100 * second_fp32:.1f} .* in fp32, {number} .* in int8 \(search split\)", out)
    assert json.loads(growtas("show", "runs/tiny", "--json")[1])["searched"]["int8"]["accuracy"] == second_int8

    # A replay goes by what is recorded, and says so where that is not enough.
    replay = ("search", "runs/tiny", "--space", tmp_path / "two.yaml", "--replay", "--json")
    code, out, err = growtas(*replay, "--precision", "int8", "--max-size", "1MB")
    assert (code, Subnet.from_dict(json.loads(out)["best"])) == (0, SMALL), err
    assert "chosen by accuracy in fp32" not in err
    code, out, err = growtas(*replay, "--precision", "fp8", "--max-size", "1MB")
    assert (code, Subnet.from_dict(json.loads(out)["best"])) == (0, LARGE), err
    assert "chosen by accuracy in fp32, since the accuracy of some finalists in fp8 is not recorded" in err


class Stopped(KeyboardInterrupt):
    pass


def test_a_stopped_search_converts_nothing_twice(outliers, growtas, tmp_path, monkeypatch):
    converted = []

    def convert(self, subnet, conversions):
        if stop and len(converted) == 1:
            raise Stopped
        converted.append(subnet)
        return [Evaluation(0.9 if subnet == SMALL else 0.1, 1.0) for _ in conversions]

    monkeypatch.setattr(ConvertedEvaluator, "__call__", convert)
    search = ("search", "runs/tiny", "--space", tmp_path / "two.yaml", *QUICK, "--precision", "int8", "--max-size", "1MB", "--json")
    stop = True
    code, _, err = growtas(*search)
    assert (code, converted) == (130, [LARGE])
    assert "evaluations are kept" in err
    stop = False
    code, out, err = growtas(*search)
    assert (code, Subnet.from_dict(json.loads(out)["best"])) == (0, SMALL), err
    assert converted == [LARGE, SMALL]


def test_a_front_of_precisions_has_a_subnet_in_each(outliers, growtas, tmp_path):
    pytest.importorskip("pymoo")
    search = ("search", "runs/tiny", "--space", tmp_path / "two.yaml", *QUICK, "--objective", "pareto", "--device", "a10", "--json")
    code, out, err = growtas(*search, "--precision", "fp32,fp16,int8,bf16")
    assert code != 0  # the modelled a10 has no bf16
    code, out, err = growtas(*search, "--precision", "fp32, fp16,int8")
    assert code == 0, err
    report = json.loads(out)
    front = json.loads((outliers[0] / "search" / "front.json").read_text())
    names = [axis["name"] for axis in front["axes"]]
    assert names == ["accuracy", "latency a10"]
    points = {}
    for point in front["subnets"]:
        subnet, latency = Subnet.from_dict(point["subnet"]), point["latencies"][0]["predicted"]
        expected = RooflineLatency(profile=load_profile("a10"), space=TINY, precision=point["precision"])
        assert latency["ms"] == pytest.approx(float(expected.predict_ms(SubnetBatch.from_subnets([subnet]))[0]))
        known = {"fp32": point["accuracy_in_fp32"], **{entry["precision"]: entry["accuracy"] for entry in point["converted"]}}
        assert known.keys() == {"fp32", "fp16", "int8"}
        assert point["accuracy"] == known[point["precision"]]
        points[subnet, point["precision"]] = (latency["ms"], -point["accuracy"])
    assert {precision for _, precision in points} >= {"fp16", "int8"}
    for mine in points.values():
        assert not any(all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine for other in points.values())
    best = max(-accuracy for _, accuracy in points.values())
    chosen = report["best"]
    precision = chosen["latency"]["precision"]
    own = {"fp32": chosen["accuracy"], **{entry["precision"]: entry["accuracy"] for entry in chosen["converted"]}}
    assert own[precision] == best
    assert len(report["front"]["points"]) == len(points)


def test_a_precision_in_which_no_subnet_meets_the_limit_is_left_out(run, growtas, monkeypatch):
    pytest.importorskip("pymoo")
    monkeypatch.setattr(ConvertedEvaluator, "__call__", lambda self, subnet, conversions: [Evaluation(0.5, 1.0)] * len(conversions))
    models = [RooflineLatency(profile=load_profile("a10"), space=SPACE, precision=precision) for precision in ("int8", "fp32")]
    low, high = (float(model.predict_ms(SubnetBatch.from_subnets([SPACE.smallest]))[0]) for model in models)
    search = ("search", *QUICK, "--limit-images", "30", "--objective", "pareto", "--precision", "fp32,int8", "--device", "a10")
    limit = (low + high) / 2
    code, out, err = growtas(*search, "--max-latency", f"{limit:.9f}ms", "--json")
    assert code == 0, err
    assert "fp32 is left out: no subnet of micro has at most" in err
    points = json.loads(out)["front"]["points"]
    assert {point["precision"] for point in points} == {"int8"}
    assert all(point["latencies"][0]["predicted"]["ms"] <= limit for point in points)
    code, _, err = growtas(*search, "--max-latency", f"{low / 2:.9f}ms")
    assert code == 2
    assert "no subnet of micro meets the limit in any of the precisions" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--precision", "fp32,int8", "--device", "a10"), "several precisions need --objective pareto and one --device"),
        (("--precision", "fp32,int8", "--objective", "pareto"), "several precisions need --objective pareto and one --device"),
        (("--precision", "fp32,int9", "--objective", "pareto", "--device", "a10"), "'int9' is not legal; legal are fp32"),
        (("--precision", "int8,int8", "--objective", "pareto", "--device", "a10"), "a precision is named twice"),
        (("--precision", "fp32,int8", "--objective", "pareto", "--device", "a10:int8"), "or by --device a10:int8 as well"),
    ],
)
def test_several_precisions_that_mean_nothing_are_refused(run, growtas, options, said):
    code, _, err = growtas("search", *options)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err


@pytest.mark.parametrize(("factor", "slower"), [(1.1, True), (0.5, False)])
def test_search_says_where_int8_is_no_faster(run, growtas, stopwatch, monkeypatch, factor, slower):
    plain = ArchitectureTurns.__call__

    def timed(turns, subnets):
        times = {"fp32": 1.0, "int8": factor}[turns.precision]
        return [[Block.of_runs([block.median_ms * times]) for block in blocks] for blocks in plain(turns, subnets)]

    monkeypatch.setattr(ArchitectureTurns, "__call__", timed)
    monkeypatch.setattr(ConvertedEvaluator, "__call__", lambda self, subnet, conversions: [Evaluation(0.5, 1.0)] * len(conversions))
    search = ("search", "--device", "cpu:int8", "--generations", "2", "--population", "5", "--limit-images", "30")
    code, out, err = growtas(*search)
    assert code == 0, err
    assert ("int8 is no faster than fp32 here" in out) is slower
    report = json.loads((run / "search" / "result.json").read_text())
    (gain,) = report["compared_with_fp32"]
    ms = fake_ms(Subnet.from_dict(report["best"]))
    assert (gain["ms"], gain["fp32_ms"], gain["kind"]) == (pytest.approx(factor * ms), pytest.approx(ms), "measured")
    if slower:
        assert re.search(r"\nint8 is no faster than fp32 here: [\d.]+ ms and [\d.]+ ms \(both measured\)\n", out)
        assert gain["no_faster"] in (run / "search" / "report.html").read_text()
    turns = stopwatch.turns
    assert growtas(*search)[0] == 0
    # Of each precision the reference alone is timed again: both timings are in the journal.
    assert stopwatch.turns <= turns + 2


def test_a_modelled_precision_that_gains_nothing_is_named_with_its_device(run, growtas, monkeypatch, tmp_path):
    slow = load_profile("a10").to_dict()
    slow |= {"name": "slow", "peaks": {**slow["peaks"], "int8_tops": slow["peaks"]["fp32_tflops"] / 8}}
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "slow.json").write_text(json.dumps(slow))
    monkeypatch.setenv("GROWTAS_PROFILES", str(tmp_path / "profiles"))
    monkeypatch.setattr(ConvertedEvaluator, "__call__", lambda self, subnet, conversions: [Evaluation(0.5, 1.0)] * len(conversions))
    search = ("search", *QUICK, "--limit-images", "30", "--precision", "int8", "--batch", "64")
    code, out, err = growtas(*search, "--device", "slow")
    assert code == 0, err
    assert re.search(r"\nint8 is no faster than fp32 on slow: [\d.]+ ms and [\d.]+ ms \(both modelled\)\n", out)
    code, out, err = growtas(*search, "--device", "a10")
    assert (code, "no faster" in out) == (0, False), err


def test_what_two_models_differ_by_is_no_gain(run, growtas):
    code, out, err = growtas(
        "search", "--device", "a10", "--generations", "1", "--population", "3", "--limit-images", "30", "--json"
    )
    assert code == 0, err
    (gain,) = json.loads(out)["compared_with_fp32"]
    assert (gain["precision"], gain["kind"], gain["no_faster"]) == ("fp16", "modelled", None)
    assert 0 < gain["ms"] < gain["fp32_ms"]
    assert np.isfinite(gain["fp32_ms"])
