"""The ridge of a study: the best explore fraction at every seed LR, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from knee_tune.config.recipe import DEFAULT_DECAY, DEFAULT_EXPLORE_FRACTION
from knee_tune.records.findings import Crossover, Optimum, Recommendation, Ridge, Verdict
from knee_tune.records.study import StudyRecord
from knee_tune.records.values import Estimate, Point
from knee_tune.stats.estimates import (
    LEVEL,
    Floats,
    left_out_estimate,
    mean_estimate,
    percentile_estimate,
    seed_weights,
)
from knee_tune.stats.surface import (
    Scores,
    Smoother,
    cubic_smoother,
    gp_smoother,
    scores_of,
    surface_of,
    without_outliers,
)

LR_ROUNDING = 1e-3
"""Relative: seed LRs that differ by less were meant to be the same."""

FRACTION_ROUNDING = 1e-6


def recommendation_of(
    scores: Scores, *, best: Point, default_lr: float, others: Sequence[Scores] = ()
) -> Recommendation:
    """What to expect of the search's best point.

    The best of many means is lucky, so what it will score with a new random seed is estimated by
    leaving one seed out: the best point of the other seeds is chosen, the seed left out says what
    that is worth, and likewise the difference to the paper's default. With one seed there is
    nothing to leave out, and the expected metric is the lucky one, without an interval.

    The default is the recipe's own seed LR with 50 % explore and, of several decays, the linear
    one. A grid need not hold it: without a point there (up to rounding) nothing is said about it,
    as the point nearby is another setting. ``others``: scores of other decays that were searched;
    they count where they have the same random seeds.
    """
    every = [scores, *(each for each in others if each.seeds == scores.seeds)]
    expected = _left_out(np.concatenate([each.gains[:, each.tried] for each in every], axis=1))
    there = next(
        (_gains_at_default(each, default_lr) for each in every if each.decay in _DEFAULTS), None
    )
    return Recommendation(
        seed_lr=best[0],
        explore_fraction=best[1],
        decay=scores.decay,
        metric=scores.metric,
        expected=left_out_estimate(scores.sign * expected).bounded(percent=scores.percent),
        default=None
        if there is None
        else mean_estimate((scores.sign * there).tolist()).bounded(percent=scores.percent),
        difference=None if there is None else left_out_estimate(scores.sign * (expected - there)),
    )


_DEFAULTS = (None, DEFAULT_DECAY)


def _gains_at_default(scores: Scores, default_lr: float) -> Floats | None:
    """(seeds): at the recipe's own seed LR with 50 % explore; None where nothing is complete."""
    points = scores.gains[:, scores.tried]
    rows, columns = np.nonzero(scores.tried)
    default = np.flatnonzero(
        (np.abs(scores.seed_lrs[rows] / default_lr - 1) <= LR_ROUNDING)
        & (np.abs(scores.fractions[columns] - DEFAULT_EXPLORE_FRACTION) <= FRACTION_ROUNDING)
    )
    return points[:, default[0]] if default.size else None


def _left_out(points: Floats) -> Floats:
    """(seeds): of (seeds, points), each seed's value at the best point of the other seeds."""
    seeds = len(points)
    if seeds == 1:
        return np.asarray(points.max(axis=1))
    chosen = (points.sum(axis=0) - points).argmax(axis=1)
    return np.asarray(points[np.arange(seeds), chosen])


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


SIGNIFICANT = 1 - LEVEL

ENOUGH_SEEDS = 10
"""Random seeds with which a relation that matters would show; with fewer, its absence decides
nothing."""


def verdict_of(crossover: Crossover | None, *, seeds: int) -> Verdict:
    """An inverse relation where the crossover test finds one.

    There is none where the seeds show the opposite of what it asks for: short exploring is better
    at the low seed LRs, or long exploring at the high ones (an interval beyond zero). Nor is there
    one to go by where :data:`ENOUGH_SEEDS` do not show it. All else is undecided: too few points
    or seeds.
    """
    if crossover is None:
        return "undecided"
    if crossover.p < SIGNIFICANT:
        return "inverse relation"
    return "no inverse relation" if crossover.opposed or seeds >= ENOUGH_SEEDS else "undecided"


@dataclass(frozen=True, kw_only=True)
class Optima:
    """The optima of a study, and what they say together."""

    by_seed_lr: tuple[Optimum, ...]
    spearman: Estimate | None


def optima_of(scores: Scores, *, resamples: int, rng: np.random.Generator) -> Optima:
    """Estimate the optima; with two seeds and more, resample the seeds (0: no intervals).

    A row with one fraction has no raw optimum. Surfaces are fitted to points without what is far
    out (:func:`~knee_tune.stats.surface.without_outliers`). The rank correlation takes the rows
    that have a raw optimum; it is None with fewer than three of them, or where all have the same.
    """
    weights = None
    if resamples and len(scores.seeds) > 1:
        weights = seed_weights(len(scores.seeds), resamples=resamples, rng=rng)
    raw, raw_draws = _raw(scores, _resampled(scores, weights))
    fitted = without_outliers(scores)
    means = _resampled(fitted, weights)
    estimates = {
        "gp": _smooth(gp_smoother(fitted), fitted, means, rng),
        "cubic": _smooth(cubic_smoother(fitted), fitted, means, rng),
    }
    return Optima(
        by_seed_lr=tuple(
            Optimum(
                seed_lr=float(lr),
                raw=_raw_estimate(scores, row, raw[row], raw_draws),
                gp=estimates["gp"][row],
                cubic=estimates["cubic"][row],
                metric=_metric(scores, row),
            )
            for row, lr in enumerate(scores.seed_lrs)
        ),
        spearman=_spearman(scores, raw, raw_draws),
    )


