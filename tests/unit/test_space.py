"""Which seed LRs and explore fractions a search space consists of."""

import math
from itertools import pairwise
from typing import Any

import pytest
from pydantic import ValidationError

from knee_tune.specs.space import ExploreFractionSpace, SeedLRSpace


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


@pytest.mark.parametrize(
    "space",
    [SeedLRSpace(low=0.1, high=0.2), SeedLRSpace(values=(0.1, 0.2))],
)
def test_a_space_survives_being_stored(space: SeedLRSpace) -> None:
    assert SeedLRSpace.model_validate(space.model_dump(mode="json")) == space
