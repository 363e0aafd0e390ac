"""``growtas export``: exports a subnet as verified artifacts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from growtas.cli import options
from growtas.cli.options import CHECKS
from growtas.cli.output import ProgressBar, new_table, print_json, print_line, print_table, print_text

if TYPE_CHECKING:
    from growtas.api.exporting import ExportedArtifacts

_PLANS = partial(Option, rich_help_panel="Plans")
_PRECISION = partial(Option, rich_help_panel="Precision")
_ENDS = partial(Option, rich_help_panel="Ends of the graph")
_SERVING = partial(Option, rich_help_panel="Serving")


def export(
    run: Annotated[Path | None, Argument(help="Run folder. Default: the newest in ./runs.")] = None,
    subnet: Annotated[
        Path | None, Option(help="Subnet file, smallest or largest. Default: the subnet that `growtas search` chose.")
    ] = None,
    format: Annotated[
        str,
        Option(
            help="Formats, separated by commas: torch (safetensors), program (torch.export), onnx, openvino (IR) and trt (a "
            "TensorRT plan). The formats that a format is made from are written too."
        ),
    ] = "onnx",
    precision: Annotated[
        str | None,
        Option(
            help="fp32, fp16, bf16, int8 or fp8. Default: for a plan the precision of the searched latency, or else the one of the "
            "device's profile; for other formats fp32."
        ),
    ] = None,
    name: Annotated[str | None, Option(help="Name of the files, without suffix. Default: SPACE-subnet.")] = None,
    out: Annotated[Path | None, Option(help="Folder for the files. Default: RUN/export.")] = None,
    opset: Annotated[int, Option(help="ONNX opset, 18 to 22.")] = 20,
    ir_version: Annotated[
        int | None,
        Option(help="IR version of the ONNX files. Default: the lowest one that the opset allows, which most runtimes can read."),
    ] = None,
    max_batch: Annotated[int, Option(help="Largest batch size that is checked, and that a plan accepts.")] = 8,
    opt_batch: Annotated[int, _PLANS(help="Batch size that a plan is tuned for.")] = 1,
    target: Annotated[
        str | None, _PLANS(help="Compute capabilities to build a plan for without a GPU, as in sm86 or sm86,sm89.")
    ] = None,
    device: Annotated[str | None, _PLANS(help="Device of a plan, as in a10. Default: the device of the search.")] = None,
    keep: Annotated[
        str,
        _PRECISION(
            help="Layers that stay in fp32: auto (the most harmful ones, if a threshold is missed), none, or comma-separated names."
        ),
    ] = "auto",
    calibration_images: Annotated[int, _PRECISION(help="Number of images of the search split for int8 calibration.")] = 128,
    calibration_method: Annotated[
        str, _PRECISION(help="minmax (clips nothing), percentile (clips the largest of ten thousand values) or entropy.")
    ] = "minmax",
    preprocess: Annotated[
        bool, _ENDS("--preprocess", help="Build the normalisation into the graph: its input is uint8 pixels (N, H, W, C).")
    ] = False,
    resize: Annotated[
        bool, _ENDS("--resize", help="With --preprocess: also build resize and crop into the graph, for images of any size.")
    ] = False,
    softmax: Annotated[bool, _ENDS("--softmax", help="Output the probabilities beside the logits.")] = False,
    top_k: Annotated[int | None, _ENDS(help="Number of best classes to output with their scores. Default: none.")] = None,
    tolerance: Annotated[float, CHECKS(help="Largest relative error of the fp32 logits that passes.")] = 1e-4,
    images: Annotated[int | None, CHECKS(help="Number of labelled test images for the verification. Default: at most 512.")] = None,
    max_error: options.MaxError = None,
    min_cosine: options.MinCosine = None,
    min_agreement: options.MinAgreement = None,
    max_accuracy_drop: options.MaxAccuracyDrop = None,
    data: options.CheckData = None,
    data_dir: options.CheckDataDir = None,
    triton: Annotated[Path | None, _SERVING(help="Triton model repository that the model is written to.")] = None,
    instances: Annotated[int, _SERVING(help="Number of copies of the model that Triton runs.")] = 1,
    max_delay_us: Annotated[int, _SERVING(help="Microseconds that a request in Triton waits for others to share its batch.")] = 500,
    licence: Annotated[str | None, _SERVING(help="Licence of the weights and the data, for the model card.")] = None,
    json_: options.Json = False,
) -> None:
    """Extract a subnet from the supernet and export it as verified files.

    The logits of every artifact are compared with those of the static ViT and of the supernet on real images, at batch 1, an odd
    batch size and --max-batch; its accuracy is compared on labelled test images. If a check fails, no file is left behind. Each
    file gets a manifest beside it, and the folder gets a model card (README.md).

    Example: growtas export --format trt

    For ONNX Runtime and Triton: growtas export --precision int8 --preprocess --triton repo
    """
    from growtas.api import export

    with ProgressBar(hidden=json_) as progress:
        artifacts = export(
            run,
            subnet,
            formats=format.split(","),
            precision=precision,
            keep=keep,
            calibration_images=calibration_images,
            calibration_method=calibration_method,
            target=target,
            device=device,
            max_batch=max_batch,
            opt_batch=opt_batch,
            name=name,
            out=out,
            opset=opset,
            ir_version=ir_version,
            tolerance=tolerance,
            images=images,
            max_error=max_error,
            min_cosine=min_cosine,
            min_agreement=min_agreement,
            max_accuracy_drop=max_accuracy_drop,
            data=data,
            data_dir=data_dir,
            preprocess=preprocess,
            resize=resize,
            softmax=softmax,
            top_k=top_k,
            triton=triton,
            instances=instances,
            max_delay_us=max_delay_us,
            licence=licence,
            progress=progress,
        )
    if json_:
        print_json(artifacts.to_dict())
    else:
        _print(artifacts)


def _print(artifacts: ExportedArtifacts) -> None:
    from growtas.latency.estimate import limit_lines
    from growtas.units import format_accuracy, format_bytes, format_count

    first = artifacts[0].manifest
    print_line(f"{first.space}: params {format_count(first.params or 0)}, MACs {format_count(first.macs or 0)}")
    table = new_table("file", "size", "precision", "rel. error", "top-1 agr.", "accuracy", "target", "run here")
    for artifact in artifacts:
        manifest = artifact.manifest
        verified, targets = manifest.verified, manifest.plan.targets if manifest.plan else ()
        points = None if verified is None else verified.accuracy_drop_points
        table.add_row(
            artifact.path.name,
            format_bytes(manifest.file.total_bytes),
            manifest.precision,
            f"{verified.relative_error:.1e}" if verified else "-",
            f"{verified.top1_agreement:.1%}" if verified else "-",
            "-"
            if verified is None or points is None
            else f"{format_accuracy(verified.accuracy or 0.0, verified.count)} ({0 - points:+.2f})",
            ", ".join(targets) or "any",
            "yes" if manifest.executed else "no",
        )
    print_table(table)
    module = next((item.manifest.module.file for item in artifacts if item.manifest.module), None)
    if module is not None:
        print_line(f"{module}: the network in plain PyTorch; it doesn't need growtas")
    checked = first.verification
    images = checked and checked.images
    print_text(f"folder {artifacts[0].path.parent}; checked on {images}")
    if checked is not None and checked.accuracy is not None:
        print_text(
            "accuracy: ± its standard error; in brackets the difference in percentage points to the network that the file was made "
            "from, on the same images"
        )
    for artifact in artifacts:
        name, manifest = artifact.path.name, artifact.manifest
        if manifest.verified is not None and manifest.verified.images != images:
            print_text(f"{name} was checked on {manifest.verified.images}")
        if not manifest.executed:
            source = manifest.compiled_from
            numbers = f"; the numbers shown are those of {source.file}, which it was compiled from" if source else ""
            print_text(f"{name} was built but not run: {manifest.not_executed_because}{numbers}")
    for line in limit_lines((artifact.path.name, limits) for artifact, limits in zip(artifacts, artifacts.limits, strict=True)):
        print_text(line)
    if artifacts.served is not None:
        print_line(f"{artifacts.served.path.name} is in the Triton repository: {artifacts.triton}")
