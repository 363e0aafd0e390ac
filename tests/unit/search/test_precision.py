from __future__ import annotations

import numpy as np
import pytest

from growtas.batch import SubnetBatch
from growtas.costs import count_costs
from growtas.errors import CheckpointError, LimitError
from growtas.latency.estimate import no_faster
from growtas.latency.modelled.profile import load_profile
from growtas.latency.modelled.roofline import RooflineLatency
from growtas.progress import Progress
from growtas.sampling import sample_batch
from growtas.search.evolution import EvolutionResult
from growtas.search.finalists import choose
from growtas.search.journal import Conversion, Evaluation, Journal
from growtas.search.limits import Limits
from growtas.search.precision import FINALISTS, ConvertedScorer
from growtas.search.precision_front import Variant, precision_front
from growtas.search.rerank import Recorded
from growtas.search.scoring import DROPPED
from growtas.search.search import Search
from growtas.search.targets import Target
from growtas.space import PRESETS

MICRO = PRESETS["micro"]
INT8 = Conversion(precision="int8", runtime="onnxruntime", rest="fp32", made="1")
FP16 = Conversion(precision="fp16", runtime="onnxruntime", rest="fp16", made="1")
SUBNETS = list(dict.fromkeys(sample_batch(MICRO, 40, np.random.default_rng(0))))[:20]
RANKED = [(subnet, (0.9 - 0.01 * row, -1.0, 0)) for row, subnet in enumerate(SUBNETS)]


class Converter:
    """Gives subnets their accuracy in a precision by number; may be stopped after some subnets."""

    def __init__(self, accuracies, stop_after=None):
        self.accuracies, self.stop_after, self.seen = accuracies, stop_after, []

    def __call__(self, subnet, conversions):
        if len(self.seen) == self.stop_after:
            raise KeyboardInterrupt
        self.seen += [(subnet, conversion) for conversion in conversions]
        return [Evaluation(self.accuracies[conversion][SUBNETS.index(subnet)], 1.0) for conversion in conversions]


def journal(tmp_path, name="journal.jsonl", others=(), checkpoint="c"):
    return Journal(tmp_path / name, checkpoint, "d", {}, others)


def choice(scorer, ships=(INT8,), ranked=RANKED, targets=()):
    return choose(MICRO, Limits(), targets, ranked, lambda subnets: [(0.0, 0.0, 0)], ships=ships, converted=scorer)


def test_of_the_best_in_fp32_the_best_in_int8_is_chosen(tmp_path):
    int8 = [0.5] * 20
    int8[3], int8[FINALISTS] = 0.6, 0.99
    convert = Converter({INT8: int8})
    chosen = choice(ConvertedScorer(journal(tmp_path), convert))
    assert (chosen.subnet, chosen.evaluation.accuracy, chosen.accuracy_in(INT8)) == (SUBNETS[3], 0.87, 0.6)
    assert chosen.chosen_by == ("int8",)
    assert [subnet for subnet, _ in convert.seen] == SUBNETS[:FINALISTS]
    assert [(subnet, accuracy) for subnet, accuracy, _ in chosen.scored] == [(s, score[0]) for s, score in RANKED[:FINALISTS]]


def test_without_a_conversion_nothing_is_scored_and_fp32_decides(tmp_path):
    scorer = ConvertedScorer(journal(tmp_path), Converter({}))
    for ships in ((None,), ()):
        chosen = choice(scorer, ships)
        assert (chosen.subnet, chosen.chosen_by, chosen.scored) == (SUBNETS[0], ("fp32",), ())


def test_of_several_precisions_the_lowest_accuracy_counts(tmp_path):
    accuracies = {INT8: [0.5] * 20, FP16: [0.95] * 20}
    accuracies[INT8][1], accuracies[FP16][1] = 0.8, 0.4
    accuracies[INT8][2] = 0.7
    scorer = ConvertedScorer(journal(tmp_path), Converter(accuracies))
    assert choice(scorer, (INT8, FP16)).subnet == SUBNETS[2]
    accuracies[INT8][4] = 0.89  # above what it has in fp32, 0.86
    accuracies[INT8][0] = 0.87
    other = choice(ConvertedScorer(journal(tmp_path, "other"), Converter(accuracies)), (None, INT8))
    assert (other.subnet, other.chosen_by) == (SUBNETS[0], ("fp32", "int8"))


