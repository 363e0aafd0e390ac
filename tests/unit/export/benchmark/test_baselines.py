"""timm models as baselines; the one model here is the smallest that timm has a ViT for, made smaller."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from growtas import Subnet, load_space
from growtas.costs import count_costs
from growtas.export.artifact import load_artifact, read_manifest
from growtas.export.benchmark import baselines as zoo
from growtas.export.benchmark.sessions import open_subject
from growtas.export.benchmark.subjects import Subject
from growtas.export.open import open_session
from growtas.export.runtimes.torch import TorchSession
from growtas.export.verification.images import noise

NAME = "deit_tiny_patch16_224"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same model with one block and small images, so that its export takes a second."""
    create = timm.create_model

    def one_block(name: str, **options: object) -> torch.nn.Module:
        model = create(name, depth=1, img_size=32, **options)
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 32, 32)}
        return model

    monkeypatch.setattr(timm, "create_model", one_block)


def test_macs_are_counted_as_growtas_counts_its_own() -> None:
    model = zoo.create(NAME)
    # A ViT without relative position: the same formulas count it.
    expected = count_costs(load_space("autoformer-t"), Subnet(192, (3,) * 12, (4.0,) * 12)).macs
    assert zoo.count_macs(model, zoo.image_shape(model)) == expected


def test_an_exported_model_computes_what_timm_computes(small: None, tmp_path: Path) -> None:
    exported = zoo.exported(NAME, tmp_path)
    path, manifest = exported.path, exported.manifest.to_dict()
    assert load_artifact(path) == exported
    assert manifest["timm"] == {"model": NAME, "weights": "random, seed 0"}
    assert manifest["input"]["shape"] == ["batch", 3, 32, 32]
    assert manifest["output"]["shape"] == ["batch", 1000]
    model = zoo.create(NAME)
    assert manifest["params"] == sum(parameter.numel() for parameter in model.parameters())
    images = noise(3, (3, 32, 32))
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    with open_session(path, threads=1) as session:
        np.testing.assert_allclose(session.run(images), expected, rtol=1e-3, atol=1e-4)
    # No parameter is left constant: exporters would merge or drop it.
    assert all(parameter.std() > 0 for parameter in model.parameters() if parameter.numel() > 1)
    # The next time it is there; what was changed or half-written is made anew.
    before = path.stat().st_mtime_ns
    assert zoo.exported(NAME, tmp_path) == exported
    assert path.stat().st_mtime_ns == before
    path.write_bytes(path.read_bytes()[:-1])
    assert zoo.exported(NAME, tmp_path).manifest.file == exported.manifest.file
    assert read_manifest(path) is not None


def test_a_timm_model_in_pytorch(small: None) -> None:
    before = torch.random.get_rng_state()
    subject = Subject(name=f"timm:{NAME}", runtime="eager", label=NAME)
    with open_subject(subject, threads=1, batches=(1,)) as session:
        assert (session.info.runtime, session.info.threads, session.image_shape) == ("torch", 1, (3, 32, 32))
        images = noise(2, session.image_shape)
        with torch.inference_mode():
            expected = zoo.create(NAME)(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(session.run(images), expected, rtol=1e-5, atol=1e-5)
        assert session.timer(images)() > 0
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_module_session_sets_the_threads_for_its_runs_and_puts_them_back() -> None:
    seen: list[int] = []

    class Counting(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return images.mean((2, 3))

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with TorchSession(Counting(), (3, 4, 4), threads=1) as session:
            timer = session.timer(noise(2, (3, 4, 4)))
            torch.set_num_threads(2)
            assert timer() > 0
            assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
