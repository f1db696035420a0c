"""The crossover test: the evidence for an inverse relation of seed LR and explore fraction."""

import numpy as np

from knee_tune.reporting.intervals import mean_estimate
from knee_tune.reporting.scores import Floats, Scores
from knee_tune.specs.ridge import Crossover

LONG = (0.6, 0.9)
SHORT = (0.0, 0.3)
"""Ranges of explore fractions that are compared."""

_ROUNDING = 1e-9


def crossover_of(scores: Scores) -> Crossover | None:
    """Does long exploring win at the lowest third of the seed LRs and lose at the highest?

    Per random seed and seed LR the mean gain of the long fractions less that of the short ones,
    averaged over a third. The seed LRs are those with fractions of both kinds; a third of four or
    five is one. None with fewer than three of them or fewer than two seeds.
    """
    long, short = (_mean_between(scores, *bounds) for bounds in (LONG, SHORT))
    differences = long - short
    compared = np.isfinite(differences).all(axis=0)
    differences = differences[:, compared]
    seeds, seed_lrs = differences.shape
    if seeds < 2 or seed_lrs < 3:
        return None
    third = seed_lrs // 3
    low = differences[:, :third].mean(axis=1)
    high = differences[:, -third:].mean(axis=1)
    return Crossover(
        p=max(_p_positive(low), _p_positive(-high)),
        lowest=tuple(scores.seed_lrs[compared][:third].tolist()),
        highest=tuple(scores.seed_lrs[compared][-third:].tolist()),
        low_lrs=mean_estimate(low.tolist()),
        high_lrs=mean_estimate(high.tolist()),
    )


def _mean_between(scores: Scores, low: float, high: float) -> Floats:
    """(seeds, seed LRs): mean gain of the fractions tried in a range; NaN where there is none."""
    inside = (scores.fractions >= low - _ROUNDING) & (scores.fractions <= high + _ROUNDING)
    tried = scores.tried & inside
    sums = np.where(tried, scores.gains, 0.0).sum(axis=2)
    counts = tried.sum(axis=1)
    return np.asarray(np.where(counts > 0, sums / np.maximum(counts, 1), np.nan))


def _p_positive(differences: Floats) -> float:
    """One-sided t-test of a mean above zero; 1 where all are the same, which shows no spread."""
    from scipy import stats

    if np.ptp(differences) <= _ROUNDING * np.abs(differences).max():
        return 1.0
    return float(stats.ttest_1samp(differences, 0.0, alternative="greater").pvalue)
