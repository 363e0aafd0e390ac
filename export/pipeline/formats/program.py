"""The static ViT as a torch.export program."""

from __future__ import annotations

from growtas.export.open import open_session
from growtas.export.pipeline.context import ExportContext


def export(context: ExportContext) -> None:
    """Saves the program, loads it again and compares its logits.

    Raises:
        BuildError: torch.export fails.
        ParityError: the program differs from the static ViT.
    """
    from growtas.export.runtimes.torch_export import save_program

    context.progress.stage("exporting a torch program")
    path = context.folder / f"{context.name}.pt2"
    save_program(context.model, path, max_batch=context.options.max_batch)
    with open_session(path, threads=1) as session:
        checks = context.check(session.run, path, "torch.export")
    context.add(path, {**checks, "executed": True, "runtime": "torch.export"})
