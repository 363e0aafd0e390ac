"""Fits a profile's efficiency to public latencies.

The reference is ViT-B/16 (224 px, fp16) in FasterTransformer, whose latencies at batch 1, 8, 16 and 32 were published for a T4 and
an A100. For each GPU two numbers are fitted: the reached fraction of the peak arithmetic, and the launch overhead of a kernel, by
least squares on the logarithm of the latency. The memory fraction and the tile are set by hand, because latencies at ViT sizes
hardly depend on them. Devices without a reference get the geometric mean of the two fits.

``python -m tests.evidence.roofline_calibration`` prints the numbers for the shipped profiles; a test compares them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.latency.modelled.profile import Calibration, DeviceProfile, Efficiency, load_profile, shipped_names
from growtas.latency.modelled.roofline import RooflineLatency
from growtas.space import SearchSpace
from growtas.subnet import Subnet

NETWORK = "ViT-B/16, 224 px, FasterTransformer"
PRECISION = "fp16"
BATCHES = (1, 8, 16, 32)
REFERENCE_MS: dict[str, tuple[float, ...]] = {"t4": (3.43, 14.46, 28.77, 57.22), "a100": (1.53, 3.03, 5.30, 10.04)}
START = Efficiency(compute=0.4, memory=0.75, launch_us=5.0, tile_rows=128, tile_cols=64)

VIT_B16 = SearchSpace(name="vit-b16", embed_dim=(768,), num_heads=(12,), mlp_ratio=(4.0,), depth=(12,), max_relative_position=None)


@dataclass(frozen=True)
class Fit:
    """A fitted efficiency and its latencies in milliseconds, one per batch size of ``BATCHES``."""

    efficiency: Efficiency
    modelled_ms: tuple[float, ...]

    def errors(self, reference_ms: tuple[float, ...]) -> NDArray[np.float64]:
        """Returns the relative errors to a reference."""
        return np.asarray(np.array(self.modelled_ms) / np.array(reference_ms) - 1)


def modelled_ms(profile: DeviceProfile, efficiency: Efficiency) -> tuple[float, ...]:
    """Returns the model's ViT-B/16 latencies on a device, one per batch size of ``BATCHES``."""
    profile = dataclasses.replace(profile, efficiency=efficiency)
    subnets = SubnetBatch.from_subnets([Subnet(768, (12,) * 12, (4.0,) * 12)])
    models = (RooflineLatency(profile=profile, space=VIT_B16, batch=b, precision=PRECISION) for b in BATCHES)
    return tuple(float(model.predict_ms(subnets)[0]) for model in models)


def fit_efficiency(profile: DeviceProfile, reference_ms: tuple[float, ...]) -> Fit:
    """Fits compute fraction and launch overhead with the least squared log error, to 0.001 and 0.01 us.

    It refines a grid around its best point, because the latency is a maximum of lines, on which a gradient method may stall.
    """
    best = START
    compute_step, launch_step = 0.1, 2.0
    while compute_step >= 0.001:
        offsets = np.linspace(-2, 2, 11)
        compute = np.round(best.compute + offsets * compute_step, 4)
        launch_us = np.round(best.launch_us + offsets * launch_step, 3)
        grid = itertools.product(compute.tolist(), launch_us.tolist())
        legal = [dataclasses.replace(best, compute=c, launch_us=us) for c, us in grid if 0 < c <= 1 and us >= 0]
        best = min(legal, key=lambda c: float(np.sum((np.log(modelled_ms(profile, c)) - np.log(reference_ms)) ** 2)))
        compute_step, launch_step = compute_step / 2, launch_step / 2
    best = dataclasses.replace(best, compute=round(best.compute, 3), launch_us=round(best.launch_us, 2))
    return Fit(best, tuple(round(ms, 2) for ms in modelled_ms(profile, best)))


def calibrate(profiles: dict[str, DeviceProfile]) -> dict[str, DeviceProfile]:
    """Returns the profiles with fitted efficiencies; ``profiles`` must contain the reference devices."""
    fits = {name: fit_efficiency(profiles[name], reference) for name, reference in REFERENCE_MS.items()}
    mean = dataclasses.replace(
        START,
        compute=round(float(np.exp(np.mean([np.log(fit.efficiency.compute) for fit in fits.values()]))), 3),
        launch_us=round(float(np.exp(np.mean([np.log(fit.efficiency.launch_us) for fit in fits.values()]))), 2),
    )
    swapped = [
        np.array(modelled_ms(profiles[name], fits[other].efficiency)) / np.array(REFERENCE_MS[name]) - 1
        for name, other in itertools.permutations(fits, 2)
    ]
    transfer = round(float(np.max(np.abs(swapped))), 3)
    result = {}
    for name, profile in profiles.items():
        fit = fits.get(name)
        calibration = Calibration(
            network=NETWORK,
            precision=PRECISION,
            batches=BATCHES,
            reference_ms=REFERENCE_MS.get(name, ()),
            modelled_ms=fit.modelled_ms if fit else (),
            max_error=round(float(np.max(np.abs(fit.errors(REFERENCE_MS[name])))), 3) if fit else transfer,
            own_reference=fit is not None,
        )
        result[name] = dataclasses.replace(profile, efficiency=fit.efficiency if fit else mean, calibration=calibration)
    return result


if __name__ == "__main__":
    import sys

    shipped = {name: load_profile(name) for name in shipped_names()}
    sys.stdout.write(json.dumps([profile.to_dict() for profile in calibrate(shipped).values()], indent=2) + "\n")
