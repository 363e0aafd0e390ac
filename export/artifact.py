"""Artifacts and their manifests. The manifest of ``NAME.onnx`` is ``NAME.onnx.json``: source, input, output and measurements.

The manifest is a file beside the artifact and not metadata inside it, so that runtimes and servers can load the artifact unchanged.
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
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
)
from pydantic import field_validator as validator

from growtas.errors import CheckpointError, UsageError
from growtas.export.formats import ONNX, Format, format_of, side_files
from growtas.fields import check_entries
from growtas.files import read_json, refuse_url, sha256, write_json
from growtas.latency.estimate import SEARCHED_RULES

FORMAT = "growtas-artifact/1"
_PACKAGES = (
    "torch", "timm", "onnx", "onnxscript", "onnxslim", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "numpy",
)  # fmt: skip


class _Record(BaseModel):
    """A part of a manifest. An invalid value counts as absent; unknown keys are ignored."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    @validator("*", mode="wrap")
    @classmethod
    def _absent_unless_valid(cls, value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        try:
            return read(value)
        except ValidationError:
            return cls.model_fields[str(info.field_name)].get_default(call_default_factory=True)


class FileRecord(_Record):
    """A file and its side files.

    Attributes:
        file: file name, without the folder.
        sha256: SHA-256 of the content, in hexadecimal.
        bytes: size in bytes, without the side files.
        side_files: the files that must be beside it, such as an OpenVINO IR's ``.bin``. The JSON key is ``companions``.
    """

    file: str | None = None
    sha256: str | None = None
    bytes: int = 0
    side_files: tuple[FileRecord, ...] = Field(default=(), alias="companions")

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Returns the record of a file, without side files."""
        return cls(file=path.name, sha256=sha256(path), bytes=path.stat().st_size)

    @property
    def total_bytes(self) -> int:
        """Size of the file and its side files in bytes."""
        return self.bytes + sum(entry.bytes for entry in self.side_files)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        record: dict[str, Any] = {"file": self.file, "sha256": self.sha256, "bytes": self.bytes}
        return record | ({"companions": [entry.to_dict() for entry in self.side_files]} if self.side_files else {})


class BatchRecord(_Record):
    """The batch sizes of an artifact. The JSON also holds the smallest one as ``min``.

    Attributes:
        max: largest batch size that was checked at export.
        checked: batch sizes that were run at export.
    """

    max: int | None = None
    checked: tuple[int, ...] = ()


class TensorRecord(_Record):
    """The input tensor or the logits of an artifact.

    For an input of pixels the JSON adds ``color`` (``RGB`` or ``gray``), ``nodes`` (number of nodes that prepare the pixels) and
    ``resize_error`` (difference between the graph's resizing and the evaluation's; null unless the graph resizes).

    Attributes:
        name: name of the tensor, such as ``images`` or ``logits``.
        dtype: type of the numbers, such as ``float32`` or ``uint8``.
        shape: size of each axis, the batch first. A name or a number below 1 marks a free size.
        layout: order of an image's axes, ``NCHW`` or ``NHWC``.
        resize: whether the graph resizes images of any size to the model's size.
        batch: batch sizes that the tensor may have.
    """

    name: str | None = None
    dtype: str | None = None
    shape: tuple[int | str, ...] = ()
    layout: str | None = None
    resize: bool = False
    batch: BatchRecord = BatchRecord()

    @property
    def sizes(self) -> tuple[int | None, ...]:
        """The shape of one image; None marks a free size."""
        return tuple(size if isinstance(size, int) and size > 0 else None for size in self.shape[1:])

    @property
    def takes_pixels(self) -> bool:
        """Whether the input is uint8 pixels ``(batch, H, W, C)``, which the graph normalises itself."""
        return self.dtype == "uint8"


class SourceRecord(_Record):
    """The run and the files that an artifact was made from.

    Attributes:
        run: name of the run's folder.
        checkpoint: the supernet's checkpoint, relative to the run's folder.
        checkpoint_sha256: SHA-256 of that checkpoint, in hexadecimal.
        subnet_file: name of the file that the subnet was read from; null where the subnet was passed as a value.
    """

    run: str | None = None
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    subnet_file: str | None = None


class VerificationRecord(_Record):
    """Measurements on labelled images; see :class:`growtas.export.verification.agreement.Verification` for all keys.

    Attributes:
        count: number of images.
        accuracy: top-1 accuracy of the artifact, 0 to 1.
        accuracy_drop_points: reference accuracy minus accuracy, in percentage points.
        reference: name of the reference, such as ``static ViT``.
        reference_accuracy: top-1 accuracy of the reference on the same images, 0 to 1.
        top1_agreement: share of the images for which artifact and reference predict the same class, 0 to 1.
        relative_error: largest difference of two logits, divided by the reference's largest logit.
        images: description of the images.
        labelled: whether the images have labels.
        unlabelled_because: the reason for missing labels.
        thresholds: the limits that the artifact had to meet, by measure.
    """

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
    """Measurements of the fp32 parity gate; see :class:`growtas.export.verification.parity.ParityReport` for all keys.

    Attributes:
        images: description of the images.
        relative_error: largest relative error of the logits over all references and batch sizes.
        top1_agreement: smallest share of images with the same predicted class, 0 to 1.
        tolerance: largest relative error that passes.
    """

    images: str | None = None
    relative_error: float | None = None
    top1_agreement: float | None = None
    tolerance: float | None = None


class CompiledFromRecord(_Record):
    """The ONNX file that a plan was compiled from.

    The JSON adds ``executed``, ``not_executed_because`` and ``arranged`` (comparison of the file with the equivalent graph that
    was compiled; null if the file itself was compiled).

    Attributes:
        file: file name.
        sha256: SHA-256 of the file, in hexadecimal.
        parity: the file's fp32 parity measurements.
        verification: the file's measurements on labelled images.
    """

    file: str | None = None
    sha256: str | None = None
    parity: ParityRecord | None = None
    verification: VerificationRecord | None = None


class PlanRecord(_Record):
    """How a TensorRT plan was built, and for which GPUs.

    The JSON adds ``weights_memory_bytes`` (GPU memory for weights), ``build_seconds`` and ``inspection`` (types of the products).

    Attributes:
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        runtime_version: version of that runtime.
        targets: compute capabilities that the plan was built for, such as ``sm86``.
        max_batch: largest batch size that the plan accepts.
        optimised_for_batch: batch size that the plan is tuned for.
        activation_memory_bytes: GPU memory for activations in bytes, as the runtime reports it.
        settings: the builder's settings.
        compiled_from: the ONNX file and its measurements.
    """

    runtime: str | None = None
    runtime_version: str | None = None
    targets: tuple[str, ...] = ()
    max_batch: int | None = None
    optimised_for_batch: int | None = None
    activation_memory_bytes: int | None = None
    settings: dict[str, Any] = {}
    compiled_from: CompiledFromRecord | None = None


class PostprocessRecord(_Record):
    """The steps of the graph after the logits. The JSON adds ``outputs`` (names of all outputs) and ``nodes`` (number of nodes).

    Attributes:
        softmax: whether the graph also computes probabilities.
        top_k: number of best classes that the graph returns; null where it returns none.
    """

    softmax: bool = False
    top_k: int | None = None


class ConversionRecord(_Record):
    """How the precision was converted; see :class:`growtas.export.quantization.convert.PrecisionInfo` for all keys.

    Attributes:
        rest: precision of everything around the quantised layers.
    """

    rest: str | None = None


class ModuleRecord(_Record):
    """The plain PyTorch module beside the weights. The JSON adds its ``sha256`` and its ``parity`` measurements.

    Attributes:
        file: file name of the module.
    """

    file: str | None = None


def _searched(record: Any) -> dict[str, Any] | None:
    """The search's record of a subnet; the validator of an invalid one raises ValueError."""
    try:
        check_entries(record, SEARCHED_RULES, "search", CheckpointError)
    except CheckpointError as error:
        raise ValueError(str(error)) from None
    return dict(record)


class Manifest(_Record):
    """The manifest of an artifact. A manifest without arguments says nothing.

    ``to_dict`` returns the JSON as it was read or written, in the same order. It also holds the keys that no attribute reads:
    ``format`` (always ``growtas-artifact/1``), ``architecture`` (the static ViT's dimensions), ``onnx`` (opset, IR version,
    operators, oldest ONNX Runtime), ``sensitivity`` (the search for layers that keep a higher precision) and ``half_range``
    (largest values of fp16 tensors).

    Attributes:
        created: time of the export, ISO 8601 with the time zone.
        file: the artifact's file. The JSON key is ``artifact``.
        kind: file format: ``torch``, ``program``, ``onnx``, ``openvino`` or ``plan``.
        precision: ``fp32``, ``fp16``, ``bf16``, ``int8`` or ``fp8``.
        space: name of the search space.
        subnet: the subnet, as in a subnet file.
        params: number of parameters of the static ViT.
        macs: multiply-accumulate operations for one image.
        input: the input tensor.
        output: the logits.
        preprocess: how images become the input: size, crop, interpolation, channels, mean and standard deviation.
        postprocess: the steps after the logits; absent where the graph ends with the logits.
        class_names: a name for each output, in the order of the logits.
        source: the run and files that the artifact was made from.
        search: the search's record of the subnet: accuracy, latencies and limits; null where the subnet was not searched.
        parity: fp32 parity measurements; null in other precisions.
        verification: measurements on labelled images; null where the artifact was not run.
        executed: whether the artifact was run at export.
        not_executed_because: the reason why it was not run.
        runtime: runtime that the artifact was run in, or is made for.
        module: the plain PyTorch module beside a ``.safetensors`` file.
        conversion: how a precision below fp32 was made.
        plan: how a TensorRT plan was built.
        versions: versions of growtas, Python and the packages that took part, by name.
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
    search: Annotated[Any, AfterValidator(_searched)] = None
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
        """Reads a manifest from a JSON object."""
        manifest = cls.model_validate(dict(record))
        manifest._json = dict(record)
        return manifest

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return self._json

    @property
    def network(self) -> tuple[Any, Any]:
        """The subnet and its checkpoint's hash: equal for two artifacts that hold the same network."""
        return self.subnet, self.source.checkpoint_sha256

    @property
    def is_for_gpu(self) -> bool:
        """Whether an ONNX file was made for GPUs: in half precision, in fp8, or with half precision around quantised layers."""
        rest = self.conversion.rest if self.conversion else None
        return self.kind == ONNX.kind and bool({"fp16", "bf16", "fp8"} & {self.precision, rest})

    @property
    def compiled_from(self) -> CompiledFromRecord | None:
        """The verified ONNX file of a plan that was not run itself; None for every other artifact."""
        source = self.plan and self.plan.compiled_from
        return source if source and source.verification and not self.verification else None

    @property
    def verified(self) -> VerificationRecord | None:
        """The measurements of the artifact, or else of the file that it was compiled from."""
        source = self.compiled_from
        return self.verification or (source.verification if source else None)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An exported file and its manifest. It can be used wherever a path is accepted.

    Attributes:
        path: the file.
        manifest: the file's manifest.
    """

    path: Path
    manifest: Manifest

    @property
    def format(self) -> Format:
        """The file's format."""
        return format_of(self.path)

    def __fspath__(self) -> str:
        return str(self.path)


def manifest_path(artifact: str | os.PathLike[str]) -> Path:
    """The path of an artifact's manifest: the artifact's own path with ``.json`` appended."""
    artifact = Path(artifact)
    return artifact.with_name(artifact.name + ".json")


def write_manifest(path: str | os.PathLike[str], content: Mapping[str, Any]) -> Artifact:
    """Writes the manifest of a finished file beside it.

    Args:
        path: the file.
        content: JSON data of the manifest, without format, time, hash, size, kind and versions, which this function adds.
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
    """Reads an artifact's manifest; returns None where there is none.

    If the artifact was renamed without its manifest, the manifest with the artifact's hash is searched in the same folder.

    Args:
        verify: compare the hashes of the artifact and its side files with the recorded ones.

    Raises:
        CheckpointError: the artifact is absent, the manifest is unreadable or of another format, or a hash differs.
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
    if not path.is_file():
        raise CheckpointError(f"{path}: the manifest can't be read (it is not a regular file)")
    record = read_json(path, "manifest")
    if not isinstance(record, dict) or record.get("format") != FORMAT or not isinstance(record.get("artifact"), dict):
        raise CheckpointError(f"{path}: not a manifest of format {FORMAT}")
    return Manifest.from_dict(record)


def _manifest_before_renaming(artifact: Path) -> Manifest | None:
    """The manifest in the artifact's folder that records the artifact's size and hash."""
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
    """Loads an artifact with its manifest, which must exist.

    Args:
        path: the artifact's file.
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
            f"{path}: there is no manifest {path.name}.json beside it; export the artifact again, or copy its manifest too"
        )
    return Artifact(path=path, manifest=manifest)


def check_hash(artifact: Path, manifest: Manifest, *, digest: str | None = None) -> None:
    """Compares the hashes of an artifact and its side files with those in its manifest.

    Args:
        digest: the artifact's hexadecimal SHA-256, if it is known already.

    Raises:
        CheckpointError: one of the files is absent or not recorded, or its hash differs.
    """
    if digest is None and not artifact.is_file():
        raise CheckpointError(f"{artifact}: no such artifact")
    if manifest.file.sha256 != (digest or sha256(artifact)):
        raise CheckpointError(f"{artifact}: the file is not the one that its manifest describes (SHA-256 differs); export it again")
    # Side files are matched by suffix, because they may have been renamed together with the artifact.
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
    """Checks that every side file of an artifact exists.

    Raises:
        CheckpointError: a side file is missing.
    """
    for path in side_files(artifact):
        if not path.is_file():
            raise CheckpointError(f"{artifact}: {path.name} is missing beside it")


def _side_file_records(artifact: Path) -> tuple[FileRecord, ...]:
    check_side_files(artifact)
    return tuple(FileRecord.of(path) for path in side_files(artifact))


def versions() -> dict[str, str]:
    """The versions of growtas, Python and every installed package that makes or runs artifacts."""
    from growtas import __version__

    installed = {"growtas": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
