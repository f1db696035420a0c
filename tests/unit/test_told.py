"""A Gaussian process is told what it can learn from, and of no more trials than it has time for."""

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from knee_tune.study.told import MOST_TOLD, most_telling, told_of

SPACE = {
    "seed_lr": FloatDistribution(0.001, 1.0, log=True),
    "explore_fraction": FloatDistribution(0.0, 0.9),
    "decay": CategoricalDistribution(("linear", "cosine")),
}


def trials(count: int, *, running: int = 0) -> list[FrozenTrial]:
    """So many complete ones at random points, then running ones."""
    rng = np.random.default_rng(1)
    made = [
        optuna.create_trial(
            state=TrialState.COMPLETE if number < count else TrialState.RUNNING,
            params={
                "seed_lr": float(10 ** rng.uniform(-3, 0)),
                "explore_fraction": float(rng.uniform(0, 0.9)),
                "decay": str(rng.choice(["linear", "cosine"])),
            },
            distributions=SPACE,
            value=float(rng.normal()) if number < count else None,
        )
        for number in range(count + running)
    ]
    for number, trial in enumerate(made):
        trial.number = number
    return made


def test_a_process_sees_every_trial_while_they_are_few() -> None:
    known = trials(MOST_TOLD, running=2)
    told = told_of(known, SPACE, direction=StudyDirection.MINIMIZE)
    assert [each.params for each in told] == [each.params for each in known]


def test_of_many_trials_it_sees_the_best_and_those_that_run() -> None:
    known = trials(2 * MOST_TOLD, running=2)
    told = told_of(known, SPACE, direction=StudyDirection.MINIMIZE)
    assert len(told) == MOST_TOLD + 2
    assert told[-1].state == TrialState.RUNNING
    best = sorted(trial.value for trial in known if trial.value is not None)[: MOST_TOLD // 2]
    assert {*best} <= {trial.value for trial in told}


def test_no_region_that_was_tried_looks_untried() -> None:
    losses = np.array([0.0, 0.1, 0.2, 0.3, 9.0])
    places = np.array([[0.0], [0.1], [0.2], [0.3], [1.0]])
    assert most_telling(losses, places, most=3) == [0, 3, 4]
