from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from growtas.api.search_precision import compare_with_fp32
from growtas.latency.estimate import Conditions
from growtas.latency.modelled.profile import load_profile
from growtas.latency.modelled.roofline import RooflineLatency
from growtas.search.targets import Target
from growtas.space import PRESETS

MICRO = PRESETS["micro"]


@dataclass(frozen=True)
class Predicted:
    """A model that predicts one latency."""

    ms: float
    runtime: str = "tensorrt"
    kind: str = "modelled"
    relative_uncertainty: float = 0.1

    @property
    def conditions(self):
        return Conditions(device="a10", batch=1, precision="any", runtime=self.runtime)

    def predict_ms(self, batch):
        return np.full(len(batch), self.ms)


@pytest.mark.parametrize(("ms", "said"), [(2.0, "int8 is no faster than fp32 on a10: 2 ms and 1 ms (both modelled)"), (0.5, None)])
def test_predictions_of_one_model_are_compared(ms, said):
    gain = compare_with_fp32(
        "int8", Target(device="a10:int8", estimator=Predicted(ms)), Target(device="a10", estimator=Predicted(1.0)), MICRO.smallest
    )
    assert gain == {
        "device": "a10:int8", "runtime": "tensorrt", "precision": "int8", "ms": ms, "fp32_ms": 1.0, "kind": "modelled",
        "no_faster": said,
    }  # fmt: skip


@pytest.mark.parametrize(
    "other", [Predicted(1.0, "onnxruntime"), RooflineLatency(profile=load_profile("a10"), space=MICRO, precision="fp32"), None]
)
def test_what_differs_between_two_runtimes_or_models_is_no_gain(other):
    assert (
        compare_with_fp32(
            "int8", Target(device="a10", estimator=Predicted(2.0)), Target(device="a10", estimator=other), MICRO.smallest
        )
        is None
    )
