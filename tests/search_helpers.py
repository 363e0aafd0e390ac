"""A small space, and a stand-in for measuring latencies, for tests of commands."""

from __future__ import annotations

from growtas.costs import count_costs
from growtas.space import PRESETS

SPACE = PRESETS["micro"].replace(in_chans=1, image_size=16, max_relative_position=3)


def fake_ms(subnet):
    return count_costs(SPACE, subnet).macs / 1e6
