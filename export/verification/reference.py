"""What a finished artifact is compared with: the static ViT cut from the run's checkpoint, or another artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from growtas.checkpoint import load_supernet
from growtas.errors import CheckpointError, ParityError
from growtas.export import artifact
from growtas.export.artifact import Manifest, SourceRecord
from growtas.export.formats import PLAN
from growtas.export.runtimes.base import Array
from growtas.export.runtimes.open import open_session
from growtas.export.runtimes.torch import TorchSession
from growtas.export.verification.batches import Logits, remembering
from growtas.export.verification.inputs import Feed, feed_of
from growtas.export.verification.parity import DEFAULT_TOLERANCE, compare
from growtas.files import sha256
from growtas.nn.extract import extract
from growtas.nn.vit import VisionTransformer
from growtas.runs import Run
from growtas.subnet import Subnet


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A reference of one artifact.

    Attributes:
        logits: images, preprocessed as the run's are, to logits; computed once for the same images.
        name: what to call it.
        feed: what it takes itself.
        model: the static ViT, where the reference is one.
    """

    logits: Logits
    name: str
    feed: Feed
    model: VisionTransformer | None = None


class References:
    """Finds references; each is loaded once. Needs a run or another artifact."""

    def __init__(self, run: Run | None, against: Path | None) -> None:
        self._run, self._against = run, against
        self._known: dict[str, Reference] = {}

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
            if "" not in self._known:
                self._known[""] = _other(self._against, preprocess)
            return self._known[""]
        run = self._run
        assert run is not None
        assert manifest is not None
        checkpoint = _check_checkpoint(path, manifest.source, run)
        subnet = run.space.validate(Subnet.from_dict(manifest.subnet or {}, source=f"{path}'s manifest"))
        key = repr(subnet)
        if key not in self._known:
            model = _cut(checkpoint, subnet, images())
            self._known[key] = Reference(
                logits=remembering(_logits(model)), name="static ViT", feed=feed_of(path, None, preprocess), model=model
            )
        return self._known[key]


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


def _other(path: Path, preprocess: Mapping[str, Any]) -> Reference:
    manifest = artifact.read_manifest(path, verify=False)
    check_hash(path, manifest)
    session, feed = open_session(path, threads=1, runtime=runtime_of(path, manifest)), feed_of(path, manifest, preprocess)
    module = session.module if isinstance(session, TorchSession) else None
    return Reference(
        logits=remembering(lambda images: session.run(feed.images(images))),
        name=path.name,
        feed=feed,
        model=module if isinstance(module, VisionTransformer) else None,
    )


def _check_checkpoint(path: Path, source: SourceRecord, run: Run) -> Path:
    """The run's newest checkpoint, which must be what the artifact was made from."""
    now = run.supernet_file
    recorded, digest = str(source.checkpoint_sha256), sha256(now)
    if recorded != digest:
        raise ParityError(
            f"{path}: it was made from {source.checkpoint} with SHA-256 {recorded[:12]}, but the run's "
            f"checkpoint is {now.relative_to(run.path)} with {digest[:12]}; export it again"
        )
    return now


def _cut(checkpoint: Path, subnet: Subnet, images: Array) -> VisionTransformer:
    """The static ViT, which must compute what the supernet computes: the reference could be wrong itself."""
    supernet = load_supernet(checkpoint)
    model = extract(supernet, subnet).eval()
    with torch.inference_mode():
        whole = np.asarray(supernet(torch.from_numpy(images), subnet).numpy(), np.float32)
    error = compare(_logits(model)(images), whole, against="supernet").relative_error
    if not error <= DEFAULT_TOLERANCE:
        raise ParityError(f"{checkpoint}: the static ViT cut from it differs from the supernet by {error:.2g} relative")
    return model


def _logits(model: VisionTransformer) -> Logits:
    def function(images: Array) -> Array:
        with torch.inference_mode():
            return np.asarray(model(torch.from_numpy(images)).numpy(), np.float32)

    return function
