"""Import of timm's ViTs: the same logits, the order of the parts, and the refusal of what has no counterpart."""

from __future__ import annotations

import contextlib
import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from growtas import api
from growtas.checkpoint import load_model, load_supernet
from growtas.cli.app import app
from growtas.errors import CheckpointError, ConfigError, DataError, SpaceError
from growtas.nn.extract import extract
from growtas.nn.importance import by_magnitude, by_taylor, reorder
from growtas.nn.principal import rotate_to_principal
from growtas.runs import Run
from growtas.subnet import Subnet
from growtas.timm_vit import convert, create_timm, elastic_space, import_timm

SIZE = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 4, "num_classes": 10}
VARIANTS = {
    "deit": {},
    "grey": {"in_chans": 1},
    "deit3": {"init_values": 1e-2, "no_embed_class": True},
    "registers": {"reg_tokens": 4, "no_embed_class": True},
    "registers with positions": {"reg_tokens": 2},
    "average": {"global_pool": "avg", "class_token": False, "reg_tokens": 4, "no_embed_class": True},
    "average without prefix": {"global_pool": "avg", "class_token": False},
    "norm before the average": {"global_pool": "avg", "fc_norm": False},
    "no biases": {"qkv_bias": False, "proj_bias": False},
    "qk_norm": {"qk_norm": True, "init_values": 0.1},
    "no positions": {"pos_embed": "none"},
    "odd ratio": {"mlp_ratio": 3.7362},
}


def timm_model(**options):
    """A model of timm with random weights, in which also biases, norms and scales are random."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", **{**SIZE, **options}).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def images_for(model, count=6):
    patches = model.patch_embed
    size = patches.img_size if hasattr(patches, "img_size") else 2 * [model.architecture.image_size]
    shape = (count, getattr(patches, "proj", patches).in_channels, *size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def difference(model, other, images):
    with torch.no_grad():
        want, got = model(images), other(images)
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_converted_model_and_every_reordering_have_timms_logits(variant):
    model = timm_model(**VARIANTS[variant])
    images = images_for(model)
    converted = convert(model, variant)
    assert difference(model, converted, images) < 1e-5
    labels = torch.arange(len(images)) % 10
    for importance in (by_magnitude(converted), by_taylor(converted, images, labels, least_depth=2)):
        before = {name: tensor.clone() for name, tensor in converted.state_dict().items()}
        reorder(converted, importance)
        assert difference(model, converted, images) < 1e-5
        assert any(not torch.equal(tensor, before[name]) for name, tensor in converted.state_dict().items())
    rotate_to_principal(converted, images, (7, 16, 24, 32))
    assert difference(model, converted, images) < 1e-5


@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_patch16_224",
        "vit_tiny_patch16_224",
        "vit_small_patch32_224",
        "deit3_small_patch16_224",
        "vit_wee_patch16_reg1_gap_256",
    ],
)
def test_named_models_have_timms_logits(name):
    model = create_timm(name, "random")
    assert difference(model, convert(model, name), images_for(model, 1)) < 1e-5


def importable():
    """The names of timm's plain ViTs of at most 100 M parameters, without those that have a foreign part."""
    names = []
    for name in timm.list_models(["vit_*", "deit_*", "deit3_*"]):
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=10)
            with contextlib.suppress(ConfigError):
                convert(model, name)
                if sum(parameter.numel() for parameter in model.parameters()) < 100e6:
                    names.append(name)
    return names


