"""Means over random seeds, and how far they can be trusted (Student's t)."""

import math
from collections.abc import Sequence

from knee_tune.specs.confirmation import Interval
from knee_tune.specs.ridge import Estimate

LEVEL = 0.95
"""Of every interval; of all differences together where several are looked at."""


def mean_interval(values: Sequence[float], *, level: float = LEVEL) -> Interval:
    """Mean and two-sided t interval; ValueError for fewer than two values.

    Values that are all the same have an interval without width.
    """
    from scipy import stats

    count = len(values)
    if count < 2:
        raise ValueError(f"an interval needs two values, got {count}")
    mean = math.fsum(values) / count
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    margin = float(stats.t.ppf((1 + level) / 2, count - 1)) * deviation / math.sqrt(count)
    return Interval(mean=mean, low=mean - margin, high=mean + margin, level=level)


def paired_interval(
    values: Sequence[float], references: Sequence[float], *, comparisons: int = 1
) -> Interval:
    """Mean of ``values - references``, seed by seed, and its t interval.

    With several ``comparisons`` each interval is wide enough (Bonferroni) that all of them together
    hold the true differences with probability :data:`LEVEL`. Bonferroni, because it is valid
    however the differences depend on one another (they share their reference and their seeds), and
    because it gives an interval: what is printed is what decides.
    """
    differences = [value - reference for value, reference in zip(values, references, strict=True)]
    return mean_interval(differences, level=1 - (1 - LEVEL) / comparisons)


def mean_estimate(values: Sequence[float]) -> Estimate:
    """The mean with its t interval; of one value the value alone."""
    if len(values) == 1:
        return Estimate(value=values[0])
    return as_estimate(mean_interval(values))


def as_estimate(interval: Interval) -> Estimate:
    """The same numbers, as other statistics have them."""
    return Estimate(value=interval.mean, low=interval.low, high=interval.high, level=interval.level)
