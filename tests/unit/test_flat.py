"""A search is flat when no point left is expected to be worth its cost."""

from collections.abc import Callable, Mapping
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution

from knee_tune.commands.opened import resolve_asked
from knee_tune.errors import UserError
from knee_tune.study.flat import FEWEST, outlook_of
from knee_tune.study.samplers import Axis

AXES = {
    "seed_lr": Axis((0.001, 0.003, 0.01, 0.03, 0.1), log=True),
    "explore_fraction": Axis((0.1, 0.3, 0.5, 0.7, 0.9)),
}


def bowl(lr: float, fraction: float) -> float:
    """Lowest at 0.01 and 50 %."""
    return (AXES["seed_lr"].position(lr) - 0.5) ** 2 + (fraction - 0.5) ** 2


def searched(
    tried: Callable[[float, float], bool], *, attrs: Mapping[str, Any] | None = None
) -> optuna.Study:
    study = optuna.create_study()
    distributions: dict[str, BaseDistribution] = {
        name: axis.distribution() for name, axis in AXES.items()
    }
    for lr in AXES["seed_lr"].points:
        for fraction in AXES["explore_fraction"].points:
            if tried(lr, fraction):
                study.add_trial(
                    optuna.create_trial(
                        params={"seed_lr": lr, "explore_fraction": fraction},
                        distributions=distributions,
                        value=bowl(lr, fraction),
                        user_attrs=dict(attrs or {}),
                    )
                )
    return study


def test_it_is_flat_once_the_best_point_has_its_neighbours() -> None:
    seeds = {"spread": 0.05, "replicates": 4}
    outlook = outlook_of(searched(lambda lr, fraction: lr > 0.001, attrs=seeds), AXES)
    assert outlook is not None
    assert outlook.flat
    assert outlook.noise == pytest.approx(0.05 / 2)
    assert outlook.words.endswith(
        "less than 0.1 of the noise between random seeds, 0.025 (of its replicates)"
    )


def test_it_is_not_flat_while_the_best_lies_on_the_edge_of_what_was_tried() -> None:
    outlook = outlook_of(searched(lambda lr, fraction: lr >= 0.03), AXES)
    assert outlook is not None
    assert not outlook.flat
    assert outlook.point[0] < 0.03
    assert not outlook.measured


def test_nothing_is_known_of_few_trials_or_while_some_are_queued() -> None:
    few = searched(lambda lr, fraction: lr == 0.01)
    assert len(few.trials) < FEWEST
    assert outlook_of(few, AXES) is None
    most = searched(lambda lr, fraction: lr > 0.001)
    most.enqueue_trial({"seed_lr": 0.001, "explore_fraction": 0.5})
    assert outlook_of(most, AXES) is None


def test_only_gp_knows_what_is_flat() -> None:
    with pytest.raises(UserError, match="tpe does not know when a search is flat: use gp"):
        resolve_asked(task="digits", sampler="tpe", stop_when_flat=True)
