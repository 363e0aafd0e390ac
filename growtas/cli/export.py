"""``growtas export``: a searched subnet as verified artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from growtas.cli.output import JsonOption, console, note, print_json, print_table, progress

if TYPE_CHECKING:
    from growtas.export.pipeline import Artifact


def export(
    run: Annotated[Path | None, typer.Argument(help="Run folder; by default the newest in ./runs.")] = None,
    subnet: Annotated[Path | None, typer.Option(help="Subnet file; by default what `growtas search` chose.")] = None,
    format: Annotated[
        str, typer.Option(help="torch (safetensors), onnx, or trt (a TensorRT plan); each makes what comes before it too.")
    ] = "onnx",
    target: Annotated[
        str | None, typer.Option(help="Compute capabilities of a plan, such as sm86 or sm86,sm89 (ahead of time, no GPU needed).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Device of a plan, such as a10; by default what the search was for.")] = None,
    max_batch: Annotated[int, typer.Option(help="Largest batch that is checked, and that a plan takes.")] = 8,
    name: Annotated[str | None, typer.Option(help="Name of the files; by default SPACE-subnet.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the files; by default RUN/export.")] = None,
    opset: Annotated[int, typer.Option(help="ONNX opset, 18 to 22.")] = 20,
    tolerance: Annotated[float, typer.Option(help="Largest relative error of the logits that passes.")] = 1e-4,
    data: Annotated[str | None, typer.Option(help="Data set for the check, where the run's own is not at hand.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder of that data set.")] = None,
    json_: JsonOption = False,
) -> None:
    """Cut a subnet out of the supernet and export it, verified.

    Every artifact's logits are compared with the static ViT's and the supernet's on real images, at batch 1, an odd batch and
    --max-batch; out of tolerance, nothing is left in place. Each file gets a manifest beside it.

    Example: growtas export --format trt
    """
    from growtas.export.pipeline import ExportOptions, export_subnet
    from growtas.runs import find_run

    found = find_run(run)
    if run is None:
        note(f"run: {found.path} (the newest)")
    options = ExportOptions(
        format=format,
        subnet=subnet,
        target=target,
        device=device,
        max_batch=max_batch,
        name=name,
        out=out,
        opset=opset,
        tolerance=tolerance,
        data=data,
        data_dir=data_dir,
    )
    with _Stages(hidden=json_) as stages:
        artifacts = export_subnet(found, options, note=note, stage=stages)
    if json_:
        print_json({"run": str(found.path), "artifacts": [{"path": str(item.path), **item.manifest} for item in artifacts]})
        return
    _print(artifacts)


def _print(artifacts: list[Artifact]) -> None:
    from rich.table import Table

    from growtas.units import format_bytes, format_count

    first = artifacts[0].manifest
    console().print(f"{first['space']}: params {format_count(first['params'])}, MACs {format_count(first['macs'])}")
    table = Table(box=None, pad_edge=False)
    table.add_column("file", overflow="fold")
    for heading in ("format", "size", "precision", "rel. error", "target", "run here"):
        table.add_column(heading, no_wrap=True)
    for artifact in artifacts:
        manifest = artifact.manifest
        table.add_row(
            artifact.path.name,
            manifest["kind"],
            format_bytes(manifest["artifact"]["bytes"]),
            manifest["precision"],
            f"{_report(manifest)['relative_error']:.1e}",
            ", ".join(manifest.get("plan", {}).get("targets", [])) or "any",
            "yes" if manifest["executed"] else "no",
        )
    print_table(table)
    agreement = min(_report(artifact.manifest)["top1_agreement"] for artifact in artifacts)
    console().print(
        f"in {artifacts[0].path.parent}; checked on {first['parity']['images']}, top-1 agreement {agreement:.0%}", soft_wrap=True
    )
    for artifact in artifacts:
        if not artifact.manifest["executed"]:
            why = artifact.manifest["not_executed_because"]
            said = f"{artifact.path.name} was built, not run: {why}; its error is that of the ONNX it was compiled from"
            console().print(said, soft_wrap=True)


def _report(manifest: dict[str, Any]) -> dict[str, Any]:
    """The artifact's parity report; of the ONNX file where the plan itself was not run."""
    report: dict[str, Any] = manifest["parity"] or manifest["plan"]["compiled_from"]["parity"]
    return report


class _Stages:
    """A spinner on stderr that names what is being done; silent where stderr is no terminal."""

    def __init__(self, *, hidden: bool) -> None:
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        self._progress = progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), hidden=hidden)

    def __enter__(self) -> _Stages:
        self._progress.start()
        self._task = self._progress.add_task("starting", total=None)
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def __call__(self, stage: str) -> None:
        self._progress.update(self._task, description=stage)
