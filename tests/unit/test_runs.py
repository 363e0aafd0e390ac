from __future__ import annotations

import os
from pathlib import Path

import pytest

from growtas.errors import CheckpointError, OutputError, UsageError
from growtas.files import write_json
from growtas.runs import Run, create_run, find_run, list_runs, run_of
from growtas.space import PRESETS


def _info():
    return {"state": "training", "space": PRESETS["micro"].to_dict()}


def test_the_newest_run_is_found(tmp_path):
    with pytest.raises(UsageError, match="no run in .*; make one with `growtas train`"):
        find_run(None, tmp_path)
    first, second = create_run(tmp_path, "b", _info()), create_run(tmp_path, "a", _info())
    first.update(created="2026-01-01T00:00:00+00:00")
    second.update(created="2026-01-02T00:00:00+00:00")
    assert find_run(None, tmp_path).path == tmp_path / "a"
    # One that can't be read is as old as its file, and in nobody's way while there is a newer one.
    broken = tmp_path / "c" / "run.json"
    broken.parent.mkdir()
    broken.write_text("{")
    os.utime(broken, (0, 0))
    assert find_run(None, tmp_path).path == tmp_path / "a"
    assert find_run(tmp_path / "b").path == tmp_path / "b"
    assert find_run(None, tmp_path).space == PRESETS["micro"]


def test_names_are_not_reused(tmp_path):
    create_run(tmp_path, "a", _info())
    with pytest.raises(UsageError, match="a run of this name exists"):
        create_run(tmp_path, "a", _info())
    for name in ("a/b", "..", ".hidden", ""):
        with pytest.raises(UsageError, match="must be a plain folder name"):
            create_run(tmp_path, name, _info())
    assert len({create_run(tmp_path, None, _info()).path for _ in range(3)}) == 3


def test_a_run_appears_whole_or_its_name_stays_free(tmp_path):
    def fails(folder):
        assert list_runs(tmp_path) == []
        raise OutputError("full")

    with pytest.raises(OutputError, match="full"):
        create_run(tmp_path, "a", _info(), fails)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()  # a process was killed between this and the first file
    run = create_run(tmp_path, "a", _info(), lambda folder: (folder / "x").touch())
    assert sorted(path.name for path in run.path.iterdir()) == ["run.json", "x"]


def test_of_two_processes_that_choose_one_name_the_second_is_told(tmp_path):
    with pytest.raises(UsageError, match="a: a run of this name exists"):
        create_run(tmp_path, "a", _info(), lambda _: write_json(tmp_path / "a" / "run.json", {}))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(UsageError, match="no run here"):
        find_run(tmp_path / "x")
    (tmp_path / "run.json").write_text('{"format": "other"}')
    with pytest.raises(CheckpointError, match="not a growtas run"):
        _ = find_run(tmp_path).info


def test_only_complete_checkpoints_count(tmp_path):
    run = create_run(tmp_path, "a", _info())
    with pytest.raises(CheckpointError, match=r"no checkpoint yet; continue it with `growtas train --resume"):
        _ = run.supernet_file
    for name in ("epoch-0002", "epoch-0010", ".epoch-0011.tmp", "epoch-0012"):
        (run.path / "checkpoints" / name).mkdir(parents=True)
    for name in ("epoch-0002", "epoch-0010", ".epoch-0011.tmp"):
        (run.path / "checkpoints" / name / "state.json").touch()
    assert Run(run.path).supernet_file == run.path / "checkpoints" / "epoch-0010" / "supernet.safetensors"


def test_an_artifact_lies_in_the_run_whose_export_folder_it_is_in(tmp_path, monkeypatch):
    run = create_run(tmp_path, "first", _info())
    (run.path / "export").mkdir()
    for folder, name, want in (
        (tmp_path, "first/export/m.onnx", "first"),
        (run.path, "export/m.onnx", "."),
        (run.path / "export", "m.onnx", run.path),
        (run.path / "export", "../export/m.onnx", ".."),
        (tmp_path, "m.onnx", None),
    ):
        monkeypatch.chdir(folder)
        assert run_of(Path(name)) == (None if want is None else Path(want)), name


def test_preferred_subnets_are_those_of_the_newest_checkpoint(tmp_path):
    run, space = create_run(tmp_path, "a", _info()), PRESETS["micro"]
    assert run.preferred_subnets() == []
    subnets = [space.smallest, space.middle(), space.largest]

    def checkpoint(epoch, strategy):
        folder = run.path / "checkpoints" / f"epoch-{epoch:04d}"
        folder.mkdir(parents=True)
        write_json(folder / "state.json", {"epoch": epoch, "strategy": strategy})

    checkpoint(1, {"preferred": [space.smallest.to_dict()]})
    assert run.preferred_subnets() == [space.smallest]
    pooled = [[subnet.to_dict(), loss, 0] for subnet, loss in zip(subnets, (0.3, 0.1, 0.2), strict=True)]
    checkpoint(2, {"pool": [pooled[:2], [], pooled[2:]]})
    assert run.preferred_subnets() == [subnets[1], subnets[2], subnets[0]], "the best of each interval come first"
    checkpoint(3, {})
    assert run.preferred_subnets() == []
    for number, wrong in enumerate(({"preferred": 3}, {"pool": [1]}, {"pool": [[[{}, "loss", 1]]]}, [])):
        checkpoint(4 + number, wrong)
        with pytest.raises(CheckpointError, match=r"state\.json: strategy.* must be"):
            run.preferred_subnets()
