"""Runs whose files are all there, made without training or measuring, and pages of HTML read back."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import numpy as np

from growtas.api.search_results import write_results
from growtas.files import write_json
from growtas.latency.modelled.profile import load_profile
from growtas.latency.modelled.roofline import RooflineLatency
from growtas.runs import create_run
from growtas.sampling import sample_batch
from growtas.search.evolution import EvolutionResult, GenerationResult
from growtas.search.finalists import choose
from growtas.search.limits import Limits
from growtas.search.scoring import DROPPED
from growtas.search.search import Outcome, Search, Spent
from growtas.search.targets import Target
from growtas.space import PRESETS

MICRO = PRESETS["micro"].replace(name="<micro> & more")
VOID = {"meta", "link"}


def write_search(run, folder, limits=None, targets=(), *, space=MICRO, command="growtas search", data=None, **changes):
    """Writes a search of 40 subnets in two generations, the second of which was left early as a whole."""
    subnets = list(dict.fromkeys(sample_batch(space, 60, np.random.default_rng(0))))[:40]
    scores = [(0.5 + index / 200, -1.0, -index) for index in range(20)] + [(DROPPED, -math.inf, 0)] * 20
    scored = list(zip(subnets, scores, strict=True))
    best_first = sorted(scored, key=lambda item: item[1], reverse=True)
    history = (
        GenerationResult(1, tuple(sorted(scored[:20], key=lambda item: item[1], reverse=True)), best_first[0]),
        GenerationResult(2, tuple(scored[20:]), best_first[0]),
    )
    search = Search(space=space, limits=limits or Limits(), targets=targets, **changes)
    chosen = choose(space, search.limits, targets, best_first, lambda subnets: [])
    outcome = Outcome(chosen=chosen, result=EvolutionResult(tuple(best_first), history), spent=Spent())
    record = {
        "run": "runs/r", "data": data or {"name": "photos <raw>"}, "command": command, "checkpoint_sha256": "c", "device": None,
        "devices": [], "limits": {**vars(search.limits), "max_latency_ms": None}, "evaluated": 20, "dropped": 20, "reused": 0,
        "seconds": 1.0, "images": {"split": "search", "count": 100, "fingerprint": "d"}, "threads": 2, "machine": {"cpu": "a CPU"},
    }  # fmt: skip
    return write_results(run, folder, search, outcome, record)


def a10(space=MICRO, max_ms=None):
    """A target whose latencies are modelled."""
    return Target(device="a10", max_ms=max_ms, estimator=RooflineLatency(profile=load_profile("a10"), space=space))


def metrics_line(epoch, epochs=12):
    """A line of metrics.jsonl in which every number differs from those of the other epochs."""
    return {
        "epoch": epoch, "step": 45 * epoch, "stage": 1 if epoch <= epochs // 2 else 2,
        "subspace": {"max_embed_dim": 32.0 if epoch <= epochs // 2 else None, "max_mlp_ratio": None},
        "loss": 2.3 / epoch, "lr": 0.003 * (1 - (epoch - 1) / epochs),
        "accuracy": {name: 0.9 - 0.7 / epoch - 0.02 * place for place, name in enumerate(("largest", "middle", "smallest"))},
        "probes": {"A1 largest": 0.85 - 0.6 / epoch}, "images_per_s": 200.0,
        "time": {"data": 0.5, "forward": 2.0, "backward": 4.0}, "compute": {"macs": 1e9}, "seconds": 7.0,
    }  # fmt: skip


def manifest(file, precision, passed=True, **changes):
    """A manifest with what a page shows of it."""
    bounds = {"relative_error": 0.01, "cosine": 0.9995, "top1_agreement": 0.99, "accuracy_drop_points": 0.3}
    return {
        "format": "growtas-artifact/1", "created": "2026-01-02T03:04:05+00:00",
        "artifact": {"file": file, "sha256": "0", "bytes": 210_421}, "kind": file.rpartition(".")[2], "precision": precision,
        "executed": True,
        "versions": {"growtas": "0.1.0", "onnx": "1.23.2"}, "parity": None,
        "verification": {
            "passed": passed, "failed": [] if passed else ["cosine"], "thresholds": bounds,
            "images": "359 of 359 test images of digits",
            "count": 359, "labelled": True, "relative_error": 0.00084, "cosine_min": 0.9999994, "top1_agreement": 0.9972,
            "accuracy": 0.9276, "reference_accuracy": 0.9304, "accuracy_drop_points": 0.28,
        },
        **changes,
    }  # fmt: skip


def bench_result(batch, ms, *, steady=True):
    return {
        "kind": "measured", "batch": batch, "p50_ms": ms, "p95_ms": 1.2 * ms, "p99_ms": 1.5 * ms, "cv": 0.03 if steady else 0.31,
        "images_per_second": 1000 * batch / ms, "p50_ms_of_rounds": [0.95 * ms, ms, 1.1 * ms], "steady": steady, "device": "cpu",
        "runtime": "onnxruntime", "ratio": None,
    }  # fmt: skip


def bench_artifact(label, *results, **changes):
    memory = {"load_ms": 44.0, "peak_rss_bytes": 86_000_000}
    return {
        "label": label, "kind": "onnx", "runnable": True, "not_runnable_because": None, "limits": [], "baseline": False,
        "memory": memory, "results": list(results), **changes,
    }  # fmt: skip


def write_whole_run(root, name="r", *, space=MICRO, data="photos <raw>"):
    """A run that was trained, searched, exported and measured."""
    info = {
        "state": "finished", "space": space.to_dict(), "method": "growtas", "starts_from": None, "seconds": 84.0,
        "recipe": {"name": "digits-demo", "epochs": 12, "lr": 0.003, "min_lr": 1e-5, "batch_size": 32, "seed": 0},
        "data": {"name": data, "data_dir": None, "train_size": 1438, "test_size": 359}, "class_names": list("0123456789"),
        "versions": {"growtas": "0.1.0", "torch": "2.14.1"}, "machine": {"cpu": "a CPU", "a10": "NVIDIA A10"},
        "test_accuracy": {"smallest": 0.9192, "middle": 0.9359, "largest": 0.9248},
    }  # fmt: skip
    run = create_run(root / "runs", name, info)
    lines = "".join(json.dumps(metrics_line(epoch)) + "\n" for epoch in range(1, 13))
    (run.path / "metrics.jsonl").write_text(lines)
    (run.path / "recipe.yaml").write_text("name: digits-demo\n")
    command = "growtas search --device a10 --max-latency 5ms --max-params 280K"
    write_search(run, run.path / "search", Limits(max_params=280_000), (a10(space, 5.0),), space=space, command=command)
    unrun = {"verification": None, "executed": False, "not_executed_because": "no NVIDIA GPU on this machine"}
    source = {"file": "m.fp16.onnx", "verification": manifest("m.fp16.onnx", "fp16")["verification"]}
    for file in (
        manifest("m.onnx", "fp32"),
        manifest("m.fp16.onnx", "fp16"),
        manifest("m.fp16.plan", "fp16", **unrun, plan={"compiled_from": source}),
    ):
        write_json(run.path / "export" / f"{file['artifact']['file']}.json", file)
    limit = {"device": "a10", "limit_ms": 5.0, "promised": {"ms": 0.538, "kind": "modelled"}, "holds": None, "measured_ms": None}
    artifacts = [
        bench_artifact("m.onnx", bench_result(1, 0.551), bench_result(8, 2.51)),
        bench_artifact(
            "m.fp16.plan", kind="plan", runnable=False, not_runnable_because="no NVIDIA GPU", memory=None,
            limits=[{**limit, "unchecked_because": "the limit is for an a10, which is not here"}],
        ),
        bench_artifact("timm:deit_tiny", bench_result(1, 9.75, steady=False), bench_result(8, 60.2), kind="timm", baseline=True),
    ]  # fmt: skip
    write_json(
        run.path / "bench" / "bench.json",
        {
            "format": "growtas-bench/1", "created": "2026-01-02T03:05:00+00:00", "interrupted": False, "artifacts": artifacts,
            "environment": {"cpu": "a CPU", "threads": 2, "cpu_threads_total": 4, "gpu": None, "system": "Linux"},
            "versions": {"onnxruntime": "1.32.0"},
            "settings": {"batches": [1, 8], "rounds": 5, "seconds_per_artifact_and_batch": 1.0, "runtimes": [],
                         "baseline": "timm:deit_tiny", "device": "cpu"},
        },
    )  # fmt: skip
    return run


class Page(HTMLParser):
    """A page: its tags, each of which must be closed in its turn, and its texts, tables and headings.

    Attributes:
        tags: (name, attributes, names of the tags around it).
        tables: the rows of each table by its caption, the head first.
        shapes: (name, attributes, the title that stands for it) of what is drawn.
        sections: the texts of each section by its id.
    """

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.texts, self.source = [], [], [], path.read_text()
        self.tables, self.shapes, self.sections, self.headings = {}, [], {}, []
        self.row, self.rows, self.caption, self.section = None, None, "", None
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.style = re.search(r"<style>(.*)</style>", self.source, re.S)[1]

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes, tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)
        if "svg" in self.open and tag in ("circle", "rect", "path", "line", "polyline"):
            self.shapes.append([tag, attributes, ""])
        if tag == "section":
            self.section = attributes["id"]
            self.sections[self.section] = []
        elif tag == "table":
            self.rows, self.caption = [], ""
        elif tag == "tr":
            self.row = []
        elif tag in ("td", "th"):
            self.row.append("")
        elif tag in ("h1", "h2", "h3"):
            self.headings.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag
        if tag == "tr":
            self.rows.append(tuple(self.row))
        elif tag == "table":
            assert self.caption
            self.tables[self.caption] = self.rows
        elif tag == "section":
            self.section = None

    def handle_data(self, data):
        self.texts.append(data)
        if self.section:
            self.sections[self.section].append(data)
        if "caption" in self.open:
            self.caption += data
        elif self.open and self.open[-1] in ("td", "th"):
            self.row[-1] += data
        elif self.open[-2:-1] and self.open[-1] == "title" and self.shapes and self.open[-2] == self.shapes[-1][0]:
            self.shapes[-1][2] += data

    @property
    def lead(self):
        """The sentences under the title."""
        return next(data for data in self.texts if data.startswith("A "))

    def section_text(self, name):
        """The text of a section on one line."""
        return " ".join(" ".join(self.sections[name]).split())
