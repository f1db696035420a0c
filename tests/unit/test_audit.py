"""What an audit makes of pruned trials that were trained to their end."""

import pytest
from scipy.stats import binomtest

from knee_tune.config.recipe import Direction
from knee_tune.records.findings import Audit, AuditedTrial, choose, verdict, wilson_interval
from knee_tune.records.values import StepCount

COMPLETE = (90.0, 92.0, 94.0, 91.0, 93.0, 89.0, 88.0)
"""Accuracies of seven complete trials."""


def test_three_now_and_two_later_are_the_five_of_one_call() -> None:
    pruned = range(40)
    three = choose(pruned, audited=(), finish=3, seed=1)
    two = choose(pruned, audited=three, finish=5, seed=1)
    assert three + two == choose(pruned, audited=(), finish=5, seed=1)
    assert len(set(three + two)) == 5


def test_those_audited_already_are_counted_and_never_chosen_again() -> None:
    assert choose(range(10), audited=(3, 4), finish=2, seed=1) == []
    chosen = choose(range(10), audited=(3, 4), finish=10, seed=1)
    assert sorted(chosen) == [0, 1, 2, 5, 6, 7, 8, 9]


def test_fewer_than_asked_if_there_are_no_more() -> None:
    assert sorted(choose((7, 2), audited=(), finish=3, seed=1)) == [2, 7]


def test_every_seed_draws_others_and_every_trial_has_its_chance() -> None:
    draws = [choose(range(5), audited=(), finish=1, seed=seed)[0] for seed in range(1000)]
    assert all(150 < draws.count(number) < 250 for number in range(5))


@pytest.mark.parametrize(
    ("value", "rank", "wrong", "top", "top_quarter"),
    [
        (94.5, 1, True, True, True),
        (94.0, 1, False, True, True),  # as good as the best: nothing was lost
        (93.5, 2, False, True, True),  # two of eight are a quarter
        (92.5, 3, False, True, False),
        (91.5, 4, False, False, False),
        (10.0, 8, False, False, False),
    ],
)
def test_a_prune_is_wrong_if_the_trial_would_have_won(
    value: float, rank: int, wrong: bool, top: bool, top_quarter: bool
) -> None:
    found = verdict(5, value, COMPLETE, direction="maximize")
    assert (found.rank, found.wrong, found.top, found.top_quarter) == (
        rank,
        wrong,
        top,
        top_quarter,
    )


@pytest.mark.parametrize(("direction", "wrong"), [("minimize", True), ("maximize", False)])
def test_better_is_what_the_direction_says(direction: Direction, wrong: bool) -> None:
    assert verdict(1, 3.9, (4.0, 5.0), direction=direction).wrong is wrong


def test_a_trial_that_diverges_after_all_was_pruned_rightly() -> None:
    found = verdict(1, None, COMPLETE, direction="maximize")
    assert (found.rank, found.wrong, found.top, found.top_quarter) == (None, False, False, False)


def test_a_trial_is_judged_by_the_mean_of_its_replicates() -> None:
    assert AuditedTrial(number=1, values=(90.0, 94.0)).value == 92.0
    assert AuditedTrial(number=1, values=(90.0, None)).value is None


def test_the_report_counts_and_adds_up() -> None:
    steps = StepCount(trained=100, reused=10, reached=110)
    audited = ((4, 80.0), (6, 92.5), (9, 95.0))
    trials = (AuditedTrial(number=n, values=(value,), steps=steps) for n, value in audited)
    report = Audit(trials=tuple(trials)).report(
        COMPLETE, direction="maximize", pruned=11, steps_saved=5000
    )
    assert (report.wrong.count, report.top.count, report.top_quarter.count) == (1, 2, 1)
    assert report.wrong.of == report.top.of == 3
    assert report.wrong.share == pytest.approx(1 / 3)
    assert (report.steps_trained, report.steps_saved, report.pruned) == (300, 5000, 11)


@pytest.mark.parametrize("of", [1, 2, 3, 7, 20, 100])
def test_the_interval_is_wilsons(of: int) -> None:
    for count in range(of + 1):
        theirs = binomtest(count, of).proportion_ci(method="wilson")
        assert wilson_interval(count, of) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_no_share_of_nothing() -> None:
    with pytest.raises(ValueError, match="no share"):
        wilson_interval(0, 0)
