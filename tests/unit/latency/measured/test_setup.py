from __future__ import annotations

import dataclasses

from growtas.latency.measured.setup import Setup

SETUP = Setup(batch=1, threads=2, runtime="toy", runtime_version="1.0", precision="fp32", machine="m")


def test_a_graph_is_part_of_what_a_timing_depends_on_where_it_is_known():
    assert "graph" not in SETUP.to_dict()
    first, second = (dataclasses.replace(SETUP, graph=graph).to_dict() for graph in ("a", "b"))
    assert first["kind"] == "measured"
    assert {name for name in first if first[name] != second[name]} == {"graph"}
