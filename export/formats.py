"""The file formats that an export can make: one table of their names, suffixes, runtimes and side files."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from growtas.errors import UsageError, choices
from growtas.files import check_folder


@dataclass(frozen=True, kw_only=True)
class Format:
    """A file format.

    Attributes:
        name: name of the format in ``--format``.
        suffix: suffix of its files, with the dot.
        kind: name of the format in manifests.
        made_from: names of the formats that an export makes first, because this one is made from them.
        runtimes: runtimes in which ``growtas bench`` can run its files, the default first.
        platform: name of the runtime in the open inference protocol.
        default_rank: priority when predict and serve choose an artifact that runs here; 0 comes first.
        triton: whether a Triton backend can load its files; ``platform`` is then Triton's name for the backend.
        side_suffixes: suffixes of the side files, without which one of its files can't be loaded.
    """

    name: str
    suffix: str
    kind: str
    made_from: tuple[str, ...] = ()
    runtimes: tuple[str, ...]
    platform: str
    default_rank: int
    triton: bool = False
    side_suffixes: tuple[str, ...] = ()


TORCH = Format(name="torch", suffix=".safetensors", kind="torch", runtimes=("eager", "compile"), platform="torch", default_rank=4)
PROGRAM = Format(
    name="program",
    suffix=".pt2",
    kind="program",
    made_from=("torch",),
    runtimes=("eager",),
    platform="torch_export",
    default_rank=3,
)
ONNX = Format(
    name="onnx",
    suffix=".onnx",
    kind="onnx",
    made_from=("torch",),
    runtimes=("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"),
    platform="onnxruntime_onnx",
    default_rank=1,
    triton=True,
)
OPENVINO = Format(
    name="openvino",
    suffix=".xml",
    kind="openvino",
    made_from=("torch", "onnx"),
    runtimes=("openvino",),
    platform="openvino_ir",
    default_rank=2,
    side_suffixes=(".bin",),
)
PLAN = Format(
    name="trt",
    suffix=".plan",
    kind="plan",
    made_from=("torch", "onnx"),
    runtimes=("tensorrt-rtx", "tensorrt"),
    platform="tensorrt_plan",
    default_rank=0,
    triton=True,
)
FORMATS = (TORCH, PROGRAM, ONNX, OPENVINO, PLAN)
"""All formats, in the order in which an export makes them."""
SUFFIXES = tuple(entry.suffix for entry in FORMATS)


def format_of(path: str | Path) -> Format:
    """Returns the format of a file, by its suffix.

    Raises:
        UsageError: no format has this suffix.
    """
    suffix = Path(path).suffix
    for entry in FORMATS:
        if entry.suffix == suffix:
            return entry
    raise UsageError(f"{path}: not an artifact; legal are files that end in {choices(SUFFIXES)}")


def with_sources(names: Iterable[str]) -> tuple[Format, ...]:
    """Returns the formats of these names and those that they are made from, in the order of making."""
    needed = {name for entry in FORMATS if entry.name in names for name in (*entry.made_from, entry.name)}
    return tuple(entry for entry in FORMATS if entry.name in needed)


def side_files(artifact: str | Path) -> tuple[Path, ...]:
    """Returns the side files of an artifact, without which it can't be loaded: the ``.bin`` with the weights of an OpenVINO IR.

    Side files are moved, hashed and deleted together with the artifact.
    """
    artifact = Path(artifact)
    suffixes = [suffix for entry in FORMATS if entry.suffix == artifact.suffix for suffix in entry.side_suffixes]
    return tuple(artifact.with_suffix(suffix) for suffix in suffixes)


def artifact_files(folder: str | Path) -> list[Path]:
    """Returns the artifacts in a folder, sorted by name, without hidden files.

    Raises:
        UsageError: the folder can't be read.
    """
    check_folder(folder)
    return sorted(path for path in Path(folder).glob("*") if path.suffix in SUFFIXES and not path.name.startswith("."))


def artifacts_in(place: str | os.PathLike[str]) -> list[Path]:
    """Returns the artifacts at a place: the file itself, those in a folder, or those in the export folder of a run.

    Raises:
        UsageError: the folder holds no artifacts.
    """
    place = Path(place)
    if not place.is_dir():
        return [place]
    run = (place / "run.json").is_file()
    folder = place / "export" if run else place
    paths = artifact_files(folder)
    if not paths:
        make = f"make some with `growtas export {shlex.quote(str(place))}`, or " if run else ""
        raise UsageError(f"{folder}: no artifacts here; {make}name files that end in {choices(SUFFIXES)}")
    return paths


def file_stem(space: str) -> str:
    """The default name of exported files, without suffix, from the search space's name."""
    return re.sub(r"[^\w.-]+", "-", space) + "-subnet"
