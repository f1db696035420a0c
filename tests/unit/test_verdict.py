"""Who wins over fresh seeds, and whether that is more than luck."""

import pytest
from scipy import stats

from knee_tune.config.recipe import Direction
from knee_tune.records.findings import Candidate, Confirmation
from knee_tune.records.values import RunRecord
from knee_tune.report.wording import told
from knee_tune.stats.estimates import judge

DEFAULT = (70.0, 72.0, 71.0, 69.0, 73.0)
BETTER = (73.1, 74.9, 74.2, 72.0, 75.8)
"""About three more than the default, seed by seed."""
LUCKY = (76.0, 70.0, 74.0, 66.0, 74.5)
"""A better mean, which says nothing."""


def candidate(seed_lr: float, *values: float | None, default: bool = False) -> Candidate:
    runs = tuple(
        RunRecord(seed=seed, value=value, state="complete")
        if value is not None
        else RunRecord(seed=seed, reason="diverged", state="pruned")
        for seed, value in enumerate(values)
    )
    return Candidate(seed_lr=seed_lr, explore_fraction=0.5, trial=0, default=default, runs=runs)


def judged(*candidates: Candidate, direction: Direction = "maximize") -> Confirmation:
    return told(judge(candidates, metric="valid_accuracy", direction=direction))


def winner_of(confirmation: Confirmation) -> float | None:
    return confirmation.best.seed_lr if confirmation.best else None


def test_a_winner_that_is_better_seed_by_seed_is_confirmed() -> None:
    found = judged(candidate(0.2, *BETTER), candidate(0.1, *DEFAULT, default=True))
    assert (winner_of(found), found.confirmed) == (0.2, True)
    assert found.words == "confirmed: better than the default"
    best, default = found.candidates
    assert best.mean is not None
    assert best.mean.value == pytest.approx(74.0)
    assert best.difference is not None
    expected = stats.ttest_rel(BETTER, DEFAULT).confidence_interval(0.95)
    assert best.difference.low == pytest.approx(expected.low)
    assert default.difference is None


def test_a_winner_by_luck_is_not() -> None:
    found = judged(candidate(0.2, *LUCKY), candidate(0.1, *DEFAULT, default=True))
    assert (winner_of(found), found.confirmed) == (0.2, False)
    assert found.words == (
        "not confirmed: the interval of the difference to the default includes zero"
    )


def test_two_seeds_that_differ_by_the_same_amount_confirm_nothing() -> None:
    found = judged(candidate(0.2, 91.0, 90.0), candidate(0.1, 90.0, 89.0, default=True))
    assert (winner_of(found), found.confirmed) == (0.2, False)
    assert found.words.startswith("not confirmed: all differences to the default are the same")
    enough = candidate(0.2, *(value + 1 for value in DEFAULT))
    assert judged(enough, candidate(0.1, *DEFAULT, default=True)).confirmed


def test_who_was_the_best_of_many_needs_more_than_who_was_alone() -> None:
    almost = (73.0, 73.1, 73.6, 70.2, 74.0)
    default = candidate(0.1, *DEFAULT, default=True)
    assert judged(candidate(0.2, *almost), default).confirmed
    others = [candidate(0.2 + 0.1 * i, *DEFAULT) for i in range(1, 5)]
    found = judged(candidate(0.2, *almost), *others, default)
    assert (winner_of(found), found.confirmed, found.comparisons) == (0.2, False, 5)


def test_less_is_better_where_the_metric_is_minimised() -> None:
    found = judged(
        candidate(0.2, *BETTER), candidate(0.1, *DEFAULT, default=True), direction="minimize"
    )
    assert (winner_of(found), found.confirmed) == (0.1, True)
    reverse = judged(
        candidate(0.2, *DEFAULT), candidate(0.1, *BETTER, default=True), direction="minimize"
    )
    assert (winner_of(reverse), reverse.confirmed) == (0.2, True)


def test_the_default_needs_nobody_to_confirm_it() -> None:
    found = judged(candidate(0.2, *DEFAULT), candidate(0.1, *BETTER, default=True))
    assert (winner_of(found), found.confirmed) == (0.1, True)
    assert found.words == "confirmed: the default itself has the best mean"
    alone = judged(candidate(0.1, *DEFAULT, default=True))
    assert alone.words == "confirmed: the search found nothing better than the default"


def test_a_candidate_with_a_run_that_diverged_is_out() -> None:
    broken = candidate(0.4, 99.0, 99.0, None, 99.0, 99.0)
    found = judged(broken, candidate(0.2, *BETTER), candidate(0.1, *DEFAULT, default=True))
    assert (winner_of(found), found.confirmed) == (0.2, True)
    assert found.candidates[0].mean is None
    assert found.comparisons == 2  # it was tried, so it counts


def test_without_the_default_there_is_no_verdict() -> None:
    broken = candidate(0.1, 70.0, None, 71.0, 69.0, 73.0, default=True)
    found = judged(candidate(0.2, *BETTER), broken)
    assert (winner_of(found), found.confirmed) == (0.2, False)
    assert found.words.startswith("not confirmed: the default could not be trained")
    nobody = judged(broken)
    assert (nobody.best, nobody.confirmed) == (None, False)


def test_few_seeds_are_said_to_be_few() -> None:
    found = judged(candidate(0.2, 73.0, 75.0), candidate(0.1, 70.0, 71.0, default=True))
    assert not found.confirmed
    assert found.words.endswith("; 2 seeds make wide intervals, take 5 or more to claim anything")


def test_a_point_is_confirmed_or_not_or_was_never_tried() -> None:
    found = judged(candidate(0.2, *BETTER), candidate(0.1, *DEFAULT, default=True))
    assert found.says((0.2, 0.5)) == "yes"
    assert found.says((0.1, 0.5)) == "no"
    assert found.says((0.1, 0.6)) == "not tried"
    failed = judged(candidate(0.2, *LUCKY), candidate(0.1, *DEFAULT, default=True))
    assert failed.says((0.2, 0.5)) == "no"


def test_what_is_stored_is_read_again() -> None:
    found = judged(candidate(0.2, *BETTER), candidate(0.1, *DEFAULT, default=True))
    assert Confirmation.model_validate(found.model_dump(mode="json")) == found


def test_what_was_stored_when_an_estimate_was_called_a_mean_is_read_again() -> None:
    found = judged(candidate(0.2, *BETTER), candidate(0.1, *DEFAULT, default=True))
    stored = found.model_dump(mode="json")
    for each in stored["candidates"]:
        for known in filter(None, (each["mean"], each["difference"])):
            known["mean"] = known.pop("value")
    assert Confirmation.model_validate(stored) == found
