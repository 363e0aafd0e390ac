"""``report``: writes a run as one page of HTML."""

from __future__ import annotations

from pathlib import Path

from growtas.errors import UsageError
from growtas.files import check_output_file
from growtas.progress import SILENT, Progress
from growtas.runs import Run, find_readable_run


def report(run: Run | str | Path | None = None, *, out: str | Path | None = None, progress: Progress = SILENT) -> Path:
    """Writes what a run holds as one HTML page that needs no other file: training, search, subnet, export, bench, and environment.

    A section whose step was not done yet names the command that does it. What is measured and what is modelled is said beside each
    latency.

    Args:
        run: a run or its folder; by default the newest in ``runs`` that can be read.
        out: the HTML file; by default ``report.html`` in the run. A file there is replaced.
        progress: gets a note for each run that is passed over.

    Returns:
        The page.

    Raises:
        UsageError: there is no run, or the file's name doesn't end in ``.html``.
        CheckpointError: ``run.json`` or ``metrics.jsonl`` can't be read.
        OutputError: the file can't be written.
    """
    found = run if isinstance(run, Run) else find_readable_run(run, progress)
    path = Path(out) if out is not None else found.path / "report.html"
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {path}: the page's name must end in .html")
    if out is not None:
        path = check_output_file(path)
    from growtas.watch.run_page import write_run_page

    write_run_page(found, path)
    return path
