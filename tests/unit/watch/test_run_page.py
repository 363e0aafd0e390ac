"""The page of a run: its numbers are those of the run's files, names are text, and what is missing is said."""

from __future__ import annotations

import itertools
import json
import re

import pytest

from growtas.costs import count_costs
from growtas.files import read_json, read_json_lines, write_json
from growtas.processes import this_process
from growtas.runs import create_run
from growtas.space import PRESETS
from growtas.subnet import Subnet
from growtas.units import format_accuracy, format_count
from growtas.watch.diagram import subnet_text
from growtas.watch.drawing import subnet_drawing
from growtas.watch.run_page import write_run_page
from growtas.watch.search_report import CostPlane
from tests.reference import plain_space
from tests.report_helpers import MICRO, Page, a10, manifest, metrics_line, write_search, write_whole_run


def page_of(run):
    write_run_page(run, run.path / "report.html")
    return Page(run.path / "report.html")


@pytest.fixture
def whole(tmp_path):
    return write_whole_run(tmp_path)


def test_the_cards_have_the_numbers_of_the_files(whole):
    page, found = page_of(whole), read_json(whole.path / "search" / "result.json")
    summary, best = page.section_text("summary"), found["best"]
    assert f"Accuracy of the subnet found {format_accuracy(best['accuracy'], 100)} 100 images of the search split" in summary
    assert f"{format_count(best['params'])} params {format_count(best['macs'])} MACs an image" in summary
    predicted = best["latencies"][0]["predicted"]
    assert predicted["kind"] == "modelled"
    assert f"Latency on a10 {predicted['ms']:.3g} ms modelled, batch 1, fp16, limit: at most 5 ms" in summary
    assert "Accuracy on test images 92.8 ± 1.4 % m.fp16.onnx, 359 of 359 test images of digits" in summary
    assert "Fastest artifact in the bench 0.551 ms measured, m.onnx, batch 1, cpu" in summary
    assert "smallest 91.9 ± 1.4 %, middle 93.6 ± 1.3 %, largest 92.5 ± 1.4 %" in summary


def test_the_curves_go_through_the_epochs_of_the_metrics(whole):
    page, lines = page_of(whole), read_json_lines(whole.path / "metrics.jsonl")
    curves = [attributes for _, attributes, _ in page.shapes if attributes.get("class", "").startswith("curve")]
    values = [[line["accuracy"][name] for line in lines] for name in ("largest", "middle", "smallest")]
    values += [[line["probes"]["A1 largest"] for line in lines], [line["loss"] for line in lines], [line["lr"] for line in lines]]
    assert len(curves) == len(values)
    for curve, numbers in zip(curves, values, strict=True):
        points = [tuple(map(float, point.split(","))) for point in curve["points"].split()]
        assert len(points) == 12
        steps = [b[0] - a[0] for a, b in itertools.pairwise(points)]
        assert max(steps) - min(steps) < 0.3
        heights = [y for _, y in points]
        scale = (heights[-1] - heights[0]) / (numbers[-1] - numbers[0])
        assert scale < 0  # up is more
        assert all(abs(heights[0] + scale * (value - numbers[0]) - y) < 0.2 for value, y in zip(numbers, heights, strict=True))
    for name, value in lines[-1]["accuracy"].items():
        assert f"{name} {value:.1%}" in page.texts
    # The second stage begins between its first epoch and the one before: all charts have it at half of that step.
    boundaries = [float(at["x1"]) for _, at, _ in page.shapes if at.get("class") == "boundary"]
    assert len(boundaries) == 4
    for x, curve in zip(boundaries, (curves[0], *curves[3:]), strict=True):
        points = [float(point.split(",")[0]) for point in curve["points"].split()]
        assert points[5] < x < points[6]
    assert page.tables["Subspaces and transitions"][1:] == [
        ("1", "1", "embed_dim up to 32"),
        ("2", "7", "no bounds"),
    ]
    assert page.tables["Where the time went"][1] == ("backward", "57.1%", "48 s")


