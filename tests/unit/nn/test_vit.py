from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from growtas import Architecture, SearchSpace, Subnet, Supernet, VisionTransformer, count_costs, extract, load_space
from growtas.errors import CheckpointError, SubnetError
from growtas.sampling import sample
from tests.reference import PLAIN, naive_relative_attention, plain_space, timm_network

TINY = SearchSpace(
    name="tiny", embed_dim=(24, 32, 48), num_heads=(1, 2, 3), mlp_ratio=(1.5, 2.0, 3.3), depth=(1, 2, 3), head_dim=16,
    image_size=16, patch_size=4, num_classes=5, max_relative_position=2, max_embed_dim=50, max_mlp_ratio=4.0,
)  # fmt: skip
SPACES = {"relative": TINY, **{kind: plain_space(TINY, kind) for kind in PLAIN}}


def random_supernet(space):
    torch.manual_seed(0)
    net = Supernet(space)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.3)
    return net.eval()


@pytest.fixture
def supernet():
    return random_supernet(TINY)


def written_out_logits(state, subnet, images):
    """The network from the formulas alone, with weights sliced one by one as the layout says."""
    d, head_dim, grid, clip = subnet.embed_dim, TINY.head_dim, TINY.grid_size, TINY.max_relative_position
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(len(images), grid * grid, -1)
    x = patches @ state["patch_embed.weight"][:d].reshape(d, -1).T + state["patch_embed.bias"][:d]
    x = torch.cat([state["cls_token"][..., :d].expand(len(images), 1, d), x], 1) + state["pos_embed"][..., :d]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * state[f"{name}.weight"][:d]
            + state[f"{name}.bias"][:d]
        )

    for i, (heads, ratio) in enumerate(zip(subnet.num_heads, subnet.mlp_ratio, strict=True)):
        b, width, hidden = f"blocks.{i}", heads * head_dim, int(d * ratio)
        y = norm(x, f"{b}.norm1")
        rows = state[f"{b}.attn.qkv.weight"][: 3 * width, :d]
        bias = state[f"{b}.attn.qkv.bias"][: 3 * width]
        q, k, v = (
            (y @ rows[part::3].T + bias[part * width : (part + 1) * width]).unflatten(-1, (heads, head_dim)).transpose(1, 2)
            for part in range(3)
        )
        tables = [
            tuple(state[f"{b}.attn.relative_{kind}.{axis}"] for axis in ("vertical", "horizontal")) for kind in ("key", "value")
        ]
        out = naive_relative_attention(q, k, v, tables[0], tables[1], grid, grid, head_dim**-0.5)
        out = out.transpose(1, 2).flatten(2)
        x = x + out @ state[f"{b}.attn.proj.weight"][:d, :width].T + state[f"{b}.attn.proj.bias"][:d]
        y = norm(x, f"{b}.norm2") @ state[f"{b}.fc1.weight"][:hidden, :d].T + state[f"{b}.fc1.bias"][:hidden]
        y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
        x = x + y @ state[f"{b}.fc2.weight"][:d, :hidden].T + state[f"{b}.fc2.bias"][:d]
    pooled = norm(x, "norm")[:, 1:].mean(1)
    assert clip == (state["blocks.0.attn.relative_key.vertical"].shape[0] - 2) // 2
    return pooled @ state["head.weight"][:, :d].T + state["head.bias"]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", SPACES)
def test_supernet_and_extracted_vit_equal_an_independent_network(kind, seed):
    space = SPACES[kind]
    supernet, subnet = random_supernet(space), sample(space, np.random.default_rng(seed))
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    state = {name: tensor.double() for name, tensor in supernet.state_dict().items()}
    vit = extract(supernet, subnet)
    with torch.no_grad():
        if kind == "relative":
            oracle = written_out_logits(state, subnet, images.double())
        else:
            network = timm_network(space, subnet, state)
            oracle = network(images.double())
            assert sum(p.numel() for p in network.parameters()) == count_costs(space, subnet).params
            with FlopCounterMode(display=False) as counter:
                network(images[:1].double())
            assert counter.get_total_flops() == 2 * count_costs(space, subnet).macs
        for logits in (supernet(images, subnet), vit(images)):
            assert ((logits - oracle).abs().max() / oracle.abs().max()).item() < 1e-5
    assert sum(p.numel() for p in vit.parameters()) == count_costs(space, subnet).params


