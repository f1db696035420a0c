"""The ridge of a study: the best explore fraction at every seed LR, and how sure that is."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from knee_tune.config.recipe import DEFAULT_EXPLORE_FRACTION
from knee_tune.records.findings import Crossover, Optimum, Recommendation, Ridge, Verdict
from knee_tune.records.shown import p_value, percent, setting
from knee_tune.records.study import StudyRecord
from knee_tune.records.values import Estimate
from knee_tune.stats.estimates import (
    LEVEL,
    Floats,
    Scores,
    left_out_estimate,
    mean_estimate,
    percentile_estimate,
    scores_of,
    seed_weights,
    surface_of,
)

# The verdict on the inverse relation, and what it means for somebody who has to choose.

SIGNIFICANT = 1 - LEVEL

ENOUGH_SEEDS = 10

"""Random seeds with which a relation that matters would show: below, nothing shown decides nothing.
"""


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
    return "no inverse relation" if _opposed(crossover) or seeds >= ENOUGH_SEEDS else "undecided"


def words_of(crossover: Crossover | None, optimal: Sequence[Optimum], *, seeds: int) -> str:
    """The verdict and what to do, in a few sentences."""
    if crossover is None:
        return _too_little(optimal, seeds=seeds)
    evidence = f"(crossover test {p_value(crossover.p)}, {seeds} random seeds)"
    verdict = verdict_of(crossover, seeds=seeds)
    if verdict == "inverse relation":
        return (
            f"The best explore fraction falls as the seed LR rises {evidence}: with a small "
            f"seed LR explore long, with a large one start to decay early. {_advice(optimal)}"
        )
    if verdict == "undecided":
        return (
            f"Undecided: the differences between long and short exploring may be chance "
            f"{evidence}. More random seeds, or a wider range of seed LRs, would tell."
        )
    instead = _opposite(crossover) if _opposed(crossover) else _not_shown(crossover)
    return f"No inverse relation {evidence}: {instead} {_advice(optimal)}"


def _opposed(crossover: Crossover) -> bool:
    """Whether the seeds show the opposite of an inverse relation at one end."""
    return crossover.low_lrs.side < 0 or crossover.high_lrs.side > 0


def _not_shown(crossover: Crossover) -> str:
    """At which end the seeds do not tell long exploring from short."""
    if crossover.low_lrs.side > 0:
        return (
            "long exploring is better at small seed LRs, and at the largest it is not shown to "
            "be worse than short exploring."
        )
    if crossover.high_lrs.side < 0:
        return (
            "short exploring is better at large seed LRs, and at the smallest it is not shown to "
            "be worse than long exploring."
        )
    return "long and short exploring are not shown to differ."


def _opposite(crossover: Crossover) -> str:
    """What the seeds show instead."""
    low, high = crossover.low_lrs.side, crossover.high_lrs.side
    if low < 0 < high:
        return "short exploring is better at small seed LRs and long exploring at large ones."
    if high > 0:
        where = "at small and at large seed LRs" if low > 0 else "also at the largest seed LRs"
        return f"long exploring is better {where} that were tried."
    where = "at small and at large seed LRs" if high < 0 else "also at the smallest seed LRs"
    return f"short exploring is better {where} that were tried."


def _advice(optimal: Sequence[Optimum]) -> str:
    """The best fractions at the ends and in the middle of the seed LRs."""
    known = [(each.seed_lr, each.gp or each.raw) for each in optimal if each.gp or each.raw]
    if not known:
        return ""
    ends = [known[index] for index in sorted({0, len(known) // 2, len(known) - 1})]
    parts = [
        f"{percent(estimate.value)}{_range(estimate.low, estimate.high)} at {setting(lr, None)}"
        for lr, estimate in ends
        if estimate is not None
    ]
    return f"Best explore fraction: {', '.join(parts)}."


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({percent(low)} to {percent(high)})"


def _too_little(optimal: Sequence[Optimum], *, seeds: int) -> str:
    if seeds < 2:
        return (
            "Undecided: one random seed cannot tell an inverse relation from chance. Run the study "
            "with --replicates 5 or more."
        )
    if len(optimal) < 3:
        return "Undecided: an inverse relation needs three seed LRs or more to show."
    return (
        "Undecided: three seed LRs or more need explore fractions up to 0.3 as well as from 0.6 to "
        "0.9 to be compared."
    )


# The setting to use, and what to expect of it.

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


# The crossover test: the evidence for an inverse relation of seed LR and explore fraction.

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


# Two smooth surfaces through a study's points: a Gaussian process and a cubic polynomial.
#
# Both are linear in the points' means, so a bootstrap is one product of matrices.

GRID_STEP = 0.01

"""Of the explore fractions at which a surface is evaluated."""

LEAST_POINTS = 6

"""For a Gaussian process: it has four hyperparameters."""

MOST_POINTS = 1000

"""For a Gaussian process: its cost grows with their third power."""


@dataclass(frozen=True, kw_only=True)
class Smoother:
    """A fitted surface, at every seed LR of the study and over the tried range of fractions."""

    fractions: Floats
    """(grid)."""
    weights: Floats
    """(seed LRs, grid, points): times the points' mean gains it is the surface, less an offset."""
    doubt: Floats
    """(seed LRs, grid, k): times k standard normals, an error of the surface that seeds do not
    show: what lies between the points, or what a polynomial cannot follow."""

    def optima(self, means: Floats, *, doubts: Floats | None = None) -> Floats:
        """(..., seed LRs): the best fraction, from the points' means (..., points).

        With ``doubts`` (..., seed LRs, k), standard normals, of a surface that could as well be.
        """
        surface = np.einsum("lgp,...p->...lg", self.weights, means, optimize=True)
        if doubts is not None:
            surface += np.einsum("lgk,...lk->...lg", self.doubt, doubts, optimize=True)
        return np.asarray(self.fractions[surface.argmax(axis=-1)])


