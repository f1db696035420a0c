"""A search that starts from an earlier study of the same task."""

from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, InMemoryStorage

from knee_tune.commands.opened import resolve_asked
from knee_tune.errors import UserError
from knee_tune.records.study import EarlierPoint
from knee_tune.study.earlier import known_earlier
from knee_tune.study.samplers import Axis, axes_of, make_sampler
from knee_tune.study.storage import quiet_optuna
from knee_tune.study.study import open_study, spec_of, study_record
from knee_tune.study.told import STUDY, beside_earlier, told_of

FOUND = {(0.005, 0.3): 80.0, (0.02, 0.5): 90.0, (0.02, 0.7): 91.0, (0.1, 0.5): 60.0}
"""Accuracies of the earlier study."""


def opened(storage: BaseStorage, name: str, **asked: Any) -> optuna.Study:
    settings = asked.pop("settings", ())
    spec = resolve_asked(task=asked.pop("task", "digits"), name=name, settings=settings, **asked)
    return open_study(storage, spec, data_fingerprint="")


def earlier(storage: BaseStorage, *, found: dict[tuple[float, float], float] = FOUND) -> None:
    study = opened(storage, "short", settings=("recipe.epochs=3",))
    distributions: Any = {k: axis.distribution() for k, axis in axes_of(spec_of(study)).items()}
    for (lr, fraction), value in found.items():
        study.add_trial(
            optuna.create_trial(
                params={"seed_lr": lr, "explore_fraction": fraction},
                distributions=distributions,
                value=value,
            )
        )


def test_it_keeps_what_the_earlier_one_found_when_it_was_made() -> None:
    storage = InMemoryStorage()
    earlier(storage)
    study = opened(storage, "long", from_study="short")
    optuna.delete_study(study_name="short", storage=storage)
    again = opened(storage, "long")  # needs no option to go on
    record = study_record(again)
    assert record.earlier is not None
    assert record.earlier.words == "starts from study short: best seed LR 0.02, 4 points"
    assert record.spec.from_study == "short"
    assert known_earlier(study) == record.earlier


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"from_study": "shrt"}, "study shrt: not in this storage; there are: short"),
        ({"from_study": "long"}, "`from_study` long: that is this study"),
        ({"task": "breast-cancer"}, "it is of digits, this one of breast-cancer"),
        ({"settings": ("recipe.objective=loss",)}, "its metric is valid_accuracy, this one's"),
        ({"seed_lr": "1e-6:1e-5", "settings": ("recipe.seed_lr=1e-6",)}, "none of its complete"),
        ({"sampler": "random"}, "a search with sampler random and start bracket has no use for it"),
        ({"sampler": "grid"}, "a search with sampler grid and start bracket has no use for it"),
    ],
)
def test_what_it_cannot_start_from_is_refused_before_it_is_made(
    asked: dict[str, Any], said: str
) -> None:
    storage = InMemoryStorage()
    earlier(storage)
    with pytest.raises(UserError) as refused:
        opened(storage, "long", **{"from_study": "short", **asked})
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [each.study_name for each in storage.get_all_studies()] == ["short"]


def test_a_study_without_a_complete_trial_and_another_start_are_refused() -> None:
    storage = InMemoryStorage()
    earlier(storage, found={})
    with pytest.raises(UserError, match="it has no complete trial yet"):
        opened(storage, "long", from_study="short")
    opened(storage, "long")
    with pytest.raises(UserError, match='it was made with from_study=null, not "short"'):
        opened(storage, "long", from_study="short")


AXES = {
    "seed_lr": Axis((0.001, 0.003, 0.01, 0.03, 0.1), log=True),
    "explore_fraction": Axis((0.1, 0.3, 0.5, 0.7, 0.9)),
}


def test_the_level_of_the_earlier_study_is_of_no_matter() -> None:
    """Its values move by the median difference, none beyond the best one here."""
    space: dict[str, BaseDistribution] = {name: axis.distribution() for name, axis in AXES.items()}
    storage = InMemoryStorage()
    earlier(storage)
    points = opened(storage, "long", from_study="short")
    known = known_earlier(points)
    assert known is not None
    here = optuna.create_study(direction="maximize")
    for lr, value in ((0.02, 70.0), (0.1, 40.0)):
        here.add_trial(
            optuna.create_trial(
                params={"seed_lr": lr, "explore_fraction": 0.5}, distributions=space, value=value
            )
        )
    told = told_of(here.trials, space, direction=here.direction)
    beside = beside_earlier(told, known.points, space, direction=here.direction)
    assert [each.value for each in beside if each.params[STUDY] == 1.0] == [60.0, 70.0, 70.0, 40.0]


def test_gp_proposes_beside_the_earlier_optimum_and_a_point_that_is_left() -> None:
    """All that is known here is the bracket at 50 %; the earlier study was best at 0.01 and 0.9."""
    points = [
        EarlierPoint(
            params={"seed_lr": lr, "explore_fraction": fraction},
            value=-((AXES["seed_lr"].position(lr) - 0.5) ** 2) - (fraction - 0.9) ** 2,
        )
        for lr in AXES["seed_lr"].points
        for fraction in AXES["explore_fraction"].points
    ]
    study = optuna.create_study(
        direction="maximize",
        sampler=make_sampler("gp", seed=1, axes=AXES, start="bracket", earlier=points),
    )
    with quiet_optuna():
        for _ in range(4):
            trial = study.ask()
            lr, fraction = (axis.suggest(trial, name) for name, axis in AXES.items())
            value = 5 - (AXES["seed_lr"].position(lr) - 0.5) ** 2 - (fraction - 0.9) ** 2
            study.tell(trial, value)
    assert study.best_params == {"seed_lr": 0.01, "explore_fraction": 0.9}
