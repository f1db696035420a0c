"""A winner on the edge of the search space, and how to look beyond."""

from typing import Any

import pytest

from knee_tune.config.recipe import ExploreFractionSpace, SearchSpace, SeedLRSpace
from knee_tune.config.resolve import parse_override
from knee_tune.config.study import StudySpec, edges

RANGE = {"low": 0.01, "high": 1.0, "per_decade": 2}
STEPS = {"low": 0.1, "high": 0.8, "step": 0.1}


def spec(seed_lr: dict[str, Any], explore_fraction: dict[str, Any]) -> StudySpec:
    return StudySpec(
        name="s",
        task="toy",
        preset="full",
        recipe={"seed_lr": 0.1},
        space=SearchSpace(
            seed_lr=SeedLRSpace(**seed_lr),
            explore_fraction=ExploreFractionSpace(**explore_fraction),
        ),
    )


def settings(study: StudySpec, seed_lr: float, explore_fraction: float) -> list[str]:
    found = edges(study, seed_lr=seed_lr, explore_fraction=explore_fraction)
    return [edge.setting for edge in found]


def test_inside_there_is_none() -> None:
    assert settings(spec(RANGE, STEPS), 0.1, 0.5) == []


def test_a_range_is_widened_by_its_bound() -> None:
    study = spec(RANGE, STEPS)
    assert settings(study, 1.0, 0.5) == ["space.seed_lr.high=3.16"]
    assert settings(study, 0.01, 0.5) == ["space.seed_lr.low=0.00316"]
    assert settings(study, 0.1, 0.8) == ["space.explore_fraction.high=0.9"]
    assert settings(study, 0.1, 0.1) == ["space.explore_fraction.low=0"]
    assert len(settings(study, 1.0, 0.8)) == 2


def test_a_list_gets_another_point() -> None:
    study = spec({"values": (0.05, 0.1, 0.2)}, {"values": (0.2, 0.5, 0.7)})
    assert settings(study, 0.2, 0.5) == ["space.seed_lr.values=[0.05, 0.1, 0.2, 0.4]"]
    assert settings(study, 0.1, 0.7) == ["space.explore_fraction.values=[0.2, 0.5, 0.7, 0.9]"]
    assert settings(study, 0.1, 0.2) == ["space.explore_fraction.values=[0, 0.2, 0.5, 0.7]"]


@pytest.mark.parametrize("fraction", [0.0, 0.9])
def test_beyond_the_ends_of_the_budget_there_is_nothing(fraction: float) -> None:
    study = spec(RANGE, {"low": 0.0, "high": 0.9, "step": 0.1})
    assert settings(study, 0.1, fraction) == []


def test_what_was_fixed_has_no_edge() -> None:
    assert settings(spec({"values": (0.1,)}, {"values": (0.5,)}), 0.1, 0.5) == []


def test_the_setting_can_be_typed() -> None:
    study = spec({"values": (0.05, 0.1)}, STEPS)
    (setting,) = settings(study, 0.1, 0.5)
    assert parse_override(setting).value == [0.05, 0.1, 0.2]


def test_people_read_which_edge_it_is() -> None:
    assert [edge.what for edge in edges(spec(RANGE, STEPS), seed_lr=1.0, explore_fraction=0.1)] == [
        "largest seed LR",
        "smallest explore fraction",
    ]