@pytest.mark.slow
def test_every_plain_vit_of_timm_keeps_its_logits_and_reordered_and_rotated_too():
    names = importable()
    assert len(names) > 40
    assert {"vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_gap_224", "deit3_medium_patch16_224"} <= set(names)
    wrong = {}
    for name in names:
        model = timm.create_model(name, num_classes=10).eval()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        converted, images = convert(model, name), images_for(model, 1)
        errors = [difference(model, converted, images)]
        reorder(converted, by_magnitude(converted))
        errors.append(difference(model, converted, images))
        rotate_to_principal(converted, images, (converted.embed_dim // 2, converted.embed_dim))
        errors.append(difference(model, converted, images))
        if max(errors) > 1e-5:
            wrong[name] = errors
    assert not wrong


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("resnet18", {}, "its class ResNet"),
        ("deit_tiny_distilled_patch16_224", {}, "VisionTransformerDistilled"),
        ("vit_tiny_r_s16_p8_224", {}, "patch_embed .HybridEmbed"),
        ("vit_tiny_patch16_224", {"pre_norm": True}, "norm_pre"),
        ("vit_tiny_patch16_224", {"global_pool": "map"}, "the pooling 'map'"),
        ("vit_tiny_patch16_224", {"global_pool": "max"}, "the pooling 'max'"),
        ("vit_tiny_patch16_224", {"act_layer": "gelu_tanh"}, "the activation GELUTanh"),
        ("vit_tiny_patch16_224", {"norm_layer": "rmsnorm"}, "the norms of blocks.0 .RmsNorm"),
        ("vit_tiny_patch16_224", {"scale_mlp_norm": True}, "blocks.0.mlp"),
        ("vit_tiny_patch16_224", {"scale_attn_norm": True}, "blocks.0.attn"),
        ("vit_tiny_patch16_224", {"num_classes": 0}, "the head Identity"),
        ("vit_tiny_patch16_224", {"in_chans": 5}, "images of 5 channels"),
        ("vit_tiny_patch16_224", {"img_size": (224, 192)}, "not square"),
        ("vit_tiny_patch16_224", {"final_norm": False}, "a head without exactly one norm"),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "pool_include_prefix": True}, "pool_include_prefix"),
    ],
)
def test_what_has_no_counterpart_is_named(name, options, part):
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    with pytest.raises(ConfigError, match=f"{name}: growtas has no counterpart for .*{part}"):
        convert(model, name)


def taylor_reference(model, images, labels):
    """The same scores by explicit gates: the squared derivative of each image's loss by a factor on each part's output."""
    heads = torch.zeros(len(model.blocks), model.blocks[0].attn.num_heads)
    neurons = torch.zeros(len(model.blocks), model.blocks[0].fc1.out_features)
    channels = torch.zeros(model.embed_dim)
    for image, label in zip(images, labels, strict=True):
        gates = [torch.ones_like(part, requires_grad=True) for part in (heads, neurons, channels)]

        def run(x, gates=gates):
            head_gates, neuron_gates, channel_gates = gates
            x = model.embed(x)
            for index, block in enumerate(model.blocks):
                qkv = block.attn.qkv(block.norm1(x) * channel_gates)
                attended = block.attn.attend(qkv, block.attn.num_heads)
                x = x + block.attn.proj(attended * head_gates[index].repeat_interleave(block.attn.head_dim))
                hidden = nn.functional.gelu(block.fc1(block.norm2(x) * channel_gates))
                x = x + block.fc2(hidden * neuron_gates[index])
            return model.head((model.norm(x) * channel_gates)[:, 0])

        loss = nn.functional.cross_entropy(run(image[None]), label[None])
        for total, grad in zip((heads, neurons, channels), torch.autograd.grad(loss, gates), strict=True):
            total += grad.square()
    return heads, neurons, channels


def test_taylor_scores_are_squared_derivatives_by_gates():
    model = convert(timm_model(), "deit")
    images, labels = images_for(model, 5), torch.tensor([0, 3, 5, 7, 9])
    got = by_taylor(model, images, labels, least_depth=4)
    heads, neurons, channels = taylor_reference(model, images, labels)
    torch.testing.assert_close(torch.stack(got.heads).float(), heads)
    torch.testing.assert_close(torch.stack(got.neurons).float(), neurons)
    torch.testing.assert_close(got.channels.float(), channels)


@torch.no_grad()
def greedy_order(model, images, labels):
    """The blocks of a model of four, of which two are dropped one after the other, whichever leaves the smallest loss."""

    def loss_without(*dropped):
        x = model.embed(images)
        for index, block in enumerate(model.blocks):
            x = x if index in dropped else block(x)
        return float(nn.functional.cross_entropy(model.forward_head(model.norm(x)), labels))

    first = min(range(4), key=loss_without)
    second = min((i for i in range(4) if i != first), key=lambda i: loss_without(first, i))
    return (*(i for i in range(4) if i not in (first, second)), second, first)


def test_the_block_without_which_the_loss_is_smallest_is_dropped_first():
    model = convert(timm_model(), "deit")
    images, labels = images_for(model, 40), torch.arange(40) % 10
    assert by_taylor(model, images, labels, least_depth=2).blocks == greedy_order(model, images, labels)


