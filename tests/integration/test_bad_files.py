"""Files that no growtas wrote: each is refused in one sentence that names the file, and none hangs."""

import json
import os
import shutil
import signal
import sys

import pytest

from growtas.cli import main
from growtas.errors import CheckpointError, OutputError, SpaceError, brief, cause
from growtas.export.artifact import Manifest
from growtas.export.pipeline.model_card import write_card
from growtas.files import parse_json, read_json, read_json_lines, write_json
from growtas.nn.architecture import Architecture
from growtas.runs import Run, read_metrics, read_model_manifest
from growtas.space import PRESETS, load_space


@pytest.fixture(autouse=True)
def _no_hang():
    """A read that waits for a writer fails instead of stopping the tests."""

    def stop(*_):
        raise AssertionError("the read hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def run_folder(tmp_path):
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    info = {
        "format": "growtas-run/1",
        "state": "interrupted",
        "method": "growtas",
        "space": PRESETS["micro"].to_dict(),
        "recipe": {"epochs": 3},
        "data": {"name": "digits", "data_dir": None, "train_size": 1438, "test_size": 359},
        "preprocess": {"image_size": 28, "in_chans": 3, "mean": [0.5] * 3, "std": [0.5] * 3},
        "class_names": [str(i) for i in range(10)],
    }
    (run / "run.json").write_text(json.dumps(info))
    (run / "metrics.jsonl").write_text('{"epoch": 1, "seconds": 1.0, "loss": 2.0}\n')
    return run


def command(monkeypatch, capsys, *arguments):
    """Runs a command in this process; returns its exit code and its standard error."""
    monkeypatch.setattr(sys, "argv", ["growtas", *map(str, arguments)])
    entry = sys.modules["growtas.cli.main"]  # the package has a function of that name
    monkeypatch.setattr(entry, "end_at_signals", lambda code: None)
    monkeypatch.setattr(entry.gc, "freeze", lambda: None)
    with pytest.raises(SystemExit) as ending:
        main()
    return ending.value.code, capsys.readouterr().err


def is_refused(code, message, name):
    return code == 2 and message.count("\n") == 1 and name in message and "unexpected" not in message and len(message) < 700


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "sparse"])
@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl"])
def test_what_is_no_regular_file_of_a_legal_size_is_refused(run_folder, monkeypatch, capsys, kind, name):
    file = run_folder / name
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    else:
        with open(file, "wb") as sparse:
            sparse.truncate(10**12)
    code, message = command(monkeypatch, capsys, "show", run_folder)
    if name == "run.json" and kind != "sparse":
        assert code == 2
        assert "unexpected" not in message
    else:
        assert is_refused(code, message, name)


def test_a_link_to_a_regular_file_is_read(run_folder, monkeypatch, capsys):
    elsewhere = run_folder.parent / "elsewhere.json"
    shutil.move(run_folder / "run.json", elsewhere)
    (run_folder / "run.json").symlink_to(elsewhere)
    assert command(monkeypatch, capsys, "show", run_folder)[0] == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data", 3),
        ("data", {"name": []}),
        ("data", {"name": "digits", "test_size": -1}),
        ("recipe", "x" * 1_000_000),
        ("space", []),
        ("preprocess", [1]),
        ("preprocess", {"image_size": 1_000_000}),
        ("preprocess", {"mean": ["a"]}),
        ("preprocess", {"std": [0]}),
        ("class_names", [1, 2]),
        ("class_names", {"a": 1}),
        ("test_accuracy", {"smallest": "high"}),
        ("test_accuracy", {"smallest": 10**400}),
        ("teacher", 1),
        ("starts_from", "somewhere"),
        ("finetune", []),
        ("state", 5),
    ],
)
def test_a_wrong_entry_of_a_run_is_named(run_folder, monkeypatch, capsys, field, value):
    file = run_folder / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    code, message = command(monkeypatch, capsys, "show", run_folder)
    assert is_refused(code, message, f"run.json: {field}")
    assert command(monkeypatch, capsys, "runs", run_folder.parent)[0] == 0


