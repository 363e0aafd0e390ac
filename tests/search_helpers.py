"""A small space, and a stand-in for measuring latencies, for tests of commands."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from growtas.costs import count_costs
from growtas.space import PRESETS

SPACE = PRESETS["micro"].replace(in_chans=1, image_size=16, max_relative_position=3)


@dataclass
class Timing:
    p50_ms: float
    runtime: str = "onnxruntime"
    precision: str = "fp32"

    def to_dict(self):
        return {"kind": "measured", **asdict(self)}


def fake_ms(subnet):
    return count_costs(SPACE, subnet).macs / 1e6
