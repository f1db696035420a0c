"""A Knee schedule as parameters of one's own Optuna study."""

import subprocess
import sys
import warnings

import optuna
import pytest
from optuna.trial import FixedTrial

import knee_tune
from knee_tune.pruners import KneePruner
from knee_tune.schedules import Knee


def ask(trial: optuna.Trial | FixedTrial) -> Knee:
    return knee_tune.suggest_knee(
        trial,
        total_steps=200,
        seed_lr=(0.01, 1.0),
        explore=(0.1, 0.85),
        per_decade=4,
        step=0.25,
        decay=("linear", "1-sqrt"),
    )


def test_schedules_lie_on_the_grids_and_are_described() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    trials = [study.ask() for _ in range(40)]
    knees = [ask(trial) for trial in trials]
    lrs = {0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.178, 0.316, 0.562, 1.0}
    assert {knee.seed_lr for knee in knees} <= lrs
    assert {knee.explore_steps for knee in knees} == {20, 70, 120, 170}
    assert {knee.decay for knee in knees} == {"linear", "1-sqrt"}
    assert trials[0].user_attrs["schedule"]["seed_lr"] == knees[0].seed_lr
    assert ask(FixedTrial(trials[0].params)) == knees[0]


def test_what_makes_no_sense_is_refused() -> None:
    trial = optuna.create_study().ask()
    with pytest.raises(ValueError, match=r"seed_lr must be \(low, high\)"):
        knee_tune.suggest_knee(trial, total_steps=9, seed_lr=(1.0, 0.1), explore=(0.0, 0.9))
    with pytest.raises(ValueError, match="decay must be of linear"):
        knee_tune.suggest_knee(
            trial, total_steps=9, seed_lr=(0.1, 1.0), explore=(0.0, 0.9), decay=()
        )


def test_importing_the_package_imports_neither_torch_nor_optuna() -> None:
    code = "import knee_tune, sys; assert not {'torch', 'optuna', 'numpy'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def study_reporting_at(steps: list[int], *, total_steps: int) -> list[str]:
    """What two trials with reports at these steps warn of."""
    study = optuna.create_study(pruner=KneePruner())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            trial = study.ask()
            knee = Knee(seed_lr=0.1, total_steps=total_steps, explore_steps=total_steps // 2)
            KneePruner.describe(trial, knee)
            for step in steps:
                trial.report(1.0, step)
                trial.should_prune()
            study.tell(trial, 1.0)
    return [str(each.message) for each in caught if "count differently" in str(each.message)]


def test_the_pruner_warns_once_of_steps_that_are_not_the_schedule_s() -> None:
    (said,) = study_reporting_at([*range(10)], total_steps=1000)
    assert said.startswith("reports at 0..9 and a schedule of 1..1,000 steps count differently")
    (said,) = study_reporting_at([100, 200], total_steps=10)
    assert said.startswith("reports at 100..100 and a schedule of 1..10 steps")
    assert not study_reporting_at([0, 300, 600, 900], total_steps=1000)
