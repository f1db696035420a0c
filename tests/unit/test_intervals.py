"""Means over random seeds and their intervals, against SciPy's own and against tables."""

import numpy as np
import pytest
from scipy import stats

from knee_tune.records.values import Estimate
from knee_tune.stats.estimates import mean_estimate, paired_estimate

SAMPLES = np.random.default_rng(7).normal(92.0, 0.5, size=(2, 6)).tolist()


def test_the_interval_of_a_textbook() -> None:
    interval = mean_estimate([1.0, 2.0, 3.0])  # deviation 1, t(0.975, 2) = 4.3027
    assert interval.value == 2.0
    assert interval.high == pytest.approx(2 + 4.302653 / 3**0.5, rel=1e-6)
    assert interval.low == pytest.approx(2 - 4.302653 / 3**0.5, rel=1e-6)
    assert interval.level == 0.95


def test_a_percentage_stays_between_0_and_100() -> None:
    high, low = mean_estimate([99.0, 99.9]), mean_estimate([0.1, 1.0])
    assert high.high is not None
    assert high.high > 100
    assert high.bounded(percent=True) == high.model_copy(update={"high": 100.0})
    assert low.bounded(percent=True) == low.model_copy(update={"low": 0.0})
    assert high.bounded(percent=False) is high
    assert mean_estimate([99.0]).bounded(percent=True) == Estimate(value=99.0)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_a_mean_is_as_sure_as_scipy_says(level: float) -> None:
    values = SAMPLES[0]
    interval = mean_estimate(values, level=level)
    expected = stats.t.interval(level, len(values) - 1, np.mean(values), stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx(expected)


def test_a_difference_is_paired_seed_by_seed() -> None:
    values, references = SAMPLES
    interval = paired_estimate(values, references)
    expected = stats.ttest_rel(values, references).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_several_comparisons_share_the_risk() -> None:
    values, references = SAMPLES
    interval = paired_estimate(values, references, comparisons=4)
    expected = stats.ttest_rel(values, references).confidence_interval(1 - 0.05 / 4)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert interval.level == pytest.approx(0.9875)


def test_all_intervals_together_hold_as_often_as_they_say() -> None:
    """Three candidates no better than their common reference: at most 5 % of studies are fooled."""
    draws = np.random.default_rng(1).normal(size=(1000, 4, 5))
    fooled = 0
    for *candidates, reference in draws.tolist():
        intervals = [paired_estimate(each, reference, comparisons=3) for each in candidates]
        fooled += any(interval.side for interval in intervals)
    assert 0.01 < fooled / len(draws) <= 0.05


def test_values_that_are_the_same_leave_no_doubt() -> None:
    interval = paired_estimate([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])
    assert (interval.value, interval.low, interval.high) == (2.0, 2.0, 2.0)


def test_one_value_has_no_interval() -> None:
    assert mean_estimate([1.0]) == Estimate(value=1.0)
    assert paired_estimate([3.0], [1.0], comparisons=4) == Estimate(value=2.0)


def test_an_interval_is_on_one_side_of_zero_or_may_be_chance() -> None:
    above, below = Estimate(value=2, low=1, high=3), Estimate(value=-2, low=-3, high=-1)
    around, touching = Estimate(value=1, low=-1, high=3), Estimate(value=1, low=0, high=2)
    alone = Estimate(value=1)
    assert [each.side for each in (above, below, around, touching, alone)] == [1, -1, 0, 0, 0]
    assert (above.is_better("maximize"), above.is_better("minimize")) == (True, False)
    assert (below.is_better("maximize"), below.is_better("minimize")) == (False, True)
    assert not around.is_better("maximize")
    assert not around.is_better("minimize")
