import numpy as np
import pytest

from growtas.files import read_json
from tests.evidence.ledger import SUBNETS
from tests.evidence.plan import Measurements


def make_line(training, shift=0.0):
    """A line as tests.evidence.training writes it; accuracies rise with parameters, and with the shift."""
    probes = read_json(SUBNETS)["probes"]
    wanted = Measurements(**training.measure)
    rng = np.random.default_rng(training.seed)

    def accuracy(params):
        return round(0.8 + params / 5e6 + shift, 4)

    return {
        **training.identity,
        "images": 50_000,
        "steps": 781 * training.epochs,
        "macs": 1e12 * training.epochs,
        "extra_macs": 0.0,
        "transitions": {"epochs": [10.0] if training.method == "growtas" else []},
        "seconds": 60.0 * training.epochs,
        "probes": {name: {"search": accuracy(e["params"]) + 0.01, "test": accuracy(e["params"])} for name, e in probes.items()},
        "searched": [
            {"max_params": limit, "params": limit - 10, "subnet": {}, "search": accuracy(limit) + 0.02, "test": accuracy(limit)}
            for limit in wanted.limits
        ],
        "band": rng.uniform(0.8, 0.9, 200).tolist() if wanted.band else None,
        "search_images": 10_000,
        "test_images": 10_000,
        "measure_seconds": 100.0,
        "commit": "0" * 40,
        "versions": {"growtas": "0.1.0", "python": "3.11", "torch": "2.14.1", "numpy": "2"},
        "cpu": "a CPU",
        "threads": 1,
    }


@pytest.fixture(name="make_line")
def make_line_fixture():
    return make_line
