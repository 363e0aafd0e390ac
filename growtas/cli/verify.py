"""``growtas verify``: finished artifacts against the run's checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from growtas.cli.output import JsonOption, Spinner, console, print_json, print_table

if TYPE_CHECKING:
    from growtas.export.verification.agreement import Verification
    from growtas.export.verification.bisect import Bisection
    from growtas.export.verification.run import ArtifactVerification


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
    from growtas.api import verify

    with Spinner(hidden=json_) as spinner:
        report = verify(
            artifacts,
            run=run,
            against=against,
            images=images,
            bisect=bisect,
            max_error=max_error,
            min_cosine=min_cosine,
            min_agreement=min_agreement,
            max_accuracy_drop=max_accuracy_drop,
            data=data,
            data_dir=data_dir,
            progress=spinner,
        )
    if json_:
        print_json(report.to_dict())
    else:
        _print(report.artifacts)
    if report.error is not None:
        raise report.error


def _print(results: Sequence[ArtifactVerification]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("artifact", overflow="fold")
    for heading in ("precision", "rel. error", "cosine", "agreement", "accuracy", "lost points", "result"):
        table.add_column(heading, no_wrap=True)
    for result in results:
        verification = result.verification
        cells = ["-"] * 5
        if verification is not None:
            cells = [f"{verification.relative_error:.1e}", f"{verification.cosine_min:.5f}", f"{verification.top1_agreement:.1%}"]
            drop = verification.accuracy_drop_points
            if drop is None:
                cells += ["no labels", "-"]
            else:
                drop = 0.0 if math.isclose(drop, 0, abs_tol=1e-9) else drop
                cells += [f"{verification.accuracy:.1%}", f"{drop:.2f} ± {verification.accuracy_drop_error_points:.2f}"]
        word, style = {True: ("passed", "green"), False: ("failed", "red"), None: ("not run", "yellow")}[result.passed]
        table.add_row(result.path.name, result.precision, *cells, Text(word, style))
    print_table(table)
    for result in results:
        if result.not_run_because:
            console().print(f"{result.path.name} was not run: {result.not_run_because}", soft_wrap=True)
    compared: dict[str, list[str]] = {}
    for result in results:
        if result.verification:
            compared.setdefault(_compared(result.verification), []).append(result.path.name)
    for line, names in compared.items():
        # Precisions are verified on different numbers of images.
        console().print(line if len(compared) == 1 else f"{', '.join(names)}: {line}", soft_wrap=True)
    for result in results:
        if result.bisection is not None:
            _print_layers(result.bisection)
        elif result.no_bisection_because:
            console().print(f"{result.path.name}: its layers were not compared: {result.no_bisection_because}", soft_wrap=True)


def _compared(verification: Verification) -> str:
    why = f" without labels ({verification.unlabelled_because})" if verification.unlabelled_because else ""
    batches = ", ".join(map(str, verification.batches))
    return f"compared with the {verification.reference} on {verification.images}{why}, batches of {batches}"


def _print_layers(bisection: Bisection) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("layer", "tensor", "error before", "error after", "own error", ""):
        table.add_column(heading, no_wrap=True)
    for layer in bisection.layers:
        mark = "<- the first" if layer is bisection.first else ""
        numbers = (f"{value:.1e}" for value in (layer.before, layer.after, layer.own))
        table.add_row(layer.layer, layer.tensor, *numbers, mark, style="bold" if mark else "")
    print_table(table)
    console().print(bisection.summary, soft_wrap=True)
