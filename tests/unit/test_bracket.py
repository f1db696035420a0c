"""The bracket that a search starts with: seed LRs on both sides of the best, then the model."""

import math
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from knee_tune.config.recipe import Direction
from knee_tune.study.bracket import BracketSampler
from knee_tune.study.recovery import requeue
from knee_tune.study.samplers import Axis, make_sampler
from knee_tune.study.storage import quiet_optuna

LRS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064)
FRACTIONS = (0.0, 0.4, 0.9)
MODEL = {"seed_lr": 0.002, "explore_fraction": 0.9}


class Model(BaseSampler):
    """Proposes one point, which is none of a bracket's."""

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {
            "seed_lr": Axis(LRS, log=True).distribution(),
            "explore_fraction": Axis(FRACTIONS).distribution(),
        }

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return MODEL

    def sample_independent(self, *_: Any) -> Any:
        raise AssertionError("every point is proposed as a whole")


def search(
    *, seed: int = 0, centre: float = 0.008, direction: Direction = "minimize"
) -> optuna.Study:
    sampler = BracketSampler(
        Model(),
        seed_lrs=LRS,
        explore_fractions=FRACTIONS,
        several_decays=False,
        centre=centre,
        seed=seed,
    )
    with quiet_optuna():
        return optuna.create_study(sampler=sampler, direction=direction)


def ask(study: optuna.Study) -> tuple[optuna.Trial, float | None]:
    """A trial, and its seed LR; None if the point is the model's."""
    trial = study.ask()
    trial.suggest_float("seed_lr", LRS[0], LRS[-1], log=True)
    trial.suggest_float("explore_fraction", FRACTIONS[0], FRACTIONS[-1])
    if trial.params == MODEL:
        return trial, None
    assert trial.params["explore_fraction"] == 0.4, "the nearest to 50 %"
    return trial, trial.params["seed_lr"]


def bracket(study: optuna.Study, loss: Callable[[float], float]) -> list[float]:
    """Seed LRs of the whole bracket; a loss that is no number is a trial that diverged."""
    seen: list[float] = []
    while True:
        trial, lr = ask(study)
        if lr is None:
            return seen
        seen.append(lr)
        if math.isnan(loss(lr)):
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, loss(lr))


def distance_to(best: float) -> Callable[[float], float]:
    return lambda lr: abs(math.log(lr / best))


def test_the_centre_and_both_sides_if_the_centre_is_best() -> None:
    assert bracket(search(seed=0), distance_to(0.008)) == [0.008, 0.004, 0.016]
    assert bracket(search(seed=1), distance_to(0.008)) == [0.008, 0.016, 0.004]


def test_it_follows_the_best_until_worse_ones_are_on_both_sides_or_the_range_ends() -> None:
    assert bracket(search(seed=1), distance_to(0.016)) == [0.008, 0.016, 0.032]
    assert bracket(search(seed=0), distance_to(0.001)) == [0.008, 0.004, 0.002, 0.001]


def test_a_metric_may_be_maximized() -> None:
    found = bracket(search(seed=1, direction="maximize"), lambda lr: -distance_to(0.016)(lr))
    assert found == [0.008, 0.016, 0.032]


def test_nothing_is_tried_beyond_what_diverged() -> None:
    def diverges(lr: float) -> float:
        return distance_to(0.002)(lr) if lr < 0.005 else math.nan

    assert bracket(search(seed=1), diverges) == [0.008, 0.004, 0.002, 0.001]


def test_drivers_that_ask_together_get_the_centre_and_both_sides_then_the_models() -> None:
    study = search()
    assert [ask(study)[1] for _ in range(4)] == [0.008, 0.004, 0.016, None]


def test_once_complete_it_stays_so() -> None:
    study = search()
    bracket(study, distance_to(0.008))
    better = optuna.create_trial(
        params={"seed_lr": 0.064, "explore_fraction": 0.4},
        distributions=study.trials[0].distributions,
        value=-1.0,
    )
    study.add_trial(better)
    assert ask(study)[1] is None


def test_a_trial_that_goes_on_under_another_number_counts_once() -> None:
    study = search()
    trial, _ = ask(study)
    study.tell(trial, state=TrialState.FAIL)
    requeue(study, study.trials[0])
    assert ask(study)[1] == 0.008  # taken up again
    assert {ask(study)[1] for _ in range(2)} == {0.004, 0.016}


def test_it_begins_at_its_centre_also_where_the_default_lies_elsewhere() -> None:
    study = search(centre=0.002)
    study.enqueue_trial({"seed_lr": 0.016, "explore_fraction": 0.4})
    assert bracket(study, distance_to(0.002)) == [0.016, 0.002, 0.001]
    assert bracket(study, distance_to(0.002)) == []


def test_the_queued_default_is_the_centre() -> None:
    study = search()
    study.enqueue_trial({"seed_lr": 0.008, "explore_fraction": 0.4})
    assert bracket(study, distance_to(0.008)) == [0.008, 0.004, 0.016]


@pytest.mark.parametrize(("name", "begins"), [("gp", True), ("tpe", True), ("random", False)])
def test_models_begin_with_it(name: str, begins: bool) -> None:
    axes = {"seed_lr": Axis(LRS, log=True), "explore_fraction": Axis((0.0, 0.5, 0.9))}
    sampler = make_sampler(name, seed=1, axes=axes, start="bracket")
    assert isinstance(sampler, BracketSampler) == begins
    with quiet_optuna():
        study = optuna.create_study(sampler=sampler)
        study.optimize(
            lambda trial: sum(axis.suggest(trial, name) for name, axis in axes.items()), n_trials=6
        )
    points = [tuple(trial.params.values()) for trial in study.trials]
    assert len(set(points)) == 6
    if begins:
        assert [point[1] for point in points[:4]] == [0.5] * 4
        assert [point[0] for point in points[:4]] == [0.008, 0.016, 0.004, 0.002]
