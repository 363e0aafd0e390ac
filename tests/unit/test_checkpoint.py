from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from growtas import Supernet, extract, load_space
from growtas.checkpoint import load_model, load_supernet, save_model, save_supernet
from growtas.errors import CheckpointError

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


FULL = """
import resource, signal, sys, torch
from growtas.checkpoint import save_tensors
from growtas.errors import OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    save_tensors(sys.argv[1], {"x": torch.zeros(1000)})
except OutputError as error:
    print(error)
"""


def test_a_disk_that_takes_no_more_is_named(tmp_path):
    file = tmp_path / "x.safetensors"
    done = subprocess.run([sys.executable, "-c", FULL, str(file)], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith(f"{file}: can't be written (")
    assert "File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []
