import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growtas.data.augment import draw_flips, draw_shifts, flip, shift
from growtas.data.images import file_set
from growtas.data.loaders import FileLoader, MemoryLoader, batch_indices, epoch_order
from growtas.data.preprocess import normalise, training_transform
from growtas.errors import DataError

RECORD = {"image_size": 8, "in_chans": 1, "mean": [0.0], "std": [1.0], "interpolation": "bilinear", "crop_pct": 1.0}


def memory_loader(count=50, **changes):
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    return MemoryLoader(pixels, np.arange(count), RECORD, **{"batch_size": 16, "seed": 3, **changes})


@given(st.integers(1, 100), st.integers(0, 5), st.integers(0, 5), st.integers(1, 4))
def test_an_epoch_draws_each_image_at_most_repeats_times(size, seed, epoch, repeats):
    order = epoch_order(size, seed, epoch, repeats)
    counts = np.bincount(order, minlength=size)
    assert len(order) == size
    assert counts.max() <= repeats
    if repeats == 1:
        assert (counts == 1).all()


def test_epochs_differ_and_repeat():
    assert (epoch_order(100, 0, 1) == epoch_order(100, 0, 1)).all()
    for other in (epoch_order(100, 0, 2), epoch_order(100, 1, 1)):
        assert (epoch_order(100, 0, 1) != other).any()


@pytest.mark.parametrize(("size", "batch", "lengths"), [(50, 16, [16] * 3), (48, 16, [16] * 3), (7, 16, [6]), (1, 16, [1])])
def test_batch_lengths(size, batch, lengths):
    assert [len(b) for b in batch_indices(np.arange(size), batch)] == lengths


def test_memory_loader_gives_images_with_their_labels():
    loader = memory_loader()
    batches = list(loader.batches(0))
    assert len(batches) == loader.steps == 3
    seen = torch.cat([labels for _, labels in batches])
    assert len(seen.unique()) == 48
    for images, labels in batches:
        assert images.dtype == torch.float32
        torch.testing.assert_close(images[:, 0, 0, 0], labels / 255)


