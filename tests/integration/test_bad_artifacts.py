"""Files of other people in place of artifacts: one sentence and exit code 2, nothing written, nothing run, no memory taken."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from growtas.cli.main import main
from growtas.data.idx import read_idx
from growtas.errors import DataError
from growtas.files import sha256

ZEROS = b"\0" * 200_000_000


def onnx_model(*nodes, initializers=(), functions=(), **more):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"]), *nodes], "g", [value], [], list(initializers))
    return helper.make_model(graph, functions=list(functions), **more).SerializeToString()


def tensor(name, dims, raw, kind=TensorProto.FLOAT):
    return TensorProto(name=name, dims=dims, data_type=kind, raw_data=raw)


def laughing_functions():
    """Thirty functions, each of which calls the next one twice."""
    functions = [
        helper.make_function(
            "own", f"f{i}", ["x"], ["y"],
            [helper.make_node(f"f{i + 1}" if i < 29 else "Identity", [a], [b], domain="own" if i < 29 else "")
             for a, b in (("x", "t"), ("t", "y"))],
            [helper.make_opsetid("", 20)],
        )
        for i in range(30)
    ]  # fmt: skip
    return onnx_model(helper.make_node("f0", ["x"], ["z"], domain="own"), functions=functions)


def nested_graphs(depth=20):
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [])
    for _ in range(depth):
        graph = helper.make_graph(
            [helper.make_node("If", ["x"], ["y"], then_branch=graph, else_branch=onnx.GraphProto())], "g", [], []
        )
    return helper.make_model(graph).SerializeToString()


def outside(location):
    weight = tensor("w", [1], b"")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    return onnx_model(initializers=[weight])


def huge_constant():
    shape = helper.make_tensor("s", TensorProto.INT64, [1], [2**31])
    return onnx_model(helper.make_node("ConstantOfShape", ["s"], ["z"]), initializers=[shape])


def grown(*nodes, **numbers):
    """A graph with operators that compute constants of one-dimensional constants."""
    stored = [helper.make_tensor(name, TensorProto.INT64, [len(values)], values) for name, values in numbers.items()]
    stored.append(helper.make_tensor("start", TensorProto.FLOAT, [1024], [1.0] * 1024))
    return onnx_model(*(helper.make_node(kind, inputs, [out], **more) for kind, inputs, out, more in nodes), initializers=stored)


def doubled(kind, more_inputs=(), **more):
    names = ["start", *(f"c{i}" for i in range(24))]
    inputs = [[a, a] if kind == "Concat" else [a, *more_inputs] for a in names[:-1]]
    nodes = [(kind, given, out, more) for given, out in zip(inputs, names[1:], strict=True)]
    return grown(*nodes, two=[2])


ONNX = {
    "a constant doubled by Concat": doubled("Concat", axis=0),
    "a constant doubled by Tile": doubled("Tile", ["two"]),
    "a constant that is padded": doubled("Pad", ["two"]),
    "a constant expanded": grown(("Expand", ["start", "wide"], "c", {}), wide=[2**20, 1024]),
    "the outer sum of constants": grown(
        ("Reshape", ["start", "tall"], "t", {}),
        ("Add", ["t", "start"], "s", {}),
        ("Concat", ["s"] * 30, "c", {"axis": 0}),
        tall=[-1, 1],
    ),
    "a range": grown(("Range", ["zero", "wide", "one"], "c", {}), zero=[0], wide=[2**31], one=[1]),
    "a constant of a computed shape": grown(("Mul", ["k", "k"], "kk", {}), ("ConstantOfShape", ["kk"], "c", {}), k=[50_000]),
    "random constants": onnx_model(helper.make_node("RandomNormal", [], ["c"], shape=[2**16, 2**15])),
    "empty": b"",
    "no protobuf": b"GIF89a",
    "thousands deep": b"\x3a\x80\x80\x04" * 5000,
    "elements without end": b"\x3a\x80\x89\x7a" + b"\x0a\x00" * 1_000_000,
    "a shape without values": onnx_model(initializers=[tensor("w", [2**31], b"")]),
    "values of another shape": onnx_model(initializers=[tensor("w", [3], b"\0" * 8)]),
    "a negative size": onnx_model(initializers=[tensor("w", [-1], b"\0" * 4)]),
    "a huge constant": huge_constant(),
    "functions that expand": laughing_functions(),
    "graphs inside graphs": nested_graphs(),
    "an operator of nobody": onnx_model(helper.make_node("Run", ["x"], ["z"], domain="evil")),
}
"""Refused before they are parsed."""


def zipped(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)


def ir(path, layer):
    path.with_suffix(".bin").write_bytes(b"\0" * 16)
    path.write_text(f"<net name='a' version='11'><layers>{layer}</layers></net>")


def constant(shape, size):
    data = f"<data element_type='f32' shape='{shape}' offset='0' size='{size}'/>"
    return f"<layer id='0' type='Const' version='opset1'>{data}</layer>"


def computed(kind):
    """An IR with an operator that computes a constant of the eight bytes of zeros in its .bin."""
    data = "<data element_type='i64' shape='1' offset='0' size='8'/>"
    return f"""<layer id='0' type='Const' version='opset1'>{data}</layer><layer id='1' type='{kind}' version='opset1'/></layers>
        <edges><edge from-layer='0' from-port='0' to-layer='1' to-port='0'/></edges><layers>"""


IRS = {
    "a constant that is computed": computed("OneHot"),
    "an entity": "<!DOCTYPE net [<!ENTITY a 'b'>]><net><layers/></net>".encode("utf-16"),
    "elements thousands deep": b"<net>" * 5000,
    "a constant beyond the file": constant(9, 36),
    "a shape without values": constant(99999, 4),
    "an extension": "<layer id='0' type='Run' version='extension'/>",
}  # fmt: skip

ARCHITECTURE = {
    "subnet": {"embed_dim": 16, "num_heads": [1], "mlp_ratio": [2.0]}, "image_size": 16, "patch_size": 4, "in_chans": 3,
    "num_classes": 10, "head_dim": 8, "max_relative_position": 2,
}  # fmt: skip


@pytest.fixture
def refuses(tmp_path, monkeypatch, capfd):
    """Runs a command line, which must end with one sentence that names the file, and change nothing; returns the sentence."""

    def run(*arguments, names):
        monkeypatch.setattr(sys, "argv", ["growtas", *map(str, arguments)])
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as caught:
            main()
        err = capfd.readouterr().err
        assert caught.value.code == 2, err
        assert err.startswith("growtas: ")
        assert err.count("\n") == 1
        assert str(names) in err
        assert "unexpected" not in err
        assert "Traceback" not in err
        assert len(err) < 700
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


@pytest.mark.parametrize("name", ONNX)
def test_onnx_files(tmp_path, refuses, name):
    path = tmp_path / "m.onnx"
    path.write_bytes(ONNX[name])
    assert "not a readable .onnx file" in refuses("inspect", path, names=path)
    refuses("predict", "--model", path, tmp_path / "no.png", names=path)


@pytest.mark.parametrize("location", ["/dev/zero", "../secret", "link", "fifo", ""])
def test_weights_that_are_not_a_file_beside_it(tmp_path, location):
    from growtas.errors import CheckpointError
    from growtas.export.open import open_session

    (tmp_path / "link").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "fifo")
    path = tmp_path / "m.onnx"
    path.write_bytes(outside(location))
    with pytest.raises(CheckpointError, match=r"m\.onnx: not a readable .onnx file \(its tensor 'w' lies in"):
        open_session(path)


@pytest.mark.parametrize("name", IRS)
def test_openvino_irs(tmp_path, refuses, name):
    path, content = tmp_path / "m.xml", IRS[name]
    ir(path, content if isinstance(content, str) else "")
    if isinstance(content, bytes):
        path.write_bytes(content)
    assert "not a readable .xml file" in refuses("inspect", path, names=path)


@pytest.mark.parametrize("suffix", [".pt2", ".pth"])
@pytest.mark.parametrize("bad", ["bomb", "many", "twice", "outside"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives(tmp_path, refuses, suffix, bad):
    path = tmp_path / f"m{suffix}"
    members = {
        "bomb": [("a/data.pkl", ZEROS)],
        "many": [(f"a/{i}", b"") for i in range(20_001)],
        "twice": [("a/data.pkl", b"1"), ("a/data.pkl", b"2")],
        "outside": [("a/../../data.pkl", b"1")],
    }[bad]
    zipped(path, members, zipfile.ZIP_DEFLATED if bad == "bomb" else zipfile.ZIP_STORED)
    command = ("inspect",) if suffix == ".pt2" else ("import", "autoformer", "--space", "micro", "--out", tmp_path / "runs")
    assert " member" in refuses(*command, path, names=path)


@pytest.mark.parametrize(
    "content",
    [
        {1: torch.ones(2)},
        {"head.weight": torch.ones(1).expand(10**9, 64)},
        {"head.weight": torch.ones(2, 2).to_sparse()},
        {"x" * 1_000_000: torch.ones(2)},
        bytearray(8),
    ],
)
def test_checkpoints(tmp_path, refuses, content):
    path = tmp_path / "m.pth"
    torch.save(content, path)
    refuses("import", "autoformer", "--space", "micro", "--out", tmp_path / "runs", path, names=path)


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_not_run(tmp_path, refuses):
    path = tmp_path / "m.pth"
    path.write_bytes(pickle.dumps({"model": Touch(tmp_path / "ran")}))
    refuses("import", "autoformer", "--space", "micro", "--out", tmp_path / "runs", path, names=path)


@pytest.mark.parametrize(
    "metadata",
    [
        "[]", "{", "[" * 100_000, "9" * 5000, '{"kind": "model"}', '{"kind": "model", "architecture": []}',
        *(json.dumps({"kind": "model", "architecture": {**ARCHITECTURE, **change}}) for change in (
            {"head_dim": 999_999}, {"image_size": 1_000_000}, {"patch_size": 0}, {"in_chans": "3"}, {"num_classes": 10**15},
            {"head_dim": None}, {"max_relative_position": [1]}, {"image_size": 8192, "patch_size": 1}, {"subnet": 3},
            {"subnet": {"embed_dim": 16, "num_heads": [1] * 5000, "mlp_ratio": [1.0] * 5000}},
        )),
    ],
)  # fmt: skip
def test_metadata_of_safetensors_files(tmp_path, metadata):
    from growtas.checkpoint import load_model
    from growtas.errors import GrowtasError

    path = tmp_path / "m.safetensors"
    save_file({"cls_token": torch.zeros(1, 1, 16)}, path, {"growtas": metadata})
    with pytest.raises(GrowtasError, match=r"m\.safetensors: ") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".safetensors", ".xml", ".plan"])
@pytest.mark.parametrize("place", ["fifo", "device", "loop", "manifest"])
def test_what_is_not_a_regular_file(tmp_path, refuses, suffix, place):
    path = tmp_path / f"m{suffix}"
    if place == "fifo":
        os.mkfifo(path)
    elif place == "device":
        path.symlink_to("/dev/zero")
    elif place == "loop":
        path.symlink_to(path.name)
    else:
        path.write_bytes(b"x")
        os.mkfifo(f"{path}.json")
    refuses("inspect", path, names=path)
    if place == "loop":
        refuses("bench", path, names=path)


def test_idx_files_that_expand_without_end(tmp_path):
    path = tmp_path / "images.gz"
    for count in (10, 2**31):
        path.write_bytes(gzip.compress(struct.pack(">HBB3I", 0, 8, 3, count, 28, 28) + ZEROS[:20_000_000], 1))
        with pytest.raises(DataError, match=r"images\.gz: the IDX file should hold"):
            read_idx(path, 3)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DataError, match="not a regular file"):
        read_idx(tmp_path / "fifo", 3)


def test_good_files_pass(tmp_path):
    from growtas.export.graph.foreign import check_onnx

    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [6], weights.ravel())
    small = helper.make_tensor("small", TensorProto.INT64, [3], [0, -1, 2])
    shape = helper.make_tensor("s", TensorProto.INT64, [2], [200, 300])
    node = helper.make_node("ConstantOfShape", ["s"], ["z"])
    raw = onnx.numpy_helper.from_array(weights, "raw")
    (tmp_path / "m.onnx").write_bytes(onnx_model(node, initializers=[raw, typed, small, shape]))
    check_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize("change", [{"macs": {}}, {"params": "x"}, {"precision": []}, {"input": {"shape": ["x"] * 100_000}}])
def test_manifest_values_of_other_types(tmp_path, growtas, change):
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx_model())
    manifest = {"format": "growtas-artifact/1", "artifact": {"sha256": sha256(path)}, **change}
    Path(f"{path}.json").write_text(json.dumps(manifest))
    code, out, err = growtas("inspect", path)
    assert code == 0, err
    assert "m.onnx" in out
    assert len(out) < 3000
