from __future__ import annotations

import ctypes

import pytest

from growtas.latency import at_hand
from growtas.latency.at_hand import cpu_name, device_name, devices_at_hand, gpu_name
from growtas.latency.catalogue import near_name
from growtas.latency.modelled.profile import device_names, shipped_names


@pytest.mark.parametrize(
    ("full_name", "name"),
    [
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "a100-mig-1g-5gb"),
        ("NVIDIA A10-24Q", "a10-24q"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "rtx-4090-laptop"),
        ("NVIDIA GeForce RTX 3060 Ti", "rtx-3060-ti"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40", "l40"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("Orin (nvgpu)", "orin"),
        ("Orin", "orin"),
        ("cpu", "cpu"),
        ("NVIDIA", "gpu"),
    ],
)
def test_a_device_is_called_by_what_the_driver_names_it(full_name, name):
    assert device_name(full_name) == name


def test_every_shipped_profile_is_of_a_device_that_can_be_at_hand():
    drivers = (
        "NVIDIA A10", "NVIDIA A100-SXM4-40GB", "NVIDIA RTX A6000", "NVIDIA H100 80GB HBM3", "NVIDIA L4", "Orin",
        "NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 5090", "Tesla T4",
    )  # fmt: skip
    assert sorted(map(device_name, drivers)) == shipped_names()


def test_the_gpu_at_hand_is_a_device_and_its_name_no_slip_of_another(monkeypatch):
    assert devices_at_hand() == {"cpu": cpu_name()}
    assert near_name("a10g") == "a10"
    monkeypatch.setattr(at_hand, "gpu_name", lambda: "NVIDIA A10G")
    assert devices_at_hand() == {"cpu": cpu_name(), "a10g": "NVIDIA A10G"}
    assert "a10g" in device_names()
    assert near_name("a10g") is None


class Driver:
    """The driver's library, as far as it is asked."""

    def __init__(self, name=None):
        self.name = name

    def __getattr__(self, function):
        def call(*arguments):
            if self.name is None:
                return 100  # CUDA_ERROR_NO_DEVICE
            if function == "cuDeviceGetName":
                arguments[0].value = self.name
            return 0

        return call


@pytest.mark.parametrize(
    ("driver", "name"), [(Driver(b"NVIDIA A10"), "NVIDIA A10"), (Driver(), None), (Driver(b""), None), (None, None)]
)
def test_the_driver_is_asked(monkeypatch, driver, name):
    def load(library):
        if driver is None:
            raise OSError(f"{library}: cannot open shared object file")
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)
    gpu_name.cache_clear()
    try:
        assert gpu_name() == name
    finally:
        gpu_name.cache_clear()
