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

from knee_tune.records.findings import FEWEST_PAIRS
from knee_tune.records.study import StudyRecord
from knee_tune.records.values import Point, point_of
from knee_tune.stats.estimates import Floats
from knee_tune.stats.surface import Scores, gp_smoother, scores_of, without_outliers

T = TypeVar("T")

SEARCH_SHARE = 0.6
"""Of all steps, for the search."""

CANDIDATES = 3
"""Best points of the search that race, with the default."""

BEHIND = 1.0
"""Standard errors of the paired difference to the leader beyond which a candidate leaves."""


def leaders(record: StudyRecord) -> list[Point]:
    """The complete points of a search, the best first by a surface through all of them.

    The best value owes part of its lead to luck, which neighbours even out.
    """
    gains: dict[Point, float] = {}
    for decay in record.spec.space.decays or (None,):
        scores = scores_of(record, decay=decay)
        if scores is None:
            continue
        surface = smoothed(scores)
        for row, column in np.argwhere(scores.tried):
            lr, fraction = float(scores.seed_lrs[row]), float(scores.fractions[column])
            gains[point_of(lr, fraction, decay)] = float(surface[row, column])
    return sorted(gains, key=lambda point: -gains[point])


def smoothed(scores: Scores) -> Floats:
    """(seed LRs, fractions): the points' gains on a Gaussian process through them; NaN elsewhere.

    Of too few points for one, the gains themselves.
    """
    scores = without_outliers(scores)
    smoother = gp_smoother(scores)
    if smoother is None:
        return scores.means
    rows, columns = np.nonzero(scores.tried)
    gains = scores.means[scores.tried]
    surface = smoother.surface(gains - gains.mean()) + gains.mean()
    at = np.abs(smoother.fractions - scores.fractions[columns][:, None]).argmin(axis=1)
    found = np.full_like(scores.means, np.nan)
    found[rows, columns] = surface[rows, at]
    return found


def standing(losses: Sequence[Sequence[float]], *, default: int | None = None) -> list[int]:
    """The candidates that train the next seed, by index, the best mean first.

    ``losses``: of every candidate one loss a seed, the lower the better, infinite where a run has
    no value. Seeds are the same for all; a candidate with fewer of them than others has left. From
    two seeds on a candidate leaves that is :data:`BEHIND` the leader. The noise of a difference is
    what candidates and seeds, as the two factors of an analysis of variance, leave unexplained. The
    best two and the ``default`` stay until something can be said of their differences.
    """
    seeds = max(map(len, losses))
    means = {
        index: math.fsum(row) / max(seeds, 1)
        for index, row in enumerate(losses)
        if len(row) == seeds and all(map(math.isfinite, row))
    }
    order = sorted(means, key=lambda index: means[index])  # of equals the earlier one leads
    if seeds < 2 or len(order) < 2:
        return order
    near = means[order[0]] + BEHIND * _standard_error(np.array([losses[index] for index in order]))
    needed = {*order[:2], default} if seeds < FEWEST_PAIRS else set()
    return [index for index in order if means[index] <= near or index in needed]


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