def test_extracted_weights_are_copies(supernet):
    vit = extract(supernet, TINY.smallest)
    before = vit.pos_embed.clone()
    with torch.no_grad():
        supernet.pos_embed.zero_()
    torch.testing.assert_close(vit.pos_embed, before)


def test_supernet_refuses_a_subnet_out_of_bounds(supernet):
    with pytest.raises(SubnetError, match=r"num_heads of block 1 is 4; the choices of tiny are 1, 2 or 3"):
        supernet(torch.zeros(1, 3, 16, 16), Subnet(24, (1, 4), (2.0, 2.0)))


def test_supernet_touches_only_the_slice_of_its_subnet(supernet):
    supernet(torch.randn(2, 3, 16, 16), Subnet(24, (1,), (1.5,))).sum().backward()
    block = supernet.blocks[0]
    for grad, inside in (
        (block.fc1.weight.grad, (36, 24)),
        (block.attn.proj.weight.grad, (24, 16)),
        (supernet.pos_embed.grad, (1, 17, 24)),
    ):
        kept = torch.zeros_like(grad, dtype=torch.bool)
        kept[tuple(slice(0, size) for size in inside)] = True
        assert grad[~kept].abs().sum() == 0
        assert grad[kept].abs().sum() > 0
    assert supernet.blocks[1].fc1.weight.grad is None


def test_vit_behaves_like_a_timm_model():
    torch.manual_seed(0)
    vit = VisionTransformer(Architecture.of(TINY, TINY.largest), drop_path_rate=0.2)
    images = torch.randn(2, 3, 16, 16)
    assert vit.forward_features(images).shape == (2, 17, 48)
    assert vit.forward_head(vit.forward_features(images), pre_logits=True).shape == (2, 48)
    vit.reset_classifier(7)
    assert vit(images).shape == (2, 7)
    assert vit.architecture.num_classes == vit.num_classes == 7
    vit.reset_classifier(0)
    assert vit(images).shape == (2, 48)
    assert [getattr(block.drop_path, "drop_prob", 0.0) for block in vit.blocks] == pytest.approx([0.0, 0.1, 0.2])


def test_drop_path_acts_in_training_only():
    torch.manual_seed(0)
    net, images = Supernet(TINY, drop_path_rate=0.9), torch.randn(8, 3, 16, 16)
    net.eval()
    torch.testing.assert_close(net(images, TINY.largest), net(images, TINY.largest))
    net.train()
    assert not torch.equal(net(images, TINY.largest), net(images, TINY.largest))


@pytest.mark.parametrize("name", ["autoformer-t", "autoformer-s", "micro"])
def test_macs_equal_the_flop_counters(name):
    space = load_space(name)
    for subnet in (space.smallest, sample(space, np.random.default_rng(1))):
        plain = dataclasses.replace(Architecture.of(space, subnet), max_relative_position=None)
        with torch.device("meta"):
            vit = VisionTransformer(plain)
            images = torch.empty(1, 3, space.image_size, space.image_size)
        with FlopCounterMode(display=False) as counter:
            vit.eval()(images)
        assert count_costs(space, subnet).macs == pytest.approx(counter.get_total_flops() / 2, rel=0.005)


def test_architecture_round_trips_and_names_odd_keys():
    for space in SPACES.values():
        architecture = Architecture.of(space, space.largest)
        assert Architecture.from_dict(architecture.to_dict()) == architecture
    architecture = Architecture.of(TINY, TINY.largest)
    # The form of earlier versions has exactly these keys.
    geometry = {"image_size", "patch_size", "in_chans", "num_classes", "head_dim", "max_relative_position"}
    assert architecture.to_dict().keys() == {"subnet", *geometry}
    with pytest.raises(CheckpointError, match="colour"):
        Architecture.from_dict({**architecture.to_dict(), "colour": 1})


@pytest.mark.parametrize("name", ["supernet", "static"])
def test_a_compiler_sees_one_graph(supernet, name):
    """A break in every block would cost more than compiling gains."""
    module, arguments = (supernet, (TINY.largest,)) if name == "supernet" else (extract(supernet, TINY.largest), ())
    images = torch.randn(2, 3, 16, 16)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images, *arguments), module(images, *arguments), rtol=1e-3, atol=1e-4)
