import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from growtas.space import load_space
from tests.evidence.front import choose, timm_model
from tests.evidence.front_page import PARTS, Point, comparison, read_points, table, write_all
from tests.evidence.ledger import FOLDER
from tests.evidence.tables import PAGE, replace_parts


def entry(ms):
    return {"accuracy": 0.9, "latencies": [{"predicted": {"ms": ms}}]}


def latencies(entries):
    return [entry["latencies"][0]["predicted"]["ms"] for entry in entries]


def point(kind, ms, test, search=None, minutes=10):
    return Point(
        data="digits",
        kind=kind,
        name=f"{kind} {ms:g}",
        params=41_354,
        search_accuracy=search,
        test_accuracy=test,
        test_images=10_000,
        epochs=9,
        cpu_seconds=60.0 * minutes,
        file=f"{ms:g}.onnx",
        p50_ms=ms,
        lowest_ms=ms - 0.01,
        highest_ms=ms + 0.01,
        cpu="a CPU",
        threads=2,
        onnxruntime="1.30.0",
        timm="1.0.20",
        date="2026-01-02",
    )


POINTS = [
    point("found", 0.30, 0.850, 0.86),
    point("found", 0.40, 0.880, 0.87),
    point("found", 0.60, 0.870, 0.89),
    point("timm", 0.25, 0.860),
    point("timm", 0.45, 0.875, minutes=12),
    point("timm", 0.70, 0.900, minutes=14),
]


def test_chosen_subnets_are_spread_over_the_latencies():
    """Eleven subnets crowd at the fast end; the places are 0, 2, 4, 6, 8 and 10."""
    crowded = [entry(ms) for ms in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.9, 4.4, 6.1, 8.0, 10.0)]
    assert latencies(choose(crowded[::-1], 6)) == [0.0, 1.9, 4.4, 6.1, 8.0, 10.0]


@pytest.mark.parametrize("front_ms", [(1.0,), (1.0, 2.0), (1.0, 1.1, 2.0)])
def test_a_small_front_is_taken_whole(front_ms):
    assert latencies(choose([entry(ms) for ms in front_ms], 6)) == list(front_ms)


def test_a_timm_model_is_compared_with_what_the_search_prefers_among_the_fast_ones():
    """At 0.7 ms all three found subnets are as fast; the search prefers the last one, though the test images don't."""
    lines = comparison(POINTS).splitlines()
    assert "no found subnet is as fast; the fastest one (0.300 ms) is 1.00 ± 0.50 points less accurate" in lines[0]
    assert re.search(r"\(0\.400 ms\) is 0\.50 ± 0\.46 points more accurate", lines[1])
    assert re.search(r"\(0\.600 ms\) is 3\.00 ± 0\.45 points less accurate", lines[2])
    assert "took 10 CPU minutes" in lines[3]
    assert "took 36 CPU minutes together" in lines[3]


def test_the_table_has_the_fastest_first_with_standard_errors():
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(POINTS).splitlines()[2:]]
    assert [row[2] for row in rows] == ["0.250", "0.300", "0.400", "0.450", "0.600", "0.700"]
    assert rows[0][3:] == ["86.00 ± 0.35", "10"]
    assert rows[1][4] == "10 (shared)"


def test_everything_is_drawn_from_the_csv_file_again(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("".join(f"a\n<!-- front: {part} -->\nold\n<!-- end -->\n" for part in PARTS))
    write_all(POINTS, tmp_path, page)
    first = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert "old" not in first["page.md"]
    assert ElementTree.fromstring(first["front.svg"]).tag.endswith("svg")
    assert read_points(tmp_path / "front.csv") == POINTS
    write_all(read_points(tmp_path / "front.csv"), tmp_path, page)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == first


def test_a_timm_model_has_the_size_that_was_asked_for():
    """A block of width d and MLP ratio r has 4 d² + 4 d weights in attention, 2 r d² + (r + 1) d in the MLP, and 4 d in norms."""
    subnet = load_space("micro").middle()
    model = timm_model(subnet, 10)
    d, r = subnet.embed_dim, subnet.mlp_ratio[0]
    block = (4 * d * d + 4 * d) + (2 * r * d * d + (r + 1) * d) + 4 * d
    around = (3 * 4 * 4 * d + d) + d + 50 * d + 2 * d + (10 * d + 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == subnet.depth * block + around
    assert model.blocks[0].attn.num_heads == subnet.num_heads[0]
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 10)


def test_the_committed_figure_and_page_are_those_of_the_committed_numbers():
    points = read_points(FOLDER / "front.csv")
    page = PAGE.read_text()
    assert set(re.findall(r"<!-- front: (\w+) -->", page)) == set(PARTS)
    assert replace_parts(page, "front", lambda name: PARTS[name](points)) == page, "run `make evidence-front ARGUMENTS=--draw`"
