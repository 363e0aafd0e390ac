"""Weights and logits computed by the public AutoFormer code; set GROWTAS_PARITY_DIR to where they are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from growtas import SearchSpace, Subnet, Supernet, count_costs, extract, load_space
from growtas.autoformer import rename_state

FOLDER = Path(os.environ.get("GROWTAS_PARITY_DIR", Path(__file__).parents[3] / "shared" / "fixtures" / "autoformer_parity"))
if not FOLDER.is_dir():
    pytest.skip(f"no parity fixtures at {FOLDER} (GROWTAS_PARITY_DIR names another place)", allow_module_level=True)

CASES = sorted(path.stem for path in FOLDER.glob("*.json") if path.with_suffix(".safetensors").is_file())


@pytest.fixture(scope="module", params=CASES)
def case(request):
    description = json.loads((FOLDER / f"{request.param}.json").read_text())
    tensors = load_file(FOLDER / f"{request.param}.safetensors")
    size = description["supernet"]
    space = SearchSpace(
        name=request.param,
        embed_dim=(size["embed_dim"],),
        num_heads=(size["num_heads"],),
        mlp_ratio=(size["mlp_ratio"],),
        depth=(size["depth"],),
        head_dim=size["head_dim"],
        image_size=size["img_size"],
        patch_size=size["patch_size"],
        in_chans=size["in_chans"],
        num_classes=size["num_classes"],
        max_relative_position=size["max_relative_position"],
    )
    supernet = Supernet(space).eval()
    supernet.load_state_dict(rename_state({n.removeprefix("state/"): t for n, t in tensors.items() if n.startswith("state/")}))
    subnets = [(Subnet.from_dict(entry), entry["params"]) for entry in description["subnets"]]
    return supernet, subnets, tensors


def test_there_are_cases():
    assert CASES


@torch.no_grad()
def test_supernet_and_extracted_vit_give_the_recorded_logits(case):
    supernet, subnets, tensors = case
    for index, (subnet, _) in enumerate(subnets):
        recorded = tensors[f"logits/{index}"]
        for logits in (supernet(tensors["input"], subnet), extract(supernet, subnet)(tensors["input"])):
            assert ((logits - recorded).abs().max() / recorded.abs().max()).item() < 1e-4


def test_params_equal_the_recorded_ones(case):
    supernet, subnets, _ = case
    for subnet, params in subnets:
        assert count_costs(supernet.space, subnet).params == params
        assert sum(p.numel() for p in extract(supernet, subnet).parameters()) == params


def _recorded_costs():
    for space, groups in json.loads((FOLDER / "costs.json").read_text()).items():
        for group, entries in groups.items():
            for entry in entries if isinstance(entries, list) else [entries]:
                yield space, group, entry


@pytest.mark.parametrize(("space", "group", "entry"), list(_recorded_costs()))
def test_costs_of_the_imagenet_spaces(space, group, entry):
    subnet = Subnet.from_dict(entry)
    search_space = load_space(space)
    costs = count_costs(search_space, search_space.validate(subnet))
    assert costs.params == entry["params"]
    assert costs.macs == pytest.approx(entry["reference_macs"], rel=0.05)
    if group in ("smallest", "largest"):
        assert subnet == getattr(search_space, group)
