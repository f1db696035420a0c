"""Runs of different Knee schedules laid over each other, by LR and by progress."""

import math

import pytest

from knee_tune.schedules import Knee
from knee_tune.study import pruners

INF, NAN = math.inf, math.nan

EARLY = Knee(seed_lr=0.8, total_steps=100, explore_steps=20)
LATE = Knee(seed_lr=0.8, total_steps=100, warmup_steps=10, explore_steps=50)
SMALL = Knee(seed_lr=0.2, total_steps=100, explore_steps=20)
LINEAR = Knee(seed_lr=0.8, total_steps=100, explore_steps=0)
ENDLESS = Knee(seed_lr=0.8, total_steps=100, explore_steps=100)


@pytest.mark.parametrize(
    ("reported", "replicate", "step"),
    [(0, 0, 0), (1, 0, 1), (100, 0, 100), (101, 1, 1), (200, 1, 100), (250, 2, 50)],
)
def test_replicates_lie_behind_each_other(reported: int, replicate: int, step: int) -> None:
    assert pruners.locate(reported, total_steps=100) == (replicate, step)


@pytest.mark.parametrize(
    ("schedule", "step", "progress"),
    [(EARLY, 20, 0.0), (EARLY, 60, 0.5), (LATE, 60, 0.0), (LATE, 90, 0.75), (LINEAR, 100, 1.0)],
)
def test_progress_and_step_are_each_others_inverse(
    schedule: Knee, step: int, progress: float
) -> None:
    assert pruners.decay_progress(schedule, step) == progress
    assert pruners.step_at_progress(schedule, progress) == step


@pytest.mark.parametrize(
    ("schedule", "lr", "step"),
    [
        (EARLY, 0.8, 20),  # the knee: the last step at the seed LR
        (EARLY, 0.4, 60),
        (LATE, 0.4, 80),
        (LATE, 0.0, 100),
        (EARLY, 0.41, 59),
        (LATE, 0.41, 79.5),
        (SMALL, 0.2, 20),
        (SMALL, 0.4, None),  # never that high
        (ENDLESS, 0.4, None),  # never that low
    ],
)
def test_the_step_at_which_a_decay_has_come_down_to_an_lr(
    schedule: Knee, lr: float, step: float | None
) -> None:
    assert pruners.step_at_lr(schedule, lr) == pytest.approx(step)


@pytest.mark.parametrize("total_steps", [7, 30, 97, 12_345])
def test_a_run_is_at_its_own_step_at_its_own_lr_without_rounding(total_steps: int) -> None:
    schedule = Knee(seed_lr=0.1, total_steps=total_steps, explore_steps=total_steps // 3)
    for step in range(schedule.knee_step, total_steps + 1):
        assert pruners.step_at_lr(schedule, schedule.lr(step)) == step
        progress = pruners.decay_progress(schedule, step)
        assert pruners.step_at_progress(schedule, progress) == step


REPORTS = {100: 1.0, 10: 8.0, 20: 4.0, 50: 1.0, 120: 3.0, 160: 5.0}
"""Not in order, as a storage may give them; two replicates of 100 steps."""


@pytest.mark.parametrize(
    ("step", "replicate", "value"),
    [
        (20, 0, 4.0),
        (15, 0, 6.0),
        (35, 0, 2.5),
        (75, 0, 1.0),
        (100, 0, 1.0),
        (9, 0, None),  # before the first report
        (20, 1, 3.0),
        (50, 1, 4.5),
        (19, 1, None),  # the report before is the first replicate's
        (61, 1, None),  # after the last report
        (20, 2, None),
    ],
)
def test_a_value_between_two_reports_of_a_replicate(
    step: float, replicate: int, value: float | None
) -> None:
    found = pruners.value_at(REPORTS, step, after=100 * replicate, steps=100)
    assert found == pytest.approx(value)


def test_the_next_replicate_is_no_neighbour() -> None:
    assert pruners.value_at({50: 1.0, 150: 3.0}, 80, after=0, steps=100) is None
    assert pruners.value_at({50: 1.0, 150: 3.0}, 20, after=100, steps=100) is None


@pytest.mark.parametrize(
    ("left", "right", "between"),
    [(NAN, 1.0, None), (1.0, NAN, None), (INF, 1.0, INF), (INF, INF, INF), (INF, -INF, None)],
)
def test_a_value_beside_one_that_is_not_finite(
    left: float, right: float, between: float | None
) -> None:
    assert pruners.value_at({10: left, 20: right}, 15, after=0, steps=100) == between


@pytest.mark.parametrize("value", [NAN, INF, 3.0])
def test_a_value_at_a_report_is_the_reported_one(value: float) -> None:
    found = pruners.value_at({5: 1.0, 10: value}, 10, after=0, steps=100)
    assert found == (None if math.isnan(value) else value)


@pytest.mark.parametrize(
    ("value", "percentile", "outside"),
    [
        (1.0, 0, False),  # as good as the best
        (1.01, 0, True),
        (1.4, 10, False),
        (1.41, 10, True),  # the 10th percentile of 1..5 is 1.4
        (3.0, 50, False),
        (3.1, 50, True),
        (5.0, 100, False),
        (5.1, 100, True),
        (INF, 100, True),
        (-INF, 0, False),
    ],
)
def test_a_value_is_outside_when_it_misses_the_best_percent(
    value: float, percentile: float, outside: bool
) -> None:
    others = [5.0, 2.0, 1.0, 3.0, 4.0]
    assert pruners.is_outside(value, others, percentile=percentile) is outside


def test_infinite_others_are_the_worst() -> None:
    others = [1.0, INF, INF, INF]
    assert pruners.is_outside(2.0, others, percentile=0)
    assert not pruners.is_outside(2.0, others, percentile=10)
    assert not pruners.is_outside(INF, others, percentile=50)


def test_rounding_alone_puts_nothing_outside() -> None:
    assert not pruners.is_outside(0.1 + 0.2, [0.3] * 4, percentile=10)
