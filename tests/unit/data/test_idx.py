import gzip

import numpy as np
import pytest

from growtas.data.idx import find_idx, read_idx
from growtas.errors import DataError


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_images_and_labels_come_back(tmp_path, write_idx, suffix):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3))
    assert (read_idx(write_idx(tmp_path / f"images{suffix}", images), 3) == images).all()
    labels = np.array([3, 1, 255])
    assert (read_idx(write_idx(tmp_path / f"labels{suffix}", labels), 1) == labels).all()


def test_a_plain_file_goes_before_a_gzipped_one(tmp_path):
    (tmp_path / "x.gz").touch()
    assert find_idx(tmp_path, "x") == tmp_path / "x.gz"
    (tmp_path / "x").touch()
    assert find_idx(tmp_path, "x") == tmp_path / "x"
    assert find_idx(tmp_path, "y") is None


def test_what_is_cut_short_is_refused(tmp_path, write_idx):
    path = write_idx(tmp_path / "images", np.zeros((5, 4, 3)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"images: the IDX file should hold 60 values .*, but has 59"):
        read_idx(path, 3)
    packed = write_idx(tmp_path / "images.gz", np.random.default_rng(0).integers(0, 256, (50, 40, 3)))
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"images.gz: the IDX file can't be read"):
        read_idx(packed, 3)


@pytest.mark.parametrize("raw", [b"", b"GIF89a" * 10, gzip.compress(b"x", mtime=0)])
def test_another_format_is_refused(tmp_path, raw):
    (tmp_path / "labels").write_bytes(raw)
    with pytest.raises(DataError, match="not an IDX file of unsigned bytes in 1 dimension$"):
        read_idx(tmp_path / "labels", 1)
