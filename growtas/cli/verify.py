"""``growtas verify``: finished artifacts against the run's checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from growtas.cli.output import JsonOption, Spinner, console, note, print_json, print_table

if TYPE_CHECKING:
    from growtas.export.verification.agreement import Verification
    from growtas.export.verification.bisect import Bisection
    from growtas.export.verification.run import Finding
    from growtas.runs import Run


def verify(
    artifacts: Annotated[
        list[Path] | None,
        typer.Argument(help="Files (.onnx, .safetensors, .pt2, .xml, .plan); by default all in the run's export folder."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run folder; by default the one that the first file lies in, or the newest in ./runs.")
    ] = None,
    against: Annotated[Path | None, typer.Option(help="Compare with this artifact instead of the run's checkpoint.")] = None,
    images: Annotated[
        int | None, typer.Option(help="Test images; by default 512 (2,000 in int8 and fp8), fewer of a large network.")
    ] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Compare intermediate outputs and name the first layer that differs.")
    ] = False,
    max_error: Annotated[float | None, typer.Option(help="Largest relative error of the logits that passes.")] = None,
    min_cosine: Annotated[float | None, typer.Option(help="Least cosine of an image's logits that passes.")] = None,
    min_agreement: Annotated[float | None, typer.Option(help="Least share of images with the same first class, 0 to 1.")] = None,
    max_accuracy_drop: Annotated[float | None, typer.Option(help="Most percentage points of accuracy that may be lost.")] = None,
    data: Annotated[str | None, typer.Option(help="Data set to take images from, where the run's own is not at hand.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder of that data set.")] = None,
    json_: JsonOption = False,
) -> None:
    """Verify finished artifacts: do they still answer as the run's checkpoint does?

    On real test images: error and cosine of the logits, agreement of the first class, and accuracy, with thresholds for each
    precision; before that, the file's hash, the checkpoint it was made from and its preprocessing. Exit code 0: everything that can
    run here passed; 1: something failed; 2: wrong input, or nothing can run here.

    Example: growtas verify runs/first/export/micro-subnet.onnx --bisect
    """
    from growtas.export.verification.run import VerifyOptions, verify_finished, worst_of

    found = _find_run(run, artifacts, against)
    paths = artifacts or _all_artifacts(found)
    overrides = {
        "max_error": max_error,
        "min_cosine": min_cosine,
        "min_agreement": min_agreement,
        "max_accuracy_drop": max_accuracy_drop,
    }
    options = VerifyOptions(
        run=found, against=against, images=images, bisect=bisect, data=data, data_dir=data_dir, overrides=overrides
    )
    with Spinner(hidden=json_) as stage:
        findings = verify_finished(paths, options, stage=stage)
    error = worst_of(findings)
    if json_:
        document = {
            "run": str(found.path) if found else None,
            "against": str(against) if against else None,
            "passed": error is None,
            "artifacts": [finding.to_dict() for finding in findings],
        }
        print_json(document)
    else:
        _print(findings)
    if error is not None:
        raise error


def _find_run(named: Path | None, artifacts: list[Path] | None, against: Path | None) -> Run | None:
    from growtas.runs import Run, find_run

    if named is not None:
        return find_run(named)
    if not artifacts:
        run = find_run(None)
        note(f"run: {run.path} (the newest)")
        return run
    folder = artifacts[0].resolve().parent.parent
    if (folder / "run.json").is_file():
        return Run(artifacts[0].parent.parent if artifacts[0].parent.name else folder)
    return None


def _all_artifacts(run: Run | None) -> list[Path]:
    from growtas.errors import UsageError
    from growtas.export.formats import artifact_files

    assert run is not None
    folder = run.path / "export"
    found = artifact_files(folder)
    if not found:
        raise UsageError(f"{folder}: no artifacts to verify; make some with `growtas export {run.path}`, or name files")
    return found


def _print(findings: list[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("artifact", overflow="fold")
    for heading in ("precision", "rel. error", "cosine", "agreement", "accuracy", "lost points", "result"):
        table.add_column(heading, no_wrap=True)
    for finding in findings:
        seen = finding.verification
        cells = ["-"] * 5
        if seen is not None:
            cells = [f"{seen.relative_error:.1e}", f"{seen.cosine_min:.5f}", f"{seen.top1_agreement:.1%}", "no labels", "-"]
            if seen.accuracy is not None and seen.accuracy_drop_points is not None:
                drop = 0.0 if math.isclose(seen.accuracy_drop_points, 0, abs_tol=1e-9) else seen.accuracy_drop_points
                cells[3:] = [f"{seen.accuracy:.1%}", f"{drop:.2f} ± {seen.accuracy_drop_error_points:.2f}"]
        word, style = {True: ("passed", "green"), False: ("failed", "red"), None: ("not run", "yellow")}[finding.passed]
        table.add_row(finding.path.name, finding.precision, *cells, Text(word, style))
    print_table(table)
    for finding in findings:
        if finding.not_run_because:
            console().print(f"{finding.path.name} was not run: {finding.not_run_because}", soft_wrap=True)
    compared: dict[str, list[str]] = {}
    for finding in findings:
        if finding.verification:
            compared.setdefault(_compared(finding.verification), []).append(finding.path.name)
    for line, names in compared.items():
        # Precisions are verified on different numbers of images.
        console().print(line if len(compared) == 1 else f"{', '.join(names)}: {line}", soft_wrap=True)
    for finding in findings:
        if finding.bisection is not None:
            _print_layers(finding.bisection)
        elif finding.no_bisection_because:
            console().print(f"{finding.path.name}: its layers were not compared: {finding.no_bisection_because}", soft_wrap=True)


def _compared(seen: Verification) -> str:
    why = f" without labels ({seen.unlabelled_because})" if seen.unlabelled_because else ""
    return f"compared with the {seen.reference} on {seen.images}{why}, batches of {', '.join(map(str, seen.batches))}"


def _print_layers(found: Bisection) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("layer", "tensor", "error before", "error after", "own error", ""):
        table.add_column(heading, no_wrap=True)
    for layer in found.layers:
        mark = "<- the first" if layer is found.first else ""
        numbers = (f"{value:.1e}" for value in (layer.before, layer.after, layer.own))
        table.add_row(layer.layer, layer.tensor, *numbers, mark, style="bold" if mark else "")
    print_table(table)
    console().print(found.summary, soft_wrap=True)
