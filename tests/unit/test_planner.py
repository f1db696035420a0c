"""From a recipe and a trial's two numbers to the plan of its training run."""

from pathlib import Path

import pytest

from knee_tune.errors import UserError
from knee_tune.plans.plan import TaskFacts, TaskOrder, TrainPlan
from knee_tune.plans.planner import (
    BASELINES,
    baseline_schedule,
    budget_steps,
    check_warmup,
    distinct_fractions,
    knee_schedule,
    train_plan,
    twins_in_words,
)
from knee_tune.schedules import Constant, Knee, StepDecay, learning_rates
from knee_tune.tasks.tabular.recipe import DigitsRecipe


def facts(steps_per_epoch: int) -> TaskFacts:
    return TaskFacts(
        steps_per_epoch=steps_per_epoch, data_fingerprint="f", parameters=1, examples={"train": 1}
    )


def knee(fraction: float, *, total: int, warmup: int = 0) -> Knee:
    recipe = DigitsRecipe(epochs=1, warmup_steps=warmup)
    schedule = knee_schedule(recipe, facts(total), seed_lr=0.1, explore_fraction=fraction)
    assert isinstance(schedule, Knee)
    return schedule


def test_the_budget_is_counted_in_steps() -> None:
    assert budget_steps(DigitsRecipe(epochs=7), facts(12)) == 84


@pytest.mark.parametrize(
    ("fraction", "total", "explore"),
    [
        (0.0, 100, 0),
        (0.5, 100, 50),
        (1.0, 100, 100),
        (0.29, 100, 29),  # 0.29 * 100 is a little less than 29
        (0.57, 100, 57),  # and this a little more than it should be
        (0.3, 33, 10),
        (0.95, 7, 7),
        (0.01, 7, 0),
        (0.5, 1, 0),
    ],
)
def test_explore_steps_are_the_nearest(fraction: float, total: int, explore: int) -> None:
    assert knee(fraction, total=total).explore_steps == explore


def test_warmup_is_counted_apart() -> None:
    schedule = knee(0.5, total=100, warmup=20)

    assert (schedule.warmup_steps, schedule.explore_steps) == (20, 50)


@pytest.mark.parametrize("warmup", [0, 1, 30, 99, 100, 1000])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.7, 0.995, 1.0])
@pytest.mark.parametrize("total", [1, 2, 3, 100])
def test_warmup_and_explore_fit_into_the_budget(warmup: int, fraction: float, total: int) -> None:
    schedule = knee(fraction, total=total, warmup=warmup)

    assert schedule.warmup_steps == min(warmup, total)
    assert schedule.explore_steps == min(round(fraction * total), total - schedule.warmup_steps)
    assert len(learning_rates(schedule)) == total


def test_fractions_that_come_to_one_schedule_are_one_point() -> None:
    recipe = DigitsRecipe(epochs=1, warmup_steps=90)
    fractions = (0.05, 0.1, 0.3, 0.7)
    assert distinct_fractions(recipe, facts(100), fractions) == {
        0.05: (0.05,),
        0.1: (0.1, 0.3, 0.7),
    }
    with_default = distinct_fractions(recipe, facts(100), (0.1, 0.3, 0.5))
    assert with_default == {0.5: (0.1, 0.3, 0.5)}  # the paper's default is always there
    (line,) = twins_in_words(recipe, facts(100), fractions)
    assert line == (
        "explore 10%, 30%, 70% are one schedule (90 of 100 steps are warmup): trained once, as 10%"
    )


@pytest.mark.parametrize("warmup", [0, 5])
def test_fractions_that_few_steps_make_one_are_not_put_down_to_warmup(warmup: int) -> None:
    recipe = DigitsRecipe(epochs=1, warmup_steps=warmup)
    assert twins_in_words(recipe, facts(20), (0.3, 0.31)) == [
        "explore 30%, 31% are one schedule (the budget has 20 steps): trained once, as 30%"
    ]


def test_fractions_apart_stay_apart() -> None:
    fractions = tuple(share / 20 for share in range(20))
    distinct = distinct_fractions(DigitsRecipe(epochs=1), facts(20), fractions)
    assert distinct == {fraction: (fraction,) for fraction in fractions}
    assert twins_in_words(DigitsRecipe(epochs=1), facts(20), fractions) == []