def test_the_order_of_blocks_comes_from_images_of_all_classes():
    model = convert(timm_model(), "deit")
    # Sorted by class, as a folder's are; with these classes, the losses that decide differ by 0.06 and more.
    images, labels = images_for(model, 40), (torch.arange(40) // 4 + 1) % 10
    spaced = torch.linspace(0, 39, 10).round().long()
    want = greedy_order(model, images[spaced], labels[spaced])
    assert want != greedy_order(model, images[:10], labels[:10])
    assert by_taylor(model, images, labels, least_depth=2, block_images=10).blocks == want


def test_the_order_makes_the_leading_parts_those_with_the_highest_scores():
    model = convert(timm_model(), "deit")
    importance = by_taylor(model, images_for(model), torch.arange(6), least_depth=4)
    reorder(model, importance)
    again = by_taylor(model, images_for(model), torch.arange(6), least_depth=4)
    for scores in (again.channels, *again.heads, *again.neurons):
        assert torch.all(scores[:-1] >= scores[1:] * (1 - 1e-4))


@pytest.mark.parametrize("variant", VARIANTS)
def test_leading_channels_are_the_principal_directions_at_every_width(variant):
    model, widths = convert(timm_model(**VARIANTS[variant]), variant), (5, 16, 24, 32)
    images = images_for(model, 40)
    before = tokens_after_norms(model, images)
    rotate_to_principal(model, images, widths)
    after = tokens_after_norms(model, images)
    for width in widths:
        left = after[:, :width] - after[:, :width].mean(1, keepdim=True)
        # What a LayerNorm over the leading channels keeps: the width - 1 largest of the original variances; more is impossible.
        largest = torch.linalg.svdvals(before).square()[: width - 1].sum()
        torch.testing.assert_close(left.square().sum(), largest, rtol=1e-4, atol=0)


def tokens_after_norms(model, images):
    """What the norms of a network put out, without their weights: all tokens of all norms, ``(n, dim)``."""
    outputs = []

    def keep(norm, inputs, _):
        outputs.append(torch.nn.functional.layer_norm(*inputs, [32], eps=norm.eps))

    hooks = [
        norm.register_forward_hook(keep)
        for norm in (model.norm, *(norm for block in model.blocks for norm in (block.norm1, block.norm2)))
    ]
    with torch.no_grad():
        model.double()(images.double())
    model.float()
    for hook in hooks:
        hook.remove()
    return torch.cat([output.reshape(-1, 32) for output in outputs])


@pytest.mark.parametrize(
    ("name", "widths", "heads", "depths"),
    [
        ("deit_tiny_patch16_224", (96, 128, 160, 192), (2, 3), (9, 10, 11, 12)),
        ("deit_small_patch16_224", (192, 256, 320, 384), (4, 5, 6), (9, 10, 11, 12)),
        ("vit_base_patch16_224", (384, 512, 640, 768), (8, 9, 11, 12), (9, 10, 11, 12)),
    ],
)
def test_the_default_space(name, widths, heads, depths):
    with torch.device("meta"):
        architecture = convert(timm.create_model(name), name).architecture
    space = elastic_space(architecture, name)
    assert (space.embed_dim, space.num_heads, space.depth) == (widths, heads, depths)
    assert space.mlp_ratio == (2.0, 2.5, 3.0, 3.5, 4.0)
    assert space.largest == architecture.subnet
    smallest, largest = (api.count_costs(space, subnet).macs for subnet in (space.smallest, space.largest))
    assert 0.15 < smallest / largest < 0.3


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A model of digits' size, imported with images: the model, and the run."""
    folder = tmp_path_factory.mktemp("imported")
    model = timm_model(in_chans=1)
    save_file(model.state_dict(), folder / "weights.safetensors")
    arguments = ["import", "timm", "vit_tiny_patch16_224", "--weights", str(folder / "weights.safetensors"), "--data", "digits"]
    options = [f"--model-kwargs={key}={SIZE[key]}" for key in ("patch_size", "embed_dim", "depth", "num_heads")]
    result = CliRunner().invoke(
        app, [*arguments, *options, "--images", "64", "--out", str(folder / "runs"), "--name", "i", "--json"]
    )
    assert result.exit_code == 0, result.output
    return model, Run(folder / "runs" / "i"), json.loads(result.stdout)


def test_an_imported_run(imported):
    model, run, printed = imported
    supernet = load_supernet(run.supernet_file)
    images = images_for(model)
    assert difference(model, extract(supernet, run.space.largest), images) < 1e-5
    assert run.space.image_size == 8  # that of the weights' positions
    assert run.space.num_classes == 10
    assert sorted(run.space.block_order) == [0, 1, 2, 3]
    assert run.info["preprocess"]["mean"] == [0.5]
    assert run.info["preprocess"]["crop_pct"] == 0.9
    assert run.info["class_names"] == [str(digit) for digit in range(10)]
    assert run.info["importance"] == {"order": "principal", "images": 64}
    assert run.space.full_width_norms
    assert printed["costs"]["largest"]["params"] == api.count_costs(run.space, run.space.largest).params
    scores = json.loads((run.path / "importance.json").read_text())
    assert scores["blocks"] == list(run.space.block_order)
    assert [len(part) for part in scores["heads"]] == [4] * 4


def test_a_shallow_subnet_runs_the_most_important_blocks_in_their_places(imported):
    model, run, _ = imported
    supernet, images = load_supernet(run.supernet_file), images_for(imported[0])
    depth = run.space.depth[0]
    kept = sorted(run.space.block_order[:depth])
    subnet = Subnet(32, (4,) * depth, (4.0,) * depth)
    with torch.no_grad():
        x = model._pos_embed(model.patch_embed(images))
        for index in kept:
            x = model.blocks[index](x)
        want = model.forward_head(model.norm(x))
        torch.testing.assert_close(supernet(images, subnet), want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(extract(supernet, subnet)(images), want, rtol=1e-4, atol=1e-4)


def test_an_imported_run_is_searched_and_trained_with_the_model_as_teacher(imported, tmp_path):
    _, run, _ = imported
    found = api.search(run.path, max_macs=120_000, limit_images=40, population=8, generations=2)
    assert api.count_costs(run.space, found.chosen.subnet).macs <= 120_000
    trained = api.train(init=str(run.path), epochs=1, out=tmp_path, name="t", settings={"warmup_epochs": 0.1})
    info = trained.info
    assert info["space"] == run.info["space"]
    assert info["preprocess"] == run.info["preprocess"]
    assert info["recipe"]["name"] == "elastic"
    assert info["teacher"]["model"] == str(run.path.absolute())
    assert info["data"]["name"] == "digits"


def test_on_data_with_other_classes_the_head_is_new_and_there_is_no_teacher(imported, tmp_path):
    _, run, _ = imported
    for name, shade in (("dark", 40), ("light", 200)):
        for part, count in (("train", 12), ("val", 3)):
            (tmp_path / "two" / part / name).mkdir(parents=True)
            for number in range(count):
                Image.new("L", (8, 8), shade + number).save(tmp_path / "two" / part / name / f"{number}.png")
    trained = api.train(
        init=str(run.path),
        data=str(tmp_path / "two"),
        epochs=1,
        batch_size=8,
        out=tmp_path,
        name="t",
        settings={"warmup_epochs": 0},
    )
    assert trained.space.num_classes == 2
    assert trained.info["recipe"]["teacher"] is None
    assert "teacher" not in trained.info
    before, after = (load_supernet(file) for file in (run.supernet_file, trained.path / "init.safetensors"))
    assert torch.equal(before.patch_embed.weight, after.patch_embed.weight)
    assert after.head.weight.shape == (2, 32)


def test_an_elastic_training_keeps_the_pixel_range_that_is_given(imported, tmp_path):
    _, run, _ = imported
    small = {"warmup_epochs": 0, "monitor_images": 10}
    trained = api.train(init=str(run.path), epochs=1, pixel_range=[0, 100], out=tmp_path, name="t", settings=small)
    assert trained.info["preprocess"]["decode"]["pixel_range"] == [0, 100]
    assert trained.info["preprocess"]["mean"] == run.info["preprocess"]["mean"]


def test_the_number_of_images_is_that_of_the_images_that_were_seen(imported, tmp_path):
    model, *_ = imported
    weights = tmp_path / "w.safetensors"
    save_file(model.state_dict(), weights)
    sizes = {key: SIZE[key] for key in ("patch_size", "embed_dim", "depth", "num_heads")}
    run = import_timm("vit_tiny_patch16_224", weights, data="digits", images=10**6, options=sizes, out=tmp_path)
    split = json.loads((run.path / "split.json").read_text())
    assert run.info["importance"]["images"] == split["train_size"] - len(split["search"])
    with pytest.raises(ConfigError, match="images is 0; it must be 1 or more"):
        import_timm("vit_tiny_patch16_224", weights, data="digits", images=0, options=sizes, out=tmp_path)


def test_bad_input_is_named(imported, tmp_path):
    model, *_ = imported
    weights = tmp_path / "w.safetensors"
    save_file(model.state_dict(), weights)
    sizes = {key: SIZE[key] for key in ("patch_size", "embed_dim", "depth", "num_heads")}
    with pytest.raises(ConfigError, match="timm has no model 'vit_tinny_patch16_224'; did you mean vit_tiny_patch16_224"):
        import_timm("vit_tinny_patch16_224", "random", out=tmp_path)
    with pytest.raises(CheckpointError, match=r"nothing\.pth: there is no such file"):
        import_timm("vit_tiny_patch16_224", tmp_path / "nothing.pth", out=tmp_path)
    with pytest.raises(CheckpointError, match=r"w\.safetensors: the weights don't fit vit_tiny_patch16_224"):
        import_timm("vit_tiny_patch16_224", weights, out=tmp_path)
    with pytest.raises(ConfigError, match="timm can't create vit_tiny_patch16_224"):
        import_timm("vit_tiny_patch16_224", weights, options={"no_such_option": 1}, out=tmp_path)
    with pytest.raises(DataError, match="digits: 10 classes, but the head of vit_tiny_patch16_224 has 7"):
        import_timm("vit_tiny_patch16_224", "random", options={**SIZE, "num_classes": 7}, data="digits", out=tmp_path)
    with pytest.raises(ConfigError, match="order is 'taylor'; legal are magnitude or none without data"):
        import_timm("vit_tiny_patch16_224", "random", options=SIZE, order="taylor", out=tmp_path)
    space = tmp_path / "s.yaml"
    space.write_text("{embed_dim: [16, 24], num_heads: [2, 4], mlp_ratio: [2, 4], depth: [3, 4]}")
    with pytest.raises(SpaceError, match="s: the largest subnet is embed 24, .*the largest choices must be the model's"):
        import_timm("vit_tiny_patch16_224", weights, options=sizes, space=space, out=tmp_path)
    broken = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    broken["norm.weight"][0] = float("nan")
    save_file(broken, weights)
    with pytest.raises(CheckpointError, match=r"norm\.weight contains numbers that are not finite"):
        import_timm("vit_tiny_patch16_224", weights, options=sizes, out=tmp_path)
    torch.save({"head.weight": torch.zeros(1, 1).expand(10, 10**9)}, tmp_path / "expands.pth")
    with pytest.raises(CheckpointError, match=r"expands\.pth: the model's weights can't be read \(head.weight repeats its values"):
        import_timm("vit_tiny_patch16_224", tmp_path / "expands.pth", out=tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_an_exported_plain_vit_is_imported_again(imported, tmp_path):
    model, run, _ = imported
    exported = api.export(run.path, run.space.largest, formats=["torch"], out=tmp_path / "e", name="m")
    again = import_timm("mine", exported[0].path, out=tmp_path, run_name="again")
    assert difference(model, extract(load_supernet(again.supernet_file), again.space.largest), images_for(model)) < 1e-5
    assert again.info["preprocess"] == run.info["preprocess"]
    assert again.info["class_names"] == run.info["class_names"]
    assert again.space.name == "mine"
    uneven = Subnet(24, (4, 3, 4), (4.0, 4.0, 4.0))
    other = api.export(run.path, uneven, formats=["torch"], out=tmp_path / "f", name="m")
    with pytest.raises(CheckpointError, match="different numbers of heads"):
        import_timm("mine", other[0].path, out=tmp_path)


def test_the_largest_subnet_is_exported_by_name(imported, tmp_path):
    model, run, _ = imported
    exported = api.export(run.path, "largest", formats=["torch"], out=tmp_path, name="original")
    assert difference(model, load_model(exported[0].path), images_for(model)) < 1e-5
