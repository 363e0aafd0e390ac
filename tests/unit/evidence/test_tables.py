import csv
import re
import statistics
import xml.etree.ElementTree as ElementTree

import pytest

from tests.evidence import tables
from tests.evidence.ledger import FOLDER, read_ledger
from tests.evidence.plan import PLAN, RATE, SEEDS
from tests.evidence.tables import Evidence, fill, write_all

PAGE = "before\n<!-- ledger: {part} -->\nold\n<!-- end -->\nafter\n"


def first_seed():
    return [training for training in PLAN if training.seed == SEEDS[0]]


@pytest.fixture
def evidence(make_line):
    """Evidence of some trainings; the accuracy of all but uniform's is higher by a shift, in points by seed."""

    def build(trainings, shifts=(1.0, 1.0, 1.0)):
        def shift(training):
            return 0.0 if training.name == "uniform" or training.seed not in SEEDS else shifts[training.seed] / 100

        return Evidence(PLAN, {training.key: make_line(training, shift(training)) for training in trainings})

    return build


def cells(text):
    """The cells of a Markdown table, the first cell of each row as the key."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert len({len(row) for row in rows}) == 1
    return {row[0]: row[1:] for row in rows[2:]}


def records(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.parametrize("count", [0, 1, len(first_seed()), len(PLAN)], ids=["none", "one", "one seed", "all"])
def test_any_number_of_lines(evidence, tmp_path, count):
    """From no line to all: every file is whole, and what is missing is named."""
    chosen = {0: [], 1: PLAN[4:5], len(first_seed()): first_seed(), len(PLAN): PLAN}[count]
    page = tmp_path / "page.md"
    page.write_text("".join(PAGE.format(part=part) for part in tables.PARTS))
    found = evidence(chosen)
    write_all(found, tmp_path / "out", page)
    text = page.read_text()
    assert "old" not in text
    assert text.count("before") == text.count("after") == len(tables.PARTS)
    assert f"{count} of the plan's {len(PLAN)} trainings are finished." in text
    assert ("Missing:" in text) == (count < len(PLAN))
    for name in tables.FIGURES:
        assert ElementTree.fromstring((tmp_path / "out" / name).read_text()).tag.endswith("svg")
    assert len(records(tmp_path / "out" / "probes.csv")) == 14 * sum(training.group != "rate" for training in chosen)
    assert len(records(tmp_path / "out" / "limits.csv")) == 6 * sum(training.group != "rate" for training in chosen)


def test_drawing_again_changes_nothing(evidence, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE.format(part="methods"))
    texts = []
    for _ in range(2):
        write_all(evidence(PLAN), tmp_path, page)
        texts.append([path.read_bytes() for path in sorted(tmp_path.iterdir())])
    assert texts[0] == texts[1]


def test_missing_trainings_are_named(evidence):
    left_out = next(training for training in PLAN if training.name == "sandwich" and training.seed == 2)
    text = tables.status(evidence([training for training in PLAN if training != left_out]))
    assert text == f"{len(PLAN) - 1} of the plan's {len(PLAN)} trainings are finished. Missing: sandwich (equal compute), seed 2."


def test_lines_of_other_settings_are_counted_and_left_out(make_line):
    line = {**make_line(PLAN[4]), "key": "other"}
    text = tables.status(Evidence(PLAN, {"other": line}))
    assert "0 of the plan's" in text
    assert "1 line of the ledger is a training with other settings" in text


def test_means_and_deviations_over_seeds(evidence):
    """uniform's smallest subnet has 41,354 parameters, and so 80.83 %; the others' shifts of 1, 2 and 6 points are 3 ± 2.65."""
    found = cells(tables.methods(evidence(PLAN, (1.0, 2.0, 6.0))))
    assert found["uniform"][2] == "80.83 ± 0.00"
    spread = statistics.stdev([1, 2, 6])
    assert found["growtas, T_1 at 0.5"][2] == f"{80.83 + 3:.2f} ± {spread:.2f}"
    assert found["growtas, T_1 at 0.5"][:2] == ["3/3", "20"]
    assert found["growtas-plus"][0] == "3/0"


def test_compute_counts_the_training_that_was_gone_on_from(evidence):
    """A line of this test has 1e12 multiply-accumulates an epoch: 20 epochs, 20 + 2, and 4."""
    found = cells(tables.methods(evidence(PLAN)))
    assert found["uniform"][5] == "1.00"
    assert found["growtas-plus"][1] == "22"
    assert found["growtas-plus"][5] == "1.10"
    assert found["sandwich"][-1] == "0.20"


def test_compute_without_the_base_training_is_not_known(evidence):
    trainings = [training for training in PLAN if training.name in ("uniform", "growtas-plus")]
    assert cells(tables.methods(evidence(trainings)))["growtas-plus"][5] == "-"


def test_differences_are_seed_by_seed(evidence):
    """Without uniform's seed 1 the differences are those of seeds 0 and 2: 1 and 6 points."""
    trainings = [training for training in PLAN if not (training.name == "uniform" and training.seed == 1)]
    found = cells(tables.against_uniform(evidence(trainings, (1.0, 2.0, 6.0))))
    assert found["growtas, T_1 at 0.4 (equal steps)"][:2] == ["2", f"+3.50 ± {statistics.stdev([1, 6]):.2f}"]


@pytest.mark.parametrize(
    ("shifts", "expected"),
    [
        ((1.0, 1.1, 0.9), "ahead at smallest, width 32, width 48, width 64 and largest"),
        ((-1.0, -1.1, -0.9), "behind at smallest"),
        ((1.0, -1.1, 0.2), "the seeds show no difference"),
    ],
)
def test_claims_follow_the_confidence_interval(evidence, shifts, expected):
    assert f"growtas, T_1 at 0.5 (equal steps, 3 seeds): {expected}" in tables.claims(evidence(PLAN, shifts))


def test_one_seed_claims_nothing(evidence):
    text = tables.claims(evidence(first_seed()))
    assert "one seed cannot show a difference" in text
    assert not re.search("ahead|behind", text)


def test_transitions_are_in_order_with_uniform_first(evidence):
    found = cells(tables.transition_table(evidence(PLAN)))
    assert list(found)[:4] == ["uniform", "growtas, T_1 at 0.4", "growtas, T_1 at 0.5", "growtas, T_1 at 0.8"]
    assert found["uniform"][2:] == ["81.60 ± 0.00", "83.00 ± 0.00", "85.20 ± 0.00"]


def test_curves_are_of_every_method(evidence):
    svg = tables.draw_limits(evidence(PLAN))
    for name in {training.name for training in PLAN if training.group == "compute"}:
        assert name in svg
    assert "equal steps" in svg


def test_the_committed_tables_are_those_of_the_committed_ledger():
    evidence = Evidence(PLAN, read_ledger())
    page = tables.PAGE.read_text()
    rows = [line.strip("|").split("|") for line in tables.rate_table(evidence).splitlines()]
    rates = {float(row[1].split()[0]): float(row[-1]) for row in rows if row[0].strip() == "uniform"}
    assert rates[RATE] == max(rates.values())
    assert set(re.findall(r"<!-- ledger: (\w+) -->", page)) == set(tables.PARTS)
    assert fill(page, evidence) == page, "run `make evidence-tables`"
    for name, (rows, columns) in tables.FILES.items():
        assert (FOLDER / name).read_text() == tables.to_csv(rows(evidence), columns), "run `make evidence-tables`"
