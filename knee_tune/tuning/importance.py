"""Which hyperparameter matters how much, by an evaluator that is named."""

import optuna
from optuna.trial import TrialState

from knee_tune.specs.importances import Importances
from knee_tune.tuning.quiet import quiet_optuna

HYPERPARAMETERS = ("seed_lr", "explore_fraction")

FEWEST_TRIALS = 4
"""A forest grown on fewer points says nothing."""


def importances_of(study: optuna.Study, *, seed: int) -> Importances | None:
    """By fANOVA; None unless both hyperparameters and the values of enough trials vary.

    fANOVA, because its share is of the variance over the whole search space, which is what the
    heat map shows. Optuna's default, PED-ANOVA, asks what sets the best trials apart, and on few
    points it changes with every trial.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    varied = (
        {trial.value for trial in complete},
        *({trial.params[name] for trial in complete} for name in HYPERPARAMETERS),
    )
    if len(complete) < FEWEST_TRIALS or any(len(values) < 2 for values in varied):
        return None
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances  # slow

    with quiet_optuna():
        values = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed))
    return Importances(
        evaluator="fANOVA",
        measures=(
            "the part of the metric's variance over the search space that the hyperparameter "
            "explains alone, scaled so that the shares add up to 100%"
        ),
        values={name: float(value) for name, value in values.items()},
        trials=len(complete),
    )
