"""Means over random seeds, and how far they can be trusted (Student's t)."""

import math
import statistics
from collections.abc import Sequence

from knee_tune.specs.estimate import Estimate

LEVEL = 0.95
"""Of every interval; of all differences together where several are looked at."""


def mean_estimate(values: Sequence[float], *, level: float = LEVEL) -> Estimate:
    """The mean with its two-sided t interval; of one value the value alone.

    Values that are all the same have an interval without width.
    """
    from scipy import stats

    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Estimate(value=mean)
    error = statistics.stdev(values) / math.sqrt(count)
    margin = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
    return Estimate(value=mean, low=mean - margin, high=mean + margin, level=level)


def paired_estimate(
    values: Sequence[float], references: Sequence[float], *, comparisons: int = 1
) -> Estimate:
    """Mean of ``values - references``, seed by seed, and its t interval.

    With several ``comparisons`` each interval is wide enough (Bonferroni) that all of them together
    hold the true differences with probability :data:`LEVEL`. Bonferroni, because it is valid
    however the differences depend on one another (they share their reference and their seeds), and
    because it gives an interval: what is printed is what decides.
    """
    differences = [value - reference for value, reference in zip(values, references, strict=True)]
    return mean_estimate(differences, level=1 - (1 - LEVEL) / comparisons)
