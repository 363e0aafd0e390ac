"""Peaks, roofline, power and ratios, against numbers computed by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from growtas.checkpoint import save_model
from growtas.export.artifact import Manifest
from growtas.export.benchmark import peaks as peaks_module
from growtas.export.benchmark.inputs import bytes_moved, image_input
from growtas.export.benchmark.peaks import PeakMeter, roofline, weight_bytes
from growtas.export.benchmark.power import Consumption, Meter, Metering, find_meter
from growtas.export.benchmark.report import ratio
from growtas.nn.vit import VisionTransformer
from tests.export_helpers import without_gpu

TIMES = st.floats(0.01, 1e3)


def test_ratios_are_paired_by_round() -> None:
    # A slow second round hits both: the ratio stays 2, while the medians over all would say otherwise.
    assert ratio([2.0, 20.0, 2.2], [1.0, 10.0, 1.0]) == {"median": 2.0, "low": 2.0, "high": 2.2, "rounds": 3}
    assert ratio([4.0, 1.0], [2.0]) == {"median": 2.0, "low": 2.0, "high": 2.0, "rounds": 1}
    assert ratio([1.0], []) is None


@given(st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=9), st.floats(0.1, 10))
def test_a_slow_round_does_not_change_its_ratio(rounds: list[tuple[float, float]], factor: float) -> None:
    mine, theirs = zip(*rounds, strict=True)
    plain, slowed = ratio(mine, theirs), ratio([mine[0] * factor, *mine[1:]], [theirs[0] * factor, *theirs[1:]])
    assert plain is not None
    assert slowed is not None
    assert plain["low"] <= plain["median"] <= plain["high"]
    for key in ("median", "low", "high"):
        assert slowed[key] == pytest.approx(plain[key], rel=1e-9)


def test_the_roofline_by_hand() -> None:
    peaks = {"gemm_flops_per_s": 100e9, "copy_bytes_per_s": 10e9}
    # 1 GMAC an image, 4 images: 8 GFLOP in 160 ms is 50 GFLOP/s; 20 MB + 12 MB in 160 ms is 0.2 GB/s.
    found = roofline(peaks, macs=10**9, weight_bytes=20_000_000, io_bytes=12_000_000, batch=4, ms=160.0)
    assert found["gemm_share"] == pytest.approx(0.5)
    assert found["bandwidth_share"] == pytest.approx(0.02)
    assert (found["flops"], found["bytes"], found["flops_per_byte"]) == (8 * 10**9, 32_000_000, 250.0)
    assert found["nearer_to"] == "gemm"
    assert roofline(peaks, macs=10**6, weight_bytes=10**9, io_bytes=0, batch=1, ms=200.0)["nearer_to"] == "bandwidth"


def peak_meter(monkeypatch: pytest.MonkeyPatch, *, gemm_size: int, copy_bytes: int) -> PeakMeter:
    monkeypatch.setattr(peaks_module, "GEMM_SIZE", gemm_size)
    monkeypatch.setattr(peaks_module, "COPY_BYTES", copy_bytes)
    return PeakMeter("cpu", 1)


def test_peaks_are_the_best_of_the_rounds_at_the_threads_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    meter = peak_meter(monkeypatch, gemm_size=64, copy_bytes=1 << 16)
    assert meter.report() is None
    seen: list[int] = []
    product = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *args, **out: seen.append(torch.get_num_threads()) or product(*args, **out))
    meter.measure()
    meter.measure()
    assert seen == [1] * 6
    assert torch.get_num_threads() == before
    meter.gemm_flops_per_s.append(1e20)
    meter.copy_bytes_per_s.append(1e19)
    report = meter.report()
    assert report is not None
    assert (report["gemm_flops_per_s"], report["copy_bytes_per_s"], report["threads"]) == (1e20, 1e19, 1)
    assert len(report["gemm_flops_per_s_of_rounds"]) == 3


def test_a_peak_is_operations_over_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = peak_meter(monkeypatch, gemm_size=100, copy_bytes=4_000_000)
    # Three products and three copies; the best of each takes half a second.
    clock = iter([0.0, 0.75, 1.0, 1.5, 2.0, 3.0] * 2)
    monkeypatch.setattr("growtas.export.benchmark.peaks.time.perf_counter", lambda: next(clock))
    meter.measure()
    assert meter.gemm_flops_per_s == [2 * 100**3 / 0.5]
    # Read once and written once.
    assert meter.copy_bytes_per_s == [8_000_000 / 0.5]


def test_weights_are_counted_in_every_format(model: VisionTransformer, onnx_file: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", model)
    parameters = sum(4 * parameter.numel() for parameter in model.parameters())
    assert weight_bytes(tmp_path / "m.safetensors") == parameters
    values = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(onnx_file).graph.initializer]
    assert weight_bytes(onnx_file) == sum(value.nbytes for value in values)
    (tmp_path / "m.xml").write_bytes(b"x" * 9)
    (tmp_path / "m.bin").write_bytes(b"y" * 5)
    assert weight_bytes(tmp_path / "m.xml") == 5
    (tmp_path / "m.plan").write_bytes(b"z" * 7)
    assert weight_bytes(tmp_path / "m.plan") == 7


def zone(root: Path, name: str, label: str, microjoules: int, limit: int = 1000) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    for file, text in (("name", label), ("energy_uj", str(microjoules)), ("max_energy_range_uj", str(limit))):
        (folder / file).write_text(text + "\n")
    return folder


def test_energy_is_added_over_packages_and_over_wraps(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", "package-0", 100), zone(tmp_path, "intel-rapl:1", "package-1", 900)
    # Parts of a package, and what has everything in it, would count twice.
    zone(tmp_path, "intel-rapl:0:0", "core", 5)
    zone(tmp_path, "intel-rapl:2", "psys", 5)
    meter = find_meter("cpu", tmp_path)
    assert isinstance(meter, Meter)
    assert "2 CPU packages" in meter.what
    (first / "energy_uj").write_text("350")
    (second / "energy_uj").write_text("50")
    assert meter.read() == pytest.approx((250 + 150) / 1e6)
    (first / "energy_uj").write_text("360")
    assert meter.read() == pytest.approx((250 + 150 + 10) / 1e6)


def test_what_is_not_readable_says_why(tmp_path: Path) -> None:
    assert find_meter("cpu", tmp_path / "none") == f"no {tmp_path / 'none'} (RAPL)"
    assert find_meter("cpu", tmp_path) == f"no CPU package in {tmp_path}"
    broken = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (broken / "energy_uj").unlink()
    assert "No such file" in str(find_meter("cpu", tmp_path))


@without_gpu
def test_a_gpu_s_power_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert find_meter("NVIDIA A10") == "neither NVML nor nvidia-smi reports the GPU's power"


def counter(*readings: float, is_energy: bool = True) -> Meter:
    left = list(readings)

    def read() -> float:
        if not left:
            raise OSError("gone")
        return left.pop(0)

    return Meter(what="a counter", is_energy=is_energy, read=read)


def test_power_is_energy_over_the_time_of_the_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 10.0, 12.0])
    monkeypatch.setattr("growtas.export.benchmark.power.time.perf_counter", lambda: next(clock))
    metering, taken = Metering({"cpu": counter(5.0, 65.0, 100.0, 120.0)}), Consumption()
    for _ in range(2):
        metering.begin("cpu")
        metering.end("cpu", taken, images=10)
    # 60 J and 20 J in 2 s each; what was used between the turns is not the subject's.
    assert taken.report() == {"watts": 20.0, "joules_per_image": 4.0}
    assert metering.report() == {"cpu": {"readable": True, "by": "a counter"}}


def test_a_moment_s_power_gives_no_energy_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    metering, taken = Metering({"gpu": counter(30.0, is_energy=False)}), Consumption()
    metering.begin("gpu")
    metering.end("gpu", taken, images=10)
    report = taken.report()
    assert report is not None
    assert report["watts"] == pytest.approx(30.0)
    assert report["joules_per_image"] is None


def test_a_counter_that_goes_away_is_told() -> None:
    metering, taken = Metering({"cpu": counter(1.0), "gpu": "no such thing"}), Consumption()
    for _ in range(2):
        metering.begin("cpu")
        metering.end("cpu", taken, images=1)
    metering.begin("gpu")
    metering.end("gpu", taken, images=1)
    assert taken.report() is None
    assert metering.report() == {
        "gpu": {"readable": False, "because": "no such thing"},
        "cpu": {"readable": False, "because": "the counter could no longer be read (gone)"},
    }


@dataclass
class Session:
    image_shape: tuple[int, int, int]


def test_artifacts_are_fed_what_they_take() -> None:
    def images(batch: int, shape: tuple[int, int, int], record: dict[str, Any] | None = None) -> Any:
        manifest = None if record is None else Manifest.from_dict({"input": record})
        return image_input(None, manifest, Session(shape)).images(batch)  # type: ignore[arg-type]

    floats = images(2, (3, 4, 5))
    assert (floats.shape, floats.dtype) == ((2, 3, 4, 5), np.float32)
    uint8 = images(2, (3, 4, 5), {"dtype": "uint8", "shape": ["batch", 4, 5, 3]})
    assert (uint8.shape, uint8.dtype) == ((2, 4, 5, 3), np.uint8)
    assert uint8.max() > 200
    named = images(1, (4, 5, 3), {"dtype": "uint8", "shape": ["batch", "height", "width", 3]})
    assert named.shape == (1, 4, 5, 3)
    assert bytes_moved(floats, 10) == 2 * 60 * 4 + 2 * 10 * 4
    assert bytes_moved(uint8, 10) == 2 * 60 + 2 * 10 * 4
