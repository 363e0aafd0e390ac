"""The options of an export, which are checked before any work begins."""

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
# From opset 21 on, QuantizeLinear has an attribute that ONNX Runtime forgets when it converts signed activations to unsigned ones.
_INT8_OPSET = 20


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Which artifacts to make, and how strictly to check them.

    Attributes:
        formats: names of :data:`growtas.export.formats.FORMATS`. The formats that these are made from are made too.
        subnet: a subnet or its file; by default the subnet that the run's search chose.
        precision: precision of the ONNX file and of the formats that are made from it. By default a plan has the precision of the
            search's latency, and everything else is fp32.
        keep: layers that stay in fp32: ``auto`` (sensitive layers, if the thresholds are missed otherwise), ``none``, or layer
            names separated by commas.
        calibration_images: number of images of the search split that calibrate int8 and fp8.
        calibration_method: see :func:`growtas.export.quantization.calibration.clipping_points`.
        target: compute capabilities that a plan is built for; see :func:`growtas.export.tensorrt.builder.choose_builder`.
        device: latency profile of the device that a plan is built for.
        max_batch: largest batch size that is checked, and that a plan accepts.
        opt_batch: batch size that a plan is tuned for.
        name: name of the files, without suffix; by default ``SPACE-subnet``.
        out: output folder; by default the run's ``export``.
        opset: ONNX opset; bf16, fp8 and, for plans, int8 files may get a newer one.
        ir_version: IR version of the ONNX files; by default the lowest that the opset needs.
        tolerance: largest relative error that passes the fp32 parity gate.
        images: number of labelled images for verification; the default takes some seconds.
        max_error: largest relative error of the logits; by default, as for the next three, the threshold of the precision
            (:class:`growtas.export.quantization.thresholds.Thresholds`).
        min_cosine: least cosine of an image's logits with the reference's.
        min_agreement: least share of images with the same predicted class, 0 to 1.
        max_accuracy_drop: largest loss of accuracy in percentage points.
        data: name of the images for the checks; by default the run's own images.
        data_dir: folder of the images for the checks.
        preprocess: put the normalisation into the ONNX graph, which then takes uint8 pixels.
        resize: also put resizing and cropping into the graph, which then takes images of any size.
        softmax: add probabilities as an output; see :func:`growtas.export.graph.pre_post.add_postprocess`.
        top_k: add the best ``top_k`` classes and their scores as outputs.

    Raises:
        ConfigError: an option is not legal, or does not go with the other options.
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
                    raise ConfigError(f"{option} is for ONNX files and formats made from them; add --format onnx")
        if self.resize and not self.preprocess:
            raise ConfigError("--resize needs --preprocess; add it")
        if OPENVINO in formats and self.resize:
            raise ConfigError("--resize is for ONNX only; OpenVINO's IR takes pixels of one size (--preprocess alone)")
        if OPENVINO in formats and self.precision not in (None, "fp32", "fp16", "int8"):
            raise ConfigError(f"--precision {self.precision} does not go with OpenVINO's IR; legal there are fp32, fp16 or int8")
        check_count(self.images)
        for option, number in (("--calibration-images", self.calibration_images), ("--top-k", self.top_k)):
            if number is not None and number < 1:
                raise ConfigError(f"{option} is {number}; it must be 1 or more")
        if self.calibration_method not in METHODS:
            raise ConfigError(f"--calibration-method is {self.calibration_method!r}; legal are {choices(METHODS)}")
        # Without --precision, a plan gets the precision of the searched latency.
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
        """The requested formats and those that they are made from."""
        requested, legal = {name.strip() for name in self.formats}, [format.name for format in FORMATS]
        if not requested or not requested <= set(legal):
            raise ConfigError(f"--format is {','.join(self.formats)!r}; legal are {choices(legal)}")
        return with_sources(requested)

    def thresholds(self, precision: str) -> Thresholds:
        """Returns the thresholds that an artifact of a precision must meet.

        Raises:
            ConfigError: a threshold is out of range.
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
