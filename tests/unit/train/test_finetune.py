import json
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from growtas import Architecture, SearchSpace, Subnet, VisionTransformer, extract
from growtas.checkpoint import load_supernet, save_model
from growtas.data.evaluation import EvaluationSet
from growtas.data.preprocess import evaluation_transform
from growtas.errors import CheckpointError, ConfigError, DataError, SubnetError, UsageError
from growtas.export.formats import SUFFIXES
from growtas.files import read_json_lines, sha256
from growtas.progress import Progress
from growtas.runs import Run
from growtas.train.events import EpochDone
from growtas.train.finetune import load_pretrained, start_finetune
from growtas.train.recipes.finetuning import finetune_recipe
from growtas.train.resolve_recipe import resolve_finetune
from growtas.train.session import resume_session
from growtas.train.strategies import make_strategy
from tests.export_helpers import SUBNET, add_search, make_run
from tests.reference import PLAIN, count_correct, plain_space

SPACE = SearchSpace(
    name="tiny", embed_dim=(8, 16), num_heads=(1, 2), mlp_ratio=(1.0, 2.0), depth=(1, 2), head_dim=8, image_size=8, patch_size=4,
    num_classes=10, max_relative_position=1,
)  # fmt: skip
MIXED = Subnet(16, (1, 2), (2.0, 1.0))
"""A subnet whose blocks differ: its one-subnet space has choices that make others."""


def model_file(path, subnet=MIXED, seed=0, original=SPACE, **manifest):
    """A model with a manifest as `growtas export` writes them."""
    torch.manual_seed(seed)
    model = VisionTransformer(Architecture.of(original, subnet))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    save_model(path, model)
    path.with_name(path.name + ".json").write_text(json.dumps(manifest))
    return path


