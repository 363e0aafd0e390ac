"""Ctrl-C and SIGTERM at every place of a training: what is saved, and that it goes on to the same bits."""

from __future__ import annotations

import _thread
import contextlib
import os
import resource
import signal
import time

import pytest
import torch

from growtas.checkpoint import load_tensors
from growtas.data.evaluation import EvaluationSet
from growtas.errors import OutputError, UsageError
from growtas.files import read_json, read_json_lines
from growtas.interrupts import Interrupts, exit_code
from growtas.progress import Progress
from growtas.runs import Run
from growtas.train.events import EpochDone, RunReady, StepDone, StopRequested, TrainingStarted
from growtas.train.resolve_recipe import resolve_recipe
from growtas.train.session import resume_session, start_session

EPOCHS = 3


@pytest.fixture(autouse=True)
def _far_apart(monkeypatch):
    """Signals that follow each other at once count as two requests: the tests don't wait."""
    monkeypatch.setattr("growtas.interrupts._SAME_REQUEST_S", 0.0)


@pytest.fixture
def begin(tiny, tmp_path):
    def start(name, batch_size=1024, **options):
        fields = {"space": tiny, "epochs": EPOCHS, "batch_size": batch_size, "warmup_epochs": 0.5, "ema_decay": 0.9, **options}
        return start_session(resolve_recipe(None, fields), out=tmp_path / "runs", name=name, device="cpu")

    return start


class Signals(Progress):
    """Signals this process at an event, as somebody outside would."""

    def __init__(self, kind=None, step=None, epoch=None, number=signal.SIGTERM, times=1):
        self.kind, self.step, self.epoch, self.number, self.times = kind, step, epoch, number, times
        self.events = []

    def event(self, event):
        self.events.append(event)
        epoch = event.metrics["epoch"] if isinstance(event, EpochDone) else None
        if type(event) is self.kind and getattr(event, "step", None) == self.step and epoch == self.epoch:
            for _ in range(self.times):
                signal.raise_signal(self.number)

    def of(self, kind):
        return [event for event in self.events if type(event) is kind]


def outcome(run):
    folder = run.checkpoints[-1]
    tensors = {f"{file.name} {key}": value for file in folder.glob("*.safetensors") for key, value in load_tensors(file)[0].items()}
    unsteady = ("time", "seconds", "images_per_s")
    lines = [{k: v for k, v in line.items() if k not in unsteady} for line in read_json_lines(run.path / "metrics.jsonl")]
    return tensors, (lines, read_json(folder / "state.json"), run.info["test_accuracy"], run.best.name)


def assert_same(one, two):
    assert one[0].keys() == two[0].keys()
    assert all(torch.equal(value, two[0][name]) for name, value in one[0].items())
    assert one[1] == two[1]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """What a training leaves that nobody stops, by its batch size: made once for all tests."""
    from tests.unit.train.conftest import TINY

    folder, made = tmp_path_factory.mktemp("calm"), {}
    (folder / "tiny.yaml").write_text(TINY)

    def of(batch_size):
        if batch_size not in made:
            fields = {"space": str(folder / "tiny.yaml"), "epochs": EPOCHS, "batch_size": batch_size, "warmup_epochs": 0.5}
            session = start_session(resolve_recipe(None, {**fields, "ema_decay": 0.9}), out=folder, device="cpu")
            session.train()
            made[batch_size] = outcome(session.run)
        return made[batch_size]

    return of


def saved_step(run):
    return read_json(run.checkpoints[-1] / "state.json")["step"] if run.checkpoints else 0


PLACES = [
    *((1024, {"kind": StepDone, "step": step}, step, signal.SIGTERM) for step in range(1, EPOCHS + 1)),
    *((400, {"kind": StepDone, "step": step}, step, signal.SIGINT) for step in range(1, 2 * EPOCHS + 1)),
    *((400, {"kind": EpochDone, "epoch": epoch}, 2 * epoch, signal.SIGTERM) for epoch in (1, EPOCHS)),
    *((400, {"kind": RunReady}, 0, number) for number in (signal.SIGINT, signal.SIGTERM)),
]


