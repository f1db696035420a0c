"""The ridge's statistics on surfaces whose optimum is known; the full table: benchmarks.ridge."""

from collections.abc import Callable

import pytest

from benchmarks.ridge import Recovery, false_positives, recover
from benchmarks.ridge_surfaces import Truth, always_long, flat, same_everywhere


@pytest.fixture(scope="module")
def recovery() -> Recovery:
    return recover(3, surfaces=30, resamples=300)


@pytest.mark.parametrize(("estimator", "limit"), [("raw", 0.15), ("gp", 0.07), ("cubic", 0.1)])
def test_the_true_fraction_is_recovered(recovery: Recovery, estimator: str, limit: float) -> None:
    assert recovery.rmse(estimator) < limit


@pytest.mark.parametrize("estimator", ["raw", "gp", "cubic"])
def test_intervals_hold_the_true_fraction_about_as_often_as_they_say(
    recovery: Recovery, estimator: str
) -> None:
    assert 0.88 <= recovery.coverage(estimator) <= 0.99  # 90 to 98 %, and chance


def test_the_surfaces_do_better_than_the_best_fraction_tried(recovery: Recovery) -> None:
    assert recovery.rmse("gp") < recovery.rmse("cubic") < recovery.rmse("raw")


@pytest.mark.parametrize("null", [flat, same_everywhere, always_long])
def test_the_crossover_test_rarely_sees_what_is_not_there(null: Callable[[], Truth]) -> None:
    crossover, _ = false_positives(null, 5, studies=100)
    assert crossover <= 0.02
