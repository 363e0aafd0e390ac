from __future__ import annotations

import pytest

from growtas.errors import ConfigError, DeviceError
from growtas.export.tensorrt import builder as builders
from growtas.export.tensorrt import library
from growtas.export.tensorrt.builder import TensorRTBuilder, TensorRTRTXBuilder, choose_builder
from growtas.export.tensorrt.targets import device_target, gpus_with_profiles, parse_targets
from growtas.latency import at_hand


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "local_target", lambda: None)
    monkeypatch.setattr(TensorRTRTXBuilder, "check", lambda self, targets, precision: None)


def choose(target: str | None = None, device: str | None = None, searched: str | None = None) -> tuple[str, tuple[str, ...]]:
    builder, chosen = choose_builder(target=target, device=device, searched_device=searched, precision="fp32")
    return builder.name, chosen


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("sm86", ("sm86",)),
        ("sm86,sm89", ("sm86", "sm89")),
        (" SM_86 , 8.9,sm86", ("sm86", "sm89")),
        ("sm120", ("sm120",)),
        ("12.1", ("sm121",)),
    ],
)
def test_targets_are_read_as_people_write_them(text: str, parsed: tuple[str, ...]) -> None:
    assert parse_targets(text) == parsed


@pytest.mark.parametrize("text", ["", "a10", "sm", "sm86,", "86sm", "sm8666"])
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(DeviceError, match="is not a compute capability; write for example sm86"):
        parse_targets(text)


@pytest.mark.parametrize(
    ("device", "target"), [("a10", "sm86"), ("a6000", "sm86"), ("t4", "sm75"), ("l4", "sm89"), ("a100", "sm80")]
)
def test_a_device_has_its_compute_capability(device: str, target: str) -> None:
    assert device_target(device) == target


def test_unknown_devices_and_the_cpu_are_refused() -> None:
    with pytest.raises(DeviceError, match="a10"):
        device_target("a11")
    with pytest.raises(DeviceError, match=r"cpu can't run TensorRT plans; name a GPU with --device \(.*a10.*\) or --target"):
        device_target("cpu")


def test_what_was_named_goes_before_what_was_searched() -> None:
    assert choose(target="sm89", searched="a10") == ("tensorrt-rtx", ("sm89",))
    assert choose(device="l4", searched="a10") == ("tensorrt-rtx", ("sm89",))
    assert choose(searched="a10") == ("tensorrt-rtx", ("sm86",))
    with pytest.raises(ConfigError, match="give one of them"):
        choose(target="sm86", device="a10")


@pytest.mark.parametrize(("searched", "why"), [(None, "for no device"), ("cpu", "for the cpu")])
def test_without_any_target_the_message_says_what_to_name(searched: str | None, why: str) -> None:
    with pytest.raises(DeviceError, match=f"a plan needs a target GPU, and the subnet was searched {why}: name one with --device"):
        choose(searched=searched)


def test_a_gpu_at_hand_is_the_default_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "local_target", lambda: "sm86")
    assert choose() == ("tensorrt-rtx", ("sm86",))
    assert choose(searched="l4") == ("tensorrt-rtx", ("sm89",))


def test_tensorrt_builds_where_it_and_the_gpu_are_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "local_target", lambda: "sm90")
    monkeypatch.setattr(builders, "is_installed", lambda module: True)
    monkeypatch.setattr(TensorRTBuilder, "check", lambda self, targets, precision: None)
    assert choose() == ("tensorrt", ("sm90",))
    assert choose(target="sm90") == ("tensorrt", ("sm90",))
    assert choose(target="sm86") == ("tensorrt-rtx", ("sm86",))


def test_every_shipped_gpu_is_named() -> None:
    assert {"a10", "a6000", "t4", "l4", "a100", "h100", "orin"} <= set(gpus_with_profiles())


def test_the_gpu_at_hand_needs_no_profile_and_the_search_s_runtime_is_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "local_target", lambda: "sm90")
    monkeypatch.setattr(at_hand, "gpu_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(builders, "is_installed", lambda module: True)
    monkeypatch.setattr(TensorRTBuilder, "check", lambda self, targets, precision: None)
    assert choose(searched="h200") == choose(device="h200") == ("tensorrt", ("sm90",))
    for runtime, built in (("tensorrt-rtx", "tensorrt-rtx"), ("tensorrt", "tensorrt"), ("torch", "tensorrt")):
        builder, targets = choose_builder(
            target=None, device=None, searched_device="h200", precision="fp16", searched_runtime=runtime
        )
        assert (builder.name, targets) == (built, ("sm90",))
    monkeypatch.setattr(at_hand, "gpu_name", lambda: "NVIDIA H100 80GB HBM3")
    with pytest.raises(DeviceError, match="unknown device 'h200'"):
        choose(searched="h200")
