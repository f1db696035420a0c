"""How much each hyperparameter matters, in studies of any size."""

import optuna
import pytest
from optuna.distributions import FloatDistribution

from knee_tune.study.study import importances_of


def study(trials: int) -> optuna.Study:
    """The seed LR decides nearly all."""
    made = optuna.create_study(direction="maximize")
    for number in range(trials):
        seed_lr, explore_fraction = (number * 7 % 13 + 1) / 13, (number * 5 % 11) / 10
        made.add_trial(
            optuna.create_trial(
                params={"seed_lr": seed_lr, "explore_fraction": explore_fraction},
                distributions={
                    "seed_lr": FloatDistribution(0.01, 1.0),
                    "explore_fraction": FloatDistribution(0.0, 1.0),
                },
                value=seed_lr + 0.01 * explore_fraction,
            )
        )
    return made


def test_thousands_of_trials_are_judged_by_some_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trees of a forest take minutes for thousands."""
    monkeypatch.setattr("knee_tune.study.study.MOST_TRIALS", 30)
    found = importances_of(study(100), seed=1)
    assert found is not None
    assert found.trials == 30
    assert found.values["seed_lr"] > 0.9
    assert found.dashboard.keys() == found.values.keys()


def test_few_trials_say_nothing() -> None:
    assert importances_of(study(3), seed=1) is None
