"""``growtas report``: a run as one page of HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from growtas.cli import options
from growtas.cli.output import Notes, print_json, print_line


def report(
    run: Annotated[Path | None, Argument(help="The run's folder, by default the newest in ./runs.")] = None,
    out: Annotated[Path | None, Option(help="The HTML file; by default RUN/report.html.")] = None,
    json_: options.Json = False,
) -> None:
    """Write a run as one HTML page, to be read in a browser and sent to others.

    The page has the training's curves, what the search found and evaluated, the subnet block by block, the gates of the export, the
    bench, the machine and versions, and the commands that repeat it. It needs no other file and no network. A section whose step
    was not done yet names the command that does it.

    Example: growtas report --out report.html
    """
    from growtas import api
    from growtas.runs import find_readable_run

    found = find_readable_run(run, Notes())
    page = api.report(found, out=out)
    if json_:
        print_json({"run": str(found.path), "report": str(page), "bytes": page.stat().st_size})
        return
    print_line(f"written to {page}")
