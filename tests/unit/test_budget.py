"""The smallest budget that reaches a target, and how people ask for it."""

import json
from typing import Any

import pytest

from knee_tune.config.recipe import Metric
from knee_tune.errors import UserError
from knee_tune.records.budget import (
    BudgetRecord,
    BudgetRun,
    SearchSteps,
    check_budgets,
    check_distinct,
    read_target,
)

ACCURACY = Metric(name="accuracy", direction="maximize", percent=True)
PPL = Metric(name="ppl", direction="minimize")

STEPS_PER_EPOCH = 100


def run(schedule: str, epochs: int, value: float | None, **facts: Any) -> BudgetRun:
    point = {"seed_lr": 0.05, "seed": 1, "steps_budget": epochs * STEPS_PER_EPOCH} | facts
    key = f"{schedule}-{epochs}-{sorted(facts.items())}"
    return BudgetRun(key=key, schedule=schedule, epochs=epochs, value=value, **point)


def record(*runs: BudgetRun, **facts: Any) -> BudgetRecord:
    asked: dict[str, Any] = {
        "name": "budget-toy-95",
        "key": "abc",
        "task": "toy",
        "preset": "full",
        "recipe": {},
        "nproc": 1,
        "data_fingerprint": "",
        "metric": "valid_accuracy",
        "direction": "maximize",
        "target": 95.0,
        "budgets": (10, 20, 30),
        "schedules": tuple(dict.fromkeys(each.schedule for each in runs)),
    }
    return BudgetRecord(**asked | facts, runs=runs)


def test_the_smallest_budget_is_the_first_that_reaches_the_target() -> None:
    found = record(run("knee", 10, 94.9), run("knee", 20, 95.0), run("linear", 10, 94.0))
    smallest = found.smallest("knee")
    assert smallest is not None
    assert smallest.epochs == 20
    assert found.smallest("linear") is None


def test_what_is_minimised_reaches_its_target_from_above() -> None:
    found = record(run("knee", 10, 5.2), run("knee", 20, 4.9), direction="minimize", target=5.0)
    smallest = found.smallest("knee")
    assert smallest is not None
    assert smallest.epochs == 20


def test_a_setting_is_judged_by_its_mean_over_random_seeds() -> None:
    lucky = record(*(run("knee", 10, value, seed=seed) for seed, value in ((1, 96.0), (2, 93.0))))
    assert lucky.smallest("knee") is None
    best = lucky.best("knee", 10)
    assert best is not None
    assert best.mean == 94.5
    assert best.spread == pytest.approx(2.1213, abs=1e-4)


def test_the_best_setting_is_named() -> None:
    found = record(
        run("knee", 10, 95.5, seed_lr=0.05, explore_fraction=0.5),
        run("knee", 10, 96.5, seed_lr=0.1, explore_fraction=0.7),
        run("knee", 10, None, seed_lr=9.0, explore_fraction=0.5),
    )
    best = found.best("knee", 10)
    assert best is not None
    assert best.point == "seed LR 0.1, explore 70%"
    assert found.smallest("knee") == best


def test_a_setting_that_diverges_with_one_seed_has_no_mean() -> None:
    found = record(run("knee", 10, 99.0, seed=1), run("knee", 10, None, seed=2))
    assert found.best("knee") is None
    assert found.smallest("knee") is None


