import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from growtas.data import cache as cache_module
from growtas.data.cache import cache_folder, files_key, load_entry, store_entry
from growtas.data.images import ArraySet, ReaderSet, Subset, file_set
from growtas.data.loaders import MemoryLoader
from growtas.data.pixels import Pixels
from growtas.data.preprocess import geometry

RECORD = {"image_size": 8, "in_chans": 3, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "crop_pct": 1.0}
COUNT = 20


@pytest.fixture
def folder(tmp_path, write_tree):
    return write_tree(tmp_path / "images", {"x": COUNT}) / "x"


def open_set(folder):
    """The images of a folder, and the list of indices that were decoded since."""
    images = file_set([str(folder / f"{i}.png") for i in range(COUNT)], [0] * COUNT)
    decoded, load = [], images.load
    images.load = lambda index: (decoded.append(index), load(index))[1]
    return images, decoded


def read(folder, record=RECORD, part=None):
    """All pixels, and how many images were decoded for them."""
    images, decoded = open_set(folder)
    pixels = Pixels(images if part is None else Subset(images, np.array(part)), record).load_all()
    return pixels, len(decoded)


def direct(folder, record=RECORD):
    return torch.stack([geometry(record)(Image.open(folder / f"{i}.png")) for i in range(COUNT)])


def test_the_second_opening_decodes_nothing(folder, cache):
    first, decoded = read(folder)
    assert decoded == COUNT
    second, decoded = read(folder)
    assert decoded == 0
    assert torch.equal(first, direct(folder))
    assert torch.equal(second, first)
    assert len(list(cache.iterdir())) == 1


def test_images_that_are_asked_for_bit_by_bit_are_kept_once_all_are_known(folder, cache):
    images, _ = open_set(folder)
    pixels = Pixels(images, RECORD)
    pixels.take(np.arange(12))
    assert not cache.exists()
    pixels.take(np.arange(10, COUNT))
    assert read(folder)[1] == 0


@pytest.mark.parametrize("keep_size", [True, False])
def test_a_changed_image_is_decoded_again(folder, keep_size):
    read(folder)
    path = folder / "7.png"
    before = path.stat()
    Image.fromarray(np.full((14, 20, 3), 200, np.uint8)).save(path)
    if keep_size:  # only the time of the change tells
        path.write_bytes(path.read_bytes().ljust(before.st_size, b"\0"))
        assert path.stat().st_size == before.st_size
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    else:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    pixels, decoded = read(folder)
    assert decoded == COUNT
    assert (pixels[7] == 200).all()
    assert torch.equal(pixels, direct(folder))


def test_a_file_that_changes_while_the_set_is_read_is_not_kept(folder, cache):
    images, _ = open_set(folder)
    pixels = Pixels(images, RECORD)
    pixels.take(np.arange(12))
    Image.fromarray(np.full((14, 20, 3), 200, np.uint8)).save(folder / "7.png")
    pixels.take(np.arange(COUNT))
    assert not cache.exists()


def test_pixels_that_were_decoded_by_other_rules_are_not_taken(folder):
    """12-bit images, read by their type's range, by a declared one, and as before there were rules."""
    for number in range(COUNT):
        Image.fromarray(np.full((14, 20), 100 * number, np.uint16)).save(folder / f"{number}.png")
    rules = [{"version": 1, "pixel_range": None}, {"version": 1, "pixel_range": [0, 4095]}, None]
    first = [read(folder, {**RECORD, "decode": decode}) for decode in rules]
    again = [read(folder, {**RECORD, "decode": decode}) for decode in rules]
    assert [decoded for _, decoded in (*first, *again)] == [COUNT] * 3 + [0] * 3
    assert [pixels[19].max().item() for pixels, _ in first] == [round(1900 * 255 / 65535), round(1900 * 255 / 4095), 255]
    assert all(torch.equal(pixels, other) for (pixels, _), (other, _) in zip(first, again, strict=True))


@pytest.mark.parametrize(
    "change", [{"image_size": 10}, {"in_chans": 1, "mean": [0.5], "std": [0.5]}, {"crop_pct": 0.5}, {"interpolation": "bicubic"}]
)
def test_another_geometry_is_another_entry(folder, change):
    read(folder)
    record = {**RECORD, **change}
    pixels, decoded = read(folder, record)
    assert decoded == COUNT
    assert torch.equal(pixels, direct(folder, record))
    assert read(folder)[1] == read(folder, record)[1] == 0


def test_a_normalisation_is_no_other_entry(folder):
    read(folder)
    assert read(folder, {**RECORD, "mean": [0.1] * 3})[1] == 0


def test_another_part_or_order_of_the_images_is_another_entry(folder):
    whole, _ = read(folder)
    for part in ([3, 1, 2], [1, 2, 3], list(range(COUNT))[::-1]):
        for decoded in (len(part), 0):
            pixels, count = read(folder, part=part)
            assert torch.equal(pixels, whole[part])
            assert count == decoded


def test_another_version_of_a_library_decodes_again(folder, monkeypatch):
    read(folder)
    monkeypatch.setattr(PIL, "__version__", "1000")
    assert read(folder)[1] == COUNT


