"""A run as one HTML page: training, search, export and bench, from the files that each step wrote."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import join
from typing import Any

from growtas import __version__
from growtas.errors import CheckpointError, GrowtasError
from growtas.files import read_json
from growtas.runs import Run, data_title
from growtas.subnet import Subnet
from growtas.units import format_accuracy, format_count, format_ms, format_seconds
from growtas.watch.artifact_parts import bench_cards, bench_parts, gate_parts, gates_passed
from growtas.watch.chart import charts
from growtas.watch.drawing import curves
from growtas.watch.facts import facts, import_source
from growtas.watch.page import Cards, Commands, Figure, Part, Row, Section, Text, table, write_page
from growtas.watch.report import Report, read_search_result
from growtas.watch.search_page import origin_rows, search_parts, subnet_parts
from growtas.watch.search_report import CostPlane, latency_rows, recorded_points

_UNKNOWN = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, GrowtasError)
"""Exceptions that are raised if a file lacks expected entries."""


def write_run_page(run: Run, path: Path) -> None:
    """Writes the page of a run; it replaces a file at ``path``.

    If a file can't be read or lacks entries, its section names it; the other sections are complete.

    Raises:
        CheckpointError, SpaceError: ``run.json`` or ``metrics.jsonl`` can't be read.
        OutputError: the file can't be written.
    """
    page = _RunPage.of(run)
    now = datetime.datetime.now().astimezone()
    write_page(
        path,
        title=page.title,
        lead=page.lead,
        sections=page.sections(),
        footer=f"Written by growtas {__version__} on {now:%Y-%m-%d %H:%M %Z} from the files in {run.path}.",
    )


@dataclass(frozen=True)
class _RunPage:
    """The files of a run, and the sections of its page.

    Attributes:
        searched, benched: the content of ``result.json`` and ``bench.json``; None where they are absent.
        exported: the manifests in the export folder, by the names of their artifacts.
        damaged: why a file can't be read, by the name of its section.
    """

    report: Report
    searched: Mapping[str, Any] | None
    exported: Mapping[str, Mapping[str, Any]]
    benched: Mapping[str, Any] | None
    damaged: Mapping[str, str]

    @classmethod
    def of(cls, run: Run) -> _RunPage:
        damaged: dict[str, str] = {}

        def read(section: str, file: Path, reader: Callable[[Path], Any] = read_json) -> Any:
            try:
                return reader(file) if file.is_file() else None
            except CheckpointError as error:
                damaged[section] = str(error)
                return None

        manifests = {file.name.removesuffix(".json"): read("export", file) for file in sorted(run.path.glob("export/*.json"))}
        return cls(
            report=Report.of(run),
            searched=read("search", run.path / "search" / "result.json", read_search_result),
            exported={
                name: manifest for name, manifest in manifests.items() if isinstance(manifest, dict) and "artifact" in manifest
            },
            benched=read("bench", run.path / "bench" / "bench.json"),
            damaged=damaged,
        )

    @property
    def run(self) -> Run:
        return self.report.run

    @property
    def _journal(self) -> Path:
        return self.run.path / "search" / "journal.jsonl"

    @property
    def title(self) -> str:
        data = self.report.info.get("data")
        return f"{self.run.space.name} on {data_title(data)}" if isinstance(data, Mapping) else self.run.space.name

    @property
    def lead(self) -> str:
        """Describes the training in one sentence."""
        info, report = self.report.info, self.report
        space, recipe = self.run.space.name, info.get("recipe")
        if isinstance(source := info.get("source"), Mapping):
            return f"A supernet of the search space {space}, imported from {import_source(source)}."
        if not isinstance(recipe, Mapping):
            return f"A supernet of the search space {space}."
        if isinstance(tuned := info.get("finetune"), Mapping):
            what, start = "A searched model", f"fine-tuned from {tuned.get('weights')}"
        else:
            weights = info.get("starts_from")
            start = f"trained from {weights.get('path') if isinstance(weights, Mapping) else 'random weights'}"
            what = f"A supernet of the search space {space}"
        done, total, seconds = report.metrics.done, report.epochs, info.get("seconds") or report.metrics.seconds
        length = f"{done} of {total} epochs" if done != total else f"{total} epochs"
        took = f" in {format_seconds(seconds)}" if seconds else ""
        return f"{what}, {start} with the method {info.get('method')}: {length}{took}. State: {report.state}."

    def sections(self) -> list[Section]:
        """Returns all sections; a section without data names the command that makes the data."""
        run = str(self.run.path)
        example = () if self._journal.is_file() else ("--device", "a10", "--max-latency", "5ms")
        search = ("search", run, *example)
        return [
            Section("summary", "Summary", self._summary()),
            Section(
                "training",
                "Training",
                self._guarded("training", self._training, "The run has no epoch yet.", ("train", "--resume", run)),
            ),
            Section("search", "Search", self._guarded("search", self._search, self._unsearched(), search)),
            Section("subnet", "The subnet, block by block", self._guarded("search", self._subnet, self._unsearched(), search)),
            Section(
                "gates", "Gates of the export", self._guarded("export", self._gates, "Nothing was exported yet.", ("export", run))
            ),
            Section(
                "bench", "Bench", self._guarded("bench", self._bench, "Nothing was measured with the bench yet.", ("bench", run))
            ),
            Section(
                "environment",
                "Environment",
                table("Where each step ran", ("step", "when", "machine", "software"), self._environment()),
            ),
            Section("commands", "Commands that repeat it", self._commands()),
        ]

    def _guarded(self, section: str, build: Callable[[], list[Part]], missing: str, command: Sequence[str]) -> list[Part]:
        """Returns the parts of a section, or the reason why there are none and the command that makes them."""
        try:
            parts, reason = build(), ""
        except _UNKNOWN as error:
            reason = str(error) if isinstance(error, GrowtasError) else "its file lacks entries that this version of growtas needs"
            parts = []
        if message := self.damaged.get(section) or (reason and f"This section can't be shown: {reason}."):
            parts = [Text(message, warning=True), *parts]
        return parts or [Commands(f"{missing} Run this command:", [_line(command)])]

    def _summary(self) -> list[Part]:
        cards: list[tuple[str, str, str]] = []
        for source in (self._found_cards, self._exported_cards, lambda: bench_cards(self.benched)):
            try:
                cards += source()
            except _UNKNOWN:
                continue  # its section says why
        if self.searched is None:
            accuracy, measured_on = self.report.accuracy
            where = "test images" if measured_on == "test" else f"search split, epoch {self.report.metrics.done}"
            count = self.report.accuracy_images
            images = (
                f"{count:,} images of the {where}" if count and measured_on != "test" else f"{count:,} {where}" if count else where
            )
            cards = [
                (f"Accuracy, {name} subnet", format_accuracy(value, count), images) for name, value in accuracy.items()
            ] + cards
        rows = [(name, text) for name, text, _ in facts(self.report)]
        return [*([Cards(cards)] if cards else []), *table("The run", (), [("folder", str(self.run.path)), *rows])]

    def _found_cards(self) -> Iterator[tuple[str, str, str]]:
        if self.searched is None:
            return
        best, count = self.searched["best"], self.searched["images"]["count"]
        images = f"{count:,} images of the search split" if count else "search split"
        yield "Accuracy of the subnet found", format_accuracy(best["accuracy"], count), images
        yield "Size of the subnet found", f"{format_count(best['params'])} params", f"{format_count(best['macs'])} MACs an image"
        for latency, (device, predicted, measured, limit, _) in zip(
            best["latencies"], latency_rows(best["latencies"]), strict=True
        ):
            shown = latency["measured"] or latency["predicted"]
            text = measured if latency["measured"] else predicted
            note = [
                text.partition(" (")[2].rstrip(")"),
                f"batch {shown['batch']}, {shown['precision']}",
                *([f"limit: {limit}"] if limit else []),
            ]
            yield f"Latency on {device}", format_ms(shown["ms"]), ", ".join(note)

    def _exported_cards(self) -> Iterator[tuple[str, str, str]]:
        if not self.exported:
            return
        passed = sum(gates_passed(manifest) is True for manifest in self.exported.values())
        yield "Exported artifacts", str(len(self.exported)), f"{passed} passed the gates of the export"
        labelled = [
            (name, manifest) for name, manifest in self.exported.items() if (manifest.get("verification") or {}).get("labelled")
        ]
        # A converted file is usually the one that ships.
        for name, manifest in sorted(labelled, key=lambda entry: entry[1]["precision"] == "fp32")[:1]:
            checked = manifest["verification"]
            yield "Accuracy on test images", format_accuracy(checked["accuracy"], checked["count"]), f"{name}, {checked['images']}"

    def _training(self) -> list[Part]:
        report, metrics = self.report, self.report.metrics
        figures: list[Part] = [
            Figure(chart.title, curves(chart)) for chart in sorted(charts(report), key=lambda chart: not chart.percent)
        ]
        if not figures:
            return [Text("The supernet was imported: it was not trained here.")] if report.info.get("source") else []
        parts: list[Part] = [Row(figures)]
        said = "The accuracies are those of the smallest, the middle and the largest subnet, on images of the search split."
        if metrics.group("probes"):
            said += " The probes are subnets of the subspaces that opened earlier."
        parts.append(Text(f"{said} A dotted line is the transition to the next stage."))
        stages = [(str(stage), str(epoch), _caps(metrics.lines, epoch)) for stage, epoch in metrics.stages]
        tables = table("Subspaces and transitions", ("stage", "first epoch", "subspace"), stages)
        spent = metrics.time()
        if total := sum(spent.values()):
            rows = [(name, f"{seconds / total:.1%}", format_seconds(seconds)) for name, seconds in spent.items()]
            tables += table("Where the time went", ("activity", "share", "time"), rows, right=("share", "time"))
        return [*parts, Row(tables)] if tables else parts

    def _unsearched(self) -> str:
        if self._journal.is_file():
            kept = "What was evaluated is kept: the same command, with the same options, continues from there."
            return f"No search of this run has finished. {kept}"
        return "The run was not searched yet."

    def _search(self) -> list[Part]:
        data, journal = self.searched, self._journal
        if data is None:
            return []
        if "points" in data:
            return [*search_parts(data, CostPlane.all_of(data["points"])), *table("Origin", (), origin_rows(data))]
        chosen = Subnet.from_dict(data["best"])
        points = recorded_points(journal, self.run.space, chosen) if journal.is_file() else None
        older = "An older version of growtas made this search. Its points are drawn over the costs that can be counted again."
        planes = CostPlane.all_of(points) if points else []
        return [*search_parts(data, planes), Text(older), *table("Origin", (), origin_rows(data))]

    def _subnet(self) -> list[Part]:
        return [] if self.searched is None else subnet_parts(self.run.space, Subnet.from_dict(self.searched["best"]))

    def _gates(self) -> list[Part]:
        return gate_parts(self.exported)

    def _bench(self) -> list[Part]:
        return [] if self.benched is None else bench_parts(self.benched)

    def _environment(self) -> Iterator[tuple[str, str, str, str]]:
        info, data = self.report.info, self.searched or {}
        yield "training", f"{self.run.created:%Y-%m-%d %H:%M}", _machine(info.get("machine")), _versions(info.get("versions"))
        if data:
            machine = _machine(data.get("machine")) if data.get("machine") else str(data.get("evaluated_on", "not recorded"))
            yield "search", _when(data), f"{machine}, {data.get('threads')} threads", f"growtas {data.get('growtas')}"
        for manifest in list(self.exported.values())[:1]:
            yield "export", _when(manifest), "not recorded", _versions(manifest.get("versions"))
        if (bench := self.benched) and isinstance(place := bench.get("environment"), Mapping):
            threads = f"{place.get('threads')} of {place.get('cpu_threads_total')} threads"
            gpu = place.get("gpu") or "no GPU"
            parts = (place.get("cpu"), threads, gpu.get("name", gpu) if isinstance(gpu, Mapping) else gpu, place.get("system"))
            yield "bench", _when(bench), ", ".join(map(str, parts)), _versions(bench.get("versions"))

    def _commands(self) -> list[Part]:
        recorded = (
            "The search's command is the one that was typed; the others are put together from the settings that each step recorded."
        )
        return [Commands(recorded, [*self._command_lines(), _line(("report", str(self.run.path)))])]

    def _command_lines(self) -> Iterator[str]:
        info, run = self.report.info, str(self.run.path)
        data = info.get("data")
        folder = ("--data-dir", str(data["data_dir"])) if isinstance(data, Mapping) and data.get("data_dir") else ()
        recipe = ("--config", str(self.run.path / "recipe.yaml")) if (self.run.path / "recipe.yaml").is_file() else ()
        if isinstance(source := info.get("source"), Mapping):
            if "model" in source:
                images = ("--data", str(data.get("name"))) if isinstance(data, Mapping) else ()
                sizes = [f"--model-kwargs={key}={json.dumps(value)}" for key, value in source.get("options", {}).items()]
                order = [f"--order={info['importance']['order']}"] if "importance" in info else []
                weights = ("--weights", str(source.get("weights")))
                yield _line(("import", "timm", str(source["model"]), *weights, *images, *folder, *sizes, *order))
            else:
                yield _line(("import", "autoformer", str(source.get("file")), "--space", self.run.space.name))
        elif isinstance(tuned := info.get("finetune"), Mapping):
            yield _line(("finetune", str(tuned.get("weights")), *recipe, *folder))
        elif recipe:
            yield _line(("train", *recipe, *folder))
        if self.searched and self.searched.get("command"):
            yield str(self.searched["command"])
        for precision, kinds in _by_precision(self.exported).items():
            formats = ",".join({"plan": "trt"}.get(kind, kind) for kind in kinds)
            yield _line(("export", run, "--format", formats, "--precision", precision))
        if self.benched and isinstance(settings := self.benched.get("settings"), Mapping):
            options = ["--batch", ",".join(map(str, settings.get("batches", ()))), "--rounds", str(settings.get("rounds"))]
            for option, key in (
                ("--seconds", "seconds_per_artifact_and_batch"),
                ("--baseline", "baseline"),
                ("--device", "device"),
            ):
                options += [option, str(settings[key])] if settings.get(key) else []
            options += ["--runtime", ",".join(settings["runtimes"])] if settings.get("runtimes") else []
            yield _line(("bench", run, *options))


def _by_precision(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Returns the exported formats by precision, without the fp32 files from which other precisions are made."""
    found: dict[str, list[str]] = {}
    for manifest in manifests.values():
        kinds = found.setdefault(str(manifest.get("precision")), [])
        if manifest.get("kind") not in kinds:
            kinds.append(str(manifest.get("kind")))
    return {precision: kinds for precision, kinds in found.items() if precision != "fp32" or len(found) == 1}


def _caps(lines: Sequence[Mapping[str, Any]], epoch: int) -> str:
    """Describes the bounds of the subspace that was open in an epoch."""
    caps = next((line.get("subspace") for line in lines if line["epoch"] == epoch), None)
    if not isinstance(caps, Mapping):
        return "not recorded"
    named = {"max_embed_dim": "embed_dim", "max_mlp_ratio": "mlp_ratio"}
    texts = [f"{name} up to {caps[key]:g}" for key, name in named.items() if caps.get(key) is not None]
    return ", ".join(texts) or "no bounds"


def _machine(names: Any) -> str:
    return ", ".join(map(str, names.values())) if isinstance(names, Mapping) and names else "not recorded"


def _when(record: Mapping[str, Any]) -> str:
    """Returns the time at which a file was made, to the minute."""
    return str(record.get("created"))[:16].replace("T", " ")


def _versions(versions: Any) -> str:
    listed = ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, Mapping) else ""
    return listed or "not recorded"


def _line(words: Sequence[str]) -> str:
    return join(["growtas", *words])
