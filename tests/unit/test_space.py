"""Which seed LRs and explore fractions a search space consists of."""

import math
from itertools import pairwise
from typing import Any

import pytest
from pydantic import ValidationError

from knee_tune.config.recipe import ExploreFractionSpace, SearchSpace, SeedLRSpace


def test_the_seed_lr_grid_by_value() -> None:
    grid = SeedLRSpace(low=3e-5, high=3e-3, per_decade=4)
    assert grid.points(3e-4) == (
        3e-5, 5.33e-5, 9.49e-5, 1.69e-4, 3e-4, 5.33e-4, 9.49e-4, 1.69e-3, 3e-3,
    )  # fmt: skip


def test_eight_points_per_decade_unless_told() -> None:
    assert len(SeedLRSpace(low=1e-3, high=1e-1).points(1e-2)) == 17


@pytest.mark.parametrize("default", [3e-4, 0.0123456, 0.1])
@pytest.mark.parametrize(("below", "above"), [(10, 10), (1.5, 300), (70.7, 2)])
@pytest.mark.parametrize("per_decade", [1, 3, 8, 50])
def test_the_seed_lr_grid(default: float, below: float, above: float, per_decade: int) -> None:
    low, high = default / below, default * above
    points = SeedLRSpace(low=low, high=high, per_decade=per_decade).points(default)
    assert default in points  # it anchors the grid
    assert all(low <= point <= high for point in points)
    assert all(point == default or point == float(f"{point:.3g}") for point in points)
    for left, right in pairwise(points):
        assert math.isclose(right / left, 10 ** (1 / per_decade), rel_tol=0.011)
    expected = per_decade * math.log10(high / low)
    assert expected - 1.2 <= len(points) <= expected + 1.2


def test_a_space_has_no_points_but_its_own() -> None:
    assert SeedLRSpace(low=1e-3, high=1e-2, per_decade=1).points(1e-4) == (1e-3, 1e-2)
    assert SeedLRSpace(values=(0.1, 0.4)).points(0.2) == (0.1, 0.4)
    assert ExploreFractionSpace(values=(0.2, 0.95)).points() == (0.2, 0.95)


def test_a_range_without_a_point_is_refused() -> None:
    with pytest.raises(ValueError, match="no point of the grid lies between low and high"):
        SeedLRSpace(low=1.0, high=1.1, per_decade=8).points(3e-4)


def test_explore_fractions_by_value() -> None:
    assert ExploreFractionSpace(low=0, high=0.9, step=0.1).points() == (
        0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9,
    )  # fmt: skip
    quarters = ExploreFractionSpace(low=0.1, high=0.9, step=0.25)
    assert quarters.points() == (0.1, 0.35, 0.6, 0.85)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"low": 0.1, "high": 0.01}, "low must be less than high, got low=0.1, high=0.01"),
        ({"low": 0.1}, "high missing; give low, high, per_decade, or values"),
        ({}, "low, high missing"),
        ({"low": 0.1, "high": 0.2, "values": (0.1,)}, "either values or low, high, per_decade"),
        ({"values": (0.2, 0.1)}, "values must ascend"),
        ({"values": (0.1, 0.1)}, "values must ascend, each one once"),
        ({"values": ()}, "at least 1 item"),
        ({"values": (0.0, 0.1)}, "greater than 0"),
        ({"low": -0.1, "high": 0.2}, "greater than 0"),
        ({"low": 0.1, "high": float("inf")}, "finite"),
        ({"low": 1e-300, "high": 0.2}, "must be 1e-12 or more"),
        ({"low": 0.1, "high": 1e300}, "less than or equal to 1000000000000"),
        ({"low": 0.1, "high": 0.2, "per_decade": 0}, "greater than or equal to 1"),
        ({"low": 0.1, "hihg": 0.2}, "hihg"),
    ],
)
def test_seed_lrs_that_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SeedLRSpace.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"low": 0.1, "high": 0.9}, "step missing; give low, high, step, or values"),
        ({"low": 0.1, "high": 1.0, "step": 0.1}, "less than 1"),
        ({"low": 0.1, "high": 0.9, "step": 0.0}, "greater than 0"),
        ({"low": -0.1, "high": 0.9, "step": 0.1}, "greater than or equal to 0"),
        ({"values": (0.5, 1.0)}, "less than 1"),
        ({"values": (0.5,), "step": 0.1}, "either values or low, high, step"),
    ],
)
def test_explore_fractions_that_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ExploreFractionSpace.model_validate(fields)


TENTHS = {"low": 0.0, "high": 0.9, "step": 0.1}


def problems(*, anchor: float = 0.1, with_default: bool = True, **space: Any) -> dict[str, str]:
    usual = {"seed_lr": {"values": (0.05, 0.1)}, "explore_fraction": TENTHS}
    space_ = SearchSpace.model_validate(usual | space)
    return dict(space_.problems(anchor, with_default=with_default))


def test_a_space_that_can_be_searched_has_no_problems() -> None:
    assert not problems()
    assert not problems(explore_fraction={"low": 0.0, "high": 0.9998, "step": 0.0002})


@pytest.mark.parametrize("step", [1e-4, 1e-7, 1e-300])
def test_a_grid_is_counted_before_it_is_made(step: float) -> None:
    found = problems(explore_fraction=TENTHS | {"step": step})
    assert "2 seed LRs x " in found["explore_fraction"]
    assert "more than 10,000 points" in found["explore_fraction"]


@pytest.mark.parametrize(
    ("space", "field"),
    [
        ({"explore_fraction": {"values": (0.3, 0.30000000000000004)}}, "explore_fraction"),
        ({"explore_fraction": {"values": (0.3, 0.5000000001)}}, "explore_fraction"),
        ({"seed_lr": {"values": (0.05, 0.05 * (1 + 1e-9))}}, "seed_lr"),
        ({"seed_lr": {"values": (0.05, 0.1 + 1e-12)}}, "seed_lr"),
    ],
)
def test_two_points_that_are_one_are_refused(space: dict[str, Any], field: str) -> None:
    assert "are the same point" in problems(**space)[field]


def test_the_default_is_no_point_of_a_grid() -> None:
    space: dict[str, Any] = {"explore_fraction": {"values": (0.3, 0.5000000001)}}
    assert not problems(**space, with_default=False)


@pytest.mark.parametrize(
    "space",
    [SeedLRSpace(low=0.1, high=0.2), SeedLRSpace(values=(0.1, 0.2))],
)
def test_a_space_survives_being_stored(space: SeedLRSpace) -> None:
    assert SeedLRSpace.model_validate(space.model_dump(mode="json")) == space
