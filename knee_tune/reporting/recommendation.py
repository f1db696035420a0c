"""The setting to use, and what to expect of it."""

import numpy as np

from knee_tune.reporting.estimates import left_out_estimate
from knee_tune.reporting.intervals import mean_estimate
from knee_tune.reporting.scores import Floats, Scores
from knee_tune.specs.ridge import Recommendation
from knee_tune.specs.space import DEFAULT_EXPLORE_FRACTION

LR_ROUNDING = 1e-3
"""Relative: seed LRs that differ by less were meant to be the same."""

FRACTION_ROUNDING = 1e-6


def recommendation_of(
    scores: Scores, *, best: tuple[float, float], default_lr: float
) -> Recommendation:
    """What to expect of the search's best point (seed LR, explore fraction).

    The best of many means is lucky, so what it will score with a new random seed is estimated by
    leaving one seed out: the best point of the other seeds is chosen, the seed left out says what
    that is worth, and likewise the difference to the paper's default. With one seed there is
    nothing to leave out, and the expected metric is the lucky one, without an interval.

    The default is the recipe's own seed LR with 50 % explore. A grid need not hold it: without a
    point there (up to rounding) nothing is said about it, as the point nearby is another setting.
    """
    points = scores.gains[:, scores.tried]
    rows, columns = np.nonzero(scores.tried)
    expected = _left_out(points)
    default = np.flatnonzero(
        (np.abs(scores.seed_lrs[rows] / default_lr - 1) <= LR_ROUNDING)
        & (np.abs(scores.fractions[columns] - DEFAULT_EXPLORE_FRACTION) <= FRACTION_ROUNDING)
    )
    there = points[:, default[0]] if default.size else None
    return Recommendation(
        seed_lr=best[0],
        explore_fraction=best[1],
        expected=left_out_estimate(scores.sign * expected).bounded(percent=scores.percent),
        default=None
        if there is None
        else mean_estimate((scores.sign * there).tolist()).bounded(percent=scores.percent),
        difference=None if there is None else left_out_estimate(scores.sign * (expected - there)),
    )


def _left_out(points: Floats) -> Floats:
    """(seeds): of (seeds, points), each seed's value at the best point of the other seeds."""
    seeds = len(points)
    if seeds == 1:
        return np.asarray(points.max(axis=1))
    chosen = (points.sum(axis=0) - points).argmax(axis=1)
    return np.asarray(points[np.arange(seeds), chosen])
