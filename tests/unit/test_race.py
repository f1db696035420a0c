"""Who stays in a race, what another seed costs, and how its end is told."""

import math

import pytest

from knee_tune.records.findings import Candidate, Confirmation
from knee_tune.records.values import RunRecord
from knee_tune.report.wording import told
from knee_tune.stats.estimates import judge
from knee_tune.stats.race import NextRun, affordable, standing, steps_to_train


def test_before_the_first_seed_the_search_decides_who_leads() -> None:
    assert standing([[], [], []]) == [0, 1, 2]


def test_who_is_behind_by_more_than_the_noise_of_paired_seeds_leaves() -> None:
    leader, near, behind = [1.0, 2.0, 1.5], [1.2, 1.9, 1.6], [2.0, 3.1, 2.5]
    assert standing([behind, near, leader]) == [2, 1]


def test_the_best_two_and_the_default_stay_for_three_pairs() -> None:
    rows = [[5.0, 6.0], [1.0, 2.1], [3.0, 4.0], [2.0, 3.0]]
    assert standing(rows, default=0) == [1, 3, 0]
    rows = [[*row, 9.0 + row[0]] for row in rows]
    assert standing(rows, default=0) == [1]


def test_one_seed_sends_nobody_away() -> None:
    assert standing([[3.0], [1.0], [2.0]]) == [1, 2, 0]


def test_who_has_left_or_diverged_does_not_come_back() -> None:
    assert standing([[0.0], [1.0, 1.0], [1.0, math.inf]]) == [1]


def test_a_trunk_is_trained_once_and_what_was_reached_not_again() -> None:
    half = NextRun(trunk="a", knee=50, total=100)
    long = NextRun(trunk="a", knee=80, total=100)
    other = NextRun(trunk="b", knee=50, total=100)
    assert steps_to_train([half]) == 100
    assert steps_to_train([half, long]) == 150
    assert steps_to_train([half, other]) == 200
    done = NextRun(trunk="a", knee=80, total=100, reached=100)
    assert steps_to_train([half, done]) == 50


def test_the_last_ones_leave_where_a_seed_for_all_does_not_fit() -> None:
    assert affordable("abcd", lambda some: 10 * len(some), 25) == ["a", "b"]
    assert affordable("abcd", lambda some: 10 * len(some), 15) == []


def candidate(seed_lr: float, *values: float, default: bool = False) -> Candidate:
    runs = tuple(RunRecord(seed=seed, value=value) for seed, value in enumerate(values))
    return Candidate(seed_lr=seed_lr, explore_fraction=0.5, trial=0, default=default, runs=runs)


def raced(*candidates: Candidate, ended: str = "") -> Confirmation:
    found = judge(candidates, metric="valid_accuracy", direction="maximize", race_ended=ended)
    return told(found)


def test_the_winner_has_stayed_to_the_end_and_its_lead_is_paired() -> None:
    found = raced(
        candidate(0.1, 90.0, 80.0),  # its mean is better, of fewer seeds
        candidate(0.2, 75.0, 71.0, 73.0, 70.0),
        candidate(0.05, 74.1, 69.9, 72.0, 69.1),
        candidate(0.01, 70.0, 66.0, 68.1, default=True),
        ended="the others are behind",
    )
    assert found.best is not None
    assert found.race is not None
    assert found.best.seed_lr == 0.2
    assert found.race.runner_up == 2
    assert found.race.lead is not None
    assert found.race.lead.value == pytest.approx(0.975)
    assert found.best.difference is not None
    assert found.best.difference.value == pytest.approx((5.0 + 5.0 + 4.9) / 3)  # three pairs
    assert found.confirmed
    assert found.race.words.startswith("seed LR 0.2, explore 50% wins, +0.9")


def test_nothing_is_said_of_intervals_below_three_pairs() -> None:
    found = raced(candidate(0.2, 75.0, 71.0), candidate(0.01, 70.0, 66.0, default=True))
    assert found.race is not None
    assert found.race.lead is None
    assert not found.confirmed
    assert found.words == "not confirmed: an interval takes 3 fresh seeds, there are 2"
    assert found.chosen is not None
    assert found.chosen.seed_lr == 0.2  # who leads is what to use, sure or not