@pytest.mark.parametrize("text", ["[" * 5000, "1" * 5000, '{"score": "x"}', "[]", '{"score": NaN}', "{", "", '{"a": 1, "a": 1}'])
def test_an_unreadable_best_score_does_not_block_the_report(run_folder, monkeypatch, capsys, text):
    best = run_folder / "checkpoints" / "best-epoch-0001"
    best.mkdir(parents=True)
    (best / "best.json").write_text(text)
    assert Run(run_folder).best_score is None
    assert command(monkeypatch, capsys, "show", run_folder)[0] == 0


@pytest.mark.parametrize("entry", [{"images": {"count": "many"}}, {"images": {"count": 10**40}}, {"best": {"accuracy": "high"}}])
def test_a_search_result_with_a_wrong_entry_costs_only_its_section(run_folder, monkeypatch, capsys, entry):
    (run_folder / "search").mkdir()
    good = {"best": {"accuracy": 0.5}, "images": {"count": 300}, "limits": {}}
    (run_folder / "search" / "result.json").write_text(json.dumps({**good, **entry}))
    for name in ("report", "show"):
        assert command(monkeypatch, capsys, name, run_folder)[0] == 0
    (name,), (inner,) = entry.keys(), (value.keys() for value in entry.values())
    assert f"result.json: {name}.{next(iter(inner))} is " in (run_folder / "report.html").read_text()


@pytest.mark.parametrize("value", [1e308, 10**400, "1", None, -1e308])
def test_a_metric_without_a_sense_is_a_gap(run_folder, monkeypatch, capsys, value):
    lines = [{"epoch": epoch, "seconds": value, "loss": value, "time": {"data": value, "save": value}} for epoch in (1, 2)]
    (run_folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert command(monkeypatch, capsys, "show", run_folder)[0] == 0


@pytest.mark.parametrize("text", ["[" * 5000, "[" * 200 + "]" * 200, "1" * 5000, '{"a": 1, "a": 2}', "{", "\ufeff\ufeff"])
def test_json_that_is_refused(tmp_path, text):
    file = tmp_path / "a.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"a\.json") as error:
        read_json(file)
    assert len(str(error.value)) < 400
    (tmp_path / "a.jsonl").write_text(f"{text}\n{{}}\n", encoding="utf-8")
    if not text.startswith("\ufeff"):
        with pytest.raises(CheckpointError, match=r"a\.jsonl: line 1 is not JSON"):
            read_json_lines(tmp_path / "a.jsonl")


def test_a_missing_entry_names_the_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"^a\.json: the entry score is missing$"):
        parse_json("{}", "a.json:")["score"]


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True))
SPACE = "embed_dim: [32]\nnum_heads: [2]\nmlp_ratio: [2]\ndepth: [4]\n"


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "&a [*a]",
        "a: &a {b: 1}\n<<: *a",
        "<<: {embed_dim: [32]}",
        "[" * 5000,
        "embed_dim: " + "1" * 5000,
        "3: 4",
        "[a]: 4",
        "date: 2026-01-01",
        "a: !!binary aGVsbG8=",
        "a: !!set {x}",
        "a: !!python/object/apply:os.system [ls]",
        "a: 1\na: 2",
        "x" * 200_000,
        SPACE + "image_size: 1000000",
        SPACE + "head_dim: 999999",
        SPACE + "max_embed_dim: 999999",
        SPACE + "max_depth: 99999",
        SPACE + "num_classes: 99999999999999999999",
        SPACE + "image_size: 4096\npatch_size: 1",
        SPACE + "name: [a]",
        SPACE.replace("[4]", "{min: 1, max: 999999, step: 1}"),
        SPACE.replace("[32]", f"[{10**400}]"),
    ],
)
def test_a_space_that_is_refused(tmp_path, text):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(SpaceError, match=r"space\.yaml") as error:
        load_space(file)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 10**6},
        {"image_size": "28"},
        {"patch_size": 0},
        {"patch_size": 5},
        {"head_dim": 999_999},
        {"num_classes": -1},
        {"num_classes": 10**12},
        {"in_chans": None},
        {"max_relative_position": 2.5},
    ],
)
def test_an_architecture_that_is_refused(change):
    space = PRESETS["micro"]
    data = Architecture.of(space, space.smallest).to_dict()
    assert Architecture.from_dict(data).to_dict() == data
    with pytest.raises(CheckpointError, match=f"^file: .*{next(iter(change))}"):
        Architecture.from_dict(data | change, source="file")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("limits", []),
        ("limits", {"max_latency_ms": "5ms"}),
        ("latency", {"ms": 10**400}),
        ("latency", {"ms": 1.0, "batch": "x"}),
        ("latencies", [{"device": 7}]),
        ("latencies", [None]),
        ("device", {}),
        ("accuracy", "x" * 1_000_000),
    ],
)
def test_a_wrong_entry_of_a_searched_subnet_is_named(run_folder, monkeypatch, capsys, field, value):
    checkpoint = run_folder / "checkpoints" / "epoch-0001"
    checkpoint.mkdir(parents=True)
    for name in ("state.json", "supernet.safetensors"):
        (checkpoint / name).write_text("{}")
    (run_folder / "search").mkdir()
    subnet = {**PRESETS["micro"].smallest.to_dict(), "accuracy": 0.5, field: value}
    (run_folder / "search" / "subnet.json").write_text(json.dumps(subnet))
    code, message = command(monkeypatch, capsys, "export", run_folder)
    assert is_refused(code, message, f"subnet.json: {field}")