def test_a_warmup_as_long_as_the_budget_is_refused() -> None:
    check_warmup(DigitsRecipe(epochs=2, warmup_steps=99), facts(50))
    with pytest.raises(UserError, match=r"recipe\.warmup_steps=100: the budget is 100 steps"):
        check_warmup(DigitsRecipe(epochs=2, warmup_steps=100), facts(50))


@pytest.mark.parametrize(
    ("share", "steps"), [("5%", 50), ("0.04%", 1), ("0%", 0), ("12.5%", 125), (None, 7)]
)
def test_a_share_of_the_budget_becomes_steps(share: str | None, steps: int) -> None:
    recipe = DigitsRecipe(warmup=share, warmup_steps=0 if share else 7).with_warmup_of(1000)
    assert (recipe.warmup, recipe.warmup_steps) == (None, steps)
    assert "warmup" not in recipe.model_dump()  # as before there were shares


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 100])
@pytest.mark.parametrize("warmup", [0, 3])
def test_baselines_fit_any_budget(name: str, total: int, warmup: int) -> None:
    recipe = DigitsRecipe(epochs=1, warmup_steps=warmup)

    schedule = baseline_schedule(name, recipe, facts(total), seed_lr=0.1)

    assert schedule.name == name
    assert schedule.total_steps == total
    assert all(0 <= lr <= 0.1 * (1 + 1e-15) for lr in learning_rates(schedule))


def test_the_step_schedule_drops_at_half_and_three_quarters() -> None:
    """0.1, 0.01 and 0.001 for 100, 50 and 50 epochs, as in section 5.3.2."""
    schedule = baseline_schedule("step", DigitsRecipe(epochs=200), facts(3), seed_lr=0.1)

    assert isinstance(schedule, StepDecay)
    assert schedule.boundaries == (300, 450)


@pytest.mark.parametrize(("total", "boundaries"), [(1, ()), (2, (1,)), (3, (1, 2)), (4, (2, 3))])
def test_tiny_budgets_have_fewer_drops(total: int, boundaries: tuple[int, ...]) -> None:
    schedule = baseline_schedule("step", DigitsRecipe(epochs=1), facts(total), seed_lr=0.1)

    assert isinstance(schedule, StepDecay)
    assert schedule.boundaries == boundaries


def test_unknown_baselines_are_refused() -> None:
    with pytest.raises(ValueError, match="'zigzag'"):
        baseline_schedule("zigzag", DigitsRecipe(), facts(1), seed_lr=0.1)


def plan(*, epochs: int, steps_per_epoch: int, evaluations_per_epoch: int = 1) -> TrainPlan:
    recipe = DigitsRecipe(epochs=epochs, evaluations_per_epoch=evaluations_per_epoch)
    order = TaskOrder(
        task="digits",
        recipe={"epochs": epochs},
        seed=3,
        data_dir=Path("data"),
        log_dir=Path("logs"),
    )
    return train_plan(
        order,
        recipe,
        facts(steps_per_epoch),
        schedule=Constant(seed_lr=0.1, total_steps=epochs * steps_per_epoch),
        checkpoint_dir=Path("here"),
    )


@pytest.mark.parametrize(
    ("per_epoch", "evaluations"),
    [(1, [10, 20, 25]), (2, [5, 10, 15, 20, 25]), (3, [3, 6, 9, 12, 15, 18, 21, 25])],
)
def test_the_last_step_is_always_evaluated_and_none_just_before_it(
    per_epoch: int, evaluations: list[int]
) -> None:
    whole = plan(epochs=5, steps_per_epoch=10, evaluations_per_epoch=per_epoch)
    shorter = whole.model_copy(update={"schedule": Constant(seed_lr=0.1, total_steps=25)})

    assert shorter.evaluation_steps() == evaluations


def test_no_more_evaluations_than_steps() -> None:
    assert plan(epochs=2, steps_per_epoch=2, evaluations_per_epoch=9).evaluation_steps() == [
        1,
        2,
        3,
        4,
    ]


def test_a_plan_survives_json() -> None:
    ours = plan(epochs=2, steps_per_epoch=3)

    assert TrainPlan.model_validate_json(ours.model_dump_json()) == ours
    assert ours.total_steps == 6
    assert (ours.task, ours.seed, ours.data_dir) == ("digits", 3, Path("data"))