def test_a_subnet_that_left_a_race_is_not_converted(tmp_path):
    ranked = [*RANKED[:2], *((subnet, (DROPPED, -np.inf, 0)) for subnet in SUBNETS[2:])]
    convert = Converter({INT8: [0.1, 0.2, *[0.9] * 18]})
    assert choice(ConvertedScorer(journal(tmp_path), convert), ranked=ranked).subnet == SUBNETS[1]
    assert len(convert.seen) == 2


def test_after_a_miss_the_next_best_in_int8_is_measured(tmp_path):
    """Finalists that miss a limit make room for others, which are scored too."""

    class Slow(Target):
        def latency(self, subnet, *, measure):
            shown = super().latency(subnet, measure=measure)
            return shown if subnet in met else type(shown)(self.device, 1e-9, shown.predicted, None)

    met = {SUBNETS[9]}
    target = Slow(device="a10", estimator=RooflineLatency(profile=load_profile("a10"), space=MICRO))
    int8 = [0.5] * 20
    int8[1], int8[5], int8[9] = 0.8, 0.9, 0.7
    chosen = choice(ConvertedScorer(journal(tmp_path), Converter({INT8: int8})), targets=(target,))
    assert [finalist.subnet for finalist in chosen.finalists] == [SUBNETS[row] for row in (5, 1, 9)]
    assert [finalist.converted[INT8].accuracy for finalist in chosen.finalists] == [0.9, 0.8, 0.7]


class Stages(Progress):
    def __init__(self):
        self.stages, self.advanced = [], 0

    def stage(self, name, total=None):
        self.stages.append((name, total))

    def advance(self, count=1):
        self.advanced += count


def test_what_was_converted_is_journalled_and_the_stage_tells_how_much_is_left(tmp_path):
    int8 = [0.5 + 0.01 * row for row in range(20)]
    stopped, again, third = Converter({INT8: int8}, stop_after=3), Converter({INT8: int8}), Converter({INT8: int8})
    with pytest.raises(KeyboardInterrupt):
        choice(ConvertedScorer(journal(tmp_path), stopped))
    stages = Stages()
    chosen = choice(ConvertedScorer(journal(tmp_path), again, stages))
    assert [subnet for subnet, _ in again.seen] == SUBNETS[3:FINALISTS]
    assert (stages.stages, stages.advanced) == ([("scoring subnets in int8", FINALISTS - 3)], FINALISTS - 3)
    assert choice(ConvertedScorer(journal(tmp_path), third)) == chosen
    # Another search of the run knows it as well, and a replay too.
    assert choice(ConvertedScorer(journal(tmp_path, "other", [tmp_path / "journal.jsonl"]), third)) == chosen
    recorded = Recorded.read(tmp_path / "journal.jsonl", "c")
    assert choice(ConvertedScorer(recorded)) == chosen
    assert third.seen == []


@pytest.mark.parametrize("change", [{"made": "2"}, {"rest": "fp16"}, {"runtime": "openvino"}, {"precision": "fp8"}])
def test_another_conversion_or_checkpoint_is_scored_anew(tmp_path, change):
    other = Conversion(**{**vars(INT8), **change})
    accuracies = {INT8: [0.5] * 20, other: [0.6] * 20}
    choice(ConvertedScorer(journal(tmp_path), Converter(accuracies)))
    for more, conversion in ((journal(tmp_path), other), (journal(tmp_path, checkpoint="e"), INT8)):
        convert = Converter(accuracies)
        choice(ConvertedScorer(more, convert), (conversion,))
        assert len(convert.seen) == FINALISTS


