"""The plain PyTorch module beside the weights: the same function as growtas' own network, without growtas."""

import ast
import json
import os
import subprocess
import sys

import pytest
import torch

from growtas import Subnet, VisionTransformer
from growtas.checkpoint import save_model
from growtas.export.pipeline.standalone import load_module, module_name, write_module
from growtas.nn.architecture import Architecture
from growtas.nn.vit import random_network
from tests.reference import PLAIN


def architecture(**changes):
    geometry = {"image_size": 32, "patch_size": 4, "in_chans": 3, "num_classes": 7, "head_dim": 16, "max_relative_position": 5}
    return Architecture(subnet=Subnet(48, (1, 3, 2), (2.0, 1.0, 3.5)), **{**geometry, **changes})


def write(folder, model, **described):
    weights = folder / "tiny-subnet.safetensors"
    save_model(weights, model)
    path = folder / f"{module_name('tiny-subnet')}.py"
    write_module(path, model.architecture, weights=weights, **{"preprocess": None, "class_names": None, **described})
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_relative_position": None},
        {"max_relative_position": 14},
        {"max_relative_position": 1},
        {"in_chans": 1, "image_size": 28},
        {"num_classes": 0},
        *({"max_relative_position": None, **changes} for changes in PLAIN.values()),
    ],
)
def test_it_computes_what_the_network_computes(tmp_path, changes):
    model = random_network(architecture(**changes))
    ours = load_module(write(tmp_path, model)).load()
    side, chans = model.architecture.image_size, model.architecture.in_chans
    images = torch.randn(3, chans, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want, got = model(images), ours(images)
    assert not ours.training
    assert want.std() > 1e-3
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def test_its_weights_decide(tmp_path):
    """The comparison above can fail: one table entry that is used moves the logits."""
    model = random_network(architecture())
    path = write(tmp_path, model)
    ours, images = load_module(path).load(), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        before = ours(images)
        ours.blocks[1].attn.relative_value.horizontal[4] += 1
        assert (ours(images) - before).abs().max() > 1e-3 * before.abs().max()


def test_it_runs_without_growtas_and_timm(tmp_path):
    model = random_network(architecture())
    path = write(tmp_path, model)
    code = (
        "import runpy, sys\n"
        "for name in ('growtas', 'timm'): sys.modules[name] = None\n"
        f"runpy.run_path({str(path)!r}, run_name='__main__')\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    params = sum(parameter.numel() for parameter in model.parameters())
    assert json.loads(done.stdout) == {"params": params, "logits": [1, 7]}


def test_names_of_classes_can_not_become_code(tmp_path):
    names = ["'''", "''''", "\\", "\\'''", 'a"b', "c\nd", "ä\u2028", "''' + __import__('os').abort() + '''"]
    preprocess = {"mean": [0.5], "interpolation": "bicubic"}
    path = write(tmp_path, random_network(architecture(num_classes=8)), preprocess=preprocess, class_names=names)
    module = load_module(path)
    assert module.CONFIG["class_names"] == names
    assert module.CONFIG["preprocess"] == preprocess
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if getattr(call.func, "id", "") == "__import__"]


def test_loading_leaves_no_compiled_copy(tmp_path):
    load_module(write(tmp_path, random_network(architecture())))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-subnet.safetensors", "tiny_subnet.py"]


@pytest.mark.parametrize(
    ("name", "module"), [("micro-subnet", "micro_subnet"), ("3d.v2", "vit_3d_v2"), ("class", "vit_class"), ("a b", "a_b")]
)
def test_the_name_can_be_imported(name, module):
    assert module_name(name) == module
    compile(f"import {module}", "x", "exec")


def test_every_parameter_has_the_name_that_growtas_gives_it(tmp_path):
    model = VisionTransformer(architecture())
    ours = load_module(write(tmp_path, model)).load()
    assert set(ours.state_dict()) == set(model.state_dict())


def test_renamed_weights_are_found_by_their_hash(tmp_path):
    model = random_network(architecture())
    path = write(tmp_path, model)
    (tmp_path / "a-decoy.safetensors").write_bytes(b"others")
    (tmp_path / "tiny-subnet.safetensors").rename(tmp_path / "production.safetensors")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want, got = model(images), load_module(path).load()(images)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    (tmp_path / "production.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"tiny-subnet\.safetensors does not exist, and no other"):
        load_module(path).load()
