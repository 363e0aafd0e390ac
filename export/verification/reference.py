"""The references of finished artifacts: the static ViT cut from the run's checkpoint, or another artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from growtas.checkpoint import load_supernet
from growtas.errors import CheckpointError, ParityError
from growtas.export import artifact
from growtas.export.artifact import Manifest, SourceRecord
from growtas.export.formats import PLAN
from growtas.export.open import open_session
from growtas.export.runtimes.base import Array
from growtas.export.runtimes.torch import TorchSession
from growtas.export.verification.batches import Logits, remembering
from growtas.export.verification.inputs import ArtifactInput, artifact_input
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
        logits: images, preprocessed as the run's are, to logits; computed once for the same images.
        name: what to call it.
        input: what it takes itself.
        model: the static ViT, where the reference is one.
    """

    logits: Logits
    name: str
    input: ArtifactInput
    model: VisionTransformer | None = None


def torch_logits(model: Callable[[Tensor], Tensor]) -> Logits:
    """A network in PyTorch as a function of arrays."""

    def logits(images: Array) -> Array:
        with torch.inference_mode():
            return np.asarray(model(torch.from_numpy(images)).numpy(), np.float32)

    return logits


def supernet_logits(supernet: Supernet, subnet: Subnet) -> Logits:
    """A subnet inside its supernet as a function of arrays: what every static ViT must compute."""
    return torch_logits(lambda images: supernet(images, subnet))


class References:
    """Loads the references of artifacts, each once. Needs a run or another artifact."""

    def __init__(self, run: Run | None, against: Path | None) -> None:
        self._run, self._against = run, against
        self._other: Reference | None = None
        self._static_vits: dict[Subnet, Reference] = {}

    def of(self, path: Path, manifest: Manifest | None, preprocess: Mapping[str, Any], images: Callable[[], Array]) -> Reference:
        """The reference of an artifact.

        Args:
            path, manifest: the artifact's.
            preprocess: of the images that it will get.
            images: gives a few images for a check of the static ViT itself.

        Raises:
            CheckpointError: the checkpoint or the other artifact can't be read.
            ParityError: the artifact was made from another checkpoint than the run's newest, the other artifact is not what its
                manifest describes, or the static ViT differs from the supernet that it is cut from.
            DeviceError, MissingExtra: the other artifact can't be run here.
            SubnetError: the manifest's subnet is not of the run's space.
        """
        if self._against is not None:
            if self._other is None:
                self._other = _artifact_reference(self._against, preprocess)
            return self._other
        assert self._run is not None
        assert manifest is not None
        checkpoint = _check_checkpoint(path, manifest.source, self._run)
        subnet = self._run.space.validate(Subnet.from_dict(manifest.subnet or {}, source=f"{path}'s manifest"))
        if subnet not in self._static_vits:
            takes = artifact_input(path, None, preprocess)
            self._static_vits[subnet] = _static_vit_reference(checkpoint, subnet, takes, images())
        return self._static_vits[subnet]


def check_hash(path: Path, manifest: Manifest | None) -> None:
    """Make sure that a file, with the files that belong to it, is what its manifest, if there is one, describes.

    Raises:
        ParityError: it isn't.
    """
    if manifest is not None:
        try:
            artifact.check_hash(path, manifest)
        except CheckpointError as error:
            raise ParityError(str(error)) from None


def runtime_of(path: Path, manifest: Manifest | None) -> str | None:
    """The runtime to open an artifact with, where its suffix leaves a choice."""
    return manifest.runtime if manifest is not None and path.suffix == PLAN.suffix else None


def _artifact_reference(path: Path, preprocess: Mapping[str, Any]) -> Reference:
    manifest = artifact.read_manifest(path, verify=False)
    check_hash(path, manifest)
    session = open_session(path, threads=1, runtime=runtime_of(path, manifest))
    takes = artifact_input(path, manifest, preprocess)
    module = session.module if isinstance(session, TorchSession) else None
    model = module if isinstance(module, VisionTransformer) else None
    return Reference(logits=remembering(takes.logits(session.run)), name=path.name, input=takes, model=model)


def _check_checkpoint(path: Path, source: SourceRecord, run: Run) -> Path:
    """The run's newest checkpoint, which must be what the artifact was made from."""
    checkpoint = run.supernet_file
    recorded, digest = str(source.checkpoint_sha256), sha256(checkpoint)
    if recorded != digest:
        raise ParityError(
            f"{path}: it was made from {source.checkpoint} with SHA-256 {recorded[:12]}, but the run's "
            f"checkpoint is {checkpoint.relative_to(run.path)} with {digest[:12]}; export it again"
        )
    return checkpoint


def _static_vit_reference(checkpoint: Path, subnet: Subnet, takes: ArtifactInput, images: Array) -> Reference:
    """The static ViT, which must compute what the supernet computes: the reference could be wrong itself."""
    supernet = load_supernet(checkpoint)
    model = extract(supernet, subnet).eval()
    logits = torch_logits(model)
    error = compare(logits(images), supernet_logits(supernet, subnet)(images), against=SUPERNET).relative_error
    if not error <= DEFAULT_TOLERANCE:
        raise ParityError(f"{checkpoint}: the static ViT cut from it differs from the supernet by {error:.2g} relative")
    return Reference(logits=remembering(logits), name=STATIC, input=takes, model=model)