@pytest.mark.parametrize("changes", [{"crop_padding": 2}, {"hflip": 0.5}, {}])
def test_a_batch_is_a_function_of_seed_and_epoch(changes):
    one, same = (list(memory_loader(**changes).batches(4)) for _ in range(2))
    for (a, la), (b, lb) in zip(one, same, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(la, lb)
    other = list(memory_loader(seed=4, **changes).batches(4))
    assert not torch.equal(one[0][1], other[0][1])


def random_shift(pixels, limit, rng):
    return torch.from_numpy(shift(pixels.numpy(), draw_shifts(len(pixels), limit, rng), limit))


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 2), st.integers(0, 1000))
def test_a_shift_moves_the_image_and_fills_with_zeros(limit, seed):
    pixels = torch.randint(1, 256, (3, 2, 6, 5), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    shifted = random_shift(pixels, limit, np.random.default_rng(seed))
    assert shifted.shape == pixels.shape
    for before, after in zip(pixels, shifted, strict=True):
        candidates = []
        for dy in range(-limit, limit + 1):
            for dx in range(-limit, limit + 1):
                moved = torch.zeros_like(before)
                for y in range(6):
                    for x in range(5):
                        if 0 <= y + dy < 6 and 0 <= x + dx < 5:
                            moved[:, y, x] = before[:, y + dy, x + dx]
                candidates.append(moved)
        assert any(torch.equal(after, moved) for moved in candidates)


def test_shifts_go_every_way():
    dot = torch.zeros(500, 1, 9, 9, dtype=torch.uint8)
    dot[:, :, 4, 4] = 1
    where = random_shift(dot, 2, np.random.default_rng(0)).nonzero()[:, 2:]
    assert {tuple(place) for place in where.tolist()} == {(y, x) for y in range(2, 7) for x in range(2, 7)}


def test_flips():
    pixels = torch.arange(24, dtype=torch.uint8).view(2, 1, 3, 4).repeat(500, 1, 1, 1)
    chosen = draw_flips(len(pixels), 0.25, np.random.default_rng(0))
    flipped = torch.from_numpy(flip(pixels.numpy().copy(), chosen))
    mirrored = (flipped != pixels).flatten(1).any(1)
    assert 0.2 < mirrored.float().mean() < 0.3
    assert torch.equal(flipped[mirrored], torch.from_numpy(pixels[mirrored].numpy()[..., ::-1].copy()))
    assert torch.equal(mirrored, torch.from_numpy(chosen))
    assert not draw_flips(1000, 0.0, np.random.default_rng(0)).any()


@pytest.fixture
def files(tmp_path, write_tree):
    write_tree(tmp_path, {"x": 21})
    return file_set([str(tmp_path / "x" / f"{i}.png") for i in range(21)], list(range(21)))


def file_loader(files, **changes):
    transform = training_transform(RECORD, auto_augment=None, hflip=0.5, re_prob=0.3, color_jitter=None)
    return FileLoader(files, transform, **{"batch_size": 5, "seed": 1, **changes})


def test_worker_processes_do_not_change_the_batches(files):
    here = file_loader(files)
    elsewhere = file_loader(files, workers=2)
    for epoch in (0, 1):
        one, two = list(here.batches(epoch)), list(elsewhere.batches(epoch))
        assert len(one) == len(two) == here.steps == 4
        for (a, la), (b, lb) in zip(one, two, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(la, lb)


def test_an_epoch_can_be_entered_anywhere(files):
    loader = file_loader(files)
    list(loader.batches(0))
    after, fresh = list(loader.batches(1)), list(file_loader(files).batches(1))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(after, fresh, strict=True))


def test_repeated_augmentation_shows_an_image_in_several_guises(files):
    (images, labels), *_ = file_loader(files, repeats=3, batch_size=6).batches(0)
    assert labels.bincount().sort(descending=True).values[:2].tolist() == [3, 3]
    first = images[labels == labels[0]]
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named_even_from_a_worker(files, workers):
    path = files.paths[8]
    with open(path, "r+b") as file:
        file.truncate(40)
    loader = file_loader(files, workers=workers)
    with pytest.raises(DataError) as caught:
        list(loader.batches(0))
    assert str(caught.value).startswith(f"{path}: the image can't be read (")
    assert "\n" not in str(caught.value)


def test_an_abandoned_epoch_leaves_nothing_behind(files):
    want = [list(file_loader(files).batches(epoch)) for epoch in (0, 1)]
    loader = file_loader(files, workers=2)
    for epoch, stop in ((0, 2), (1, 9), (0, 1), (0, 9)):
        got = [batch for batch, _ in zip(loader.batches(epoch), range(stop), strict=False)]
        for (a, la), (b, lb) in zip(got, want[epoch], strict=False):
            assert torch.equal(a, b)
            assert torch.equal(la, lb)


@pytest.mark.parametrize(("channels", "in_chans"), [(1, 1), (1, 3), (3, 3)])
@pytest.mark.parametrize("alike", [True, False])
def test_batches_are_normalised_to_the_last_bit(in_chans, channels, alike):
    record = {**RECORD, "in_chans": in_chans, "mean": [0.5, 0.47, 0.1], "std": [0.23, 0.3, 0.9]}
    record = {**record, **{key: record[key][:1] * in_chans if alike else record[key][:in_chans] for key in ("mean", "std")}}
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, channels, 8, 8)).astype(np.uint8))
    before = pixels.clone()
    (images, labels), *_ = MemoryLoader(pixels, np.arange(40), record, batch_size=20, seed=0).batches(0)
    assert torch.equal(images, normalise(pixels[labels], record))
    assert images.is_contiguous()
    assert images.data_ptr() != pixels.data_ptr()
    (images, _), *_ = MemoryLoader(pixels, np.arange(40), record, batch_size=20, seed=0, hflip=1.0).batches(0)
    assert torch.equal(images, normalise(pixels[labels].flip(-1), record))
    assert torch.equal(pixels, before)
