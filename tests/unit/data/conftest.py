import gzip
import struct

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of decoded images for each test."""
    monkeypatch.setenv("GROWTAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pixels"


@pytest.fixture
def write_tree():
    """Writes ``{"train/cat": 3, ...}``: noise images of odd sizes, so many in each class folder."""

    def write(root, counts, size=(20, 14)):
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                rng = np.random.default_rng((len(folder), number))
                pixels = rng.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / folder / f"{number}.png")
        return root

    return write


@pytest.fixture
def write_idx():
    """Writes an array as an IDX file, gzipped if the name says so."""

    def write(path, array):
        raw = (
            struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
        return path

    return write


@pytest.fixture
def fashion(tmp_path, write_idx):
    """A folder with a small Fashion-MNIST: 60 training and 20 test images."""
    rng = np.random.default_rng(0)
    for stem, count in (("train", 60), ("t10k", 20)):
        write_idx(tmp_path / "fashion" / f"{stem}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 28, 28)))
        write_idx(tmp_path / "fashion" / f"{stem}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    return tmp_path / "fashion"


@pytest.fixture
def make_run():
    """Makes a finished run of the micro space on a data set, with the record of it that is given."""
    from growtas.data.evaluation import cut_search_split
    from growtas.data.preprocess import preprocess_record
    from growtas.files import write_json
    from growtas.runs import create_run
    from growtas.space import PRESETS

    def make(root, data, record):
        space = PRESETS["micro"].replace(num_classes=len(data.class_names))
        info = {"state": "finished", "space": space.to_dict(), "data": record, "preprocess": preprocess_record(space, data)}
        run = create_run(root, None, info)
        write_json(run.path / "split.json", cut_search_split(data, 0))
        return run

    return make