def test_the_search_is_drawn_over_each_limited_cost(whole):
    page, points = page_of(whole), read_json(whole.path / "search" / "result.json")["points"]
    titles = [text for text in page.texts if text.startswith("accuracy over ")]
    assert titles == ["accuracy over latency of a10, ms (modelled)", "accuracy over params"]
    drawn = [title for _, at, title in page.shapes if at.get("class") == "point"]
    expected = [
        f"{100 * accuracy:.2f} %, {text}"
        for axis, form in zip(points["costs"], ("{:.3g} ms (modelled)".format, format_count), strict=True)
        for accuracy, text in zip(points["accuracies"], map(form, axis["values"]), strict=True)
    ]
    assert drawn == expected
    assert sum(at.get("class") == "found" for _, at, _ in page.shapes) == 2
    assert "limit 280K" in page.texts
    # The limit is far above the latencies, so that an arrow shows the way to it.
    assert "limit 5 ms \u2192" in page.texts


@pytest.mark.parametrize(
    ("limit", "text"), [(1.0, "\u2190 limit 1"), (250.0, "limit 250"), (900.0, "limit 900 \u2192"), (None, "")]
)
def test_an_arrow_shows_the_way_to_a_limit_beyond_the_axis(limit, text):
    axis = {"cost": "params", "unit": "count", "kind": "", "limit": limit, "values": [200, 300], "measured": []}
    (plane,) = CostPlane.all_of({"accuracies": [0.5, 0.6], "chosen": 1, "costs": [axis]})
    assert plane.limit_text == text