@pytest.mark.parametrize(
    ("knee", "linear", "cosine", "text"),
    [
        (20, 30, None, "Knee needs 20 epochs, the best baseline (linear) 30: 33% less training"),
        (10, 30, 20, "Knee needs 10 epochs, the best baseline (cosine) 20: 50% less training"),
        (30, 20, None, "Knee needs 30 epochs, the best baseline (linear) 20: 50% more training"),
        (20, None, 20, "Knee and the best baseline (cosine) both need 20 epochs: nothing saved"),
        (
            10,
            None,
            None,
            "Knee needs 10 epochs, no baseline reaches it within 30: more than 67% less training",
        ),
        (30, None, None, "Knee needs 30 epochs, no baseline reaches it within 30"),
        (None, 20, 30, "linear reaches it in 20 epochs, Knee in none of these budgets"),
        (None, None, None, "neither Knee nor a baseline reaches it within 30 epochs"),
    ],
)
def test_the_saving_in_words(
    knee: int | None, linear: int | None, cosine: int | None, text: str
) -> None:
    needed = {"knee": knee, "linear": linear, "cosine": cosine}
    found = record(
        *(
            run(name, epochs, 95.0 if first is not None and epochs >= first else 90.0)
            for name, first in needed.items()
            for epochs in (10, 20, 30)
        )
    )
    assert found.saving is not None
    assert found.saving.text == text


def test_without_rivals_or_without_knee_nothing_is_compared() -> None:
    alone = record(run("knee", 10, 99.0)).saving
    assert alone is not None
    assert alone.text == "no baseline was asked for"
    assert record(run("linear", 10, 99.0)).saving is None


def test_what_it_cost_and_what_sharing_saved() -> None:
    found = record(
        run("knee", 10, 94.0, steps_trained=1000),
        run("knee", 20, 95.0, steps_trained=1500),
    )
    assert found.steps() == SearchSteps(trained=2500, independent=3000)
    assert found.steps("linear") == SearchSteps(trained=0, independent=0)


def test_the_object_that_is_printed() -> None:
    found = record(run("knee", 10, 94.0), run("knee", 20, 95.0), run("linear", 10, 90.0))
    printed = json.loads(json.dumps(found.as_json()))
    knee, linear = printed["schedules"]
    assert (knee["schedule"], knee["smallest_budget"]) == ("knee", 20)
    assert [cell["reached"] for cell in knee["budgets"]] == [False, True]
    assert knee["best"]["mean"] == 95.0
    assert linear["smallest_budget"] is None
    assert linear["best"]["mean"] == 90.0  # not reached: the best there is
    assert printed["steps"]["independent"] == 4000


@pytest.mark.parametrize(
    ("typed", "target"),
    [("95", 95.0), ("0.95", 95.0), ("95%", 95.0), ("0.57", 57.0), ("0.5%", 0.5), (" 94.5 ", 94.5)],
)
def test_percent_as_people_type_it(typed: str, target: float) -> None:
    assert read_target(typed, ACCURACY) == target


@pytest.mark.parametrize(
    ("typed", "metric", "said"),
    [
        ("nan", ACCURACY, "must be a finite number"),
        ("inf", PPL, "must be a finite number"),
        ("high", ACCURACY, "must be a number, as in `target` 95"),
        ("950", ACCURACY, "accuracy is measured in percent; type 95"),
        ("0", ACCURACY, "accuracy is measured in percent; type 95"),
        ("-3", ACCURACY, "accuracy is measured in percent; type 95"),
        ("5%", PPL, "ppl is not measured in percent; leave out the %"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(typed: str, metric: Metric, said: str) -> None:
    with pytest.raises(UserError, match=f"^`target` {typed}: {said}") as error:
        read_target(typed, metric)
    assert "\n" not in str(error.value)


def test_other_metrics_are_taken_as_they_are() -> None:
    assert read_target("0.35", PPL) == 0.35
    assert read_target("-1.5", PPL) == -1.5


@pytest.mark.parametrize(
    ("budgets", "said"),
    [
        ((), "name at least one"),
        ((0, 5), "at least 1 epoch"),
        ((30, 20, 10), "must ascend, each budget once; type 10,20,30"),
        ((10, 10, 20), "must ascend, each budget once; type 10,20"),
    ],
)
def test_budgets_ascend(budgets: tuple[int, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_budgets(budgets)


def test_nothing_is_named_twice() -> None:
    with pytest.raises(UserError, match=r"`seed_lrs` 0.1,0.1: name at least one, each one once"):
        check_distinct("`seed_lrs`", (0.1, 0.1))