def test_a_replay_goes_by_fp32_unless_all_finalists_are_recorded(tmp_path):
    int8 = [0.5 + 0.01 * row for row in range(20)]
    with pytest.raises(KeyboardInterrupt):
        choice(ConvertedScorer(journal(tmp_path), Converter({INT8: int8}, stop_after=3)))
    recorded = Recorded.read(tmp_path / "journal.jsonl", "c")
    chosen = choice(ConvertedScorer(recorded))
    assert (chosen.subnet, chosen.chosen_by, chosen.accuracy_in(INT8)) == (SUBNETS[0], ("fp32",), 0.5)
    chosen = choice(ConvertedScorer(recorded), ranked=RANKED[:3])
    assert (chosen.subnet, chosen.chosen_by) == (SUBNETS[2], ("int8",))


def test_a_line_that_is_no_evaluation_is_named(tmp_path):
    first = journal(tmp_path)
    first.record_converted(SUBNETS[0], INT8, Evaluation(0.5, np.nan))
    assert journal(tmp_path).converted[SUBNETS[0], INT8] == Evaluation(0.5, np.inf)
    lines = first.path.read_text().splitlines()
    broken = next(line for line in lines if '"converted"' in line).replace('"rest"', '"toast"')
    first.path.write_text("\n".join([*lines, broken]) + "\n")
    with pytest.raises(CheckpointError, match=rf"entry {len(lines) + 1} is not valid in a journal"):
        journal(tmp_path)


def naive_front(points):
    return {
        key
        for key, mine in points.items()
        if not any(all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine for other in points.values())
    }


@pytest.mark.parametrize("limits", [(None, None, None), (0.55, None, 0.4)])
@pytest.mark.parametrize("names", [("accuracy", "latency"), ("accuracy", "latency", "params"), ("accuracy", "params")])
def test_the_front_over_subnets_and_precisions_is_what_the_definition_says(tmp_path, names, limits):
    """By their latency in fp32 all subnets are on the evolution's front, so that none is missing from the comparison."""
    fp32_ms = RooflineLatency(profile=load_profile("a10"), space=MICRO, precision="fp32").predict_ms
    subnets = [SUBNETS[row] for row in np.argsort(fp32_ms(SubnetBatch.from_subnets(SUBNETS)))]
    fp32 = [0.5 + 0.02 * row for row in range(20)]
    rng = np.random.default_rng(1)
    accuracies = {c: (np.array(fp32) - rng.uniform(0, 0.05, 20)).tolist() for c in (INT8, FP16)}
    estimators = {p: RooflineLatency(profile=load_profile("a10"), space=MICRO, precision=p) for p in ("fp32", "fp16", "int8")}
    conversions = {"fp32": None, "fp16": FP16, "int8": INT8}
    ms = {p: estimators[p].predict_ms(SubnetBatch.from_subnets(subnets)) for p in estimators}
    max_ms = dict(zip(estimators, [limit and limit * float(ms["fp32"].max()) for limit in limits], strict=True))
    variants = [
        Variant(target=Target(device=f"a10:{p}", estimator=estimators[p], max_ms=max_ms[p]), precision=p, conversion=conversions[p])
        for p in estimators
    ]
    scorer = ConvertedScorer(
        journal(tmp_path), lambda s, wanted: [Evaluation(accuracies[c][subnets.index(s)], 1.0) for c in wanted]
    )
    front = precision_front(MICRO, variants, names, {}, list(zip(subnets, fp32, strict=True)), scorer)

    points = {}
    for row, subnet in enumerate(subnets):
        for p in estimators:
            accuracy = fp32[row] if conversions[p] is None else accuracies[conversions[p]][row]
            costs = {"latency": float(ms[p][row]), "params": float(count_costs(MICRO, subnet).params)}
            if max_ms[p] is None or costs["latency"] <= max_ms[p]:
                points[subnet, p] = (-accuracy, *(costs[name] for name in names[1:]))
    got = {(point.subnet, point.variant.precision): (-point.accuracy, *point.costs) for point in front.points}
    if "latency" in names:
        assert got.keys() == naive_front(points)
    assert all(points[key] == pytest.approx(value) for key, value in got.items())
    written = front.to_dict(MICRO)
    assert [axis["name"] for axis in written["axes"]] == ["accuracy", *("latency a10" if n == "latency" else n for n in names[1:])]
    assert 0 < written["hypervolume"] < 1
    assert written["unscored"] == []


