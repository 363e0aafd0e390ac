"""docs/reference/files.md: the files that growtas writes and reads, field by field.

The descriptions are the ``Attributes:`` of dataclasses and pydantic models, and the ``Fields:`` of the texts that lie beside the
code that writes plain JSON (see :mod:`growtas.docstrings`). Only their order and the headings are this module's.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from growtas import runs
from growtas.api import search_results, searching
from growtas.data import evaluation, preprocess, report, sources
from growtas.data.folder import Layout
from growtas.docstrings import Entry, entries, summary
from growtas.export import artifact
from growtas.export.benchmark import limits, memory, peaks, power, timing
from growtas.export.benchmark import report as bench
from growtas.export.formats import FORMATS
from growtas.export.graph.tensors import HalfRange
from growtas.export.pipeline import context, triton
from growtas.export.quantization.convert import PrecisionInfo
from growtas.export.quantization.thresholds import Thresholds
from growtas.export.runtimes.base import TimerParts
from growtas.export.verification.agreement import Verification
from growtas.export.verification.parity import Comparison, ParityReport
from growtas.latency import estimate
from growtas.latency.measured import campaign
from growtas.latency.measured import profile as measured
from growtas.latency.modelled import profile as modelled
from growtas.nn.architecture import Architecture
from growtas.search import finalists, journal, pareto, precision_front, search, targets
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.train import checkpoints, finetune, teacher, trainer
from growtas.train.recipe_fields import type_words
from tests.docs.markdown import code, fence, page, sentence, table

_KEYS = ("key", "type", "meaning")


def files_page() -> str:
    """The page."""
    return page(
        "Files",
        "JSON files are UTF-8; control characters, and bytes of names that are not UTF-8, are JSON escapes (`\\u001b`, `\\udcff`). "
        "A number that is not finite is written as null. Sizes are in bytes, shares and accuracies are "
        "from 0 to "
        "1, and the unit of a time is part of its name or of its description. `outer.inner` is a key within an object, and "
        "`list[].inner` is a key of each item. A latency always says its kind: only what was timed is `measured`.",
        "## Run folder",
        "`growtas train`, `growtas finetune` and `growtas import` make a run's folder; the later commands add to it.",
        fence(_block(runs)),
        "### run.json",
        *_section(runs.RUN_JSON),
        *(part for text in (sources.DATA_RECORD, preprocess.PREPROCESS, teacher.TEACHER_RECORD) for part in _section(text)),
        *_section(finetune.FINETUNE_RECORD),
        "### recipe.yaml",
        "The whole recipe: a mapping of the [recipe fields](recipe.md#fields). `--config` reads it.",
        "### data.json",
        *_section(report.DataReport, report.SplitReport, Layout, names=("", "splits[].", "layout.")),
        "### split.json",
        *_section(evaluation.SPLIT_JSON),
        "### metrics.jsonl",
        *_section(trainer.METRICS_LINE),
        "### Checkpoints",
        *_section(checkpoints.CHECKPOINT_FILES, headings=("file", "content", "meaning")),
        *_section(checkpoints.STATE_JSON),
        *_section(checkpoints.BEST_JSON),
        "## Subnets and search spaces",
        "### Subnet file",
        "A JSON object that `--subnet` takes. `depth` may be left out, and other keys are ignored. An object that holds such an "
        "object "
        "under `subnet` is legal too.",
        _keys(Subnet),
        fence(json.dumps(Subnet(48, (2, 3, 4, 3), (2.0, 3.0, 4.0, 4.0)).to_dict()), "json"),
        "### Search space file",
        "A YAML or JSON file that `--space` takes. A dimension is a list of choices, or a range with `min`, `max` and `step`. The "
        "file's name is the space's where it gives none.",
        _with_defaults(SearchSpace),
        "## Search folder",
        "### subnet.json",
        *_section(search_results.SUBNET_JSON),
        "### result.json",
        *_section(search_results.RESULT_JSON),
        *(part for text in (searching.SETTINGS, searching.RECORD) for part in _section(text)),
        *(part for text in (finalists.CHOSEN, finalists.FINALIST) for part in _section(text)),
        *_section(targets.DEVICE_LATENCY),
        *_section(estimate.LATENCY),
        "### front.json",
        *_section(search.FRONT_JSON),
        *_section(pareto.FRONT_NUMBERS),
        *_section(precision_front.PRECISION_FRONT),
        "### journal.jsonl",
        "A JSON object on a line for each event. The file is only ever added to.",
        *_section(journal.JOURNAL_HEADER),
        "A header also has what the search was asked for, as `result.json` has it.",
        *_section(journal.JOURNAL_EVALUATION),
        *_section(journal.JOURNAL_DROPPED),
        *_section(journal.JOURNAL_CONVERTED, journal.Conversion),
        "### DEVICE-timings.jsonl",
        *_section(campaign.TIMINGS_LINE),
        *_section(campaign.Setup, names=("setup.",)),
        "## Device profiles",
        "Your own profiles lie in the folder that [`GROWTAS_PROFILES`](environment.md#environment-variables) names. They go "
        "before the "
        "shipped ones. A modelled profile is `DEVICE.json`, a measured one `DEVICE.SPACE.RUNTIME-PRECISION-bBATCH.json`, of a "
        "CPU with "
        "`.CPU-tTHREADS` before `.json`.",
        "### Measured profile",
        f"`growtas profile` writes it. Its `format` is `{measured.FORMAT}`.",
        *_section(measured.MeasuredProfile),
        *_section(measured.CLAIMS),
        *_section(campaign.Sample, names=("samples[].",), without=("visit",)),
        *_section(measured.HeldOut, names=("held_out.",)),
        *_section(measured.Repeatability, names=("repeatability.",)),
        "### Modelled profile",
        f"A device's datasheet. Its `format` is `{modelled.FORMAT}`.",
        *_section(
            modelled.DeviceProfile,
            modelled.Peaks,
            modelled.Efficiency,
            modelled.Calibration,
            names=("", "peaks.", "efficiency.", "calibration."),
        ),
        "## Artifacts",
        "How artifacts are found, opened and trusted is in [Artifacts](artifacts.md).",
        "### File formats",
        table(
            ("--format", "suffix", "kind in the manifest", "runtimes of growtas bench", "other files"),
            [
                [code(one.name), code(one.suffix), code(one.kind), code(*one.runtimes), code(*one.side_suffixes) or "-"]
                for one in FORMATS
            ],
        ),
        "### Manifest",
        "`FILE.json` beside an artifact.",
        *_records(artifact.Manifest),
        *_section(context.MORE_OF_THE_MANIFEST),
        "#### architecture",
        _keys(Architecture),
        "#### parity",
        *_section(ParityReport, Comparison, names=("", "comparisons[].")),
        "#### verification",
        *_section(Verification, Thresholds, names=("", "thresholds.")),
        "#### conversion",
        *_section(PrecisionInfo),
        "#### half_range",
        *_section(HalfRange),
        "## bench.json",
        f"`growtas bench` writes it, and `growtas bench --json` prints it. Its `format` is `{bench.FORMAT}`.",
        *_section(bench.BenchReport, without=("files",)),
        *_section(bench.SETTINGS),
        *_section(timing.ENVIRONMENT),
        *_section(timing.CLOCKS),
        *_section(bench.ArtifactReport, names=("artifacts[].",)),
        *_section(timing.Measurement, names=("artifacts[].results[].",)),
        *_section(bench.BatchResult, names=("artifacts[].results[].",), inherited=False),
        *_section(bench.RATIO),
        *_section(TimerParts, names=("parts.",)),
        *_section(power.POWER),
        *_section(peaks.PEAKS),
        *_section(peaks.ROOFLINE),
        *_section(memory.MEMORY),
        *_section(limits.LIMIT),
        "## Triton repository",
        *_section(triton.REPOSITORY, headings=("file", "content", "meaning")),
    )


def _block(module: Any) -> str:
    """The literal block of a module's docstring, without its indentation."""
    lines = module.__doc__.split("::\n", 1)[1].strip("\n").splitlines()
    return "\n".join(line.removeprefix("    ") for line in lines)


