"""The references of finished artifacts: the static ViT extracted from the run's checkpoint, or another artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from growtas.checkpoint import load_supernet
from growtas.errors import CheckpointError, ParityError
from growtas.export.artifact import Manifest, SourceRecord, check_hash, read_manifest
from growtas.export.graph.contents import own_description
from growtas.export.open import open_session
from growtas.export.runtimes.base import Array
from growtas.export.runtimes.torch import TorchSession
from growtas.export.verification.batches import Logits, remembering
from growtas.export.verification.inputs import artifact_input
from growtas.export.verification.parity import DEFAULT_TOLERANCE, compare
from growtas.files import sha256
from growtas.nn.extract import extract
from growtas.nn.supernet import Supernet
from growtas.nn.vit import VisionTransformer
from growtas.runs import Run
from growtas.subnet import Subnet

STATIC, SUPERNET = "static ViT", "supernet"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A reference of one artifact.

    Attributes:
        logits: computes the logits of images with the run's preprocessing, once for the same images.
        name: name of the reference in messages.
        feed: converts these images into the reference's own input.
        model: the static ViT, if the reference is one.
    """

    logits: Logits
    name: str
    feed: Callable[[Array], NDArray[Any]] = lambda images: images
    model: VisionTransformer | None = None


def torch_logits(model: Callable[[Tensor], Tensor]) -> Logits:
    """Turns a PyTorch network into a function of arrays."""

    def logits(images: Array) -> Array:
        with torch.inference_mode():
            return np.asarray(model(torch.from_numpy(images)).numpy(), np.float32)

    return logits


def supernet_logits(supernet: Supernet, subnet: Subnet) -> Logits:
    """Turns a subnet inside its supernet into a function of arrays. The static ViT must compute the same."""
    return torch_logits(lambda images: supernet(images, subnet))


def check_unchanged(path: Path, manifest: Manifest | None) -> None:
    """Checks that a file and its side files match its manifest, if there is one.

    Raises:
        ParityError: a file differs.
    """
    if manifest is not None:
        try:
            check_hash(path, manifest)
        except CheckpointError as error:
            raise ParityError(str(error)) from None


def artifact_reference(path: Path, preprocess: Mapping[str, Any]) -> Reference:
    """Makes a reference from another artifact, for images with this preprocessing.

    Raises:
        CheckpointError: the artifact can't be read.
        DeviceError, MissingExtra: the artifact can't be run here.
        ParityError: the artifact does not match its manifest.
    """
    manifest = read_manifest(path, verify=False)
    check_unchanged(path, manifest)
    manifest = manifest or own_description(path)
    session = open_session(path, threads=1)
    converter = artifact_input(path, manifest, preprocess)
    module = session.module if isinstance(session, TorchSession) else None
    model = module if isinstance(module, VisionTransformer) else None
    return Reference(logits=remembering(converter.logits(session.run)), name=path.name, feed=converter.convert, model=model)


def check_checkpoint(path: Path, source: SourceRecord, run: Run) -> None:
    """Checks that an artifact was made from the run's newest checkpoint.

    Raises:
        CheckpointError: the run has no checkpoint.
        ParityError: the artifact was made from another checkpoint.
    """
    checkpoint = run.supernet_file
    recorded, digest = str(source.checkpoint_sha256), sha256(checkpoint)
    if recorded != digest:
        raise ParityError(
            f"{path}: the artifact was made from {source.checkpoint} with SHA-256 {recorded[:12]}, but the run's "
            f"checkpoint is {checkpoint.relative_to(run.path)} with SHA-256 {digest[:12]}; export the artifact again"
        )


def static_vit_reference(checkpoint: Path, subnet: Subnet, images: Array) -> Reference:
    """Makes a reference from the static ViT, after comparing the static ViT itself with the supernet on the images.

    Raises:
        CheckpointError: the checkpoint can't be read.
        ParityError: the static ViT differs from its supernet.
    """
    supernet = load_supernet(checkpoint)
    model = extract(supernet, subnet).eval()
    logits = torch_logits(model)
    error = compare(logits(images), supernet_logits(supernet, subnet)(images), against=SUPERNET).relative_error
    if not error <= DEFAULT_TOLERANCE:
        raise ParityError(f"{checkpoint}: the static ViT extracted from it differs from the supernet by {error:.2g} relative")
    return Reference(logits=remembering(logits), name=STATIC, model=model)
