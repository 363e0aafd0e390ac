from __future__ import annotations

import argparse
import os
import pickle

import pytest
import torch

from growtas import Supernet, load_space
from growtas.autoformer import import_autoformer, load_autoformer
from growtas.checkpoint import load_supernet
from growtas.errors import CheckpointError

SPACE = load_space("micro").replace(num_classes=4)
PUBLIC_NAMES = (
    ("patch_embed.", "patch_embed_super.proj."),
    (".norm1.", ".attn_layer_norm."),
    (".norm2.", ".ffn_layer_norm."),
    (".relative_key.vertical", ".rel_pos_embed_k.embeddings_table_v"),
    (".relative_key.horizontal", ".rel_pos_embed_k.embeddings_table_h"),
    (".relative_value.vertical", ".rel_pos_embed_v.embeddings_table_v"),
    (".relative_value.horizontal", ".rel_pos_embed_v.embeddings_table_h"),
)


@pytest.fixture
def supernet():
    torch.manual_seed(0)
    return Supernet(SPACE).eval()


@pytest.fixture
def public(supernet):
    """The checkpoint as the public code writes it: a pickle with the weights and the arguments."""
    state = {}
    for name, tensor in supernet.state_dict().items():
        for ours, theirs in PUBLIC_NAMES:
            name = name.replace(ours, theirs)
        state[name] = tensor
    return {"model": state, "optimizer": None, "epoch": 499, "args": argparse.Namespace(lr=1e-3, cfg="t.yaml")}


def test_a_published_checkpoint_becomes_a_run(tmp_path, supernet, public):
    torch.save(public, tmp_path / "supernet.pth")
    # The classes come from the file's head, not from the preset.
    run = import_autoformer(tmp_path / "supernet.pth", load_space("micro"), tmp_path / "runs")
    assert run.space == SPACE
    assert run.info["state"] == "imported"
    images = torch.randn(2, 3, 28, 28)
    loaded = load_supernet(run.supernet_file)
    torch.testing.assert_close(loaded(images, SPACE.largest), supernet(images, SPACE.largest), rtol=0, atol=0)


class Payload:
    def __reduce__(self):
        return (os.mkdir, (os.environ["GROWTAS_TEST_PWNED"],))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, public, monkeypatch, zipped):
    monkeypatch.setenv("GROWTAS_TEST_PWNED", str(tmp_path / "pwned"))
    path = tmp_path / "evil.pth"
    if zipped:
        torch.save({**public, "extra": Payload()}, path)
    else:
        path.write_bytes(pickle.dumps({"model": {}, "extra": Payload()}))
    with pytest.raises(CheckpointError, match=r"evil\.pth: the pickle holds more than weights.*could run code; it was not loaded"):
        load_autoformer(path, SPACE)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("keep", [0, 10, 1000, -100])
def test_a_truncated_checkpoint_is_one_sentence(tmp_path, public, keep):
    torch.save(public, tmp_path / "whole.pth")
    path = tmp_path / "cut.pth"
    path.write_bytes((tmp_path / "whole.pth").read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"cut\.pth: the file is truncated or not a checkpoint") as caught:
        load_autoformer(path, SPACE)
    assert "\n" not in str(caught.value)


def test_weights_of_another_space_are_refused(tmp_path, public):
    torch.save(public, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="don't fit autoformer-t: blocks.10.attn.proj.bias is missing"):
        load_autoformer(tmp_path / "a.pth", load_space("autoformer-t"))
    with pytest.raises(CheckpointError, match=r"don't fit micro: .* has the shape \(\d+.*but the space needs \("):
        load_autoformer(tmp_path / "a.pth", SPACE.replace(max_embed_dim=80))
    del public["model"]["norm.weight"]
    torch.save(public, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="norm.weight is missing"):
        load_autoformer(tmp_path / "a.pth", SPACE)


def test_an_absent_file_and_one_without_weights(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        load_autoformer(tmp_path / "no.pth", SPACE)
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="no weights found"):
        load_autoformer(tmp_path / "empty.pth", SPACE)