@pytest.mark.parametrize(("batch_size", "place", "step", "number"), PLACES)
def test_it_is_heard_saved_and_continued(begin, calm, batch_size, place, step, number):
    session, progress = begin("run", batch_size), Signals(**place, number=number)
    with pytest.raises(KeyboardInterrupt):
        session.train(progress)
    run = session.run
    assert [done.step for done in progress.of(StepDone)] == list(range(1, step + 1))
    assert (saved_step(run), run.info["state"], exit_code()) == (step, "interrupted", 128 + number)
    assert len(progress.of(StopRequested)) == (place["kind"] is not RunReady)
    resumed = Signals()
    assert resume_session(Run(run.path), device="cpu").train(resumed)["state"] == "finished"
    assert resumed.of(TrainingStarted) == [TrainingStarted(step, EPOCHS * (1 if batch_size == 1024 else 2))]
    assert_same(outcome(run), calm(batch_size))


@pytest.mark.parametrize(("call", "step", "epochs"), [(1, 1, 0), (2, 2, 1), (EPOCHS + 1, EPOCHS, EPOCHS)])
def test_while_accuracies_are_measured(begin, calm, monkeypatch, call, step, epochs):
    """The epoch's steps are kept although it has no accuracy yet; the last call is the one on the test images."""
    images, calls = EvaluationSet.images, []

    def signalled(self, start, stop):
        calls.append(start)
        if len([first for first in calls if first == 0]) == call and start == 0:
            signal.raise_signal(signal.SIGTERM)
        return images(self, start, stop)

    session = begin("run")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(EvaluationSet, "images", signalled)
        session.train()
    assert (saved_step(session.run), len(read_json_lines(session.run.path / "metrics.jsonl"))) == (step, epochs)
    resumed = Signals()
    resume_session(session.run, device="cpu").train(resumed)
    assert len(resumed.of(StepDone)) == EPOCHS - step
    assert_same(outcome(session.run), calm(1024))
    assert all(line["images_per_s"] > 0 for line in read_json_lines(session.run.path / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("prenas", {}),
        ("focusformer", {"every": 2, "samples": 3, "images": 50}),
        ("greedynas", {"keep": 2, "candidates": 3, "images": 50}),
        ("shiftnas", {"every": 2, "start": 0.0, "images": 50}),
    ],
)
def test_while_a_method_works(begin, monkeypatch, method, options):
    """PreNAS scores before the first step, the others measure before the third one."""
    from growtas.train.trainer import Trainer

    whole = begin("whole", 400, method=method, method_options=options)
    whole.train()
    session, calls = begin("run", 400, method=method, method_options=options), []
    for name in ("accuracy", "losses", "sample_batch"):
        original = getattr(Trainer, name)

        def signalled(self, *arguments, original=original):
            calls.append(arguments)
            if len(calls) == 2:
                signal.raise_signal(signal.SIGINT)
            return original(self, *arguments)

        monkeypatch.setattr(Trainer, name, signalled)
    with pytest.raises(KeyboardInterrupt):
        session.train()
    assert len(calls) == 2
    assert saved_step(session.run) == (0 if method == "prenas" else 2)
    resume_session(session.run, device="cpu").train()
    assert_same(outcome(session.run), outcome(whole.run))


@pytest.mark.parametrize("method", ["dynas", "vitas"])
def test_between_the_steps_of_a_method(begin, method):
    whole, session = begin("whole", 400, method=method), begin("run", 400, method=method)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        session.train(Signals(StepDone, step=5))
    assert saved_step(session.run) == 5
    resume_session(session.run, device="cpu").train()
    assert_same(outcome(session.run), outcome(whole.run))


def test_the_second_time_it_ends_at_once(begin):
    session, progress = begin("run", 400), Signals(StepDone, step=2, times=2)
    with pytest.raises(KeyboardInterrupt):
        session.train(progress)
    assert session.run.checkpoints == [], "nothing was saved any more"
    assert session.run.info["state"] == "interrupted"
    assert not list(session.run.path.rglob(".*.tmp"))


def test_the_second_time_while_it_saves_leaves_no_half_of_a_file(begin, monkeypatch):
    from growtas.train import checkpoints

    save = checkpoints.save_tensors

    def signalled(path, *arguments):
        save(path, *arguments)
        signal.raise_signal(signal.SIGINT)

    session = begin("run", 400)
    monkeypatch.setattr(checkpoints, "save_tensors", signalled)
    with pytest.raises(KeyboardInterrupt):
        session.train(Signals(StepDone, step=1))
    assert [path.name for path in (session.run.path / "checkpoints").iterdir()] == []


