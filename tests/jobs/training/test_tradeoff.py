import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipreel.jobs.training.tradeoff import TradeoffPoint, mean_over_seeds, pareto_front


def point(updates: float, metric: float, *, family: str = "skip", setting: str = "", seed: int = 0) -> TradeoffPoint:
    return TradeoffPoint("Skip GRU", family, setting, metric, updates, updates / 100, seed)


def test_the_front_by_hand() -> None:
    points = [point(70, 0.80), point(30, 0.78), point(40, 0.70), point(10, 0.50), point(75, 0.80), point(12, 0.50)]
    assert pareto_front(points) == (3, 1, 0)


def test_of_equally_cheap_points_only_the_best_is_on_the_front() -> None:
    assert pareto_front([point(10, 0.4), point(10, 0.6), point(10, 0.5)]) == (1,)


def test_equal_points_share_their_place() -> None:
    assert pareto_front([point(10, 0.6), point(20, 0.6), point(10, 0.6)]) == (0, 2)


def test_no_points_have_an_empty_front() -> None:
    assert pareto_front([]) == ()


def beats(one: TradeoffPoint, other: TradeoffPoint) -> bool:
    no_worse = one.updates <= other.updates and one.metric >= other.metric
    return no_worse and (one.updates < other.updates or one.metric > other.metric)


# Few distinct values, so that ties are common.
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=25))
def test_the_front_is_what_nothing_beats(pairs: list[tuple[int, int]]) -> None:
    points = [point(updates, metric / 6) for updates, metric in pairs]
    front = pareto_front(points)
    assert set(front) == {i for i, p in enumerate(points) if not any(beats(other, p) for other in points)}
    assert len(set(front)) == len(front)
    assert [points[i].updates for i in front] == sorted(points[i].updates for i in front)


def test_seeds_of_one_setting_become_their_mean_and_range() -> None:
    points = [
        point(20, 0.6, setting="λ=1", seed=1),
        point(50, 0.9, setting="λ=2"),
        point(40, 0.7, setting="λ=1", seed=0),
        point(20, 0.6, setting="λ=1", family="stride"),
    ]
    first, second, third = mean_over_seeds(points)
    assert (first.point.updates, first.point.metric) == pytest.approx((30, 0.65))
    assert first.point.update_share == pytest.approx(0.3)
    assert (first.num_seeds, first.metric_range, first.updates_range) == (2, (0.6, 0.7), (20, 40))
    assert first.point.seed == 0
    assert (second.num_seeds, second.point.setting) == (1, "λ=2")
    assert third.point.family == "stride"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"family": "magic"}, "skip, dense, stride, random, mean"),
        ({"metric": float("nan")}, "metric must be finite"),
        ({"updates": -1.0}, "not negative"),
        ({"update_share": 1.2}, r"\[0, 1\]"),
    ],
)
def test_impossible_points_are_refused(changes: dict[str, object], words: str) -> None:
    fields: dict[str, object] = {
        "name": "GRU",
        "family": "dense",
        "setting": "",
        "metric": 0.5,
        "updates": 1.0,
        "update_share": 1.0,
        "seed": 0,
    }
    with pytest.raises(ValueError, match=words):
        TradeoffPoint(**(fields | changes))  # type: ignore[arg-type]
