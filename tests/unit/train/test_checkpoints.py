import json
import math
import random
import shutil

import pytest
import torch
import torch.nn.functional as F

from growtas.checkpoint import load_supernet
from growtas.errors import CheckpointError
from growtas.files import read_json, write_json
from growtas.nn.extract import extract
from growtas.nn.supernet import Supernet
from growtas.progress import SILENT, Progress
from growtas.runs import create_run
from growtas.space import load_space
from growtas.train.checkpoints import Place, all_finite, keep_best, load_newest, remove_old, save_checkpoint
from growtas.train.recipe import Recipe
from growtas.train.step import Training


class Remarks(Progress):
    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)


def make_training(space, *, ema=False, seed=0, moment_sets=1, **recipe):
    torch.manual_seed(seed)
    recipe = Recipe(lr=1e-2, ema_decay=0.9 if ema else None, **recipe)
    return Training.of(Supernet(space), recipe, torch.device("cpu"), moment_sets)


def advance(training, subnet, seed=0, moments=0):
    training.prepare_step(1e-2, moments)
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(4, 3, 8, 8, generator=generator), torch.randint(0, 10, (4,), generator=generator)
    training.optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(training.supernet(images, subnet), labels).backward()
    training.optimizer.step()
    if training.average is not None:
        training.average.update(training.supernet)


@pytest.fixture
def space(tiny):
    return load_space(tiny)


@pytest.fixture
def run(space, tmp_path):
    return create_run(tmp_path / "runs", "r", {"space": space.to_dict()})


def assert_same_weights(one, two):
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name


@pytest.mark.parametrize("recipe", [{}, {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.0}])
@pytest.mark.parametrize("ema", [False, True])
def test_a_checkpoint_continues_bit_for_bit(space, run, recipe, ema):
    one, two = make_training(space, ema=ema, **recipe), make_training(space, ema=ema, seed=1, **recipe)
    advance(one, space.smallest)  # the second block has no optimiser state yet
    save_checkpoint(run, one, Place(1, 0, 1), {"chosen": [1.5]}, keep=2)
    place, state = load_newest(run, two, SILENT)
    assert (place.epoch, place.batch, place.step, state) == (1, 0, 1, {"chosen": [1.5]})
    for seed, subnet in enumerate((space.largest, space.smallest, space.largest)):
        advance(one, subnet, seed)
        advance(two, subnet, seed)
    assert_same_weights(one.supernet, two.supernet)
    assert_same_weights(one.result, two.result)


def test_separate_moments_continue_bit_for_bit(space, run):
    one, two = (make_training(space, seed=seed, moment_sets=3) for seed in (0, 1))
    for moments in (0, 2, 2):  # the second set is not used yet
        advance(one, space.largest, moments, moments)
    save_checkpoint(run, one, Place(1, 0, 3), {}, keep=2)
    load_newest(run, two, SILENT)
    for seed, moments in enumerate((1, 0, 2)):
        advance(one, space.largest, seed, moments)
        advance(two, space.largest, seed, moments)
    assert_same_weights(one.supernet, two.supernet)


def test_search_and_export_get_the_average(space, run):
    training = make_training(space, ema=True)
    advance(training, space.largest)
    folder = save_checkpoint(run, training, Place(1), {}, keep=1)
    saved = load_supernet(folder / "supernet.safetensors")
    assert_same_weights(saved, training.average.module)
    assert not torch.equal(saved.head.weight, training.supernet.head.weight)


def test_a_kept_teacher_comes_back(space, run):
    one, two = make_training(space), make_training(space, seed=1)
    one.teacher = extract(one.supernet, space.largest)
    save_checkpoint(run, one, Place(1), {}, keep=1)
    load_newest(run, two, SILENT)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(two.teacher(images), one.teacher(images))
    assert not any(parameter.requires_grad for parameter in two.teacher.parameters())


def test_the_newest_few_are_kept_in_the_order_of_time(space, run):
    training = make_training(space)
    for epoch, batch in ((0, 7), (1, 0), (1, 90), (1, 100), (2, 0)):
        save_checkpoint(run, training, Place(epoch, batch, sums={"loss": 0.1 + 0.2}), {}, keep=3)
        assert load_newest(run, training, SILENT)[0] == Place(epoch, batch, sums={"loss": 0.1 + 0.2})
    names = ["epoch-0001-batch-000090", "epoch-0001-batch-000100", "epoch-0002"]
    assert [path.name for path in run.checkpoints] == names
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == names


def test_a_sum_that_is_no_number_stays_so(space, run):
    training = make_training(space)
    save_checkpoint(run, training, Place(0, 7, sums={"loss": math.nan, "passes": 2.0}), {}, keep=3)
    place, _ = load_newest(run, training, SILENT)
    assert math.isnan(place.sums["loss"])
    assert place.sums["passes"] == 2.0


