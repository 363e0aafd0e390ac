"""The options of an export, checked before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from growtas.errors import ConfigError, choices
from growtas.export.formats import FORMATS, ONNX, OPENVINO, PLAN, Format, with_sources
from growtas.export.graph.exporter import DEFAULT_OPSET, OPSETS
from growtas.export.graph.versions import check_ir_version
from growtas.export.quantization.calibration import METHODS
from growtas.export.quantization.convert import DEFAULT_METHOD
from growtas.export.quantization.precisions import HALVES, PRECISIONS
from growtas.export.quantization.thresholds import Thresholds, thresholds_for
from growtas.export.verification.images import check_count
from growtas.export.verification.parity import DEFAULT_TOLERANCE, gate_batches
from growtas.subnet import Subnet

KEEP_AUTO, KEEP_NONE = "auto", "none"
# From 21 on QuantizeLinear has an attribute that ONNX Runtime's conversion of signed to unsigned activations doesn't change.
_INT8_OPSET = 20


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Which artifacts to make, and how strictly to check them.

    Attributes:
        formats: one or several of :data:`growtas.export.formats.FORMATS` by name; each makes what it is made from too.
        subnet: a subnet or its file; by default what the search of the run chose.
        precision: of the ONNX file and of what is compiled from it; by default in a plan what the search's latency was for, else
            fp32.
        keep: layers that stay in fp32: ``auto`` (those that hurt, where the thresholds are missed), ``none``, or names with commas.
        calibration_images: of the search split, for int8 and fp8; ``calibration_method``: see
            :func:`growtas.export.quantization.calibration.clipping_points`.
        target, device: what a plan is for; see :func:`growtas.export.tensorrt.builder.choose_builder`.
        max_batch: the largest batch that is checked, and that a plan takes.
        opt_batch: the batch that a plan is tuned for.
        name: the files' name without suffix; by default ``SPACE-subnet``.
        out: folder; by default the run's ``export``.
        opset: of the ONNX file; bf16 and fp8 files may have a newer one.
        ir_version: of the ONNX files; by default the lowest that the opset needs.
        tolerance: largest relative error of the gate of fp32.
        images: labelled images that every artifact is verified on; by default as many as take some seconds.
        max_error, min_cosine, min_agreement, max_accuracy_drop: replace the precision's thresholds, see
            :class:`growtas.export.quantization.thresholds.Thresholds`.
        data, data_dir: images for the gate, if not the run's own.
        preprocess: take uint8 pixels; ``resize``: of any size.
        softmax, top_k: more outputs; see :func:`growtas.export.graph.pre_post.add_postprocess`.

    Raises:
        ConfigError: one of them is not legal, or goes with none of the others.
    """

    formats: Sequence[str] = ("onnx",)
    subnet: Subnet | Path | None = None
    precision: str | None = None
    keep: str = KEEP_AUTO
    calibration_images: int = 128
    calibration_method: str = DEFAULT_METHOD
    target: str | None = None
    device: str | None = None
    max_batch: int = 8
    opt_batch: int = 1
    name: str | None = None
    out: str | Path | None = None
    opset: int = DEFAULT_OPSET
    ir_version: int | None = None
    tolerance: float = DEFAULT_TOLERANCE
    images: int | None = None
    max_error: float | None = None
    min_cosine: float | None = None
    min_agreement: float | None = None
    max_accuracy_drop: float | None = None
    data: str | None = None
    data_dir: str | Path | None = None
    preprocess: bool = False
    resize: bool = False
    softmax: bool = False
    top_k: int | None = None

    def __post_init__(self) -> None:
        formats = self.made_formats
        if self.opset not in OPSETS:
            raise ConfigError(f"--opset is {self.opset}; legal are {OPSETS.start} to {OPSETS.stop - 1}")
        if self.ir_version is not None:
            check_ir_version(self.ir_version, self.opset, self.precision or "fp32")
        if self.precision == "int8" and self.opset > _INT8_OPSET and PLAN not in formats:
            raise ConfigError(
                f"--opset is {self.opset} with --precision int8; legal are {OPSETS.start} to {_INT8_OPSET}, because "
                "ONNX Runtime 1.27 to 1.32 can't load int8 files of newer opsets"
            )
        if PLAN not in formats and (self.target or self.device):
            raise ConfigError("--target and --device are for a plan; add --format trt")
        if self.precision is not None and self.precision not in PRECISIONS:
            raise ConfigError(f"--precision is {self.precision!r}; legal are {choices(PRECISIONS)}")
        if ONNX not in formats:
            for option, given in (
                ("--ir-version", self.ir_version is not None),
                ("--precision", self.precision not in (None, "fp32")),
                ("--preprocess", self.preprocess),
                ("--softmax", self.softmax),
                ("--top-k", self.top_k is not None),
                ("--opset", self.opset != DEFAULT_OPSET),
            ):
                if given:
                    raise ConfigError(f"{option} is for an ONNX file and what is made from it; add --format onnx")
        if self.resize and not self.preprocess:
            raise ConfigError("--resize is a part of --preprocess; add it")
        if OPENVINO in formats and self.resize:
            raise ConfigError("--resize goes with ONNX only; OpenVINO's IR takes pixels of one size (--preprocess alone)")
        if OPENVINO in formats and self.precision not in (None, "fp32", "fp16", "int8"):
            raise ConfigError(f"--precision {self.precision} does not go with OpenVINO's IR; legal there are fp32, fp16 or int8")
        check_count(self.images)
        for option, number in (("--calibration-images", self.calibration_images), ("--top-k", self.top_k)):
            if number is not None and number < 1:
                raise ConfigError(f"{option} is {number}; it must be 1 or more")
        if self.calibration_method not in METHODS:
            raise ConfigError(f"--calibration-method is {self.calibration_method!r}; legal are {choices(METHODS)}")
        # A plan without a precision takes the one that its latency was searched for.
        low = PLAN in formats if self.precision is None else self.precision != "fp32"
        for option, given in (("--keep", self.keep != KEEP_AUTO), ("--calibration-images", self.calibration_images != 128)):
            if given and not low:
                raise ConfigError(f"{option} is for precisions below fp32; add one, as in --precision int8")
        if self.calibration_method != DEFAULT_METHOD and (not low or self.precision in HALVES):
            raise ConfigError("--calibration-method is for int8 and fp8; add --precision int8")
        if self.name is not None and (not self.name or Path(self.name).name != self.name or self.name.startswith(".")):
            raise ConfigError(f"--name is {self.name!r}; it must be a file name without folders")
        gate_batches(self.max_batch)
        if not 1 <= self.opt_batch <= self.max_batch:
            raise ConfigError(f"--opt-batch is {self.opt_batch}; it must be from 1 to --max-batch ({self.max_batch})")
        if PLAN not in formats and self.opt_batch != 1:
            raise ConfigError("--opt-batch is for a plan; add --format trt")
        self.thresholds("fp32")

    @property
    def made_formats(self) -> tuple[Format, ...]:
        """The formats that were asked for, and those that are made on the way to them."""
        asked, legal = {name.strip() for name in self.formats}, [format.name for format in FORMATS]
        if not asked or not asked <= set(legal):
            raise ConfigError(f"--format is {','.join(self.formats)!r}; legal are {choices(legal)}")
        return with_sources(asked)

    def thresholds(self, precision: str) -> Thresholds:
        """The thresholds that an artifact of a precision has to meet.

        Raises:
            ConfigError: a threshold out of range.
        """
        thresholds = thresholds_for(precision)
        if precision == "fp32":
            thresholds = dataclasses.replace(thresholds, relative_error=self.tolerance)
        return thresholds.override(
            max_error=self.max_error,
            min_cosine=self.min_cosine,
            min_agreement=self.min_agreement,
            max_accuracy_drop=self.max_accuracy_drop,
        )