def test_a_subnet_is_legal_that_meets_the_limit_in_one_of_the_precisions():
    models = {p: RooflineLatency(profile=load_profile("a10"), space=MICRO, precision=p) for p in ("fp32", "int8")}
    batch = SubnetBatch.from_subnets(SUBNETS)
    ms = {precision: model.predict_ms(batch) for precision, model in models.items()}
    limit = float(np.median(ms["fp32"]))
    targets = tuple(Target(device=f"a10:{p}", estimator=model, max_ms=limit) for p, model in models.items())
    variants = tuple(Variant(target=target, precision=target.device[4:]) for target in targets)
    both, either = (Search(space=MICRO, limits=Limits(), targets=targets, variants=v).feasible()(batch) for v in ((), variants))
    assert either.tolist() == [one <= limit or other <= limit for one, other in zip(ms["fp32"], ms["int8"], strict=True)]
    assert either.sum() > both.sum()


def test_a_precision_that_nothing_here_computes_in_is_on_no_front(tmp_path):
    estimator = RooflineLatency(profile=load_profile("a10"), space=MICRO)
    target = Target(device="a10:bf16", estimator=estimator)
    variants = [
        Variant(target=target, precision="bf16", unscored_because="nothing computes in it"),
        Variant(target=Target(device="a10:int8", estimator=estimator), precision="int8", conversion=INT8),
    ]
    scorer = ConvertedScorer(journal(tmp_path), Converter({INT8: [0.5] * 20}))
    ranked = [(subnet, score[0]) for subnet, score in RANKED[:5]]
    front = precision_front(MICRO, variants, ("accuracy", "latency"), {}, ranked, scorer).to_dict(MICRO)
    assert {point["precision"] for point in front["subnets"]} == {"int8"}
    assert {(point["precision"], point["accuracy"], point["because"]) for point in front["unscored"]} == {
        ("bf16", None, "nothing computes in it")
    }


def test_a_front_on_which_no_accuracy_is_known_is_empty(tmp_path):
    """As of a replay of a search that converted nothing."""
    journal(tmp_path)
    scorer = ConvertedScorer(Recorded.read(tmp_path / "journal.jsonl", "c"))
    target = Target(device="a10", estimator=RooflineLatency(profile=load_profile("a10"), space=MICRO))
    variants = (Variant(target=target, precision="int8", conversion=INT8),)
    ranked = [(subnet, score[0]) for subnet, score in RANKED[:5]]
    front = precision_front(MICRO, variants, ("accuracy", "latency"), {}, ranked, scorer).to_dict(MICRO)
    assert (front["subnets"], front["hypervolume"]) == ([], 0.0)
    assert {(point["accuracy"], point["because"]) for point in front["unscored"]} == {
        (None, "its accuracy is not in the journal, and a replay evaluates nothing")
    }
    search = Search(space=MICRO, limits=Limits(), targets=(target,), front=("accuracy", "latency"), variants=variants)
    result = EvolutionResult(tuple(RANKED[:5]), ())
    with pytest.raises(LimitError, match="no subnet was scored in any of the precisions"):
        search.choose(result, lambda subnets: [(0.0, 0.0, 0)], converted=scorer)


@pytest.mark.parametrize(
    ("ms", "fp32_ms", "said"),
    [
        (1.02, 0.98, "int8 is no faster than fp32 here: 1.02 ms and 0.98 ms (both measured)"),
        (0.99, 1.0, "int8 is no faster than fp32 here: 0.99 ms and 1 ms (both measured)"),
        (0.97, 1.0, None),
    ],
)
def test_a_precision_is_faster_if_it_gains_more_than_two_measurements_differ(ms, fp32_ms, said):
    assert no_faster("int8", ms, fp32_ms, "measured") == said
