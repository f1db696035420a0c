"""A metric against the epochs of exploring: does it rise or fall, and is that more than chance?"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from knee_tune.reporting.explored import Explored
from knee_tune.reporting.intervals import mean_estimate
from knee_tune.specs.base import Spec
from knee_tune.specs.estimate import Estimate

Course = Literal["rises", "falls"]

PER_EPOCHS = 10
"""Explore epochs, of the paper's, that a slope is told for."""

SHARPNESS = ("sharpness", "fisher")
"""Fall with more exploring, says the paper's hypothesis (section 3.1)."""


class Trend(Spec):
    """A metric against the explore epochs: the slope of a straight line, seed by seed."""

    metric: str
    expected: Course = Field(description="in the paper, or by its hypothesis")
    slope: Estimate = Field(description=f"mean over seeds, per {PER_EPOCHS} of the paper's epochs")
    paper: float | None = Field(description="the slope of the paper's own means")
    p: float | None = Field(description="two-sided, of no slope; None with one seed")
    seeds: int = Field(description="that have the metric in every row")

    @property
    def of_sharpness(self) -> bool:
        """Whether it says how wide the minima are."""
        return self.metric in SHARPNESS

    @property
    def told(self) -> Course | None:
        """What the interval says; None if it holds zero, or if there is none."""
        if self.slope.side == 0:
            return None
        return "rises" if self.slope.side > 0 else "falls"


def trend_of(
    metric: str,
    explored: Explored,
    *,
    values: Sequence[Mapping[int, float]],
    papers: Sequence[float | None],
    hoped: Course | None = None,
) -> Trend | None:
    """The trend of ``values``, by row and random seed, beside that of the ``papers`` means.

    Expected is the paper's own course; where it has none, that of its hypothesis, or else the one
    ``hoped`` for. None if nothing is expected, and if no random seed has a value in every row:
    slopes of fewer rows do not compare.
    """
    known = {
        epochs: value
        for epochs, value in zip(explored.epochs, papers, strict=True)
        if value is not None
    }
    paper = slope([*known], [*known.values()]) if len(known) > 1 else None
    if metric in SHARPNESS:
        hoped = "falls"
    expected: Course | None = ("rises" if paper > 0 else "falls") if paper else hoped
    seeds = sorted(set.intersection(*(set(row) for row in values)))
    if expected is None or not seeds:
        return None
    slopes = [slope(explored.epochs, [row[seed] for row in values]) for seed in seeds]
    return Trend(
        metric=metric,
        expected=expected,
        slope=mean_estimate(slopes),
        paper=paper,
        p=two_sided_p(slopes) if len(slopes) > 1 else None,
        seeds=len(seeds),
    )


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line, per :data:`PER_EPOCHS` of ``x``."""
    return PER_EPOCHS * statistics.linear_regression(x, y).slope


def two_sided_p(values: Sequence[float]) -> float:
    """Probability of a mean at least this far from zero where there is none; two values at least.

    Below 0.05 exactly where the 95 % interval of the mean excludes zero.
    """
    from scipy import stats

    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    if error == 0:
        return 0.0 if mean else 1.0
    return float(2 * stats.t.sf(abs(mean) / error, len(values) - 1))
