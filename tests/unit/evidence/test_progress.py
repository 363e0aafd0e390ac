import io
import json

from growtas.latency.at_hand import cpu_name
from tests.evidence.plan import PLAN
from tests.evidence.progress import Progress


def said(lines, *events, training=PLAN[5]):
    out = io.StringIO()
    progress = Progress(PLAN, lines, 1, out)
    progress.begin(training)
    for event in events:
        progress.show(event if isinstance(event, str) else json.dumps(event))
    return out.getvalue().splitlines()


def test_a_log_gets_a_line_an_epoch_and_a_measurement():
    events = [
        {"step": 0, "steps": 100},
        {"step": 3, "steps": 100},
        {"step": 50, "steps": 100, "epoch": 10, "loss": 0.25},
        "not JSON",
        {"measuring": "the test set", "done": 1, "of": 2},
        {"measuring": "the test set", "done": 2, "of": 2},
    ]
    epoch, measured = said({}, *events)
    assert f"[6/{len(PLAN)}] {PLAN[5].title}: 50%, epoch 10 done, loss 0.250; " in epoch
    assert "h of the plan" in epoch
    assert measured.endswith(f"{PLAN[5].title}: measuring the test set, 2 of 2")


def test_hours_left_are_those_of_finished_trainings_on_this_cpu(make_line):
    """One training of 20 epochs took an hour; half of this one and all later ones are left, equal compute counting as 20 epochs."""
    lines = {PLAN[4].key: {**make_line(PLAN[4]), "cpu": f"{cpu_name()} (AVX2)", "seconds": 3000, "measure_seconds": 600}}
    (text,) = said(lines, {"step": 1, "steps": 2, "epoch": 1, "loss": 1.0})
    later = [training for training in PLAN if training not in PLAN[4:6]]
    hours = sum(training.epochs / 20 if training.starts_from else 1 for training in later)
    assert text.endswith(f"30 min left of it, {hours + 0.5:.1f} h of the plan")


def test_other_machines_say_nothing_about_this_one(make_line):
    lines = {PLAN[4].key: make_line(PLAN[4])}
    (text,) = said(lines, {"step": 1, "steps": 2, "epoch": 1, "loss": 1.0})
    assert text.endswith("the time left is not known yet")
