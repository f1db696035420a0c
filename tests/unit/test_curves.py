"""The LR over a run's curve, as it is drawn: a few hundred points stand for every step."""

from collections.abc import Callable

import numpy as np
import pytest

from knee_tune.records.values import RunRecord
from knee_tune.report.run_figures import POINTS, curves_figure
from knee_tune.schedules import Constant, Knee, Linear, Schedule, StepDecay, learning_rates


def drawn(schedule: Schedule) -> tuple[list[int], list[float]]:
    record = RunRecord(seed=1, state="complete")
    lr = curves_figure(record, title="", schedule=schedule)["data"][0]
    return lr["x"], lr["y"]


@pytest.mark.parametrize("total", [1, 7, 799, 800, 10_007])
@pytest.mark.parametrize(
    "schedule",
    [
        lambda total: Knee(seed_lr=0.1, total_steps=total, explore_steps=total // 3),
        lambda total: Knee(
            seed_lr=0.1, total_steps=total, explore_steps=total // 2, warmup_steps=total // 7
        ),
        lambda total: Knee(seed_lr=0.1, total_steps=total, explore_steps=total),
        lambda total: Linear(seed_lr=0.1, total_steps=total, warmup_steps=total // 7),
        lambda total: Constant(seed_lr=0.1, total_steps=total),
        lambda total: StepDecay(
            seed_lr=0.1,
            total_steps=total,
            boundaries=tuple(sorted({total // 2, total * 3 // 4} - {0})),
            warmup_steps=total // 7,
        ),
    ],
)
def test_lines_through_the_drawn_points_are_the_lr_of_every_step(
    schedule: Callable[[int], Schedule], total: int
) -> None:
    steps, lrs = drawn(schedule(total))
    assert steps == sorted(set(steps))
    assert len(steps) < 2 * POINTS + 10
    every = np.interp(np.arange(1, total + 1), steps, lrs)
    assert every == pytest.approx(learning_rates(schedule(total)))
