import numpy as np
import pytest
import torch

from growtas.checkpoint import load_supernet, save_supernet
from growtas.errors import CheckpointError, ConfigError
from growtas.files import read_json
from growtas.growth import Subspace
from growtas.nn.supernet import Supernet
from growtas.sampling import sample_batch
from growtas.space import load_space
from growtas.train.initial_weights import InitialWeights
from growtas.train.recipe import Recipe
from growtas.train.resolve_recipe import resolve_recipe
from growtas.train.session import resume_session, start_session


@pytest.fixture
def trained(tiny, tmp_path):
    """A run of GrowTAS with A_1 bounded by mlp_ratio, not by the default."""
    options = {
        "space": tiny,
        "epochs": 2,
        "batch_size": 64,
        "warmup_epochs": 0.5,
        "lr": 0.01,
        "subspaces": [[None, 1], [None, None]],
    }
    session = start_session(resolve_recipe(None, options), out=tmp_path / "runs", name="first", device="cpu")
    session.train()
    return session.run


@pytest.mark.parametrize("options", [{"ema_decay": 0.9, "weight_decay": 0.5}, {"optimizer": "sgd", "lr": 0.1}], ids=str)
def test_growtas_plus_leaves_a1_alone(trained, tiny, tmp_path, options):
    recipe = resolve_recipe(
        None,
        {
            "method": "growtas-plus", "init": str(trained.path), "epochs": 2, "batch_size": 64,
            "lr": 0.01, "warmup_epochs": 0, **options,
        },
    )  # fmt: skip
    session = start_session(recipe, out=tmp_path / "runs", name="plus", device="cpu")
    assert (session.recipe.space, session.recipe.data) == (tiny, "digits")
    assert session.recipe.subspaces == ((None, 1), (None, None))  # of the run that it goes on from
    session.train()
    before, after = load_supernet(trained.supernet_file), load_supernet(session.run.supernet_file)
    images = torch.randn(4, 3, 8, 8)
    small, inside, changed = Subspace(max_mlp_ratio=1), 0, 0
    for subnet in list(sample_batch(before.space, 100, np.random.default_rng(0))):
        with torch.no_grad():
            same = torch.equal(before(images, subnet), after(images, subnet))
        # A narrow subnet outside of A_1 may lie in a wide one's entries.
        assert same or not small.holds(subnet), subnet
        inside, changed = inside + small.holds(subnet), changed + (not same)
    assert inside > 5
    assert changed > 20
    record = session.run.info["starts_from"]
    assert record["path"] == str(trained.supernet_file)


def test_a_warm_start_begins_where_the_other_run_ended(trained, tiny, tmp_path):
    options = {"space": tiny, "init": str(trained.supernet_file), "epochs": 1, "batch_size": 64, "warmup_epochs": 0}
    recipe = resolve_recipe(None, options)
    session = start_session(recipe, out=tmp_path / "runs", name="warm", device="cpu")
    saved, source = load_supernet(session.run.path / "init.safetensors"), load_supernet(trained.supernet_file)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in saved.state_dict().items())
    (session.run.path / "init.safetensors").unlink()
    with pytest.raises(Exception, match="stopped before its initial weights were saved; start a new run"):
        resume_session(session.run, device="cpu")


def test_another_number_of_classes_gets_a_new_head(tiny, tmp_path):
    source = Supernet(load_space(tiny))
    save_supernet(tmp_path / "s.safetensors", source)
    supernet = InitialWeights.of(Recipe(space=tiny, init=str(tmp_path / "s.safetensors"))).supernet(Recipe(space=tiny), 3)
    assert supernet.head.weight.shape == (3, 16)
    assert torch.equal(supernet.pos_embed, source.pos_embed)
    plus = Recipe(space=tiny, method="growtas-plus", init="x")
    with pytest.raises(ConfigError, match="10 classes and the data has 3; growtas-plus needs data with the"):
        InitialWeights.of(Recipe(init=str(tmp_path / "s.safetensors"))).supernet(plus, 3)


def test_wrong_starts(tiny, tmp_path):
    with pytest.raises(CheckpointError, match="--init must name a run folder or a supernet.safetensors file; there is neither"):
        InitialWeights.of(Recipe(init=str(tmp_path / "no")))
    save_supernet(tmp_path / "s.safetensors", Supernet(load_space(tiny)))
    with pytest.raises(ConfigError, match="the supernet has the space tiny, not micro"):
        InitialWeights.of(Recipe(init=str(tmp_path / "s.safetensors"))).supernet(Recipe(space="micro"), 10)
    assert not (tmp_path / "runs").exists()


def test_nothing_is_left_when_the_start_is_wrong(tiny, tmp_path):
    recipe = resolve_recipe(None, {"space": tiny, "init": str(tmp_path / "no"), "epochs": 2})
    with pytest.raises(CheckpointError):
        start_session(recipe, out=tmp_path / "runs", device="cpu")
    assert not (tmp_path / "runs").exists()


def test_the_run_says_where_it_started(trained):
    assert read_json(trained.path / "run.json")["starts_from"] is None
