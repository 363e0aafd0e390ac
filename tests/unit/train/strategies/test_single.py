from __future__ import annotations

import json

import pytest
import torch

from growtas import api, extract
from growtas.checkpoint import load_supernet
from growtas.data.evaluation import search_set
from growtas.errors import ConfigError, SubnetError, UsageError
from growtas.nn.supernet import Supernet
from growtas.runs import Run
from growtas.subnet import Subnet
from growtas.train.recipe import Recipe
from growtas.train.strategies import make_strategy
from tests.reference import count_correct


def _single(space, subnet="largest"):
    return make_strategy(Recipe(method="single", method_options={"subnet": subnet}), space)


def test_the_same_subnet_in_every_step(space, tmp_path):
    own = Subnet(12, (1, 3), (1.5, 2.0))
    (tmp_path / "subnet.json").write_text(json.dumps(own.to_dict()))
    for given, expected in {
        "smallest": space.smallest,
        "middle": space.middle(),
        "largest": space.largest,
        str(tmp_path / "subnet.json"): own,
    }.items():
        strategy = _single(space, given)
        assert [strategy.draw(step, 0.0)[0].subnet for step in range(3)] == [expected] * 3
        assert set(strategy.followed().values()) == {expected}
    assert _single(space, own.to_dict()).subnet == own
    assert make_strategy(Recipe(method="single"), space).subnet == space.largest


def test_subnets_that_cannot_be_trained(space, tmp_path):
    with pytest.raises(SubnetError, match=r"no\.json"):
        _single(space, str(tmp_path / "no.json"))
    with pytest.raises(SubnetError):
        _single(space, Subnet(13, (1,), (1.0,)).to_dict() | {"embed_dim": 99})
    with pytest.raises(ConfigError, match="subnet is 3; it must be smallest, middle, largest, the path of a subnet file"):
        _single(space, 3)


def test_a_run_trains_one_subnet_and_exports_it(tiny, tmp_path, monkeypatch):
    """Weights that the subnet does not use are those of a fresh supernet; the run does not need the subnet's file any more."""
    file = tmp_path / "own.json"
    file.write_text(json.dumps(Subnet(8, (1,), (2.0,)).to_dict()))
    run = api.train(
        method="single", space=tiny, out=tmp_path, name="one",
        settings={"epochs": 1, "batch_size": 256, "method_options": {"subnet": str(file)}},
    )  # fmt: skip
    file.unlink()
    assert Run(run.path).info["recipe"]["method_options"]["subnet"] == Subnet(8, (1,), (2.0,)).to_dict()
    trained = load_supernet(run.supernet_file)
    torch.manual_seed(0)
    fresh = Supernet(trained.space)
    assert not torch.equal(trained.blocks[0].fc1.weight[:16, :8], fresh.blocks[0].fc1.weight[:16, :8])
    spread = trained.blocks[1].fc1.weight.std()
    assert 0.01 < spread < 0.03, "the second block keeps its random weights"
    *_, artifact = api.export(run.path, formats=["onnx"])
    assert artifact.manifest.params == sum(parameter.numel() for parameter in _extracted(trained).parameters())
    with pytest.raises(ConfigError, match="the run trained a single subnet; tas-lora needs a trained supernet"):
        api.train(method="tas-lora", init=str(run.path), out=tmp_path, name="two")
    taught = api.train(space=tiny, out=tmp_path, name="taught", teacher=str(run.path), settings={"epochs": 2, "batch_size": 512})
    record = taught.info["teacher"]
    images = search_set(Run(taught.path)).subset(record["images"])
    assert record["accuracy"] == count_correct(_extracted(trained), images) / len(images)
    with pytest.raises(UsageError, match="the run has a single trained subnet, so there is nothing to search; export it"):
        api.search(run.path)


def _extracted(supernet):
    return extract(supernet, Subnet(8, (1,), (2.0,)))
