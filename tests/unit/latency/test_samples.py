from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import pytest

from growtas.errors import OutputError
from growtas.latency.samples import LatencySamples, Setup
from growtas.space import PRESETS

MICRO = PRESETS["micro"]
SETUP = Setup(batch=1, threads=2, runtime="toy", runtime_version="1.0", precision="fp32", machine="m")


@dataclass
class Timing:
    p50_ms: float
    runtime: str = "toy"
    precision: str = "fp32"

    def to_dict(self):
        return {"p50_ms": self.p50_ms, "kind": "measured"}


class Stopwatch:
    def __init__(self):
        self.timed = []

    def __call__(self, architecture):
        self.timed.append(architecture)
        return Timing(float(len(self.timed)))


def test_a_subnet_is_measured_once(tmp_path):
    watch = Stopwatch()
    samples = LatencySamples(tmp_path / "s" / "cpu-latency.jsonl", MICRO, SETUP, watch)
    assert samples.known_ms(MICRO.smallest) is None
    assert samples.measure_all([MICRO.smallest, MICRO.largest, MICRO.smallest]) == [1.0, 2.0, 1.0]
    again = LatencySamples(samples.path, MICRO, SETUP, watch)
    assert again.measure_ms(MICRO.largest) == 2.0
    assert [a.subnet for a in watch.timed] == [MICRO.smallest, MICRO.largest]
    line = json.loads(samples.path.read_text().splitlines()[0])
    assert line["measurement"]["kind"] == "measured"
    assert line["setup"]["threads"] == 2


@pytest.mark.parametrize(
    "change",
    [{"batch": 2}, {"threads": 1}, {"runtime_version": "1.1"}, {"precision": "fp16"}, {"machine": "other"}, {"runtime": "x"}],
)
def test_other_setups_share_nothing(tmp_path, change):
    LatencySamples(tmp_path / "s", MICRO, SETUP, Stopwatch()).measure_ms(MICRO.smallest)
    other = LatencySamples(tmp_path / "s", MICRO, dataclasses.replace(SETUP, **change), Stopwatch())
    assert other.known_ms(MICRO.smallest) is None


def test_other_images_are_another_architecture(tmp_path):
    LatencySamples(tmp_path / "s", MICRO, SETUP, Stopwatch()).measure_ms(MICRO.smallest)
    grey = LatencySamples(tmp_path / "s", MICRO.replace(in_chans=1), SETUP, Stopwatch())
    assert grey.known_ms(MICRO.smallest) is None


def test_a_torn_line_is_measured_again(tmp_path):
    watch = Stopwatch()
    LatencySamples(tmp_path / "s", MICRO, SETUP, watch).measure_all([MICRO.smallest, MICRO.largest])
    (tmp_path / "s").write_bytes((tmp_path / "s").read_bytes()[:-30])
    samples = LatencySamples(tmp_path / "s", MICRO, SETUP, watch)
    assert (samples.known_ms(MICRO.smallest), samples.known_ms(MICRO.largest)) == (1.0, None)
    assert samples.measure_ms(MICRO.largest) == 3.0
    assert all(json.loads(line) for line in (tmp_path / "s").read_text().splitlines())


def test_conditions_are_the_setups(tmp_path):
    assert str(LatencySamples(tmp_path / "s", MICRO, SETUP, Stopwatch()).conditions) == "p50, batch 1, fp32, toy on cpu"


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        LatencySamples(tmp_path / "file" / "s", MICRO, SETUP, Stopwatch())