@pytest.mark.parametrize("value", [0.9, 0.0])
def test_the_names_of_curves_with_one_last_value_do_not_cover_each_other(whole, value):
    lines = read_json_lines(whole.path / "metrics.jsonl")
    lines[-1]["accuracy"] = dict.fromkeys(lines[-1]["accuracy"], value)
    (whole.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = [attributes for tag, attributes, _ in page_of(whole).tags if tag == "text"]
    heights = sorted(float(at["y"]) for at in [at for at in texts if "label" in at.get("class", "")][:3])
    assert len(heights) == 3
    assert all(after - before >= 13.9 for before, after in itertools.pairwise(heights))
    ticks_of_epochs = next(float(at["y"]) for at in texts if at.get("text-anchor") == "middle")
    assert heights[-1] < ticks_of_epochs - 10


def test_the_subnet_is_drawn_and_told_block_by_block(whole):
    page, best = page_of(whole), read_json(whole.path / "search" / "result.json")["best"]
    subnet = Subnet.from_dict(best)
    rows = page.tables["The blocks in numbers"]
    assert [row[:4] for row in rows[2:-1]] == [
        (f"block {index + 1}", str(heads), f"{ratio:g}", str(subnet.hidden_dim(index)))
        for index, (heads, ratio) in enumerate(zip(subnet.num_heads, subnet.mlp_ratio, strict=True))
    ]
    costs = count_costs(MICRO, subnet)
    assert rows[-1][-2:] == (format_count(costs.params), format_count(costs.macs))
    assert sum(at.get("class") == "head" for _, at, _ in page.shapes) == sum(subnet.num_heads)
    widths = [float(at["width"]) for _, at, _ in page.shapes if at.get("class") == "hidden"]
    largest = max(MICRO.mlp_ratio) * max(MICRO.embed_dim)
    assert widths == pytest.approx([128 * subnet.hidden_dim(index) / largest for index in range(subnet.depth)], abs=0.06)
    (description,) = [text for text in page.texts if text.startswith("image ") and "Block 1: " in text]
    assert f"Block {subnet.depth}: {subnet.num_heads[-1]} heads, hidden layer {subnet.hidden_dim(subnet.depth - 1)}" in description


def test_the_gates_are_those_of_the_manifests(whole):
    page = page_of(whole)
    rows = {row[0]: row[1:] for row in page.tables["Every file against the network that it was made from"]}
    numbers = ("210 kB", "92.8 ± 1.4 %", "93.0 ± 1.3 %", "0.28 (0.3)", "99.72% (99.0%)", "8.4e-04 (0.01)", "0.9999994 (0.9995)")
    assert rows["m.fp16.onnx"] == ("fp16", "passed", *numbers)
    assert rows["m.fp16.plan"] == ("fp16", "not run", *numbers)
    text = page.section_text("gates")
    assert "m.fp16.plan was not run: no NVIDIA GPU on this machine. Its numbers are those of m.fp16.onnx" in text


def test_a_gate_that_was_missed_is_said(whole):
    write_json(whole.path / "export" / "m.onnx.json", manifest("m.onnx", "fp32", passed=False))
    page = page_of(whole)
    assert {row[0]: row[2] for row in page.tables["Every file against the network that it was made from"]}[
        "m.onnx"
    ] == "FAILED: cosine"
    assert "Exported artifacts 3 1 passed the gates" in page.section_text("summary")


def test_the_bench_is_that_of_its_report(whole):
    page, bench = page_of(whole), read_json(whole.path / "bench" / "bench.json")
    rows = page.tables["Measurements"][1:]
    results = [(artifact, result) for artifact in bench["artifacts"] for result in artifact["results"]]
    assert [(row[0], row[1], row[2]) for row in rows] == [(a["label"], str(r["batch"]), f"{r['p50_ms']:.3g}") for a, r in results]
    assert [row[-1] for row in rows] == ["measured", "measured", "measured, unsteady", "measured"]
    assert rows[2][7] == "1 (baseline)"
    bars = [float(at["width"]) for tag, at, _ in page.shapes if tag == "rect" and at.get("class") in ("bar", "other")]
    latencies = bars[:2]  # batch 1: m.onnx and the baseline
    assert latencies[0] / latencies[1] == pytest.approx(0.551 / 9.75, rel=0.02)
    text = page.section_text("bench")
    assert "m.fp16.plan can't run here: no NVIDIA GPU." in text
    assert "limit 5 ms on a10 (in the search 0.538 ms, modelled) was not checked" in text
    assert "Unsteady" in text


def test_a_timm_model_is_not_the_fastest_artifact(whole):
    bench = read_json(whole.path / "bench" / "bench.json")
    model = json.loads(json.dumps(bench["artifacts"][0])) | {"kind": "timm", "label": "timm:fast"}
    model["results"][0]["p50_ms"] = 0.001
    write_json(whole.path / "bench" / "bench.json", {**bench, "artifacts": [*bench["artifacts"], model]})
    assert "Fastest artifact in the bench 0.551 ms measured, m.onnx" in page_of(whole).section_text("summary")


def test_environment_and_commands(whole):
    page = page_of(whole)
    rows = {row[0]: row for row in page.tables["Where each step ran"]}
    assert rows["training"][2:] == ("a CPU, NVIDIA A10", "growtas 0.1.0, torch 2.14.1")
    assert rows["search"][2] == "a CPU, 2 threads"
    assert rows["bench"][2:] == ("a CPU, 2 of 4 threads, no GPU, Linux", "onnxruntime 1.32.0")
    run = str(whole.path)
    assert "".join(page.sections["commands"]).strip().splitlines()[-5:] == [
        f"growtas train --config {run}/recipe.yaml",
        "growtas search --device a10 --max-latency 5ms --max-params 280K",
        f"growtas export {run} --format onnx,trt --precision fp16",
        f"growtas bench {run} --batch 1,8 --rounds 5 --seconds 1.0 --baseline timm:deit_tiny --device cpu",
        f"growtas report {run}",
    ]


def test_names_are_text_and_nothing_is_fetched(tmp_path):
    evil = "<script>alert('x')</script>"
    run = write_whole_run(tmp_path, evil.replace("/", "-"), space=MICRO.replace(name=evil), data=evil)
    page = page_of(run)
    assert not {"script", "img", "iframe"} & {tag for tag, _, _ in page.tags}
    assert f"{evil} on {evil}" in page.texts
    assert "http" not in page.source.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"url\(|@import", page.source)
    assert not any(name.startswith("on") for _, attributes, _ in page.tags for name in attributes)


