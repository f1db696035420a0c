"""The rows of a published table as runs: their LRs step by step, and their order."""

from dataclasses import dataclass
from typing import Any

import pytest

from knee_tune.config.study import ReferenceRow
from knee_tune.errors import UserError
from knee_tune.plans.plan import Schedule, TaskFacts
from knee_tune.plans.planner import in_order, row_schedule
from knee_tune.schedules import Cosine, Knee, OneCycle, StepDecay, learning_rates
from knee_tune.tasks.tabular.recipe import DigitsRecipe


def planned(*, scale: float = 1.0, steps: int = 10, warmup: int = 0, **row: Any) -> Schedule:
    """A row of 200 epochs unless told, on data of ``steps`` steps an epoch."""
    facts = TaskFacts(steps_per_epoch=steps, data_fingerprint="f", parameters=1, examples={})
    described = {"epochs": 200, "seed_lr": 0.1, "metrics": {}} | row
    reference = ReferenceRow.model_validate(described)
    recipe = DigitsRecipe(epochs=3, warmup_steps=warmup)
    return row_schedule(reference, recipe, facts, scale=scale)


def test_table_1_without_an_epoch_at_the_high_lr() -> None:
    schedule = planned(schedule="step", seed_lr=0.01, boundaries=(100,))
    assert learning_rates(schedule) == pytest.approx([0.01] * 1000 + [0.001] * 1000)


@pytest.mark.parametrize(("explore", "second"), [(30, 115), (40, 120), (80, 140), (100, 150)])
def test_the_other_rows_of_table_1(explore: int, second: int) -> None:
    schedule = planned(schedule="step", boundaries=(explore, second))
    rest = (200 - explore) * 5  # steps at each of the two lower LRs
    assert learning_rates(schedule) == pytest.approx(
        [0.1] * explore * 10 + [0.01] * rest + [0.001] * rest
    )


def test_all_epochs_are_scaled_and_parts_of_one_become_the_nearest_step() -> None:
    schedule = planned(scale=0.07, schedule="step", boundaries=(30, 115))
    assert isinstance(schedule, StepDecay)
    assert (schedule.total_steps, schedule.boundaries) == (140, (21, 80))  # 80.5 to even
    knee = planned(scale=0.05, warmup=60, schedule="knee", epochs=150, explore_epochs=100)
    assert knee == Knee(seed_lr=0.1, total_steps=75, warmup_steps=3, explore_steps=50)


def test_where_warmup_and_explore_do_not_fit_explore_gives_way() -> None:
    knee = planned(warmup=500, schedule="knee", explore_epochs=200)
    assert knee == Knee(seed_lr=0.1, total_steps=2000, warmup_steps=500, explore_steps=1500)


def test_a_warmup_beyond_the_first_boundary_is_refused() -> None:
    planned(schedule="step", boundaries=(30, 115), warmup=300)
    with pytest.raises(
        UserError, match=r"recipe\.warmup_steps=301: .* first boundary is at step 300"
    ):
        planned(schedule="step", boundaries=(30, 115), warmup=301)


@pytest.mark.parametrize("schedule", ["knee", "cosine"])
def test_a_row_that_is_all_warmup_is_refused(schedule: str) -> None:
    explore = {"explore_epochs": 100} if schedule == "knee" else {}
    with pytest.raises(UserError, match=r"its warmup is 2000 steps, and its whole budget 2000"):
        planned(schedule=schedule, warmup=2000, **explore)


def test_schedules_without_boundaries() -> None:
    assert planned(schedule="one_cycle", seed_lr=9e-3, warmup=7) == OneCycle(
        seed_lr=9e-3, total_steps=2000
    )
    assert planned(schedule="cosine", scale=0.5, warmup=8) == Cosine(
        seed_lr=0.1, total_steps=1000, warmup_steps=4
    )


def test_a_boundary_that_comes_to_no_step_is_past_at_once() -> None:
    schedule = planned(scale=0.01, steps=1, schedule="step", boundaries=(30, 150))
    assert learning_rates(schedule) == pytest.approx([0.01, 0.01])
    schedule = planned(scale=0.02, steps=1, schedule="step", boundaries=(10, 100))
    assert learning_rates(schedule) == pytest.approx([0.01, 0.01, 0.001, 0.001])


def test_boundaries_that_fall_together_are_refused() -> None:
    with pytest.raises(UserError, match=r"at scale 0\.01 two of its boundaries come to the same"):
        planned(scale=0.01, schedule="step", boundaries=(100, 104))


@dataclass(frozen=True)
class Run:
    """A name for a schedule and a seed."""

    name: str
    schedule: Schedule
    seed: int


def runs() -> list[Run]:
    """Three schedules that explore at one LR, and one that decays from the start, of two seeds."""
    schedules = {
        "short": planned(schedule="step", boundaries=(30, 115)),
        "cosine": planned(schedule="cosine"),
        "long": planned(schedule="step", boundaries=(100, 150)),
        "knee": planned(schedule="knee", explore_epochs=60),
    }
    return [Run(name, schedule, seed) for name, schedule in schedules.items() for seed in (1, 2)]


def test_runs_of_one_trunk_follow_one_another_the_longest_explore_first() -> None:
    order = [(run.seed, run.name) for run in in_order(runs(), slots=1)]
    of_one_seed = ["long", "knee", "short", "cosine"]
    assert order == [(seed, name) for seed in (1, 2) for name in of_one_seed]


def test_runs_at_a_time_are_of_different_trunks() -> None:
    some = [run for run in runs() if run.name != "cosine"]
    order = [(run.name, run.seed) for run in in_order(some, slots=2)]
    assert order == [(name, seed) for name in ("long", "knee", "short") for seed in (1, 2)]


@pytest.mark.parametrize("slots", [1, 2, 3, 8])
def test_no_run_is_lost(slots: int) -> None:
    assert {(run.name, run.seed) for run in in_order(runs(), slots=slots)} == {
        (run.name, run.seed) for run in runs()
    }
    assert len(in_order(runs(), slots=slots)) == 8
