"""Phases: Knees behind each other, whose seed LR and explore fraction are searched together."""

from typing import Any

import optuna
import pytest
from pydantic import TypeAdapter, ValidationError

from knee_tune.commands.opened import resolve_asked
from knee_tune.config.recipe import Phase
from knee_tune.config.study import ReferenceRow
from knee_tune.errors import UserError
from knee_tune.plans import plan
from knee_tune.plans.planner import (
    baseline_schedule,
    check_warmup,
    distinct_fractions,
    knee_schedule,
    row_schedule,
)
from knee_tune.pruners import KneePruner
from knee_tune.report.run_figures import curves_figure, knee_of
from knee_tune.schedules import Knee, Phased, learning_rates
from knee_tune.schedules.schedule import as_stored, phase_at
from knee_tune.schedules.settings import setting
from knee_tune.tasks.tabular.recipe import DigitsRecipe
from tests.unit.test_planner import facts
from tests.unit.test_report import record, spec, trial

TWO = (Phase(share=0.75, warmup=0.2), Phase(share=0.25, warmup=0.4, lr_factor=0.5))
RECIPE = DigitsRecipe(epochs=1, phases=TWO)


def phased(fraction: float = 0.4, *, total: int = 20, seed_lr: float = 0.1) -> Phased:
    schedule = knee_schedule(RECIPE, facts(total), seed_lr=seed_lr, explore_fraction=fraction)
    assert isinstance(schedule, Phased)
    return schedule


def test_each_phase_warms_up_explores_and_decays() -> None:
    schedule = phased()
    first = Knee(seed_lr=0.1, total_steps=15, warmup_steps=3, explore_steps=6)
    second = Knee(seed_lr=0.05, total_steps=5, warmup_steps=2, explore_steps=2)
    assert schedule.phases == (first, second)
    assert learning_rates(schedule) == learning_rates(first) + learning_rates(second)
    assert schedule.ends == (15, 20)
    assert [phase_at(schedule.ends, step) for step in (1, 15, 16, 20, 21)] == [0, 0, 1, 1, 1]
    assert (schedule.warmup_steps, schedule.knee_step) == (3, 9)  # where branches leave


def test_decays_of_groups_are_scaled_in_every_phase() -> None:
    assert phased().with_decay_scale(0.5).phases == tuple(
        each.with_decay_scale(0.5) for each in phased().phases
    )


def test_a_plan_keeps_every_phase() -> None:
    kept: TypeAdapter[Any] = TypeAdapter(plan.Schedule)
    stored = kept.dump_json(phased())
    assert kept.validate_json(stored) == phased()
    assert kept.dump_python(phased(), mode="json") == as_stored(phased())


def test_recipes_without_phases_say_nothing_of_them() -> None:
    assert "phases" not in DigitsRecipe().model_dump()


def test_the_linear_baseline_decays_in_every_phase() -> None:
    recipe = RECIPE.model_copy(update={"final": 0.1})  # of the search, no matter of a baseline
    linear = baseline_schedule("linear", recipe, facts(20), seed_lr=0.1)
    assert linear == phased(0.0)
    row = ReferenceRow(schedule="knee", epochs=5, seed_lr=0.1, explore_epochs=2, metrics={})
    assert row_schedule(row, RECIPE, facts(8), scale=0.5) == phased()
    with pytest.raises(UserError, match=r"^`schedule` cosine: each of recipe.phases is a Knee"):
        baseline_schedule("cosine", RECIPE, facts(20), seed_lr=0.1)


def test_fractions_are_the_same_where_they_are_in_every_phase() -> None:
    fractions = (0.3, 0.31, 0.34, 0.95, 0.96)
    assert distinct_fractions(RECIPE, facts(20), fractions) == {
        0.3: (0.3,),  # 4 steps in the first phase
        0.31: (0.31, 0.34),  # 5
        0.95: (0.95, 0.96),  # warmup and explore take all of both
    }


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"phases": [{"share": 0.5}, {"share": 0.4}]}, "must make 1, not 0.9"),
        ({"phases": TWO, "warmup_steps": 3}, "each has its own warmup; use warmup_steps=0"),
        ({"phases": TWO, "warmup": "5%"}, "each has its own warmup"),
    ],
)
def test_phases_that_are_none(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DigitsRecipe(**recipe)


def test_every_phase_needs_a_step() -> None:
    check_warmup(RECIPE, facts(4))
    with pytest.raises(UserError, match="the budget is 3 steps, of which a phase of 25% has none"):
        check_warmup(RECIPE, facts(3))


def test_pruners_that_would_compare_phases_are_refused() -> None:
    two = 'recipe.phases=[{"share": 0.9}, {"share": 0.1}]'
    resolve_asked(task="digits", settings=(two,), pruner="knee")
    with pytest.raises(UserError, match=r"pruner.*median would compare the losses of different"):
        resolve_asked(task="digits", settings=(two,), pruner="median")


def test_no_project_writes_phases() -> None:
    with pytest.raises(ValueError, match="the schedule has 2 phases, and a setting is of one Knee"):
        setting(phased(), "hf")


def test_pages_know_every_phase() -> None:
    asked = spec(recipe={**spec().recipe, "phases": [{**dict(each), "length": 8} for each in TWO]})
    found = trial(0, 3e-4, 0.4, budget=20 * asked.replicates)
    assert knee_of(record(spec=asked), found) == phased(seed_lr=3e-4)
    drawn = curves_figure(found, title="", schedule=phased(total=2000))["data"][0]["x"]
    assert {300, 900, 1500, 1501, 1700, 1900, 2000} <= {*drawn}


# Pruning: every phase is compared alone.


def pruned_at(values: dict[int, float], **settings: Any) -> int | None:
    """Where a trial with these values is pruned, after six whose loss is 1, and 5 in phase two."""
    pruner = KneePruner(percentile=10, patience=2, **settings)
    study = optuna.create_study(pruner=pruner)
    usual = {step: 1.0 if step <= 15 else 5.0 for step in range(1, 21)}
    for number in range(7):
        each = study.ask()
        KneePruner.describe(each, phased())
        for step, value in (values if number == 6 else usual).items():
            each.report(value, step)
            if number == 6 and each.should_prune():
                return step
        study.tell(each, 1.0)
    return None


@pytest.mark.parametrize("align", ["step", "lr", "progress"])
def test_what_is_as_good_as_others_in_its_phase_goes_on(align: str) -> None:
    usual = {step: 1.0 if step <= 15 else 5.0 for step in range(1, 21)}
    assert pruned_at(usual, align=align) is None


def test_patience_and_warmup_are_those_of_the_phase() -> None:
    bad = {step: 1.0 if step < 15 else 9.0 for step in range(1, 21)}
    assert pruned_at(bad) == 19  # not for steps 15 to 17: another phase's last, and a warmup
