from __future__ import annotations

import resource

import pytest
import torch

from growtas import Supernet, extract, load_space
from growtas.checkpoint import load_model, load_supernet, save_model, save_supernet, save_tensors
from growtas.errors import CheckpointError, OutputError

SPACE = load_space("micro")


@pytest.fixture(scope="module")
def supernet():
    torch.manual_seed(0)
    return Supernet(SPACE).eval()


def test_supernet_and_model_come_back_to_the_bit(tmp_path, supernet):
    model = extract(supernet, SPACE.middle())
    save_supernet(tmp_path / "s.safetensors", supernet)
    save_model(tmp_path / "m.safetensors", model)
    loaded, loaded_model = load_supernet(tmp_path / "s.safetensors"), load_model(tmp_path / "m.safetensors")
    assert loaded.space == SPACE
    assert loaded_model.architecture == model.architecture
    for a, b in ((supernet, loaded), (model, loaded_model)):
        for name, tensor in a.state_dict().items():
            assert torch.equal(tensor, b.state_dict()[name])
    images = torch.randn(2, 3, 28, 28)
    assert torch.equal(loaded_model(images), model(images))


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_files_are_one_sentence(tmp_path, supernet, keep):
    save_supernet(tmp_path / "s.safetensors", supernet)
    path = tmp_path / "cut.safetensors"
    path.write_bytes((tmp_path / "s.safetensors").read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors: the supernet checkpoint is truncated") as caught:
        load_supernet(path)
    assert "\n" not in str(caught.value)


def test_one_kind_is_not_taken_for_another(tmp_path, supernet):
    save_supernet(tmp_path / "s.safetensors", supernet)
    with pytest.raises(CheckpointError, match="is not a growtas model"):
        load_model(tmp_path / "s.safetensors")
    save_model(tmp_path / "m.safetensors", extract(supernet, SPACE.smallest))
    with pytest.raises(CheckpointError, match="is not a growtas supernet"):
        load_supernet(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="no such supernet checkpoint"):
        load_supernet(tmp_path / "none.safetensors")


def test_files_are_readable_for_whom_other_files_are(tmp_path, supernet):
    save_supernet(tmp_path / "supernet.safetensors", supernet)
    (tmp_path / "other").write_text("")
    assert (tmp_path / "supernet.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_disk_that_takes_no_more_is_named(tmp_path):
    file, limits = tmp_path / "x.safetensors", resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python itself ignores the signal of a file that gets too large.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputError, match="can't be written .*File too large") as caught:
            save_tensors(file, {"x": torch.zeros(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value).startswith(f"{file}: ")
    assert list(tmp_path.iterdir()) == []
