"""Searches at several horizons: the best setting of each, and whether it moves."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from knee_tune.commands.horizons import Budgets, read_budgets, resolve_horizons
from knee_tune.config.study import StudySpec
from knee_tune.errors import UserError
from knee_tune.records.study import StudyRecord, TrialRecord
from knee_tune.records.values import RunRecord, StepCount
from knee_tune.report.document import ReportContext, as_html
from knee_tune.report.horizons import horizon_words, horizons_report
from knee_tune.stats.horizons import Horizons, horizons_of

LRS = (0.001, 0.0014, 0.002, 0.0028, 0.004, 0.0056, 0.008)


def spec(**changes: Any) -> StudySpec:
    space = {"seed_lr": {"values": LRS}, "explore_fraction": {"values": (0.5, 0.8)}}
    recipe = {"seed_lr": 0.002, "warmup_steps": 10}
    return StudySpec.model_validate(
        {"name": "h", "task": "toy", "preset": "p", "recipe": recipe, "space": space} | changes
    )


def search(total_steps: int, best: Sequence[float]) -> StudyRecord:
    """A search whose random seeds have their best loss at these LRs, one for each, at 80 %."""

    def trial(number: int, lr: float) -> TrialRecord:
        losses = {seed: abs(LRS.index(lr) - LRS.index(at)) for seed, at in enumerate(best)}
        return TrialRecord(
            number=number,
            seed_lr=lr,
            explore_fraction=0.8,
            state="complete",
            value=sum(losses.values()) / len(losses),
            replicates=tuple(
                RunRecord(seed=seed, state="complete", value=float(loss))
                for seed, loss in losses.items()
            ),
            seed=0,
            steps=StepCount(trained=total_steps),
            budget=total_steps * len(losses),
        )

    return StudyRecord(
        name=f"h-{total_steps}",
        task="toy",
        metric="valid_loss",
        direction="minimize",
        trials=tuple(trial(number, lr) for number, lr in enumerate(LRS)),
        spec=spec(),
    )


def found(best: Mapping[int, Sequence[float]]) -> Horizons:
    searches = [search(*each) for each in best.items()]
    together = horizons_of(searches, [f"{steps}s" for steps in best])
    assert together is not None
    return together


MOVES = found(
    {100: (0.008, 0.008, 0.008), 400: (0.004, 0.004, 0.0028), 1600: (0.002, 0.0014, 0.002)}
)


def test_the_best_of_every_horizon_with_its_decay_share() -> None:
    first, _, last = MOVES.horizons
    assert (first.seed_lr, first.explore_fraction, first.total_steps) == (0.008, 0.8, 100)
    assert first.best_decay.value == pytest.approx(0.1)  # 10 of 100 steps warm up
    assert last.best_decay.value == pytest.approx(1 - 0.8 - 10 / 1600)
    assert last.best_lrs == {0: 0.002, 1: 0.0014, 2: 0.002}


def test_a_power_law_is_told_where_seeds_agree_beyond_the_grid() -> None:
    assert MOVES.exponent is not None
    assert MOVES.exponent.value == pytest.approx(-0.54, abs=0.03)
    assert MOVES.resolved
    further = MOVES.lr_at(3200)
    assert further is not None
    assert 0.001 < further < 0.0016
    assert "power law of exponent -0.54" in horizon_words(MOVES)[1]


def test_a_best_seed_lr_at_the_end_of_the_range_is_said_to_be_there() -> None:
    *_, said = horizon_words(MOVES)
    assert said.startswith("At 100s the best trial has the largest seed LR of the search space")
    assert "--set 'space.seed_lr.values=[0.001, 0.0014," in said


def test_one_step_of_the_grid_resolves_nothing() -> None:
    """Three seeds that all say one point, and its neighbour at the last horizon."""
    still = found({100: (0.004,) * 3, 200: (0.004,) * 3, 400: (0.0028,) * 3})
    assert not still.resolved
    assert still.lr_at(800) is None
    assert "not resolved" in horizon_words(still)[1]


@pytest.mark.parametrize(
    "best", [{100: (0.008,), 400: (0.004,), 1600: (0.002,)}, {100: (0.008,) * 3}]
)
def test_too_few_seeds_or_horizons_tell_no_power_law(best: Mapping[int, Sequence[float]]) -> None:
    assert found(best).exponent is None
    assert "needs 3 horizons and 3 random seeds" in horizon_words(found(best))[1]


def test_the_page_draws_metric_lr_and_decay_against_the_steps() -> None:
    report = horizons_report(MOVES, name="h", spec=spec(), context=ReportContext(written=0.0))
    assert {*report.figures} == {"metric", "seed_lr", "decay"}
    for figure in report.figures.values():
        assert figure["layout"]["xaxis"]["type"] == "log"
        assert figure["data"][0]["x"] == [100, 400, 1600]
    _, power_law = report.figures["seed_lr"]["data"]
    assert power_law["x"] == [100, 3200]
    assert "0.008 → 0.004 → 0.002" in as_html(report)


@pytest.mark.parametrize(
    ("text", "counts", "in_steps"),
    [
        ("10,20,40", (10, 20, 40), False),
        ("10, 20", (10, 20), False),
        ("1000steps,2000steps", (1000, 2000), True),
    ],
)
def test_budgets_are_what_the_recipe_counts_or_always_steps(
    text: str, counts: tuple[int, ...], in_steps: bool
) -> None:
    assert read_budgets(text) == Budgets(counts, in_steps)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10.5,20", "must be whole numbers"),
        ("10ep,20ep", "must be whole numbers"),
        ("-1,5", "must be whole numbers"),
        ("", "must be whole numbers"),
        ("5,1000steps", "some are steps and some are not"),
        ("5", "give 2 or more"),
        ("5,3", "must ascend, each budget once; type 3,5"),
        ("0steps,5steps", "at least 1 step$"),
        ("0,5", "at least 1 epoch"),
        ("5,2000000", "at most 1,000,000 epochs"),
    ],
)
def test_what_is_no_list_of_budgets(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve_horizons(task="digits", preset="quick", budgets=read_budgets(text))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("recipe.epochs=3", "`budgets` names the epochs"),
        ("recipe.steps=3", "`budgets` names the steps"),
        ("sampler=grid", "horizons search with a model"),
        ("scale=0.5", "`budgets` names what is trained"),
    ],
)
def test_what_makes_no_horizons(asked: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve_horizons(
            task="digits", preset="quick", budgets=Budgets((2, 4), False), settings=(asked,)
        )


@pytest.mark.parametrize(
    ("task", "text", "budgets"),
    [
        ("gpt", "3,6", ["3ep", "6ep"]),
        ("gpt", "300steps,600steps", ["300steps", "600steps"]),
        ("bert", "300,600", ["300steps", "600steps"]),  # an epoch is a step there
    ],
)
def test_every_budget_is_a_study_with_a_name_of_its_own(
    task: str, text: str, budgets: list[str]
) -> None:
    settings = ("recipe.phases=[]", "recipe.length=32") if task == "bert" else ()
    asked = resolve_horizons(
        task=task, preset="demo", budgets=read_budgets(text), trials=5, settings=settings
    )
    assert [*asked.studies] == budgets
    names = [each.name for each in asked.studies.values()]
    assert names == [f"horizons-{task}-demo-{budget}" for budget in budgets]
    assert {each.trials for each in asked.studies.values()} == {5}


def test_a_budget_in_steps_is_measured_as_often_as_one_in_epochs() -> None:
    """So its trunks are those of epochs, and its last step is measured too."""
    both = [
        each.typed_recipe
        for text in ("2,4", "150steps,300steps")
        for each in resolve_horizons(
            task="digits", preset="quick", budgets=read_budgets(text)
        ).studies.values()
    ]
    assert [each.total_steps(56) for each in both] == [112, 224, 150, 300]
    assert {each.steps_per_evaluation(56) for each in both} == {56}