def _section(
    *owners: Any,
    names: tuple[str, ...] = (),
    headings: tuple[str, ...] = _KEYS,
    without: tuple[str, ...] = (),
    inherited: bool = True,
) -> list[str]:
    """What the first owner is, and a table of the keys of all of them, each with its prefix."""
    rows = [
        row
        for owner, prefix in zip(owners, names or [""] * len(owners), strict=True)
        for row in rows_of(owner, prefix, without=without, inherited=inherited)
    ]
    return [sentence(summary(owners[0])), table(headings, rows)]


def _keys(model: type[Any]) -> str:
    return table(_KEYS, rows_of(model))


def rows_of(owner: Any, prefix: str = "", *, without: tuple[str, ...] = (), inherited: bool = True) -> list[list[str]]:
    """Keys, type and meaning, of a text with ``Fields:`` or a class with ``Attributes:``. Keys with one description share a row."""
    if isinstance(owner, str):
        return [[code(*(prefix + name for name in one.names)), one.type, sentence(one.text)] for one in entries(owner, "Fields")]
    types, described = field_types(owner, inherited=inherited), _entry_by_name(owner)
    aliases, rows = _aliases(owner), list[list[str]]()
    for entry in dict.fromkeys(described.get(name, Entry((name,), "", "")) for name in types if name not in without):
        names = [name for name in entry.names if name in types and name not in without]
        kinds = " or ".join(dict.fromkeys(types[name] for name in names)).replace("whole number or number", "number")
        rows.append([code(*(prefix + aliases.get(name, name) for name in names)), kinds, sentence(_as_json(entry.text))])
    return rows


