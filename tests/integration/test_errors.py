"""What a user gets for wrong input: one sentence on stderr, the right exit code, no traceback, nothing left behind."""

from __future__ import annotations

import json
import pickle
import sys

import pytest
import torch
from PIL import Image

from growtas import Supernet, load_space
from growtas.checkpoint import save_supernet
from growtas.cli.main import main
from growtas.files import write_json
from growtas.runs import create_run


@pytest.fixture
def growtas(tmp_path, monkeypatch, capfd):
    """Run a command line in an empty folder; (exit code, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["growtas", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as exit:
            code = exit.code or 0
        return code, capfd.readouterr().err

    return run


def sentence(err):
    """The one line that explains the error."""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("growtas: ")]
    assert len(lines) == 1, err
    return lines[0]


@pytest.fixture
def folder(tmp_path):
    """A small image folder with two classes and a test set."""
    for split, count in (("train", 6), ("val", 3)):
        for index, name in enumerate(("cat", "dog")):
            for number in range(count):
                path = tmp_path / "pets" / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (28, 28), (90 * index, 20 * number, 50)).save(path)
    return tmp_path / "pets"


@pytest.fixture
def run(tmp_path):
    """A run on digits with random weights, as if trained."""
    from growtas.data.preprocess import preprocess_record
    from growtas.data.sources import open_data

    space = load_space("micro")
    data = open_data("digits")
    torch.manual_seed(0)
    made = create_run(
        tmp_path / "runs",
        "made",
        {
            "state": "finished", "space": space.to_dict(), "method": "growtas", "recipe": {}, "seed": 0,
            "data": {"name": "digits", "data_dir": None}, "preprocess": preprocess_record(space, data),
            "class_names": list(data.class_names),
        },
    )  # fmt: skip
    checkpoint = made.path / "checkpoints" / "epoch-0001"
    checkpoint.mkdir(parents=True)
    save_supernet(checkpoint / "supernet.safetensors", Supernet(space))
    write_json(checkpoint / "state.json", {"epoch": 1, "step": 1})
    return made


def test_a_corrupt_image_is_named(growtas, folder):
    (folder / "train" / "dog" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    code, err = growtas("train", "--data", folder, "--epochs", 1, "--json")
    assert code == 2
    assert "3.png" in sentence(err)


def test_an_empty_data_folder(growtas, tmp_path):
    (tmp_path / "empty").mkdir()
    code, err = growtas("train", "--data", tmp_path / "empty")
    assert code == 2
    assert "empty" in sentence(err)
    assert not (tmp_path / "runs").exists()


def test_a_wrong_space_name(growtas, tmp_path):
    code, err = growtas("train", "--space", "autoformer-x")
    assert code == 2
    assert "autoformer-t" in sentence(err)
    assert "micro" in sentence(err)
    assert not (tmp_path / "runs").exists()


def test_a_subnet_out_of_bounds(growtas, run, tmp_path):
    subnet = {"depth": 4, "embed_dim": 32, "num_heads": [2, 2, 9, 2], "mlp_ratio": [2, 2, 2, 2]}
    (tmp_path / "s.json").write_text(json.dumps(subnet))
    for command in (["cost", "s.json", "--space", "micro"], ["export", "--subnet", "s.json", "--format", "onnx"]):
        code, err = growtas(*command)
        assert code == 2
        assert "num_heads of block 2 is 9; the choices of micro are 2, 3 or 4" in sentence(err)
    assert not (run.path / "export").exists() or not any((run.path / "export").iterdir())


def test_a_truncated_checkpoint(growtas, run):
    run.supernet_file.write_bytes(run.supernet_file.read_bytes()[:1000])
    for command in (["search", "--max-params", "1M"], ["export", "--subnet", "s.json", "--format", "onnx"]):
        (run.path.parents[1] / "s.json").write_text(json.dumps(load_space("micro").smallest.to_dict()))
        code, err = growtas(*command)
        assert code == 2
        assert "truncated" in sentence(err)


class _Payload:
    def __reduce__(self):
        return (eval, ("open('pwned', 'w')",))


def test_a_pickle_with_code_in_it(growtas, tmp_path):
    for name, write in (
        ("new.pth", lambda p: torch.save({"model": _Payload()}, p)),
        ("old.pth", lambda p: p.write_bytes(pickle.dumps(_Payload()))),
    ):
        write(tmp_path / name)
        code, err = growtas("import", "autoformer", name, "--space", "autoformer-t")
        assert code == 2
        assert "could run code; it was not loaded" in sentence(err)
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "runs").exists()


def test_an_unknown_device(growtas, run):
    code, err = growtas("search", "--device", "a11", "--max-latency", "5ms")
    assert code == 2
    assert "a10" in sentence(err)
    code, err = growtas("export", "--format", "trt", "--device", "a11")
    assert code == 2


@pytest.mark.parametrize(
    ("limit", "nearest"),
    [(["--max-params", "10K"], "41.4K"), (["--max-macs", "1M"], "2.36M"), (["--max-latency", "1us", "--device", "a10"], "ms")],
)
def test_an_impossible_limit_is_answered_with_the_nearest(growtas, run, limit, nearest):
    code, err = growtas("search", *limit)
    assert code == 2
    assert nearest in sentence(err)
    assert not (run.path / "search" / "subnet.json").exists()


@pytest.mark.parametrize("limit", [["--max-params", "6X"], ["--max-latency", "5", "--device", "a10"], ["--max-macs", "1.3X"]])
def test_a_limit_without_a_unit(growtas, run, limit):
    code, err = growtas("search", *limit)
    assert code == 2
    assert "unit" in sentence(err)


def test_an_output_folder_that_cannot_be_written(growtas, run, tmp_path):
    # A file where a folder should be: permissions would not stop root.
    (tmp_path / "file").touch()
    (tmp_path / "s.json").write_text(json.dumps(load_space("micro").smallest.to_dict()))
    for command in (
        ["train", "--out", "file/runs"],
        ["export", "--subnet", "s.json", "--format", "onnx", "--out", "file/out"],
        ["import", "autoformer", run.supernet_file, "--space", "micro", "--out", "file/runs"],
    ):
        code, err = growtas(*command)
        assert code == 2
        assert "can't be written" in sentence(err)


def test_no_run_yet(growtas):
    for command in (["search", "--max-params", "6M"], ["export"], ["bench"]):
        code, err = growtas(*command)
        assert code == 2
        assert "growtas train" in sentence(err)


def test_an_unknown_option_is_clicks_usage_error(growtas):
    code, err = growtas("train", "--colour", "red")
    assert code == 2
    assert "--colour" in err


def test_debug_shows_the_traceback(growtas):
    with pytest.raises(Exception, match="autoformer-x"):
        growtas("train", "--space", "autoformer-x", "--debug")


def test_tests_do_not_see_the_user_s_own_profiles(growtas, tmp_path):
    from growtas.latency.modelled.profile import user_folder

    named = user_folder()
    assert list(named.iterdir()) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("GROWTAS_PROFILES")
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        theirs = user_folder()
        theirs.mkdir(parents=True)
        (theirs / "cpu.micro.onnxruntime-fp32-b1.json").write_text("{}")
        assert growtas("devices")[0] == 2  # a damaged one would stop the command
        patch.setenv("GROWTAS_PROFILES", str(named))
        assert growtas("devices")[0] == 0
