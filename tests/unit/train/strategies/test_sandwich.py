import pytest

from growtas.errors import ConfigError
from growtas.train.recipe import Recipe
from growtas.train.strategies import make_strategy
from growtas.train.strategies.base import Pass


def _sandwich(space, **options):
    return make_strategy(Recipe(method="sandwich", method_options=options), space)


@pytest.mark.parametrize("random", [0, 2, 5])
def test_the_largest_learns_from_labels_and_teaches_the_rest(space, random):
    first, second, *rest = _sandwich(space, random=random).draw(7, 0.5)
    assert first == Pass(space.largest, labels=1.0, soft=0.0)
    assert second.subnet == space.smallest
    assert len(rest) == random
    assert all((p.labels, p.soft, p.teacher) == (0.0, 1 / (1 + random), "first") for p in (second, *rest))
    assert all(space.holds(p.subnet) for p in rest)


def test_the_papers_sum_of_the_students_losses(space):
    _, *students = _sandwich(space, students=3.0).draw(7, 0.5)
    assert [p.soft for p in students] == [1.0, 1.0, 1.0]


def test_two_random_subnets_by_default_that_change_with_the_step(space):
    strategy = _sandwich(space)
    drawn = [strategy.draw(step, 0.0)[2:] for step in range(200)]
    assert {len(passes) for passes in drawn} == {2}
    widths = [p.subnet.embed_dim for passes in drawn for p in passes]
    # 400 draws of three widths: 133 each, 9.4 standard deviation.
    assert all(90 < widths.count(width) < 180 for width in space.embed_dim)
    assert strategy.draw(3, 0.0) == _sandwich(space).draw(3, 0.0) != strategy.draw(4, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"random": -1}, "random is -1; it must be"),
        ({"students": 0}, "students is 0; it must be a number above 0"),
        ({"randon": 1}, "did you mean random"),
    ],
)
def test_wrong_options(space, options, message):
    with pytest.raises(ConfigError, match=message):
        _sandwich(space, **options)