def test_the_page_is_built_for_screen_readers(whole):
    page = page_of(whole)
    names = [tag for tag, _, _ in page.tags]
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert names.count(landmark) == 1
    assert page.headings == ["h1"] + ["h2"] * 8
    assert dict(page.tags[0][1]) == {"lang": "en"}
    identifiers = [attributes["id"] for _, attributes, _ in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    links = [attributes["href"] for tag, attributes, _ in page.tags if tag == "a"]
    assert links[0] == "#content"
    assert {link[1:] for link in links} <= set(identifiers)
    drawings = [attributes for tag, attributes, _ in page.tags if tag == "svg"]
    assert len(drawings) == 4 + 2 + 1 + 3
    for attributes in drawings:
        assert attributes["role"] == "img"
        assert set(attributes["aria-labelledby"].split()) <= set(identifiers)
    heads = [attributes.get("scope") for tag, attributes, _ in page.tags if tag == "th"]
    assert set(heads) == {"col", "row"}
    assert all(rows for rows in page.tables.values())


def test_a_run_without_the_later_steps_says_with_which_command_they_are_made(tmp_path):
    run = create_run(
        tmp_path / "runs", "it's new", {"state": "training", "space": PRESETS["micro"].to_dict(), "process": this_process()}
    )
    page = page_of(run)
    for section, command in (
        ("training", "train --resume"), ("search", "search"), ("subnet", "search"), ("gates", "export"), ("bench", "bench"),
    ):  # fmt: skip
        text = page.section_text(section)
        assert "Run this command" in text
        assert f"growtas {command} " in text
        assert "it'\"'\"'s new" in text  # quoted for a shell
    assert not page.shapes
    assert "Accuracy" not in page.section_text("summary")


def test_without_a_search_the_cards_have_the_test_accuracies(tmp_path):
    run = write_whole_run(tmp_path)
    (run.path / "search" / "result.json").unlink()
    summary = page_of(run).section_text("summary")
    assert "Accuracy, smallest subnet 91.9 ± 1.4 % 359 test images" in summary
    assert "found" not in summary


def test_a_search_that_was_stopped_is_continued(whole):
    (whole.path / "search" / "result.json").unlink()
    (whole.path / "search" / "journal.jsonl").write_text("{}\n")
    text = page_of(whole).section_text("search")
    assert "What was evaluated is kept" in text
    assert text.endswith(f"growtas search {whole.path}")


def test_a_result_of_an_older_version_is_drawn_from_the_journal(tmp_path):
    space = PRESETS["micro"]
    run = write_whole_run(tmp_path, space=space)
    result = read_json(run.path / "search" / "result.json")
    for key in ("points", "scored"):
        del result[key]
    for entry in (result["best"], *result["finalists"]):
        del entry["converted"]
    write_json(run.path / "search" / "result.json", result)
    best = {key: result["best"][key] for key in ("depth", "embed_dim", "num_heads", "mlp_ratio")}
    subnets = [(best, 0.595), (space.smallest.to_dict(), 0.41), (space.largest.to_dict(), 0.52)]
    lines = [{"type": "header", "key": "k", "limits": {"max_params": 280_000, "precision": "fp32"}}]
    lines += [{"type": "evaluation", "key": "k", "subnet": subnet, "accuracy": share, "loss": 1.0} for subnet, share in subnets]
    (run.path / "search" / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(run)
    drawn = [title for _, at, title in page.shapes if at.get("class") == "point"]
    costs = [count_costs(space, Subnet.from_dict(subnet)).params for subnet, _ in subnets]
    assert drawn == [f"{100 * share:.2f} %, {format_count(cost)}" for (_, share), cost in zip(subnets, costs, strict=True)]
    (found,) = [title for _, at, title in page.shapes if at.get("class") == "found"]
    assert found == f"found: {drawn[0]}"
    assert "An older version of growtas made this search" in page.section_text("search")


@pytest.mark.parametrize(
    ("file", "section", "said"),
    [
        ("search/result.json", "search", "result.json: the search result is not JSON"),
        ("bench/bench.json", "bench", "bench.json: the file is not JSON"),
        ("export/m.onnx.json", "gates", "m.onnx.json: the file is not JSON"),
    ],
)
def test_a_damaged_file_is_named_in_its_section_and_the_others_are_whole(whole, file, section, said):
    (whole.path / file).write_text("{")
    page = page_of(whole)
    assert said in page.section_text(section)
    assert "Median latency" in page.source or section == "bench"
    assert "The blocks in numbers" in page.tables or section == "search"


@pytest.mark.parametrize(
    ("file", "section", "said"),
    [
        ("search/result.json", "search", "result.json: best is 1; it must be an object"),
        ("bench/bench.json", "bench", "This section can't be shown: "),
    ],
)
def test_a_file_with_other_entries_is_said_to_be_one(whole, file, section, said):
    write_json(whole.path / file, {"best": 1, "artifacts": [{}]})
    assert said in page_of(whole).section_text(section)


def test_holes_and_single_epochs(tmp_path):
    run = create_run(tmp_path / "runs", "r", {"state": "finished", "space": MICRO.to_dict(), "recipe": {"epochs": 3}})
    lines = [metrics_line(1), {**metrics_line(2), "loss": None}, metrics_line(3)]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(run)
    dots = [at for _, at, _ in page.shapes if at.get("class", "").startswith("dot ")]
    assert len(dots) == 2  # the loss before and after the hole
    (run.path / "metrics.jsonl").write_text(json.dumps(metrics_line(1)) + "\n")
    assert len([at for _, at, _ in page_of(run).shapes if at.get("class", "").startswith("dot ")]) == 6


def test_a_latency_that_was_measured_is_called_so(tmp_path):
    run = write_whole_run(tmp_path)
    write_search(run, run.path / "search", targets=(a10(),))
    result = read_json(run.path / "search" / "result.json")
    latency = result["best"]["latencies"][0]
    latency["measured"] = {**latency["predicted"], "ms": 1.25, "kind": "measured", "relative_uncertainty": None, "unsteady": True}
    write_json(run.path / "search" / "result.json", result)
    page = page_of(run)
    assert "Latency on a10 1.25 ms measured, unsteady, batch 1" in page.section_text("summary")
    (row,) = page.tables["Latency"][1:]
    assert "(modelled)" in row[1]
    assert row[2] == "1.25 ms (measured, unsteady)"


def test_blocks_are_drawn_in_their_places():
    space = plain_space(PRESETS["micro"], "block order")
    subnet = Subnet(32, (2, 3, 2, 4), (2.0, 2.0, 2.0, 3.0))
    # Of six blocks the last one is the most important, and then the first ones.
    text = subnet_text(space, subnet).splitlines()
    assert [line.split()[1] for line in text[1:-1]] == ["1", "2", "3", "6"]
    assert text[-1] == "first token, 10 classes"
    drawing = str(subnet_drawing(space, subnet))
    assert re.findall(r"<title>block (\d): (\d) heads", drawing) == [("1", "2"), ("2", "3"), ("3", "2"), ("6", "4")]
    assert "patches and cls, embed_dim" in text[0]
    assert "7x7 patches and 4 tokens before them" in subnet_text(plain_space(PRESETS["micro"], "registers"), subnet)
    assert "7x7 patches, embed_dim" in subnet_text(plain_space(PRESETS["micro"], "mean"), subnet)


def test_where_a_run_comes_from(tmp_path):
    record = {"state": "imported", "space": PRESETS["micro"].to_dict(), "method": "autoformer", "source": {"file": "a b.pth"}}
    page = page_of(create_run(tmp_path, "imported", record))
    assert "A supernet of the search space micro, imported from a b.pth." in page.texts
    assert "it was not trained here" in page.section_text("training")
    assert "growtas import autoformer 'a b.pth' --space micro" in page.section_text("commands")
    source = {"model": "deit_tiny_patch16_224", "weights": "fine tuned.pth", "sha256": "0"}
    timms = {**record, "method": "timm", "source": source, "data": {"name": "folder", "data_dir": "my photos"}}
    page = page_of(create_run(tmp_path, "from-timm", timms))
    assert "A supernet of the search space micro, imported from deit_tiny_patch16_224 of timm (fine tuned.pth)." in page.texts
    command = "growtas import timm deit_tiny_patch16_224 --weights 'fine tuned.pth' --data folder --data-dir 'my photos'"
    assert command in page.section_text("commands")
    more = {
        "source": {**source, "options": {"embed_dim": 96, "pretrained_cfg_overlay": {"crop_pct": 1.0}}},
        "importance": {"order": "none"},
    }
    page = page_of(create_run(tmp_path, "of-another-size", {**timms, **more}))
    overlay = """'--model-kwargs=pretrained_cfg_overlay={"crop_pct": 1.0}'"""
    assert f"{command} --model-kwargs=embed_dim=96 {overlay} --order=none" in page.section_text("commands")
    tuned = {"weights": "model.safetensors", "test_accuracy": 0.9}
    run = write_whole_run(tmp_path)
    run.update(method="finetune", starts_from={}, finetune=tuned, data={"name": "folder", "data_dir": "my photos"})
    page = page_of(run)
    assert "A searched model, fine-tuned from model.safetensors with the method finetune: 12 epochs in 1 min 24 s." in page.lead
    assert f"growtas finetune model.safetensors --config {run.path}/recipe.yaml --data-dir 'my photos'" in page.section_text(
        "commands"
    )
    run.update(finetune=None, starts_from={"path": "other/run", "sha256": "0"})
    assert "trained from other/run with the method finetune" in page_of(run).lead
