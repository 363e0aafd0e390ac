"""``growtas verify``: compares finished artifacts with the run's checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from growtas.cli import options
from growtas.cli.options import CHECKS
from growtas.cli.output import ProgressBar, new_table, print_json, print_table, print_text

if TYPE_CHECKING:
    from growtas.export.verification.agreement import Verification
    from growtas.export.verification.bisect import Bisection
    from growtas.export.verification.run import ArtifactVerification


def verify(
    artifacts: Annotated[
        list[Path] | None,
        Argument(
            help="Files (.onnx, .safetensors, .pt2, .xml, .plan), folders of them, or run folders. Default: the run's artifacts."
        ),
    ] = None,
    run: Annotated[
        Path | None, Option(help="Run folder. Default: the run that holds the first file, or the newest in ./runs.")
    ] = None,
    against: Annotated[Path | None, Option(help="Artifact to compare with. Default: the run's checkpoint.")] = None,
    bisect: Annotated[
        bool, Option("--bisect", help="Also compare intermediate outputs, and name the first layer that differs.")
    ] = False,
    images: Annotated[
        int | None, CHECKS(help="Number of test images. Default: 512 (2,000 for int8 and fp8), fewer for a large network.")
    ] = None,
    max_error: options.MaxError = None,
    min_cosine: options.MinCosine = None,
    min_agreement: options.MinAgreement = None,
    max_accuracy_drop: options.MaxAccuracyDrop = None,
    data: options.CheckData = None,
    data_dir: options.CheckDataDir = None,
    json_: options.Json = False,
) -> None:
    """Verify that finished artifacts give the same answers as the run's checkpoint.

    The command first checks each file's hash, its checkpoint and its preprocessing. On real test images it then compares error and
    cosine of the logits, agreement of the top-1 class, and accuracy, with thresholds for each precision. Exit code 0: everything
    that can run on this machine passed; 1: something failed; 2: wrong input, or nothing can run on this machine.

    Example: growtas verify runs/first/export/micro-subnet.onnx --bisect
    """
    from growtas.api import verify

    with ProgressBar(hidden=json_) as progress:
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
            progress=progress,
        )
    if json_:
        print_json(report.to_dict())
    else:
        _print(report.artifacts)
    if report.error is not None:
        raise report.error


def _print(results: Sequence[ArtifactVerification]) -> None:
    from rich.text import Text  # noqa: TID251 (for words of growtas only)

    from growtas.units import format_accuracy

    headings = ("artifact", "precision", "rel. error", "cosine", "agreement", "accuracy", "lost points", "result")
    table = new_table(*headings)
    compared: dict[str, list[str]] = {}
    for result in results:
        verification = result.verification
        cells = ["-"] * 5
        if verification is not None:
            compared.setdefault(_compared(verification), []).append(result.path.name)
            cells = [f"{verification.relative_error:.1e}", f"{verification.cosine_min:.5f}", f"{verification.top1_agreement:.1%}"]
            drop = verification.accuracy_drop_points
            if drop is None:
                cells += ["no labels", "-"]
            else:
                drop = 0.0 if math.isclose(drop, 0, abs_tol=1e-9) else drop
                cells += [
                    format_accuracy(verification.accuracy or 0.0, verification.count),
                    f"{drop:.2f} ± {verification.accuracy_drop_error_points:.2f}",
                ]
        word, style = {True: ("passed", "green"), False: ("failed", "red"), None: ("not run", "yellow")}[result.passed]
        table.add_row(result.path.name, result.precision, *cells, Text(word, style))
    print_table(table)
    for result in results:
        if result.not_run_because:
            print_text(f"{result.path.name} was not run: {result.not_run_because.removeprefix(f'{result.path}: ')}")
    for line, names in compared.items():
        # The number of images depends on the precision.
        print_text(line if len(compared) == 1 else f"{', '.join(names)}: {line}")
    for result in results:
        if result.bisection is not None:
            _print_layers(result.bisection)
        elif result.no_bisection_because:
            print_text(f"{result.path.name}: the layers were not compared: {result.no_bisection_because}")


def _compared(verification: Verification) -> str:
    why = f" without labels ({verification.unlabelled_because})" if verification.unlabelled_because else ""
    batches = ", ".join(map(str, verification.batches))
    return f"compared with the {verification.reference} on {verification.images}{why}, batches of {batches}"


def _print_layers(bisection: Bisection) -> None:
    table = new_table("layer", "tensor", "error before", "error after", "own error", "")
    for layer in bisection.layers:
        mark = "<- the first" if layer is bisection.first else ""
        numbers = (f"{value:.1e}" for value in (layer.before, layer.after, layer.own))
        table.add_row(layer.layer, layer.tensor, *numbers, mark, style="bold" if mark else "")
    print_table(table)
    print_text(bisection.summary)