def test_a_progress_that_raises_is_a_request_like_any_other(begin, calm):
    class Stop(Progress):
        def event(self, event):
            if isinstance(event, StepDone) and event.step == 3:
                raise KeyboardInterrupt

    session = begin("run", 400)
    with pytest.raises(KeyboardInterrupt):
        session.train(Stop())
    assert (saved_step(session.run), exit_code()) == (3, 130)
    resume_session(session.run, device="cpu").train()
    assert_same(outcome(session.run), calm(400))


def test_a_signal_that_is_sent_twice_in_a_moment_is_one_request(monkeypatch):
    monkeypatch.undo()
    time.sleep(0.31)  # else the first one may count as the last signal of the test before
    with Interrupts() as interrupts:
        with interrupts.held():
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
                signal.raise_signal(number)
        assert (interrupts.requested, interrupts.at_once, exit_code()) == (True, False, 143)
        time.sleep(0.31)
        with pytest.raises(KeyboardInterrupt), interrupts.held():
            signal.raise_signal(signal.SIGINT)
        assert interrupts.at_once


def test_another_process_s_request_that_arrives_here_too_is_no_second_one(monkeypatch):
    with Interrupts() as interrupts, interrupts.held():
        interrupts.agree(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert (interrupts.requested, interrupts.at_once) == (True, False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_leaves_signals_to_its_parent():
    with Interrupts() as interrupts:
        pid = os.fork()
        if not pid:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert not interrupts.requested


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interrupts():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


class FullDisk(Progress):
    """After the first step, no file takes more than some bytes, as on a disk that is full."""

    def __init__(self, room):
        self.room = room

    def event(self, event):
        if type(event) is StepDone:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.room, resource.RLIM_INFINITY))


@pytest.mark.parametrize(("room", "file"), [(100, "metrics.jsonl"), (6000, "supernet.safetensors")])
def test_a_full_disk_is_named_and_the_training_continues_to_the_same_bits(begin, calm, room, file):
    session = begin("run", 400)
    try:
        # With the least room, run.json can't be written either, but the first file is the one to name.
        with pytest.raises(OutputError, match=f"{file}: can't be written") as caught:
            session.train(FullDisk(room))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert ".tmp" not in str(caught.value), "the name is that of the file, not the temporary one"
    assert not list(session.run.path.rglob(".*.tmp"))
    resume_session(session.run, device="cpu").train()
    assert_same(outcome(session.run), calm(400))


def test_two_processes_never_train_one_run(begin, calm):
    """The second one is refused whether it resumes the run or was ready before the first one began; the first one goes on."""
    session = begin("run", 400)
    ready, refused = resume_session(session.run, device="cpu"), []

    class Second(Progress):
        def event(self, event):
            if type(event) is StepDone and event.step == 2:
                for start in (ready.train, lambda: resume_session(session.run, device="cpu")):
                    with pytest.raises(UsageError, match=f"process {os.getpid()} is training this run") as caught:
                        start()
                    refused.append(caught.value)

    session.train(Second())
    assert len(refused) == 2
    assert_same(outcome(session.run), calm(400))
    with pytest.raises(UsageError, match="the run is finished, so there is nothing to resume"):
        ready.train()
    assert not (session.run.path / ".lock").exists()


def test_a_signal_that_is_lost_again_is_repeated_until_it_is_heard(monkeypatch):
    """As on a busy machine, where the repetition arrives while the loss of the first signal is still being handled."""
    start, started = _thread.start_new_thread, []

    class Press:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def early(function, arguments):
        started.append(function)
        if len(started) < 3:
            signal.raise_signal(signal.SIGINT)
            return 0  # without a thread, whose signal could arrive after this test
        return start(function, arguments)

    monkeypatch.setattr(_thread, "start_new_thread", early)
    with Interrupts(), pytest.raises(KeyboardInterrupt):
        Press()
        end = time.monotonic() + 30
        while time.monotonic() < end:
            time.sleep(0.001)
    assert len(started) == 3
