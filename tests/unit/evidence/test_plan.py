import json

import numpy as np
import pytest
import torch

from growtas import Subnet, Supernet, extract, load_space
from growtas.files import read_json
from growtas.train.plan import make_plan
from growtas.train.recipe import Recipe
from tests.evidence.ledger import SUBNETS
from tests.evidence.plan import EPOCHS, PLAN, RATE, RATES, SEEDS, SETTINGS, Measurements, Training

SPACE = load_space("micro")


def recipe(training):
    return Recipe(**training.recipe_fields(), init="RUN" if training.starts_from else None)


def planned(training):
    return make_plan(recipe(training), SPACE, 50_000, torch.device("cpu"), timed=False)


def test_every_training_has_a_key_of_its_own_and_a_legal_recipe():
    assert len({training.key for training in PLAN}) == len({training.title for training in PLAN}) == len(PLAN)
    for training in PLAN:
        assert planned(training).steps == training.epochs * planned(training).steps_per_epoch
        Measurements(**training.measure)


@pytest.mark.parametrize("seed", SEEDS)
def test_order_of_a_seed(seed):
    of_seed = [training for training in PLAN if training.seed == seed]
    first = [(training.method, training.options.get("transitions"), training.epochs) for training in of_seed[:6]]
    assert first == [
        ("uniform", None, EPOCHS),
        ("growtas", [0.5 * EPOCHS], EPOCHS),
        ("growtas", [0.4 * EPOCHS], EPOCHS),
        ("growtas", [0.8 * EPOCHS], EPOCHS),
        ("growtas", "auto", EPOCHS),
        ("growtas-plus", None, EPOCHS // 10),
    ]
    assert of_seed[5].starts_from == of_seed[1]
    assert [training.method for training in of_seed[6:10]] == ["prenas", "focusformer", "sandwich", "shrinking"]
    experts = {training.name: training.starts_from for training in of_seed if training.method == "tas-lora"}
    assert list(experts.values()) == [of_seed[0], of_seed[1], of_seed[5]]


def test_one_rate_for_all_methods_and_it_was_among_those_tried():
    assert RATE in RATES
    rates = {training.options["lr"] for training in PLAN if training.group != "rate" and not training.starts_from}
    assert rates == {RATE}


def test_equal_steps_and_equal_compute():
    uniform = planned(next(training for training in PLAN if training.name == "uniform"))
    for training in PLAN:
        if training.group == "steps" and not training.starts_from:
            assert planned(training).steps == uniform.steps
        # What a step of the others costs is not known before it.
        if training.group == "compute" and training.method in ("growtas", "sandwich", "vitas"):
            assert planned(training).macs == pytest.approx(uniform.macs, rel=0.08)


@pytest.mark.parametrize("field", ["seed", "epochs", "method", "options", "starts_from"])
def test_a_setting_changes_the_key(field):
    before = Training(name="a", group="steps", method="uniform", seed=0, options=SETTINGS)
    changes = {"seed": 1, "epochs": 3, "method": "sandwich", "options": {**SETTINGS, "lr": 1e-9}, "starts_from": before}
    after = Training(**{**vars(before), field: changes[field]})
    assert after.key != before.key


def test_names_and_measurements_do_not_change_the_key():
    before = Training(name="a", group="steps", method="uniform", seed=0, options=SETTINGS)
    after = Training(name="b", group="compute", method="uniform", seed=0, options=SETTINGS, measure={"band": True})
    assert after.key == before.key


def test_json_form():
    for training in PLAN:
        again = Training.from_dict(json.loads(json.dumps(training.to_dict())))
        assert again.key == training.key
        assert recipe(again) == recipe(training)


def test_the_subnets_that_are_measured():
    """Costs are those of the extracted networks."""
    subnets = read_json(SUBNETS)
    probes = {name: Subnet.from_dict(entry) for name, entry in subnets["probes"].items()}
    assert probes["smallest"] == SPACE.smallest
    assert probes["largest"] == SPACE.largest
    assert [probe.embed_dim for probe in probes.values()] == [32] * 5 + [48] * 4 + [64] * 5
    assert len(set(probes.values())) == 14
    band = subnets["band"]
    params = np.array([entry["params"] for entry in band["subnets"]])
    assert len({Subnet.from_dict(entry) for entry in band["subnets"]}) == 200
    assert band["min_params"] <= params.min() <= params.max() <= band["max_params"]
    supernet = Supernet(SPACE)
    for entry in [*subnets["probes"].values(), *band["subnets"][:20]]:
        subnet = SPACE.validate(Subnet.from_dict(entry), strict=True)
        assert sum(parameter.numel() for parameter in extract(supernet, subnet).parameters()) == entry["params"]