@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
def test_a_model_card_that_is_no_regular_file_is_neither_read_nor_replaced(tmp_path, put):
    card = tmp_path / "README.md"
    put(card)
    before = card.lstat()
    with pytest.raises(OutputError, match=r"README\.md: the model card can't be read \(it is not a regular file\)"):
        write_card(tmp_path, [Manifest.from_dict({})])
    assert card.lstat() == before


def test_what_a_library_says_is_one_line_without_control_characters():
    assert cause(ValueError("file data/\x14 \x1b[31m\nis\u202e missing")) == "file data/\\x14 \\x1b[31m is\\u202e missing"
    assert cause(OSError(2, "No such file")) == "No such file"
    assert cause(MemoryError()) == "MemoryError"
    assert len(cause("x" * 1_000_000)) == 160
    assert brief("\x1b[31m", quote=False) == "\\x1b[31m"


def test_a_fifo_that_nobody_reads_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("growtas.files.READER_SECONDS", 0.1)
    os.mkfifo(tmp_path / "result.json")
    with pytest.raises(OutputError, match=r"result\.json: can't be written \(no process reads it\)"):
        write_json(tmp_path / "result.json", {})
    reader = os.open(tmp_path / "result.json", os.O_RDONLY | os.O_NONBLOCK)
    write_json(tmp_path / "result.json", {"a": 1})
    assert json.loads(os.read(reader, 100)) == {"a": 1}
    os.close(reader)


@pytest.mark.parametrize("entry", [{"mean": True}, {"std": [0, 1, 1]}, {"image_size": "large"}, 3])
def test_a_wrong_entry_of_a_models_manifest_is_named(tmp_path, entry):
    (tmp_path / "m.safetensors.json").write_text(json.dumps({"preprocess": entry}))
    with pytest.raises(CheckpointError, match=r"m\.safetensors\.json: preprocess"):
        read_model_manifest(tmp_path / "m.safetensors")
    assert read_model_manifest(tmp_path / "other.safetensors") == {}


@pytest.mark.parametrize(("accuracy", "legal"), [({}, True), ({"largest": 2}, False), ("high", False)])
def test_accuracies_of_an_epoch_are_checked_before_a_training_goes_on(tmp_path, accuracy, legal):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "accuracy": accuracy}) + "\n")
    if legal:
        assert len(read_metrics(tmp_path)) == 1
    else:
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line 1: accuracy is "):
            read_metrics(tmp_path)