def test_the_best_stays_when_its_checkpoint_goes(space, run):
    training, weights = make_training(space), {}
    for epoch, score in enumerate((0.2, 0.5, 0.4, 0.5), 1):
        advance(training, space.largest, epoch)
        weights[epoch] = training.supernet.head.weight.detach().clone()
        folder = save_checkpoint(run, training, Place(epoch), {}, keep=1)
        assert keep_best(run, folder, score) == (epoch in (1, 2))
    assert run.best.name == "best-epoch-0002"
    assert len(list((run.path / "checkpoints").iterdir())) == 2
    assert torch.equal(load_supernet(run.best / "supernet.safetensors").head.weight, weights[2])


def test_a_kill_while_old_checkpoints_are_removed_leaves_none_of_them(space, run, monkeypatch):
    """The kill is an exception that ends the removal after its first file."""
    training = make_training(space)
    for epoch in (1, 2):
        folder = save_checkpoint(run, training, Place(epoch), {}, keep=5)
        keep_best(run, folder, epoch / 10)

    class Killed(BaseException):
        pass

    def kill(folder, **options):
        next(file for file in sorted(folder.iterdir(), reverse=True)).unlink()
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("growtas.files.shutil.rmtree", kill)
        save_checkpoint(run, training, Place(3), {}, keep=1)
    monkeypatch.setattr("growtas.files.process_alive", lambda *arguments: False)
    remove_old(run, 1)
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["best-epoch-0002", "epoch-0003"]


@pytest.mark.parametrize("damage", ["truncated", "format", "no file"])
def test_what_cannot_be_read_is_set_aside(space, run, damage):
    training, remarks = make_training(space), Remarks()
    save_checkpoint(run, training, Place(1), {}, keep=5)
    before = {name: value.clone() for name, value in training.supernet.state_dict().items()}
    advance(training, space.largest)
    folder = save_checkpoint(run, training, Place(2), {}, keep=5)
    if damage == "truncated":
        (folder / "trainer.safetensors").write_bytes((folder / "trainer.safetensors").read_bytes()[:-10])
    elif damage == "format":
        write_json(folder / "state.json", {**read_json(folder / "state.json"), "format": "growtas-checkpoint/9"})
    else:
        (folder / "supernet.safetensors").unlink()
    assert load_newest(run, training, remarks)[0].epoch == 1
    assert len(remarks.texts) == 1
    assert "renamed to broken-epoch-0002, and the one before it is loaded" in remarks.texts[0]
    assert_same_weights(training.supernet, type("Before", (), {"state_dict": lambda self: before})())
    assert [path.name for path in run.checkpoints] == ["epoch-0001"]


@pytest.mark.parametrize("file", ["supernet.safetensors", "trainer.safetensors", "state.json"])
def test_a_flipped_bit_is_noticed_wherever_it_is(space, run, file):
    training, random_bits = make_training(space), random.Random(file)
    for _ in range(20):
        save_checkpoint(run, training, Place(1), {}, keep=5)
        folder, remarks = save_checkpoint(run, training, Place(2), {}, keep=5), Remarks()
        content = bytearray((folder / file).read_bytes())
        content[random_bits.randrange(len(content))] ^= 1 << random_bits.randrange(8)
        if file == "state.json" and json_or_none(content) == read_json(folder / file):
            continue  # a blank became another blank
        (folder / file).write_bytes(content)
        assert load_newest(run, training, remarks)[0].epoch == 1
        assert "renamed to broken-epoch-0002" in remarks.texts[0]
        shutil.rmtree(run.path / "checkpoints")


def json_or_none(content):
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_a_checkpoint_of_an_earlier_version_has_no_hashes(space, run):
    folder = save_checkpoint(run, make_training(space), Place(2), {}, keep=5)
    state = {key: value for key, value in read_json(folder / "state.json").items() if key not in ("sha256", "files")}
    write_json(folder / "state.json", state)
    with pytest.raises(CheckpointError, match="has changed since it was written"):
        load_newest(run, make_training(space), SILENT)
    write_json(folder / "state.json", {**state, "format": "growtas-checkpoint/2"})
    assert load_newest(run, make_training(space), SILENT)[0].epoch == 2


def test_other_readers_of_the_weights_notice_it_too(space, run):
    folder = save_checkpoint(run, make_training(space), Place(1), {}, keep=5)
    file = folder / "supernet.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"supernet\.safetensors: the file has changed since it was written"):
        load_supernet(file)


def test_nothing_that_can_be_read(space, run):
    folder = save_checkpoint(run, make_training(space), Place(1), {}, keep=5)
    (folder / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="the checkpoint state is not JSON"):
        load_newest(run, make_training(space), SILENT)
    assert folder.exists()


def test_all_finite(space):
    supernet = Supernet(space)
    assert all_finite(supernet)
    supernet.head.bias.data[3] = float("inf")
    assert not all_finite(supernet)
