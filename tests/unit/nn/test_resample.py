import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import resample_abs_pos_embed

from growtas import Architecture, Subnet, VisionTransformer
from growtas.data.preprocess import normalise
from growtas.errors import ConfigError
from growtas.nn.insert import insert, single_subnet_space
from growtas.nn.resample import new_max_position, renormalise, resample, resample_table
from tests.reference import PLAIN, timm_network

ARCHITECTURE = Architecture(
    subnet=Subnet(24, (2, 1), (2.0, 3.0)), image_size=16, patch_size=4, in_chans=3, num_classes=5, head_dim=8,
    max_relative_position=3,
)  # fmt: skip


def random_model(**changes):
    torch.manual_seed(1)
    model = VisionTransformer(Architecture(**{**vars(ARCHITECTURE), **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model


def naive_table(table, old_grid, new_grid):
    """NumPy's interpolation of the entries that the old grid can reach."""
    m = len(table) // 2 - 1
    reach = min(m, old_grid - 1)
    new_m = new_max_position(m, old_grid, new_grid)
    known = np.arange(-reach, reach + 1)
    values = table.numpy()[1:][m - reach : m + reach + 1]
    wanted = np.arange(-new_m, new_m + 1) * old_grid / new_grid
    columns = [np.interp(wanted, known, column) for column in values.T]
    return np.concatenate([table[:1].numpy(), np.stack(columns, 1)])


@settings(deadline=None)
@given(m=st.integers(1, 16), old=st.integers(1, 16), new=st.integers(1, 40))
def test_tables_are_interpolated_as_numpy_does(m, old, new):
    table = torch.randn(2 * m + 2, 3, generator=torch.Generator().manual_seed(m), dtype=torch.float64)
    got = resample_table(table, old, new)
    if old == new:
        assert torch.equal(got, table)
    else:
        np.testing.assert_allclose(got.numpy(), naive_table(table, old, new), atol=1e-12)


@settings(deadline=None)
@given(m=st.integers(1, 16), old=st.integers(1, 16), new=st.integers(1, 40))
def test_clipping_at_the_new_m_is_clipping_at_the_old_one(m, old, new):
    """For every distance of the new grid, what is looked up is the old table at the scaled distance, clipped as it was trained."""
    reach, new_m = min(m, old - 1), new_max_position(m, old, new)
    table = torch.cat([torch.full((1,), 99.0), torch.arange(-m, m + 1.0)])[:, None].double() ** 3
    entries = resample_table(table, old, new)[1:, 0]
    for distance in range(-(new - 1), new):
        place = max(-reach, min(reach, distance * old / new)) if new != old else max(-m, min(m, distance))
        low = int(np.floor(place))
        want = low**3 + (place - low) * ((low + 1) ** 3 - low**3)
        assert entries[max(-new_m, min(new_m, distance)) + new_m].item() == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize(
    ("m", "old", "new", "new_m"), [(14, 14, 28, 26), (14, 14, 24, 23), (6, 7, 8, 7), (3, 8, 16, 6), (5, 6, 1, 1)]
)
def test_the_new_m(m, old, new, new_m):
    assert new_max_position(m, old, new) == new_m


def test_exact_tables():
    # Distances -2..2 on 4 x 4 patches; -4..4 on 8 x 8.
    table = torch.tensor([[70.0], [-20.0], [-10.0], [0.0], [10.0], [20.0]])
    assert resample_table(table, 4, 8)[:, 0].tolist() == [70, -20, -15, -10, -5, 0, 5, 10, 15, 20]
    assert resample_table(table, 4, 2)[:, 0].tolist() == [70, -20, 0, 20]
    constant = torch.full((10, 3), 0.7)
    assert torch.equal(resample_table(constant, 5, 9), torch.full((2 * new_max_position(4, 5, 9) + 2, 3), 0.7))


def test_entries_that_were_never_trained_are_not_read():
    table = torch.zeros(2 * 14 + 2, 4)
    table[1] = table[-1] = 1e6  # distance 14, which 14 x 14 patches don't have
    assert not resample_table(table, 14, 28).any()
    assert not resample_table(table, 14, 20).any()


def test_the_same_size_is_the_same_model():
    model = random_model(max_relative_position=9)
    same = resample(model)
    for arguments in ({}, {"image_size": 16}, {"in_chans": 3}):
        same = resample(model, **arguments)
        assert same.architecture == model.architecture
        for name, tensor in same.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name
            assert tensor.data_ptr() != model.state_dict()[name].data_ptr()


def test_another_size():
    model = random_model()
    larger = resample(model, image_size=28)
    assert (larger.architecture.image_size, larger.architecture.max_relative_position) == (28, 6)
    assert larger(torch.zeros(2, 3, 28, 28)).shape == (2, 5)
    assert not larger.training
    want = resample_abs_pos_embed(model.pos_embed, [7, 7])
    assert torch.equal(larger.pos_embed, want)
    assert torch.equal(larger.pos_embed[:, 0], model.pos_embed[:, 0])
    table = model.blocks[1].attn.relative_value.horizontal.detach()
    np.testing.assert_allclose(larger.blocks[1].attn.relative_value.horizontal.detach(), naive_table(table, 4, 7), atol=1e-6)
    assert resample(model.train(), image_size=8).training


@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_vit_is_resampled_as_timm_does_it(kind):
    model = random_model(max_relative_position=None, **PLAIN[kind])
    larger = resample(model, image_size=32)
    assert larger.architecture == dataclasses.replace(model.architecture, image_size=32)
    state = insert(model, single_subnet_space(model.architecture, "one")).state_dict()
    theirs = timm_network(single_subnet_space(model.architecture, "one"), model.architecture.subnet, state)
    theirs.set_input_size((32, 32))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(larger(images).double(), theirs(images.double()), rtol=1e-4, atol=1e-5)


def smooth_model():
    """A model whose positions and tables change smoothly, as trained ones do."""
    model = random_model(image_size=32, max_relative_position=7)
    generator = torch.Generator().manual_seed(3)

    def waves(places):
        phases = torch.rand(3, generator=generator) * 6.3
        return sum(torch.sin(places * (k + 1) / 5 + phases[k]) for k in range(3)) / 3

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".relative_" in name:
                for column in range(parameter.shape[1]):
                    parameter[1:, column] = waves(torch.arange(-7, 8.0))
            elif name == "pos_embed":
                for column in range(parameter.shape[2]):
                    grid = waves(torch.arange(8.0))[:, None] + waves(torch.arange(8.0))
                    parameter[0, 1:, column] = grid.flatten()
    return model


def with_clipped_tables(model, resampled):
    """The alternative: the same positions, but the old tables, whose distances are clipped as in training."""
    m = model.architecture.max_relative_position
    clipped = VisionTransformer(dataclasses.replace(resampled.architecture, max_relative_position=m)).eval()
    tables = {name: value for name, value in model.state_dict().items() if ".relative_" in name}
    clipped.load_state_dict({**resampled.state_dict(), **tables})
    return clipped


def test_an_upsampled_image_has_close_features():
    """On an image of patches of one colour, twice the size is the same patches, four times each."""
    model = smooth_model()
    colours = F.interpolate(torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(5)), 8, mode="bicubic")
    small, large = (colours.repeat_interleave(size, 2).repeat_interleave(size, 3) for size in (4, 8))
    with torch.no_grad():
        want = model.forward_head(model.forward_features(small), pre_logits=True)
        errors = {}
        bigger = resample(model, image_size=64)
        for tables, network in (("interpolated", bigger), ("clipped", with_clipped_tables(model, bigger))):
            got = network.forward_head(network.forward_features(large), pre_logits=True)
            errors[tables] = ((got - want).norm() / want.norm()).item()
    assert errors["interpolated"] < 0.05
    assert errors["interpolated"] < errors["clipped"] / 3


def test_grey_pictures_give_the_same_tokens_with_one_channel_and_three():
    model = random_model()
    grey = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        one = resample(model, in_chans=1)
        assert one.patch_embed.weight.shape[1] == 1
        torch.testing.assert_close(one(grey), model(grey.expand(-1, 3, -1, -1)))
        three = resample(one, in_chans=3)
        torch.testing.assert_close(three(grey.expand(-1, 3, -1, -1)), one(grey))
    assert (one.architecture.in_chans, three.architecture.in_chans) == (1, 3)


@pytest.mark.parametrize("chans", [1, 3])
def test_another_normalisation_gives_the_same_logits(chans):
    model = random_model(in_chans=chans)
    pixels = torch.randint(0, 256, (2, chans, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    old = {"in_chans": chans, "mean": [0.5, 0.4, 0.3][:chans], "std": [0.5, 0.3, 0.2][:chans]}
    new = {"in_chans": chans, "mean": [0.1, 0.6, 0.2][:chans], "std": [0.25, 1.0, 0.4][:chans]}
    with torch.no_grad():
        want = model(normalise(pixels, old))
        assert (model(normalise(pixels, new)) - want).abs().max() > 0.01
        renormalise(model, (old["mean"], old["std"]), (new["mean"], new["std"]))
        torch.testing.assert_close(model(normalise(pixels, new)), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"image_size": 18}, "image_size is 18; it must be a multiple of the model's patch_size, which is 4"),
        ({"image_size": -4}, "image_size is -4"),
        ({"image_size": 0}, "image_size is 0"),
        ({"in_chans": 0}, "in_chans is 0"),
        ({"in_chans": 2}, "in_chans is 2; legal are 1"),
    ],
)
def test_what_can_not_be(arguments, match):
    with pytest.raises(ConfigError, match=match):
        resample(random_model(), **arguments)
    with pytest.raises(ConfigError, match="3 channels"):
        renormalise(random_model(), ([0.5], [0.5]), ([0.5] * 3, [0.5] * 3))
