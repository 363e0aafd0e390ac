"""A small space, and a stand-in for measuring latencies, for tests of commands."""

from __future__ import annotations

import torch

from growtas.checkpoint import save_supernet
from growtas.costs import count_costs
from growtas.data.evaluation import cut_search_split
from growtas.data.preprocess import preprocess_record
from growtas.data.sources import open_data
from growtas.files import write_json
from growtas.nn.supernet import Supernet
from growtas.runs import create_run
from growtas.space import PRESETS

SPACE = PRESETS["micro"].replace(in_chans=1, image_size=16, max_relative_position=3)


def fake_ms(subnet):
    return count_costs(SPACE, subnet).macs / 1e6


def make_run(root, name="first", space=SPACE, **changes):
    data = open_data("digits")
    info = {
        "state": "finished", "space": space.to_dict(), "method": "growtas", "recipe": {}, "seed": 0, "data": data.record(),
        "preprocess": preprocess_record(space, data), "class_names": list(data.class_names), "versions": {}, **changes,
    }  # fmt: skip
    run = create_run(root / "runs", name, info)
    write_json(run.path / "split.json", cut_search_split(data, 0))
    folder = run.path / "checkpoints" / "epoch-0001"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    save_supernet(folder / "supernet.safetensors", Supernet(space))
    write_json(folder / "state.json", {})
    return run
