"""An artifact with its manifest: what it is, where it came from, and what was checked. ``NAME.onnx`` has ``NAME.onnx.json``.

The manifest is a file beside the artifact and not metadata inside it, because runtimes and servers must be able to load an artifact
as it is.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, ValidationInfo, ValidatorFunctionWrapHandler
from pydantic import field_validator as validator

from growtas.errors import CheckpointError, UsageError
from growtas.export.formats import ONNX, Format, format_of, side_files
from growtas.files import read_json, refuse_url, sha256, write_json

FORMAT = "growtas-artifact/1"
_PACKAGES = (
    "torch", "timm", "onnx", "onnxscript", "onnxslim", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "numpy",
)  # fmt: skip


class _Record(BaseModel):
    """A part of a manifest; a value that is no value of its field counts as absent, and keys that are no fields are left alone."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    @validator("*", mode="wrap")
    @classmethod
    def _absent_unless_valid(cls, value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        try:
            return read(value)
        except ValidationError:
            return cls.model_fields[str(info.field_name)].get_default(call_default_factory=True)


class FileRecord(_Record):
    """A file: its name, hex SHA-256 and size in bytes, and in ``side_files`` the files that belong to it."""

    file: str | None = None
    sha256: str | None = None
    bytes: int = 0
    side_files: tuple[FileRecord, ...] = Field(default=(), alias="companions")

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """The record of a file alone."""
        return cls(file=path.name, sha256=sha256(path), bytes=path.stat().st_size)

    @property
    def total_bytes(self) -> int:
        """Size of the file with the files that belong to it."""
        return self.bytes + sum(entry.bytes for entry in self.side_files)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        record: dict[str, Any] = {"file": self.file, "sha256": self.sha256, "bytes": self.bytes}
        return record | ({"companions": [entry.to_dict() for entry in self.side_files]} if self.side_files else {})


class BatchRecord(_Record):
    """Batch sizes: the largest one, and those that were run when the artifact was exported."""

    max: int | None = None
    checked: tuple[int, ...] = ()


class TensorRecord(_Record):
    """The input or the logits.

    Attributes:
        name, dtype: such as ``images`` and ``float32``.
        shape: with the batch; names, or numbers below 1, where every size goes.
        layout: of images, ``NCHW`` or ``NHWC``.
        resize: whether the graph resizes images.
        batch: the batch sizes that go in.
    """

    name: str | None = None
    dtype: str | None = None
    shape: tuple[int | str, ...] = ()
    layout: str | None = None
    resize: bool = False
    batch: BatchRecord = BatchRecord()

    @property
    def sizes(self) -> tuple[int | None, ...]:
        """The shape of one image; None where every size goes."""
        return tuple(size if isinstance(size, int) and size > 0 else None for size in self.shape[1:])

    @property
    def takes_pixels(self) -> bool:
        """Whether the normalisation is in the graph, so that uint8 ``(batch, H, W, C)`` is what goes in."""
        return self.dtype == "uint8"


class SourceRecord(_Record):
    """What an artifact was cut out of: a run's name, and files in its folder."""

    run: str | None = None
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    subnet_file: str | None = None


class VerificationRecord(_Record):
    """What was measured on labelled images; see :class:`growtas.export.verification.agreement.Verification`."""

    count: int | None = None
    accuracy: float | None = None
    accuracy_drop_points: float | None = None
    reference: str | None = None
    reference_accuracy: float | None = None
    top1_agreement: float | None = None
    relative_error: float | None = None
    images: str | None = None
    labelled: bool = False
    unlabelled_because: str | None = None
    thresholds: dict[str, float] = {}


class ParityRecord(_Record):
    """What the gate of fp32 measured; see :class:`growtas.export.verification.parity.ParityReport`."""

    images: str | None = None
    relative_error: float | None = None
    top1_agreement: float | None = None
    tolerance: float | None = None


class CompiledFromRecord(_Record):
    """The ONNX file that a plan was compiled from, and what was checked of it."""

    file: str | None = None
    sha256: str | None = None
    parity: ParityRecord | None = None
    verification: VerificationRecord | None = None


class PlanRecord(_Record):
    """What a plan was built with, and for which GPUs."""

    runtime: str | None = None
    runtime_version: str | None = None
    targets: tuple[str, ...] = ()
    max_batch: int | None = None
    optimised_for_batch: int | None = None
    activation_memory_bytes: int | None = None
    settings: dict[str, Any] = {}
    compiled_from: CompiledFromRecord | None = None


class PostprocessRecord(_Record):
    """What the graph does after the logits."""

    softmax: bool = False
    top_k: int | None = None


class ConversionRecord(_Record):
    """How the precision was converted; ``rest`` is the precision of what surrounds quantised layers."""

    rest: str | None = None


class ModuleRecord(_Record):
    """The module in plain PyTorch beside the weights."""

    file: str | None = None


class Manifest(_Record):
    """What is known of an artifact. Without arguments: nothing.

    ``to_dict`` gives the JSON as it was read or written, with the keys that are no attributes here and in the same order.
    """

    created: str | None = None
    file: FileRecord = Field(default=FileRecord(), alias="artifact")
    kind: str | None = None
    precision: str | None = None
    space: str | None = None
    subnet: dict[str, Any] | None = None
    params: int | None = None
    macs: int | None = None
    input: TensorRecord | None = None
    output: TensorRecord | None = None
    preprocess: dict[str, Any] | None = None
    postprocess: PostprocessRecord | None = None
    class_names: tuple[str, ...] | None = None
    source: SourceRecord = SourceRecord()
    search: dict[str, Any] | None = None
    parity: ParityRecord | None = None
    verification: VerificationRecord | None = None
    executed: bool | None = None
    not_executed_because: str | None = None
    runtime: str | None = None
    module: ModuleRecord | None = None
    conversion: ConversionRecord | None = None
    plan: PlanRecord | None = None
    versions: dict[str, str] = {}
    _json: dict[str, Any] = PrivateAttr(default_factory=dict)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """The manifest that a JSON object holds."""
        manifest = cls.model_validate(dict(record))
        manifest._json = dict(record)
        return manifest

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return self._json

    @property
    def network(self) -> tuple[Any, Any]:
        """What two artifacts that hold the same network have in common: the subnet, and the hash of its checkpoint."""
        return self.subnet, self.source.checkpoint_sha256

    @property
    def is_for_gpu(self) -> bool:
        """Whether an ONNX file was made for plans of GPUs: in half precision, or with half precision around what is quantised."""
        rest = self.conversion.rest if self.conversion else None
        return self.kind == ONNX.kind and bool({"fp16", "bf16", "fp8"} & {self.precision, rest})

    @property
    def compiled_from(self) -> CompiledFromRecord | None:
        """The verified file that a plan was compiled from, where its numbers stand for those of a plan that was not run."""
        source = self.plan and self.plan.compiled_from
        return source if source and source.verification and not self.verification else None

    @property
    def verified(self) -> VerificationRecord | None:
        """What was measured of the artifact, or of the file that it was compiled from."""
        source = self.compiled_from
        return self.verification or (source.verification if source else None)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file of an export and its manifest; stands for the path wherever one is taken."""

    path: Path
    manifest: Manifest

    @property
    def format(self) -> Format:
        """The file's format."""
        return format_of(self.path)

    def __fspath__(self) -> str:
        return str(self.path)


def manifest_path(artifact: str | os.PathLike[str]) -> Path:
    """Where an artifact's manifest lies."""
    artifact = Path(artifact)
    return artifact.with_name(artifact.name + ".json")


def write_manifest(path: str | os.PathLike[str], content: Mapping[str, Any]) -> Artifact:
    """Write the manifest of a finished file beside it; format, time, hash, size, kind and versions are filled in.

    Args:
        path: the file.
        content: everything else, as JSON data.
    """
    path = Path(path)
    file = FileRecord.of(path).model_copy(update={"side_files": _side_file_records(path)})
    record = {
        "format": FORMAT,
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "artifact": file.to_dict(),
        "kind": format_of(path).kind,
        **content,
        "versions": versions(),
    }
    write_json(manifest_path(path), record)
    return Artifact(path=path, manifest=Manifest.from_dict(record))


def read_manifest(artifact: str | os.PathLike[str], *, verify: bool = True) -> Manifest | None:
    """An artifact's manifest; None where there is none.

    An artifact that was renamed without its manifest is found by its hash among the manifests in its folder.

    Args:
        verify: compare the hash of the artifact, and of the files that belong to it, with the recorded one.

    Raises:
        CheckpointError: the artifact is absent, the manifest is unreadable or of another format, or the hash differs.
    """
    artifact = Path(artifact)
    if not artifact.is_file():
        raise CheckpointError(f"{artifact}: no such artifact")
    path = manifest_path(artifact)
    manifest = _parse(path) if path.exists() else _manifest_before_renaming(artifact)
    if manifest is not None and verify:
        check_hash(artifact, manifest)
    return manifest


def _parse(path: Path) -> Manifest:
    record = read_json(path, "manifest")
    if not isinstance(record, dict) or record.get("format") != FORMAT or not isinstance(record.get("artifact"), dict):
        raise CheckpointError(f"{path}: not a manifest of format {FORMAT}")
    return Manifest.from_dict(record)


def _manifest_before_renaming(artifact: Path) -> Manifest | None:
    """The manifest in the artifact's folder that describes a file of these bytes."""
    digest, size = "", artifact.stat().st_size
    for path in sorted(artifact.parent.glob(f"*{artifact.suffix}.json")):
        with contextlib.suppress(CheckpointError):
            manifest = _parse(path)
            if manifest.file.bytes != size:
                continue
            digest = digest or sha256(artifact)
            if manifest.file.sha256 == digest:
                return manifest
    return None


def load_artifact(path: str | os.PathLike[str], *, verify: bool = True) -> Artifact:
    """An artifact with its manifest, which must be there.

    Args:
        verify: as for :func:`read_manifest`.

    Raises:
        CheckpointError: as :func:`read_manifest`, or there is no manifest.
        UsageError: not an artifact.
    """
    refuse_url(path, UsageError)
    path = Path(path)
    format_of(path)
    manifest = read_manifest(path, verify=verify)
    if manifest is None:
        raise CheckpointError(
            f"{path}: no manifest {path.name}.json beside it, which says what goes in; export it again, or copy both"
        )
    return Artifact(path=path, manifest=manifest)


def check_hash(artifact: Path, manifest: Manifest, *, digest: str | None = None) -> None:
    """Compare an artifact and the files that belong to it with what its manifest recorded.

    Args:
        digest: the artifact's hex SHA-256, if it is known already.

    Raises:
        CheckpointError: one of the files is absent, not recorded, or another one.
    """
    if digest is None and not artifact.is_file():
        raise CheckpointError(f"{artifact}: no such artifact")
    if manifest.file.sha256 != (digest or sha256(artifact)):
        raise CheckpointError(f"{artifact}: the file is not the one that its manifest describes (SHA-256 differs); export it again")
    # By suffix: the files may have been renamed since.
    recorded = {Path(entry.file or "").suffix: entry.sha256 for entry in manifest.file.side_files}
    for entry in _side_file_records(artifact):
        suffix = Path(entry.file or "").suffix
        if suffix not in recorded:
            raise CheckpointError(f"{artifact}: its manifest does not describe {entry.file}; export it again")
        if recorded[suffix] != entry.sha256:
            raise CheckpointError(
                f"{artifact}: {entry.file} is not the one that the manifest describes (SHA-256 differs); export it again"
            )


def check_side_files(artifact: Path) -> None:
    """Make sure that no file is missing that belongs to an artifact.

    Raises:
        CheckpointError: one is.
    """
    for path in side_files(artifact):
        if not path.is_file():
            raise CheckpointError(f"{artifact}: {path.name} is missing beside it")


def _side_file_records(artifact: Path) -> tuple[FileRecord, ...]:
    check_side_files(artifact)
    return tuple(FileRecord.of(path) for path in side_files(artifact))


def versions() -> dict[str, str]:
    """Versions of growtas, Python and every installed package that makes or runs an artifact."""
    from growtas import __version__

    installed = {"growtas": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