def _resampled(scores: Scores, weights: Floats | None) -> Floats | None:
    """(resamples, points): the points' mean gains; None without resamples."""
    return None if weights is None else weights @ scores.gains[:, scores.tried]


def _raw(scores: Scores, means: Floats | None) -> tuple[Floats, Floats | None]:
    """(seed LRs) and (resamples, seed LRs): the best fraction tried; NaN with fewer than two."""
    surface = np.where(scores.tried, scores.means, -np.inf)
    few = scores.tried.sum(axis=1) < 2
    best = np.where(few, np.nan, scores.fractions[surface.argmax(axis=1)])
    if means is None:
        return best, None
    resampled = np.full((len(means), *scores.tried.shape), -np.inf)
    resampled[:, scores.tried] = means
    return best, np.where(few, np.nan, scores.fractions[resampled.argmax(axis=2)])


def _raw_estimate(scores: Scores, row: int, value: float, draws: Floats | None) -> Estimate | None:
    """Where all resamples agree, the interval reaches half the way to the next fractions tried."""
    if np.isnan(value):
        return None
    if draws is None:
        return Estimate(value=float(value))
    estimate = percentile_estimate(float(value), draws[:, row])
    if estimate.low != estimate.high:
        return estimate
    tried = scores.fractions[scores.tried[row]]
    place = int(np.searchsorted(tried, value))
    middles = [tried[0], *((tried[1:] + tried[:-1]) / 2).round(6), tried[-1]]
    return estimate.model_copy(
        update={"low": float(middles[place]), "high": float(middles[place + 1])}
    )


def _smooth(
    smoother: Smoother | None, scores: Scores, means: Floats | None, rng: np.random.Generator
) -> list[Estimate | None]:
    """The optimum of a fitted surface at each seed LR."""
    if smoother is None:
        return [None] * len(scores.seed_lrs)
    values = smoother.optima(scores.means[scores.tried]).tolist()
    if means is None:
        return [Estimate(value=value) for value in values]
    doubts = rng.standard_normal((len(means), len(values), smoother.doubt.shape[2]))
    draws = smoother.optima(means, doubts=doubts)
    return [percentile_estimate(value, draws[:, row]) for row, value in enumerate(values)]


def _metric(scores: Scores, row: int) -> Estimate:
    """The metric where its mean is best."""
    best = np.where(scores.tried[row], scores.means[row], -np.inf).argmax()
    mean = mean_estimate(scores.values[:, row, best].tolist())
    return mean.bounded(percent=scores.percent)


def _spearman(scores: Scores, raw: Floats, draws: Floats | None) -> Estimate | None:
    known = ~np.isnan(raw)
    if known.sum() < 3 or len(np.unique(raw[known])) < 2:
        return None
    value = float(_rank_correlation(scores.seed_lrs[known], raw[known][None])[0])
    if draws is None:
        return Estimate(value=value)
    return percentile_estimate(value, _rank_correlation(scores.seed_lrs[known], draws[:, known]))


def _rank_correlation(seed_lrs: Floats, optima: Floats) -> Floats:
    """Spearman's, for each row of ``optima`` (resamples, seed LRs); 0 where all are the same."""
    from scipy.stats import rankdata

    ours = rankdata(seed_lrs) - (len(seed_lrs) + 1) / 2
    theirs = rankdata(optima, axis=1) - (len(seed_lrs) + 1) / 2
    norms = np.sqrt((theirs**2).sum(axis=1) * (ours @ ours))
    return np.asarray(np.divide(theirs @ ours, norms, out=np.zeros_like(norms), where=norms > 0))


RESAMPLES = 1000


def ridge_of(record: StudyRecord, *, resamples: int = RESAMPLES) -> Ridge | None:
    """What the complete trials say; None without one. Without resamples it is quick: no intervals.

    Where decays are searched the surface is that of the best trial's decay: shapes mixed up would
    be noise in it.

    The same record gives the same numbers: the bootstrap's random numbers are fixed.
    """
    best = record.best
    if best is None:
        return None
    scores = scores_of(record, decay=best.decay)
    if scores is None:
        return None
    others = (
        scores_of(record, decay=decay) for decay in record.spec.space.decays if decay != best.decay
    )
    optima = optima_of(scores, resamples=resamples, rng=np.random.default_rng(0))
    crossover = crossover_of(scores)
    return Ridge(
        surface=surface_of(scores),
        optimal=optima.by_seed_lr,
        spearman=optima.spearman,
        crossover=crossover,
        verdict=verdict_of(crossover, seeds=len(scores.seeds)),
        recommended=recommendation_of(
            scores,
            best=best.point,
            default_lr=float(record.spec.recipe["seed_lr"]),
            others=[each for each in others if each is not None],
        ),
    )
