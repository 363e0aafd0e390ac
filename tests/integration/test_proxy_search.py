"""``growtas search --proxy``: without a supernet, and as the beginning of a search."""

import json

import numpy as np
import pytest

from growtas import Subnet, api, load_space
from growtas.costs import count_costs
from growtas.errors import ConfigError, LimitError
from growtas.files import read_json_lines, write_json
from growtas.search.az_nas import AzNas, rank_scores
from tests.search_helpers import SPACE


def test_the_best_of_the_measured_subnets_is_returned(tmp_path):
    result = api.search_by_proxy("micro", max_params="100K", max_macs=6_000_000, generations=2, population=8, seed=3, out=tmp_path)
    space = load_space("micro")
    assert space.holds(result.subnet)
    costs = count_costs(space, result.subnet)
    assert (result.params, result.proxies.macs) == (costs.params, costs.macs)
    assert costs.params <= 100_000
    assert costs.macs <= 6_000_000
    assert result.proxies == AzNas(space, seed=3)(result.subnet)
    assert result.measured == 16
    assert Subnet.load(result.file) == result.subnet
    again = api.search_by_proxy(space, max_params=100_000, max_macs="6M", generations=2, population=8, seed=3, out=tmp_path)
    assert again.to_dict() | {"seconds": 0} == result.to_dict() | {"seconds": 0}


def test_as_a_command(tmp_path, growtas, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ("search", "--proxy", "az-nas", "--space", "micro", "--max-params", "80K", "--generations", "1", "--population", "4")
    code, out, err = growtas(*command)
    assert code == 0, err
    assert "4 subnets scored in" in out
    assert "without training; the score is no accuracy" in out
    file = "proxy-search/subnet.json"
    assert f"next: growtas train --method single --space micro --set method_options.subnet={file}" in out
    code, out, _ = growtas(*command, "--json")
    printed = json.loads(out)
    assert printed["subnet"] == Subnet.load(tmp_path / "proxy-search" / "subnet.json").to_dict()
    assert {"space", "proxy", "params", "macs", "expressivity", "trainability", "measured", "seconds", "file"} < printed.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--proxy", "az-nas"), "--proxy needs the folder of a run, or --space for a search without a supernet"),
        (("--proxy", "naswot", "--space", "micro"), "--proxy is 'naswot'; legal is az-nas"),
        (("--proxy", "az-nas", "--space", "micro", "--device", "a10:5ms"), "--device has no effect with --proxy and no run"),
        (("--proxy", "az-nas", "--space", "micro", "--objective", "pareto"), "--objective has no effect with --proxy and no run"),
        (
            ("--proxy", "az-nas", "--space", "micro", "--max-params", "1K"),
            "no subnet of micro has at most 1K params; the smallest has 41.4K",
        ),
    ],
)
def test_wrong_options(tmp_path, growtas, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = growtas("search", *options)
    assert code == 2
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments(run, tmp_path):
    with pytest.raises(ConfigError, match="--seed is -1; it must be 0 or more"):
        api.search_by_proxy("micro", seed=-1, out=tmp_path)
    with pytest.raises(LimitError):
        api.search_by_proxy("micro", max_params=10, out=tmp_path)
    with pytest.raises(ConfigError, match="--proxy has no effect with --replay"):
        api.search(run, proxy="az-nas", replay=True)


def _evaluated(run):
    lines = read_json_lines(run / "search" / "journal.jsonl")
    return [Subnet.from_dict(line["subnet"]) for line in lines if "subnet" in line]


def test_a_search_begins_with_the_best_by_the_proxy(run):
    api.search(run, proxy="az-nas", generations=1, population=6, limit_images=20)
    first = _evaluated(run)
    scored = AzNas(SPACE)
    draws = [SPACE.smallest, SPACE.middle(), *first]
    ranks = np.argsort(-rank_scores([scored(subnet) for subnet in draws]))
    assert len(first) == 6
    assert {draws[row] for row in ranks[:2]} <= set(first), "of 24 scored subnets, the best three are among the six"


def test_a_search_begins_with_the_subnets_that_a_training_preferred(run):
    preferred = [SPACE.smallest, SPACE.middle()]
    write_json(
        run / "checkpoints" / "epoch-0001" / "state.json", {"strategy": {"preferred": [subnet.to_dict() for subnet in preferred]}}
    )
    api.search(run, generations=1, population=6, limit_images=20)
    assert set(preferred) <= set(_evaluated(run))