def image_folder(path, classes=3, size=20, count=12):
    """Coloured squares: the class is in the place and the colour."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        (path / f"class{label}").mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 60, (size, size, 3), dtype=np.uint8)
            pixels[4 * label : 4 * label + 8, :8, label % 3] = 255
            Image.fromarray(pixels).save(path / f"class{label}" / f"{index}.png")
    return path


def quick(folder, **changes):
    return finetune_recipe(str(folder), 8).override({"epochs": 2, "batch_size": 8, "amp": "fp32", **changes})


@pytest.fixture
def folder(tmp_path):
    return image_folder(tmp_path / "images")


def test_a_model_is_found_by_its_file_its_artifacts_and_its_folder(tmp_path):
    record = {"mean": [0.5] * 3, "std": [0.5] * 3}
    path = model_file(tmp_path / "net.safetensors", space="tiny", preprocess=record, class_names=["a", "b"])
    names = ("net.onnx", "net.onnx.json", "net.plan", "net.pt2", "net.xml")
    for name in names:
        (tmp_path / name).write_text("")
    want = path.read_bytes()
    for given in (path, tmp_path, str(path), *(tmp_path / name for name in names)):
        start = load_pretrained(given, suffixes=SUFFIXES)
        assert (start.name, start.weights, start.preprocess, start.class_names) == ("tiny", path, record, ("a", "b"))
        save_model(tmp_path / "again", start.model)
        assert (tmp_path / "again").read_bytes() == want
    path.with_name("net.safetensors.json").unlink()
    start = load_pretrained(path)
    assert (start.name, start.preprocess, start.class_names) == ("net", None, None)


def test_a_run_gives_the_subnet_of_its_search_or_another_one(tmp_path):
    run = make_run(tmp_path)
    with pytest.raises(UsageError, match="no subnet was searched yet"):
        load_pretrained(run.path)
    add_search(run)
    start = load_pretrained(run.path)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(start.model(images), load_supernet(run.supernet_file)(images, SUBNET))
    assert (start.name, start.weights) == ("tiny", run.supernet_file)
    assert start.class_names == tuple("0123456789")
    assert start.preprocess == run.info["preprocess"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(Subnet(24, (1,), (2.0,)).to_dict()))
    assert load_pretrained(run.path, other).model.embed_dim == 24
    other.write_text(json.dumps(Subnet(24, (3,), (2.0,)).to_dict()))
    with pytest.raises(SubnetError, match="num_heads of block 0 is 3"):
        load_pretrained(run.path, other)
    with pytest.raises(CheckpointError, match="whole supernet"):
        load_pretrained(run.supernet_file)


def test_what_is_no_model(tmp_path):
    with pytest.raises(CheckpointError, match="no such run, model or artifact"):
        load_pretrained(tmp_path / "absent.onnx", suffixes=SUFFIXES)
    with pytest.raises(CheckpointError, match="neither a run nor a model in this folder"):
        load_pretrained(tmp_path)
    (tmp_path / "net.onnx").write_text("")
    with pytest.raises(CheckpointError, match=r"there is no model net.safetensors beside it"):
        load_pretrained(tmp_path / "net.onnx", suffixes=SUFFIXES)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(
        CheckpointError, match=r"not a model; name a run folder, or a \.safetensors, \.pt2, \.onnx, \.xml or \.plan"
    ):
        load_pretrained(tmp_path / "notes.txt", suffixes=SUFFIXES)
    one, two = (model_file(tmp_path / f"{name}.safetensors") for name in "ab")
    with pytest.raises(CheckpointError, match=r"2 models \(a.safetensors or b.safetensors\)"):
        load_pretrained(tmp_path)
    with pytest.raises(UsageError, match="a subnet file needs a run"):
        load_pretrained(one, tmp_path / "subnet.json")
    two.write_bytes(two.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="truncated"):
        load_pretrained(two)


def test_the_run_holds_the_model_alone(tmp_path, folder):
    start = load_pretrained(model_file(tmp_path / "net.safetensors", space="tiny"))
    session = start_finetune(start, quick(folder, image_size=16), out=tmp_path / "runs", name="r", device="cpu")
    info, space = session.run.info, session.run.space
    assert (space.name, space.num_classes, space.image_size, space.max_relative_position) == ("tiny-finetuned", 3, 16, 2)
    assert (space.embed_dim, space.num_heads, space.depth) == ((16,), (1, 2), (2,))
    assert info["finetune"]["weights_sha256"] == sha256(tmp_path / "net.safetensors")
    assert info["finetune"]["image_size"] == [8, 16]
    assert info["finetune"]["head"] == "new"
    assert (info["method"], info["recipe"]["space"]) == ("finetune", "tiny-finetuned")
    assert Subnet.load(session.run.path / "search" / "subnet.json") == MIXED
    strategy = make_strategy(session.recipe, space)
    assert [chosen.subnet for step in range(5) for chosen in strategy.draw(step, 0.0)] == [MIXED] * 5


@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_vit_is_trained_at_another_size_and_stays_one(tmp_path, folder, kind):
    start = load_pretrained(model_file(tmp_path / "net.safetensors", original=plain_space(SPACE, kind)))
    session = start_finetune(start, quick(folder, image_size=16, epochs=1), out=tmp_path / "runs", device="cpu")
    session.train()
    model = extract(load_supernet(session.run.supernet_file), MIXED)
    changes = {"image_size": 16, "num_classes": 3}
    assert model.architecture.geometry == {**Architecture.of(plain_space(SPACE, kind), MIXED).geometry, **changes}
    test = EvaluationSet(session.data.test, session.run.info["preprocess"], session.data.class_names)
    assert session.run.info["finetune"]["test_accuracy"] == count_correct(model, test) / len(test)


def test_the_first_weights_are_the_models(tmp_path, folder):
    """Everything but the head, and with another normalisation the same features."""
    old = {
        "image_size": 8,
        "in_chans": 3,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.5, 0.25, 0.2],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
    }
    start = load_pretrained(model_file(tmp_path / "net.safetensors", preprocess=old))
    session = start_finetune(start, quick(folder), out=tmp_path / "runs", device="cpu")
    first = extract(load_supernet(session.run.path / "init.safetensors"), MIXED)
    picture = Image.open(next(folder.rglob("*.png")))
    with torch.no_grad():
        want = start.model.forward_features(evaluation_transform(old)(picture)[None])
        got = first.forward_features(evaluation_transform(session.run.info["preprocess"])(picture)[None])
    assert session.run.info["preprocess"]["mean"] != old["mean"]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert first.head.weight.shape == (3, 16)
    assert not first.head.bias.any()
    assert 0.01 < first.head.weight.std() < 0.03


def test_the_head_is_kept_for_the_same_classes_only(tmp_path, folder):
    names = [f"class{label}" for label in range(3)]
    files = {
        same: model_file(tmp_path / f"{same}.safetensors", class_names=names if same else ["x", "y", "z"]) for same in (True, False)
    }
    for same, path in files.items():
        start = load_pretrained(path)
        with torch.no_grad():
            start.model.reset_classifier(3)
            start.model.head.weight.fill_(5)
        session = start_finetune(start, quick(folder), out=tmp_path / "runs", device="cpu")
        head = load_supernet(session.run.path / "init.safetensors").head.weight
        assert bool((head == 5).all()) is same
        assert session.run.info["finetune"]["head"] == ("kept" if same else "new")


@pytest.mark.parametrize(("given", "want"), [(None, [0, 4095]), ([0, 1023], [0, 1023])])
def test_the_models_range_of_pixels_is_the_default(tmp_path, folder, given, want):
    record = {"mean": [0.5] * 3, "std": [0.5] * 3, "decode": {"version": 1, "pixel_range": [0, 4095]}}
    start = load_pretrained(model_file(tmp_path / "model.safetensors", preprocess=record))
    recipe = quick(folder, **({"pixel_range": given} if given else {}))
    session = start_finetune(start, recipe, out=tmp_path / "runs", device="cpu")
    assert session.run.info["preprocess"]["decode"]["pixel_range"] == want


def test_grey_models_and_colours(tmp_path, folder):
    start = load_pretrained(model_file(tmp_path / "net.safetensors", preprocess={"mean": [0.5] * 3, "std": [0.5] * 3}))
    session = start_finetune(start, quick(folder), out=tmp_path / "runs", device="cpu", in_chans=1)
    assert session.run.space.in_chans == session.run.info["preprocess"]["in_chans"] == 1
    first = extract(load_supernet(session.run.path / "init.safetensors"), MIXED)
    grey = Image.open(next(folder.rglob("*.png"))).convert("L")
    old = {"image_size": 8, "in_chans": 3, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0}
    with torch.no_grad():
        want = start.model.forward_features(evaluation_transform(old)(grey)[None])
        got = first.forward_features(evaluation_transform(session.run.info["preprocess"])(grey)[None])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_training_changes_the_subnet_and_nothing_else(tmp_path, folder):
    start = load_pretrained(model_file(tmp_path / "net.safetensors"))
    session = start_finetune(start, quick(folder, lr=0.01, epochs=6), out=tmp_path / "runs", device="cpu")
    before = load_supernet(session.run.path / "init.safetensors").state_dict()
    session.train()
    after = load_supernet(session.run.supernet_file).state_dict()
    inside = extract(load_supernet(session.run.supernet_file), MIXED).state_dict()
    for name, value in after.items():
        assert not torch.equal(value, before[name]) or name.endswith("head.bias"), name
        region = tuple(slice(0, size) for size in inside[name].shape)
        outside = torch.ones_like(value, dtype=torch.bool)
        outside[region] = False
        assert not value[outside].any(), name
    losses = [line["loss"] for line in read_json_lines(session.run.path / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    accuracy = session.run.info["finetune"]["test_accuracy"]
    model = extract(load_supernet(session.run.supernet_file), MIXED)
    test = EvaluationSet(session.data.test, session.run.info["preprocess"], session.data.class_names)
    assert accuracy == count_correct(model, test) / len(test)
    assert accuracy > 0.6  # three classes that a colour tells apart


@pytest.mark.parametrize("space", [SPACE, plain_space(SPACE, "mean")], ids=lambda space: space.name)
def test_a_stopped_run_goes_on_as_any_other(tmp_path, folder, space):
    start = load_pretrained(model_file(tmp_path / "net.safetensors", original=space))
    whole = start_finetune(start, quick(folder), out=tmp_path / "runs", name="whole", device="cpu")
    whole.train()
    stopped = start_finetune(start, quick(folder), out=tmp_path / "runs", name="stopped", device="cpu")

    class Stop(Progress):
        def event(self, event):
            if isinstance(event, EpochDone):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.train(Stop())
    resume_session(Run(stopped.run.path), device="cpu").train()
    one, two = (load_supernet(session.run.supernet_file).state_dict() for session in (whole, stopped))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_stopped_in_its_last_measuring_it_is_not_finished(tmp_path, folder, monkeypatch):
    start, images = load_pretrained(model_file(tmp_path / "net.safetensors")), EvaluationSet.images
    session = start_finetune(start, quick(folder), out=tmp_path / "runs", device="cpu")

    def signalled(self, first, stop):
        lines = read_json_lines(session.run.path / "metrics.jsonl")
        if lines and lines[-1]["epoch"] == session.recipe.epochs:
            signal.raise_signal(signal.SIGINT)
        return images(self, first, stop)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(EvaluationSet, "images", signalled)
        session.train()
    assert session.run.info["state"] == "interrupted"
    resume_session(Run(session.run.path), device="cpu").train()
    info = session.run.info
    assert info["state"] == "finished"
    assert 0 < info["finetune"]["test_accuracy"] <= 1


def test_the_seed_decides_the_head(tmp_path, folder):
    start, heads = load_pretrained(model_file(tmp_path / "net.safetensors")), []
    for seed in (1, 1, 2):
        session = start_finetune(start, quick(folder, seed=seed), out=tmp_path / "runs", device="cpu")
        heads.append(load_supernet(session.run.path / "init.safetensors").head.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_recipes(tmp_path):
    recipe = resolve_finetune(28, None, {"data": "digits", "lr": 3e-4, "epochs": 10})
    assert (recipe.method, recipe.lr, recipe.epochs, recipe.augment, recipe.warmup_epochs) == ("finetune", 3e-4, 10, "light", 0.5)
    assert resolve_finetune(224, None, {"data": "photos"}).augment == "paper"
    named = resolve_finetune(224, "transfer-cifar10")
    assert (named.optimizer, named.data) == ("sgd", "torch/cifar10")
    file = tmp_path / "recipe.yaml"
    file.write_text("data: somewhere\nlr: 1e-5\n")
    assert resolve_finetune(28, None, {"lr": 2e-5}, config=file).lr == 2e-5
    assert resolve_finetune(28, config=file).data == "somewhere"
    for arguments, match in (
        ({}, "name a data set with --data"),
        ({"fields": {"data": "digits"}, "recipe": "digits-demo"}, "run it with `growtas train`"),
        ({"fields": {"data": "digits", "epochs": 0}}, "epochs is 0"),
    ):
        with pytest.raises(ConfigError, match=match):
            resolve_finetune(28, **arguments)


@pytest.mark.parametrize(
    ("changes", "arguments", "error", "match"),
    [
        ({"method": "uniform"}, {}, ConfigError, "method is uniform; a fine-tuning needs the method finetune"),
        ({"init": "somewhere"}, {}, ConfigError, "init is set"),
        ({"image_size": 10}, {}, ConfigError, "image_size is 10; it must be a multiple"),
        ({"data": "no-such"}, {}, DataError, "no-such"),
        ({}, {"name": "a/b"}, UsageError, "plain folder name"),
    ],
)
def test_wrong_input_makes_no_run(tmp_path, folder, changes, arguments, error, match):
    start = load_pretrained(model_file(tmp_path / "net.safetensors"))
    with pytest.raises(error, match=match):
        start_finetune(start, quick(folder, **changes), out=tmp_path / "runs", device="cpu", **arguments)
    assert not (tmp_path / "runs").exists()
