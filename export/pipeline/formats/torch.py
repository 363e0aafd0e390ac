"""The static ViT as safetensors, with a plain PyTorch module beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from growtas.checkpoint import load_model, save_model
from growtas.export.pipeline.context import ExportContext
from growtas.export.pipeline.standalone import load_module, module_name, write_module
from growtas.export.verification.batches import remembering
from growtas.export.verification.reference import STATIC, SUPERNET, supernet_logits, torch_logits
from growtas.files import sha256
from growtas.nn.architecture import Architecture
from growtas.nn.extract import extract


def export(context: ExportContext) -> None:
    """Saves the static ViT, reads it back and compares it with the supernet. All other artifacts are compared with it.

    Raises:
        ParityError: the static ViT or the plain module differs from the supernet.
    """
    context.progress.stage("extracting the subnet")
    path = context.folder / f"{context.name}.safetensors"
    save_model(path, extract(context.supernet, context.source.subnet))
    context.references = {SUPERNET: remembering(supernet_logits(context.supernet, context.source.subnet))}
    context.model = load_model(path).eval()
    logits = remembering(torch_logits(context.model))
    checks = context.check(logits, path, "PyTorch", against=SUPERNET)
    context.references = {STATIC: logits, **context.references}
    module = _write_module(context, path, context.model.architecture)
    context.add(path, {**checks, "executed": True, "runtime": "torch", "module": module})


def _write_module(context: ExportContext, weights: Path, architecture: Architecture) -> dict[str, Any]:
    """Writes the plain PyTorch module beside the weights, loads it, runs it and compares its logits."""
    context.progress.stage("writing the plain PyTorch module")
    path = weights.with_name(f"{module_name(context.name)}.py")
    write_module(path, architecture, weights=weights, preprocess=context.preprocess, class_names=context.class_names)
    logits = torch_logits(load_module(path).load())
    report = context.check_parity(logits, f"{path.name} in PyTorch", context.parity_images)
    context.side_files.append(path)
    return {"file": path.name, "sha256": sha256(path), "parity": report.to_dict()}
