"""What is read off the curve of a LR range test."""

import math

import pytest

from knee_tune.analysis.range_curve import HALF_WINDOW, exploded, read_off, smoothed
from knee_tune.report.document import figure_page
from knee_tune.report.run_figures import lr_range_figure
from knee_tune.schedules import learning_rates
from knee_tune.schedules.schedule import LRRange

LRS = [10 ** (-4 + index / 20) for index in range(100)]
VALLEY = [2.3 - math.exp(-((math.log10(lr) + 1) ** 2)) for lr in LRS]
"""A loss that is lowest at LR 0.1."""


def test_the_lr_grows_by_the_same_factor_at_every_step() -> None:
    lrs = learning_rates(LRRange(seed_lr=1e-5, high=10.0, total_steps=7))
    assert lrs == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0])
    assert lrs[-1] == 10.0


@pytest.mark.parametrize(("low", "high", "steps"), [(1.0, 1.0, 5), (1.0, 0.1, 5), (0.1, 1.0, 1)])
def test_a_range_that_is_none(low: float, high: float, steps: int) -> None:
    with pytest.raises(ValueError, match="an LR range needs"):
        LRRange(seed_lr=low, high=high, total_steps=steps)


def test_smoothing_takes_the_neighbours_on_both_sides() -> None:
    losses = [0.0] * 30
    losses[10] = 11.0
    curve = smoothed(losses)

    assert curve[10 - HALF_WINDOW : 11 + HALF_WINDOW] == pytest.approx([1.0] * 11)
    assert curve[4] == curve[16] == 0.0
    assert smoothed([1.0, 2.0, 6.0]) == pytest.approx([3.0, 3.0, 3.0])


def test_the_minimum_is_not_shifted_and_one_order_lower_is_suggested() -> None:
    noisy = [loss + (0.05 if index % 2 else -0.05) for index, loss in enumerate(VALLEY)]
    reading = read_off(LRS, noisy)

    assert reading.minimum_lr == pytest.approx(0.1, rel=0.3)
    assert reading.suggested_lr == reading.minimum_lr / 10
    assert not reading.still_falling


def test_a_loss_that_falls_to_the_end_says_so() -> None:
    assert read_off(LRS, [3.0 - index / 100 for index in range(100)]).still_falling


def test_a_loss_explodes_when_it_is_four_times_its_minimum() -> None:
    calm = [1.0] * 30
    assert not exploded(calm)
    assert not exploded([*calm, 5.0])  # one bad batch is no explosion
    assert exploded([*calm, *[5.0] * 10])


def test_the_figure_shows_the_loss_and_both_lrs_and_not_the_explosion() -> None:
    losses = [*VALLEY, *[500.0] * 8]
    lrs = [*LRS, *[10.0 + index for index in range(8)]]
    drawn = lr_range_figure(lrs, losses, reading=read_off(lrs, losses), title="test")

    assert [trace["name"] for trace in drawn["data"]] == ["loss of one step", "smoothed"]
    assert drawn["data"][0]["y"] == losses
    assert drawn["layout"]["xaxis"]["type"] == "log"
    assert drawn["layout"]["yaxis"]["range"][1] < 5
    said = " ".join(each["text"] for each in drawn["layout"]["annotations"])
    assert "minimum 0.1" in said
    assert "suggested maximum 0.01" in said
    page = figure_page(drawn)
    assert "suggested maximum" in page
    assert "<script src=" not in page  # nothing is loaded from elsewhere
