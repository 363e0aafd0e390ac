import numpy as np
import pytest
import torch

from growtas import Architecture, SearchSpace, Subnet, Supernet, VisionTransformer, extract
from growtas.errors import SpaceError, SubnetError
from growtas.nn.insert import insert, single_subnet_space
from growtas.sampling import sample
from tests.reference import PLAIN, plain_space

TINY = SearchSpace(
    name="tiny", embed_dim=(24, 32, 48), num_heads=(1, 2, 3), mlp_ratio=(1.5, 2.0, 3.3), depth=(1, 2, 3), head_dim=16,
    image_size=16, patch_size=4, num_classes=5, max_relative_position=2, max_embed_dim=50, max_mlp_ratio=4.0,
)  # fmt: skip
MIXED = Subnet(32, (1, 3, 2), (2.0, 1.5, 3.3))


def random_model(subnet, space=TINY):
    """A static ViT whose every entry is another number."""
    torch.manual_seed(1)
    model = VisionTransformer(Architecture.of(space, subnet)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def insert_alone(model):
    """Into the smallest supernet that holds the model."""
    return insert(model, single_subnet_space(model.architecture, "model"))


def assert_same(one, other, *, scaled=False):
    assert one.architecture == other.architecture
    state = other.state_dict()
    assert list(one.state_dict()) == list(state)
    for name, tensor in one.state_dict().items():
        if scaled and "norm" in name:  # divided by a factor and multiplied by it again
            torch.testing.assert_close(tensor, state[name], rtol=1e-6, atol=0)
        else:
            assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize(
    ("family", "seed"),
    [*((TINY, seed) for seed in range(6)), *((plain_space(TINY, kind), seed) for kind in PLAIN for seed in (0, 1))],
    ids=lambda value: getattr(value, "name", value),
)
@pytest.mark.parametrize("into", ["own", "tiny", "larger"])
def test_extracting_gives_the_model_back_bit_for_bit(seed, family, into):
    subnet = sample(family, np.random.default_rng(seed))
    model = random_model(subnet, family)
    order = (3, *family.block_order) if family.block_order else ()
    larger = family.replace(max_num_heads=5, max_depth=4, block_order=order)
    supernet = insert_alone(model) if into == "own" else insert(model, larger if into == "larger" else family)
    scaled = family.full_width_norms and into != "own"
    assert_same(extract(supernet, subnet), model, scaled=scaled)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        if not scaled:
            assert torch.equal(extract(supernet, subnet)(images), model(images))
        torch.testing.assert_close(supernet(images, subnet), model(images))


@pytest.mark.parametrize("space", [TINY, plain_space(TINY, "qk_norm")], ids=lambda space: space.name)
def test_a_model_goes_back_to_where_it_was_cut_from(space):
    torch.manual_seed(0)
    supernet = Supernet(space)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.normal_()
    back = insert(extract(supernet, MIXED), space).state_dict()
    full = supernet.state_dict()
    width, dim, hidden = 16, 32, 64  # of block 0
    # Inside the cut every entry is where it was, the interleaved qkv rows too; outside there are zeros.
    for name, rows in (("attn.qkv.weight", 3 * width), ("fc1.weight", hidden)):
        got, want = back[f"blocks.0.{name}"], full[f"blocks.0.{name}"]
        assert torch.equal(got[:rows, :dim], want[:rows, :dim])
        assert not got[rows:].any()
        assert not got[:, dim:].any()
    assert torch.equal(back["blocks.0.attn.qkv.bias"][: 3 * width], full["blocks.0.attn.qkv.bias"][: 3 * width])
    assert not back["blocks.0.attn.qkv.bias"][3 * width :].any()
    assert torch.equal(back["head.bias"], full["head.bias"])


def test_a_shallow_model_goes_to_the_blocks_that_its_space_runs_first():
    space, subnet = plain_space(TINY, "block order"), Subnet(32, (1, 3), (2.0, 1.5))
    supernet = insert(random_model(subnet, space), space)
    used = [index for index in range(3) if any(parameter.any() for parameter in supernet.blocks[index].parameters())]
    assert used == [0, 2]


def test_the_single_subnet_space_is_as_small_as_the_subnet():
    space = single_subnet_space(Architecture.of(TINY, MIXED), "one")
    assert (space.embed_dim, space.num_heads, space.mlp_ratio, space.depth) == ((32,), (1, 2, 3), (1.5, 2.0, 3.3), (3,))
    assert (space.max_embed_dim, space.max_num_heads, space.max_mlp_ratio, space.max_depth) == (32, 3, 3.3, 3)
    assert (space.name, space.image_size, space.head_dim, space.num_classes) == ("one", 16, 16, 5)
    assert space.holds(MIXED)
    even = Subnet(24, (2, 2), (2.0, 2.0))
    assert single_subnet_space(Architecture.of(TINY, even), "even").size == 1
    supernet = insert_alone(random_model(even))
    assert sum(p.numel() for p in supernet.parameters()) == sum(p.numel() for p in random_model(even).parameters())


def test_the_model_is_not_shared_with_the_supernet():
    model = random_model(MIXED)
    supernet, before = insert_alone(model), model.pos_embed.clone()
    with torch.no_grad():
        supernet.pos_embed.add_(1)
    assert torch.equal(model.pos_embed, before)


def test_a_double_model_stays_double():
    model = random_model(MIXED).double()
    assert_same(extract(insert_alone(model), MIXED).double(), model)
    assert insert_alone(model).cls_token.dtype == torch.float64


@pytest.mark.parametrize(
    ("space", "match"),
    [
        (TINY.replace(image_size=32), "image_size of tiny is 32, but 16 in the model"),
        (TINY.replace(num_classes=7), "num_classes of tiny is 7, but 5 in the model"),
        (TINY.replace(max_relative_position=3), "max_relative_position of tiny is 3, but 2"),
        (plain_space(TINY, "mean"), "max_relative_position of mean is None, but 2 in the model"),
    ],
)
def test_another_geometry_is_refused(space, match):
    with pytest.raises(SpaceError, match=match):
        insert(random_model(MIXED), space)


def test_what_a_supernet_cannot_hold():
    with pytest.raises(SubnetError, match="num_heads of block 1 is 3"):
        insert(random_model(MIXED), TINY.replace(num_heads=(1, 2), max_num_heads=2))
    headless = random_model(MIXED)
    headless.reset_classifier(0)
    with pytest.raises(SpaceError, match="no head"):
        insert_alone(headless)