def _as_json(text: str) -> str:
    """A description of a Python attribute as one of a JSON key."""
    return re.sub(r"(^|\. )None\b", r"\1Null", re.sub(r"(?<=[^.] )None\b", "null", text))


def _entry_by_name(owner: type[Any]) -> dict[str, Entry]:
    return {name: entry for base in reversed(owner.__mro__) for entry in entries(base, "Attributes") for name in entry.names}


def field_types(owner: type[Any], *, inherited: bool = True) -> dict[str, str]:
    """The fields of a dataclass or a pydantic model with their types in words; without those of its bases if asked for."""
    own = owner.__annotations__
    if issubclass(owner, BaseModel):
        return {name: words(str(own[name])) for name in owner.model_fields if name in own}
    fields = [field for field in dataclasses.fields(owner) if inherited or field.name in own]
    return {field.name: words(str(field.type)) for field in fields}


def words(annotation: str) -> str:
    """A type in words, with classes of growtas as objects."""
    plain = re.sub(r"(?:Literal|Kind|Role)(?:\[.*\])?", "str", annotation)
    plain = re.sub(
        r"\b(?:[A-Z]\w*(?:Record|Report|Space)|Subnet|Peaks|Efficiency|Calibration|Layout|Thresholds)\b", "object", plain
    )
    return type_words(plain).replace("mapping", "object").replace("Path", "text").replace("Any", "object")


def _aliases(owner: type[Any]) -> Mapping[str, str]:
    if not issubclass(owner, BaseModel):
        return {}
    return {name: field.alias for name, field in owner.model_fields.items() if field.alias}


def _records(model: type[BaseModel], prefix: str = "", seen: tuple[type[Any], ...] = ()) -> list[str]:
    """A table of a model, and one of each model that its fields hold."""
    parts = [sentence(summary(model))] if not prefix else []
    parts.append(table(_KEYS, rows_of(model, prefix)))
    for name, field in model.model_fields.items():
        kind = str(model.__annotations__.get(name))
        inner = next((one for one in artifact_models() if re.search(rf"\b{one.__name__}\b", kind)), None)
        if inner is not None and inner is not model and inner not in (artifact.VerificationRecord, artifact.ParityRecord, *seen):
            parts += _records(inner, f"{prefix}{field.alias or name}.", (*seen, model))
    return parts


def artifact_models() -> list[type[BaseModel]]:
    """The parts of a manifest."""
    models = [value for value in vars(artifact).values() if isinstance(value, type) and issubclass(value, BaseModel)]
    return [model for model in models if re.fullmatch(r"[A-Z]\w*Record", model.__name__)]


def _with_defaults(model: type[Any]) -> str:
    """A dataclass's fields with their defaults."""
    required = dataclasses.MISSING
    defaults = {field.name: "required" if field.default is required else code(field.default) for field in dataclasses.fields(model)}
    defaults["name"] = "the file's name"
    defaults |= {f"max_{name}": "the largest choice" for name in ("embed_dim", "num_heads", "mlp_ratio", "depth")}
    rows = []
    for keys, kind, meaning in rows_of(model):
        names = [name.strip("`") for name in keys.split(", ")]
        shown = list(dict.fromkeys(defaults[name] for name in names))
        rows.append([keys, kind, ", ".join(shown if len(shown) == 1 else [defaults[name] for name in names]), meaning])
    return table(("key", "type", "default", "meaning"), rows)
