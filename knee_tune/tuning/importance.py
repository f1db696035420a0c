"""Which hyperparameter matters how much, by an evaluator that is named."""

import random
import warnings
from collections.abc import Sequence

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from knee_tune.specs.importances import Importances
from knee_tune.tuning.quiet import quiet_optuna

HYPERPARAMETERS = ("seed_lr", "explore_fraction")

FEWEST_TRIALS = 4
"""A forest grown on fewer points says nothing."""

MOST_TRIALS = 500
"""A forest takes seconds for so many, and minutes for thousands; its shares hardly move by then."""


def importances_of(study: optuna.Study, *, seed: int) -> Importances | None:
    """By fANOVA; None unless both hyperparameters and the values of enough trials vary.

    fANOVA, because its share is of the variance over the whole search space, which is what the
    heat map shows. Of more than ``MOST_TRIALS`` it takes as many, drawn by lot.
    Optuna's default, PED-ANOVA, asks what sets the best trials apart, and on few points it changes
    with every trial; its numbers are told too, for Optuna Dashboard shows them.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    varied = (
        {trial.value for trial in complete},
        *({trial.params[name] for trial in complete} for name in HYPERPARAMETERS),
    )
    if len(complete) < FEWEST_TRIALS or any(len(values) < 2 for values in varied):
        return None
    from optuna.importance import (  # slow
        FanovaImportanceEvaluator,
        PedAnovaImportanceEvaluator,
        get_param_importances,
    )

    chosen = random.Random(seed).sample(complete, min(len(complete), MOST_TRIALS))
    sign = 1 if study.direction == StudyDirection.MINIMIZE else -1

    def target(trial: FrozenTrial) -> float:  # as the dashboard calls it
        assert trial.value is not None, "it is complete"
        return sign * trial.value

    with quiet_optuna(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of targets that are to be small, which this one is
        values = get_param_importances(
            _of(chosen, study), evaluator=FanovaImportanceEvaluator(seed=seed)
        )
        theirs = get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(), target=target
        )
    return Importances(
        evaluator="fANOVA",
        measures=(
            "the part of the metric's variance over the search space that the hyperparameter "
            "explains alone, scaled so that the shares add up to 100%"
        ),
        values={name: float(value) for name, value in values.items()},
        dashboard={name: float(value) for name, value in theirs.items()},
        trials=len(chosen),
    )


def _of(trials: Sequence[FrozenTrial], study: optuna.Study) -> optuna.Study:
    """A study in memory of these trials alone."""
    part = optuna.create_study(direction=study.direction)
    part.add_trials(trials)
    return part