@pytest.mark.parametrize("damage", ["cut", "tail", "empty", "text", "other shape", "other type"])
def test_a_damaged_entry_is_replaced(folder, cache, damage):
    first, _ = read(folder)
    (entry,) = cache.iterdir()
    raw = entry.read_bytes()
    if damage == "other shape":
        np.save(entry, np.zeros((COUNT, 3, 4, 16), np.uint8))
    elif damage == "other type":
        np.save(entry, np.zeros((COUNT, 3, 8, 8), np.int8))
    else:
        entry.write_bytes({"cut": raw[:-1], "tail": raw + b"\0", "empty": b"", "text": b"no array"}[damage])
    pixels, decoded = read(folder)
    assert decoded == COUNT
    assert torch.equal(pixels, first)
    assert entry.read_bytes() == raw
    assert read(folder)[1] == 0


def test_a_folder_that_cannot_be_written(folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GROWTAS_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        pixels, decoded = read(folder)
        assert decoded == COUNT
    assert torch.equal(pixels, direct(folder))


def test_a_read_only_cache_is_still_read(folder, monkeypatch):
    read(folder)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache_module.os, "utime", refuse)
    assert read(folder)[1] == 0
    monkeypatch.setattr(cache_module, "replacing", refuse)
    assert read(folder, part=[1, 2, 3])[1] == 3


def test_a_disk_that_is_nearly_full(folder, cache, monkeypatch):
    size = COUNT * 3 * 8 * 8
    usage = shutil.disk_usage(folder)
    for free, kept in ((2 * size - 1, False), (2 * size, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        assert read(folder)[1] == COUNT
        assert any(cache.iterdir()) == kept


def test_a_disk_that_fills_up_while_an_entry_is_written(folder, cache, monkeypatch):
    def fill(file, *_, **__):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", fill)
    assert [read(folder)[1] for _ in range(2)] == [COUNT] * 2
    assert not list(cache.iterdir())


def test_an_entry_that_is_too_large(folder, cache, monkeypatch):
    monkeypatch.setattr(cache_module, "ENTRY_LIMIT", COUNT * 3 * 8 * 8 - 1)
    assert [read(folder)[1] for _ in range(2)] == [COUNT] * 2
    assert not cache.exists()


def test_the_oldest_entries_make_room(cache, monkeypatch):
    monkeypatch.setattr(cache_module, "TOTAL_LIMIT", 3 * 1128)
    pixels = np.ones((10, 1, 10, 10), np.uint8)  # 1,000 bytes and a header of 128
    for number, name in enumerate("abc"):
        assert store_entry(name, pixels)
        os.utime(cache / f"{name}.npy", (number, number))
    assert load_entry("a", pixels.shape) is not None  # used: b is the oldest now
    (cache / ".x.npy.1.tmp").touch()
    (cache / ".y.npy.1.tmp").touch()
    os.utime(cache / ".x.npy.1.tmp", (0, time.time() - 25 * 3600))
    assert store_entry("d", pixels)
    assert sorted(path.name for path in cache.iterdir()) == [".y.npy.1.tmp", "a.npy", "c.npy", "d.npy"]


def test_nothing_is_cached_where_the_user_says_so(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GROWTAS_CACHE", "off")
    monkeypatch.chdir(tmp_path)
    assert [read(folder)[1] for _ in range(2)] == [COUNT] * 2
    assert cache_folder() is None
    assert not (tmp_path / "off").exists()


def test_the_default_folder(monkeypatch):
    monkeypatch.delenv("GROWTAS_CACHE")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/growtas")


def test_images_that_are_no_files_are_not_cached(cache):
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 9, 9)).astype(np.uint8)
    for images in (
        ArraySet(pixels, np.zeros(COUNT), "noise"),
        ReaderSet([0] * COUNT, lambda i: Image.fromarray(pixels[i]), str),
    ):
        Pixels(images, RECORD).load_all()
    assert not cache.exists()


def test_a_missing_file_has_no_key(folder):
    assert files_key([str(folder / "0.png")]) is not None
    assert files_key([str(folder / "none.png")]) is None


def test_batches_do_not_change_the_entry(folder, cache):
    read(folder)
    (entry,) = cache.iterdir()
    raw = entry.read_bytes()
    pixels, decoded = read(folder)
    assert decoded == 0
    list(MemoryLoader(pixels, np.zeros(COUNT), RECORD, batch_size=4, seed=0, crop_padding=1, hflip=1.0).batches(0))
    pixels[:] = 0  # a private copy of the pages, not the file
    assert entry.read_bytes() == raw


def _race(folder, start, answers):
    start.wait()
    answers.put(read(folder)[0].numpy().copy())


@pytest.mark.slow
def test_processes_may_race_for_an_entry(folder, cache):
    # Not by a fork of this process, whose threads (of torch, of ONNX Runtime) a child would wait for in vain.
    spawn = multiprocessing.get_context("spawn")
    start, answers = spawn.Barrier(4), spawn.Queue()
    racers = [spawn.Process(target=_race, args=(folder, start, answers)) for _ in range(4)]
    for racer in racers:
        racer.start()
    got = [answers.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join()
    want = direct(folder).numpy()
    assert all((pixels == want).all() for pixels in got)
    assert [path.suffix for path in cache.iterdir()] == [".npy"]
    assert read(folder)[1] == 0
