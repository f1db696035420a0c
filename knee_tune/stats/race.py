"""A race of a search's best points: fresh random seeds, the same ones for all, until one is left.

The search spends a share of what may be trained, with one random seed. Its leaders, and the paper's
default, are then trained with one fresh seed after another; who is behind by more than chance
explains leaves, and so does the last one where a seed for all of them does not fit any more.
``benchmarks/race.py`` has what that gains, and where the numbers below are from.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from knee_tune.records.study import StudyRecord
from knee_tune.records.values import Point, point_of
from knee_tune.stats.estimates import Floats
from knee_tune.stats.surface import Scores, gp_smoother, scores_of, without_outliers

T = TypeVar("T")

SEARCH_SHARE = 0.65
"""Of all steps, for the search."""

CANDIDATES = 5
"""Points of the search that race, besides the default."""

BEHIND = 1.0
"""Standard errors of the paired difference to the leader beyond which a candidate leaves."""

PRIOR_SEEDS = 2
"""Seeds that what the search knows of a candidate is worth."""


def smoothed(scores: Scores) -> Floats:
    """(seed LRs, fractions): the points' gains as their neighbours make them likely; NaN elsewhere.

    A point owes part of its lead to luck, which a surface through all points evens out: that is
    whom a search recommends better than its best value. Of too few points for a surface the gains
    themselves.
    """
    smoother = gp_smoother(scores)
    if smoother is None:
        return scores.means
    rows, columns = np.nonzero(scores.tried)
    gains = scores.means[scores.tried]
    surface = smoother.weights @ (gains - gains.mean()) + gains.mean()
    at = np.abs(smoother.fractions - scores.fractions[columns][:, None]).argmin(axis=1)
    found = np.full_like(scores.means, np.nan)
    found[rows, columns] = surface[rows, at]
    return found


def known_losses(record: StudyRecord) -> dict[Point, float]:
    """What a search makes of its complete points, the lower the better, the best first."""
    losses: dict[Point, float] = {}
    for decay in record.spec.space.decays or (None,):
        scores = scores_of(record, decay=decay)
        if scores is None:
            continue
        gains = smoothed(without_outliers(scores))
        for row, column in np.argwhere(scores.tried):
            lr, fraction = float(scores.seed_lrs[row]), float(scores.fractions[column])
            losses[point_of(lr, fraction, decay)] = -float(gains[row, column])
    return dict(sorted(losses.items(), key=lambda item: item[1]))


def standing(losses: Sequence[Sequence[float]], *, known: Sequence[float]) -> list[int]:
    """The candidates that train the next seed, by index, the best first.

    ``losses``: of every candidate one loss a seed, the lower the better, infinite where a run has
    no value. Seeds are the same for all; a candidate with fewer of them than others has left. What
    the search made of the candidates, ``known``, counts as :data:`PRIOR_SEEDS` more seeds. From two
    seeds on a candidate leaves that is :data:`BEHIND` the leader. The noise of a difference is what
    candidates and seeds, as the two factors of an analysis of variance, leave unexplained.
    """
    seeds = max(map(len, losses))
    prior = PRIOR_SEEDS if seeds else 1
    means = {
        index: (math.fsum(row) + prior * before) / (seeds + prior)
        for index, (row, before) in enumerate(zip(losses, known, strict=True))
        if len(row) == seeds and all(map(math.isfinite, row))
    }
    order = sorted(means, key=lambda index: means[index])  # of equals the earlier one leads
    if seeds < 2 or len(order) < 2:
        return order
    near = means[order[0]] + BEHIND * _standard_error(np.array([losses[index] for index in order]))
    return [index for index in order if means[index] <= near]


def _standard_error(losses: Floats) -> float:
    """Of the difference of two candidates' means: (candidates, seeds), two of each at least."""
    candidates, seeds = losses.shape
    rest = losses - losses.mean(axis=1, keepdims=True) - losses.mean(axis=0) + losses.mean()
    variance = (rest**2).sum() / ((candidates - 1) * (seeds - 1))
    return float(np.sqrt(2 * variance / seeds))


@dataclass(frozen=True, kw_only=True)
class NextRun:
    """What a run of the next seed would cost."""

    trunk: Hashable
    """Runs of one trunk share it, as far as the shorter one explores."""
    knee: int
    """Step at which it leaves its trunk."""
    total: int
    reached: int = 0
    """Its last step that was trained before."""


def steps_to_train(runs: Iterable[NextRun]) -> int:
    """What is left to train of ``runs``, each trunk once."""
    runs = sorted(runs, key=lambda run: -run.knee)
    trunks: dict[Hashable, int] = defaultdict(int)
    for run in runs:
        trunks[run.trunk] = max(trunks[run.trunk], min(run.reached, run.knee))
    left = 0
    for run in runs:
        left += run.total - max(run.reached, min(run.knee, trunks[run.trunk]))
        trunks[run.trunk] = max(trunks[run.trunk], run.knee)
    return left


def affordable(ranked: Sequence[T], cost: Callable[[Sequence[T]], float], left: float) -> list[T]:
    """As many of ``ranked`` from its start as can be trained for ``left``; none if no two can."""
    some = list(ranked)
    while len(some) > 1 and cost(some) > left:
        some.pop()
    return some if len(some) > 1 else []
