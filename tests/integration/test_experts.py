"""A supernet with the experts of tas-lora, from the training to a verified file."""

import onnxruntime
import pytest
import torch

from growtas import Subnet, api
from growtas.checkpoint import load_supernet, load_tensors
from growtas.data.evaluation import search_set
from growtas.errors import ConfigError
from growtas.runs import Run
from growtas.search.evaluation.evaluator import SubnetEvaluator
from tests.reference import count_correct

SPACE = (
    "{name: tiny, embed_dim: [8, 16], num_heads: [1, 2], mlp_ratio: [1, 2], depth: [1, 2], head_dim: 8, image_size: 8, "
    "patch_size: 4, max_relative_position: 1}"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a trained run ``first``, and of a run ``second`` with experts for it."""
    folder = tmp_path_factory.mktemp("experts")
    (folder / "tiny.yaml").write_text(SPACE)
    settings = {"space": str(folder / "tiny.yaml"), "batch_size": 64, "lr": 1e-2}
    api.train(method="uniform", settings={**settings, "epochs": 3}, out=folder, name="first")
    api.train(method="tas-lora", init=str(folder / "first"), settings={"epochs": 2, "batch_size": 64}, out=folder, name="second")
    return folder


def test_the_supernet_keeps_its_bits(runs):
    first, second = (load_supernet(Run(runs / name).supernet_file) for name in ("first", "second"))
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name
    assert any(up.abs().max() > 1e-3 for up in second.experts.up.values())
    recipe = Run(runs / "second").info["recipe"]
    assert (recipe["lr"], recipe["warmup_lr"]) == (5e-4, 1e-5)
    assert recipe["warmup_epochs"] == pytest.approx(0.2)


def test_a_search_evaluates_the_merged_subnets(runs):
    run = Run(runs / "second")
    supernet, images = load_supernet(run.supernet_file), search_set(run)
    subnets = [run.space.smallest, run.space.largest, Subnet(16, (1, 2), (2.0, 1.0))]
    with SubnetEvaluator(supernet, images, threads=2) as evaluate:
        found = {subnet: evaluation.accuracy for subnet, evaluation in evaluate(subnets)}
    assert found == {s: count_correct(lambda x, s=s: supernet(x, s), images) / len(images) for s in subnets}


def test_an_export_passes_the_parity_gate_with_the_merged_weights(runs):
    result = api.search(runs / "second", generations=2, population=6)
    *_, artifact = api.export(runs / "second", formats=["onnx"])
    run, subnet = Run(runs / "second"), result.chosen.subnet
    images = search_set(run).images(0, 20)
    with torch.no_grad():
        expected = load_supernet(run.supernet_file)(images, subnet)
        other = load_supernet(Run(runs / "first").supernet_file)(images, subnet)
    session = onnxruntime.InferenceSession(artifact.path)
    (logits,) = (torch.from_numpy(out) for out in session.run(None, {session.get_inputs()[0].name: images.numpy()}))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits, other, atol=1e-3)


def test_a_resumed_training_ends_with_the_same_bits(runs, tmp_path):
    stopped = 0

    class Stop(api.Progress):
        def event(self, event):
            nonlocal stopped
            stopped += 1
            if stopped == 25:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.train(
            method="tas-lora", init=str(runs / "first"), settings={"epochs": 2, "batch_size": 64}, out=tmp_path, name="again",
            progress=Stop(),
        )  # fmt: skip
    api.resume(tmp_path / "again")
    whole, resumed = (load_tensors(run.supernet_file)[0] for run in (Run(runs / "second"), Run(tmp_path / "again")))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_no_training_continues_from_experts(runs, tmp_path):
    with pytest.raises(ConfigError, match="the supernet has experts of tas-lora, and no training continues from such a supernet"):
        api.train(method="uniform", init=str(runs / "second"), out=tmp_path)
