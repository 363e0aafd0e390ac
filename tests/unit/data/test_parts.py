import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data import Mixup

from growtas.data.images import ArraySet
from growtas.data.loaders import FileLoader, MemoryLoader
from growtas.data.parts import Parts, part_rows
from growtas.data.preprocess import training_transform
from growtas.data.seeding import seed_globals
from growtas.errors import ConfigError

RECORD = {"image_size": 6, "in_chans": 1, "mean": [0.3], "std": [0.7], "interpolation": "bilinear", "crop_pct": 1.0}
SIZE = 45


def memory_loader(**options):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(1, 256, (SIZE, 1, 6, 6)).astype(np.uint8))
    return MemoryLoader(pixels, np.arange(SIZE), RECORD, **{"seed": 2, "crop_padding": 2, "hflip": 0.5, **options})


def file_loader(**options):
    pixels = np.random.default_rng(0).integers(1, 256, (SIZE, 6, 6)).astype(np.uint8)
    transform = training_transform(RECORD, auto_augment=None, hflip=0.5, re_prob=0.5, color_jitter=None)
    return FileLoader(ArraySet(pixels, np.arange(SIZE), "noise"), transform, **{"seed": 2, "repeats": 2, **options})


LOADERS = pytest.mark.parametrize("make", [memory_loader, file_loader])


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("size", "count", "part", "rows"),
    [
        (5, 1, 0, [0, 1, 2, 3, 4]),
        (8, 2, 0, [0, 1, 6, 7]),
        (8, 2, 1, [2, 3, 4, 5]),
        (12, 3, 1, [2, 3, 8, 9]),
        (4, 2, 1, [1, 2]),
    ],
)
def test_rows_of_a_part(size, count, part, rows):
    assert part_rows(size, count, part).tolist() == rows


@given(st.integers(2, 6), st.integers(1, 5))
def test_parts_are_a_partition_and_mirror_images(count, half):
    size = 2 * count * half
    parts = [part_rows(size, count, part) for part in range(count)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(size))
    for rows in parts:
        assert (rows[::-1] == size - 1 - rows).all()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_mixing_the_parts_is_mixing_the_batch(mixup, cutmix):
    images, labels = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10

    def mix(rows):
        seed_globals(7)
        return Mixup(mixup, cutmix, num_classes=10)(images[rows].clone(), labels[rows])

    whole = mix(torch.arange(16))
    assert not torch.equal(whole[0], images)
    for part in range(4):
        rows = torch.from_numpy(part_rows(16, 4, part))
        assert equal(mix(rows), (whole[0][rows], whole[1][rows]))


@LOADERS
@settings(deadline=None, max_examples=15)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2))
def test_the_processes_share_the_batches_of_a_single_one(make, processes, accumulate, epoch, half):
    count = processes * accumulate
    size = 2 * count * half
    alone = list(make(batch_size=size).batches(epoch))
    assert len(alone) == SIZE // size
    seen = [np.zeros(0, np.int64)] * len(alone)
    for rank in range(processes):
        loader = make(batch_size=size, parts=Parts.of_process(rank, processes, accumulate))
        assert loader.steps == len(alone)
        for step, (mine, whole) in enumerate(zip(loader.batches(epoch), alone, strict=True)):
            for number, chunk in enumerate(zip(*(tensor.split(2 * half) for tensor in mine), strict=True)):
                rows = part_rows(size, count, rank * accumulate + number)
                assert equal(chunk, (tensor[rows] for tensor in whole))
                seen[step] = np.concatenate([seen[step], rows])
    assert all(sorted(rows.tolist()) == list(range(size)) for rows in seen)


@LOADERS
@settings(deadline=None, max_examples=10)
@given(st.integers(0, 11), st.sampled_from([Parts(), Parts(2, 1, 2)]))
def test_an_epoch_is_entered_in_its_middle(make, first, parts):
    whole = list(make(batch_size=4, parts=parts).batches(1))
    rest = list(make(batch_size=4, parts=parts).batches(1, first))
    assert len(rest) == 11 - first
    assert all(equal(a, b) for a, b in zip(rest, whole[first:], strict=True))


@LOADERS
@pytest.mark.parametrize(
    ("batch_size", "count", "message"),
    [
        (20, 4, r"^batch_size is 20, .* 4 parts .*; legal is a multiple of 8, such as 16 or 24$"),
        (6, 4, r"^batch_size is 6, .* 4 parts .*; legal is a multiple of 8, such as 8$"),
        (21, 3, r"^batch_size is 21, .* a multiple of 6, such as 18 or 24$"),
        (48, 4, r"^batch_size is 48, but there are only 45 training images, .* one batch of 44 .* a multiple of 8 up to 40$"),
        (50, 25, r"^batch_size is 50, but there are only 45 training images, too few for 25 parts .*; use fewer$"),
    ],
)
def test_batches_that_cannot_be_cut(make, batch_size, count, message):
    with pytest.raises(ConfigError, match=message):
        make(batch_size=batch_size, parts=Parts(count, 0, 1))


@LOADERS
def test_the_only_batch_of_a_small_set_is_cut_too(make):
    whole = list(make(batch_size=100).batches(0))
    assert [len(labels) for _, labels in whole] == [44]
    mine = list(make(batch_size=100, parts=Parts(11, 3, 5)).batches(0))
    rows = [*part_rows(44, 11, 3), *part_rows(44, 11, 4)]
    assert equal(mine[0], (tensor[rows] for tensor in whole[0]))


@pytest.mark.parametrize("parts", [(1, 1, 2), (2, 1, 1), (2, -1, 1), (2, 0, 3), (0, 0, 0)])
def test_parts_that_are_not_there(parts):
    with pytest.raises(ConfigError, match=f"of {parts[0]} can't be loaded"):
        Parts(*parts)


def test_parts_of_a_process():
    assert [Parts.of_process(rank, 2, 3) for rank in range(2)] == [Parts(6, 0, 3), Parts(6, 3, 6)]
    assert Parts.of_process(0, 1) == Parts()
