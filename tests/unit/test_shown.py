"""Seed LRs and explore fractions as people read them: what differs looks different."""

from io import StringIO

import pytest
from rich.console import Console

from knee_tune.cli.summary import print_status
from knee_tune.config.recipe import ExploreFractionSpace, SearchSpace, SeedLRSpace
from knee_tune.config.study import StudySpec
from knee_tune.records.shown import of_split, percent, setting
from knee_tune.records.study import StudyRecord, TrialRecord
from knee_tune.records.values import Estimate
from knee_tune.report.wording import difference_words

CLOSE = (0.666667, 0.67)
"""100 of 150 epochs, as in the paper's Table 16, and what it is rounded to."""


@pytest.mark.parametrize(
    ("fraction", "said"),
    [(0.0, "0%"), (0.29, "29%"), (0.125, "12.5%"), (2 / 3, "66.67%"), (0.67, "67%"), (1.0, "100%")],
)
def test_a_fraction_is_told_in_percent_with_what_it_needs(fraction: float, said: str) -> None:
    assert percent(fraction) == said


def test_fractions_a_little_apart_never_look_the_same() -> None:
    said = [percent(0.5 + 0.00011 * place) for place in range(1000)]
    assert len(set(said)) == len(said)


def test_a_setting_has_a_seed_lr_and_where_it_explores_a_fraction() -> None:
    assert setting(0.1, 0.7) == "seed LR 0.1, explore 70%"
    assert setting(3e-4, None) == "seed LR 0.0003"


def study() -> StudyRecord:
    """A trial at each of two fractions that are close, the second one is better."""
    return StudyRecord(
        name="close",
        task="toy",
        metric="valid_accuracy",
        direction="maximize",
        trials=tuple(
            TrialRecord(
                number=number,
                seed_lr=0.1,
                explore_fraction=fraction,
                state="complete",
                value=90.0 + number,
                budget=100,
                seed=1,
            )
            for number, fraction in enumerate(CLOSE)
        ),
        spec=StudySpec(
            name="close",
            task="toy",
            preset="full",
            recipe={"seed_lr": 0.1},
            space=SearchSpace(
                seed_lr=SeedLRSpace(values=(0.1,)),
                explore_fraction=ExploreFractionSpace(values=CLOSE),
            ),
        ),
    )


def test_close_fractions_are_told_apart_in_the_terminal() -> None:
    screen = StringIO()
    print_status(Console(file=screen, width=200), study())
    lines = screen.getvalue().splitlines()
    assert [line.split()[2] for line in lines[1:3]] == ["66.67%", "67%"]
    assert "best: seed LR 0.1, explore 67% (valid_accuracy 91, trial 1)" in lines


def test_a_caption_says_the_splits_that_the_metrics_name() -> None:
    assert of_split("valid_loss", "valid_accuracy") == " (validation split)"
    assert of_split("test_loss", "valid_loss") == " (test and validation split)"
    assert of_split("mse") == ""


def test_a_difference_of_percentages_is_in_points_one_of_fractions_is_not() -> None:
    difference = Estimate(value=0.02)
    assert difference_words(difference, "valid_accuracy", of=Estimate(value=93.0)).endswith(
        "points"
    )
    assert difference_words(difference, "valid_accuracy", of=Estimate(value=0.93)) == (
        "+0.02000 accuracy"
    )
