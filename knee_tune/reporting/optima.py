"""The best explore fraction at every seed LR, three ways, and its rank correlation with them."""

from dataclasses import dataclass

import numpy as np

from knee_tune.reporting.estimates import percentile_estimate, seed_weights
from knee_tune.reporting.intervals import mean_estimate
from knee_tune.reporting.scores import Floats, Scores
from knee_tune.reporting.smoothers import Smoother, cubic_smoother, gp_smoother
from knee_tune.specs.estimate import Estimate
from knee_tune.specs.ridge import Optimum


@dataclass(frozen=True, kw_only=True)
class Optima:
    """The optima of a study, and what they say together."""

    by_seed_lr: tuple[Optimum, ...]
    spearman: Estimate | None


def optima_of(scores: Scores, *, resamples: int, rng: np.random.Generator) -> Optima:
    """Estimate the optima; with two seeds and more, resample the seeds (0: no intervals).

    A row with one fraction has no raw optimum. The rank correlation takes the rows that have one;
    it is None with fewer than three of them, or where all have the same.
    """
    points = scores.gains[:, scores.tried]
    weights = None
    if resamples and len(scores.seeds) > 1:
        weights = seed_weights(len(scores.seeds), resamples=resamples, rng=rng)
    means = None if weights is None else weights @ points
    raw, raw_draws = _raw(scores, means)
    estimates = {
        "gp": _smooth(gp_smoother(scores), scores, means, rng),
        "cubic": _smooth(cubic_smoother(scores), scores, means, rng),
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
