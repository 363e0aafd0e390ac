from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from growtas import Supernet, load_space
from growtas.cli.app import app

PUBLISHED = {
    "depth": 13,
    "embed_dim": 192,
    "num_heads": [3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 3, 3],
    "mlp_ratio": [3.5, 3.5, 3.0, 3.5, 3.0, 3.0, 4.0, 4.0, 3.5, 4.0, 3.5, 4.0, 3.5],
}


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_cost_of_autoformer_ts_published_subnet(invoke, tmp_path):
    (tmp_path / "subnet.json").write_text(json.dumps(PUBLISHED))
    result = invoke("cost", "--space", "autoformer-t", "subnet.json", "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    # The paper's table says 5.9 M parameters and 1.3 G.
    assert answer["params"] == 5_867_944
    assert answer["macs"] == pytest.approx(1.283e9, rel=1e-3)
    # 197 tokens, 40 heads of 64 channels, and two more products of tokens with tokens.
    assert answer["macs_with_relative_position"] == answer["macs"] + 2 * 197 * 197 * 40 * 64
    assert answer["subnet"] == PUBLISHED
    table = invoke("cost", "--space", "autoformer-t", "subnet.json")
    assert "5,867,944 (5.87M)" in table.stdout
    assert "(1.28G)" in table.stdout
    assert "MACs with the relative position 1,481,938,432 (1.48G)" in table.stdout


def test_an_imported_checkpoint_is_a_run(invoke, tmp_path):
    torch.manual_seed(0)
    torch.save({"model": Supernet(load_space("micro").replace(num_classes=4)).state_dict()}, tmp_path / "net.pth")
    result = invoke("import", "autoformer", "net.pth", "--space", "micro", "--name", "mine", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["space"]["num_classes"] == 4
    assert (tmp_path / "runs" / "mine" / "checkpoints" / "epoch-0000" / "supernet.safetensors").is_file()
    # It exports like a trained one; without data of its own the check uses photographs, and says so.
    (tmp_path / "s.json").write_text(json.dumps(load_space("micro").smallest.to_dict()))
    exported = invoke("export", "--subnet", "s.json", "--format", "torch")
    assert exported.exit_code == 0, exported.output
    assert "photograph" in exported.output