def gp_smoother(scores: Scores) -> Smoother | None:
    """A Gaussian process over log seed LR and fraction; None with fewer than six points.

    A quadratic trend with a vague prior (without it the ridge is drawn towards the middle), a level
    for each seed LR and a Matern surface. Noise is known from the seeds; with one seed it is a
    hyperparameter. Of more than ``MOST_POINTS`` it goes through as many, drawn by lot, the
    same ones every time.
    Hyperparameters maximise the likelihood once, and the bootstrap keeps them. Its
    doubt is the part of the posterior that is not noise of the means.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

    chosen = np.sort(np.random.default_rng(0).permutation(scores.tried.sum())[:MOST_POINTS])
    points = _points(scores)[chosen]
    means = scores.means[scores.tried][chosen]
    scale = float(means.std())
    if len(means) < LEAST_POINTS or len(np.unique(points[:, 1])) < 2 or not scale:
        return None
    trend = ConstantKernel(100.0, "fixed") * DotProduct(1.0, "fixed") ** 2
    level = ConstantKernel(1.0, (1e-4, 1e4)) * Matern([0.3, 1e3], "fixed", nu=1.5)
    shape = ConstantKernel(1.0, (1e-4, 1e4)) * Matern([0.5, 0.5], (0.1, 10.0), nu=2.5)
    alone = len(scores.seeds) < 2
    noise = np.full(len(means), 1e-8) if alone else _noise(scores)[chosen] / scale**2 + 1e-8
    kernel = trend + level + shape
    if alone:
        kernel += WhiteKernel(0.1, (1e-6, 1e1))
    process = GaussianProcessRegressor(kernel, alpha=noise)
    with warnings.catch_warnings():
        # A hyperparameter at its bound is as good as any other.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(points, (means - means.mean()) / scale)
    fitted = process.kernel_
    if alone:
        noise, fitted = noise + fitted.k2.noise_level, fitted.k1
    grid = _grid(scores)
    inverse = np.linalg.inv(fitted(points) + np.diag(noise))
    weights, doubt = [], []
    for row in _rows(scores, grid):
        cross = fitted(row, points)
        weight = cross @ inverse
        weights.append(np.zeros((len(row), scores.tried.sum())))
        weights[-1][:, chosen] = weight
        doubt.append(scale * _root(fitted(row) - cross @ weight.T - (weight * noise) @ weight.T))
    return Smoother(fractions=grid, weights=np.array(weights), doubt=np.array(doubt))


def cubic_smoother(scores: Scores) -> Smoother | None:
    """Least squares with all ten terms up to the third degree in log seed LR and fraction.

    None where the points do not determine them. Its doubt is the misfit: the terms of the fourth
    and fifth degree that least squares would add.
    """
    points = _points(scores)
    means = scores.means[scores.tried]
    design = _terms(points, 0, 3)
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    inverse = np.linalg.pinv(design)
    higher = _terms(points, 4, 5)
    added = np.linalg.pinv(higher - design @ (inverse @ higher), rcond=1e-6) @ means
    grid = _grid(scores)
    rows = np.concatenate(_rows(scores, grid))
    weights = _terms(rows, 0, 3) @ inverse
    doubt = (_terms(rows, 4, 5) - weights @ higher) @ added
    shape = len(scores.seed_lrs), len(grid), -1
    return Smoother(fractions=grid, weights=weights.reshape(shape), doubt=doubt.reshape(shape))


def _terms(points: Floats, lowest: int, highest: int) -> Floats:
    """(points, terms): the products of log seed LR and fraction of these degrees."""
    from sklearn.preprocessing import PolynomialFeatures

    terms = PolynomialFeatures((lowest, highest), include_bias=lowest == 0)
    return np.asarray(terms.fit_transform(points))


def _points(scores: Scores) -> Floats:
    """(points, 2): log seed LR, scaled to 0..1, and fraction."""
    rows, columns = np.nonzero(scores.tried)
    return np.column_stack([_places(scores)[rows], scores.fractions[columns]])


def _places(scores: Scores) -> Floats:
    logs = np.log(scores.seed_lrs)
    return np.asarray((logs - logs[0]) / max(logs[-1] - logs[0], 1e-12))


def _grid(scores: Scores) -> Floats:
    low, high = scores.fractions[0], scores.fractions[-1]
    return np.linspace(low, high, max(2, round((high - low) / GRID_STEP) + 1)).round(6)


def _rows(scores: Scores, grid: Floats) -> list[Floats]:
    """(grid, 2) for each seed LR."""
    return [np.column_stack([np.full_like(grid, place), grid]) for place in _places(scores)]


def _noise(scores: Scores) -> Floats:
    """(points): variance of the mean, from how seeds differ *within* a seed LR.

    What all fractions of a seed LR share (the seed's luck, its trunk) moves no optimum and is left
    out; the rest is pooled over the seed LR, as the variance of few seeds is itself noisy.
    """
    count = len(scores.seeds)
    variances = np.empty_like(scores.means)
    for row, tried in enumerate(scores.tried):
        values = scores.gains[:, row, tried]
        cells = int(tried.sum())
        if cells > 1:
            values = values - values.mean(axis=1, keepdims=True)
        pooled = values.var(axis=0, ddof=1).mean() * (cells / (cells - 1) if cells > 1 else 1)
        variances[row] = pooled / count
    return variances[scores.tried]


def _root(covariance: Floats) -> Floats:
    """A square root of a covariance, whose eigenvalues may be negative by rounding."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return np.asarray(vectors * np.sqrt(np.clip(values, 0.0, None)))


# The best explore fraction at every seed LR, three ways, and its rank correlation with them.


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


RESAMPLES = 1000


def ridge_of(record: StudyRecord, *, resamples: int = RESAMPLES) -> Ridge | None:
    """What the complete trials say; None without one. Without resamples it is quick: no intervals.

    The same record gives the same numbers: the bootstrap's random numbers are fixed.
    """
    scores = scores_of(record)
    if scores is None or record.best is None:
        return None
    optima = optima_of(scores, resamples=resamples, rng=np.random.default_rng(0))
    crossover = crossover_of(scores)
    return Ridge(
        surface=surface_of(scores),
        optimal=optima.by_seed_lr,
        spearman=optima.spearman,
        crossover=crossover,
        verdict=verdict_of(crossover, seeds=len(scores.seeds)),
        words=words_of(crossover, optima.by_seed_lr, seeds=len(scores.seeds)),
        recommended=recommendation_of(
            scores, best=record.best.point, default_lr=float(record.spec.recipe["seed_lr"])
        ),
    )
