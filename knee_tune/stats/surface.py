"""A study's scores over seed LR x explore fraction, and smooth surfaces through them."""

import statistics
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from knee_tune.config.recipe import Direction
from knee_tune.records.findings import Surface
from knee_tune.records.study import StudyRecord, TrialRecord
from knee_tune.schedules import Decay
from knee_tune.stats.estimates import Floats


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The metric over random seed x seed LR x explore fraction, NaN at points without a value.

    A point has a value for all seeds or for none. Seed LRs and fractions ascend.
    """

    metric: str
    direction: Direction
    seeds: tuple[int, ...]
    seed_lrs: Floats
    fractions: Floats
    values: Floats
    """(seeds, seed LRs, fractions), in the metric's own unit."""
    decay: Decay | None = None
    """That all points have, where several are searched."""
    percent: bool = False
    """Whether the metric lies between 0 and 100."""

    @cached_property
    def gains(self) -> Floats:
        """The values, turned such that larger is better."""
        return self.values if self.direction == "maximize" else -self.values

    @cached_property
    def means(self) -> Floats:
        """(seed LRs, fractions): of the gains, over seeds."""
        return np.asarray(self.gains.mean(axis=0))

    @cached_property
    def tried(self) -> npt.NDArray[np.bool_]:
        """(seed LRs, fractions): where there are values."""
        return np.isfinite(self.means)

    @property
    def sign(self) -> int:
        """What turns a gain back into the metric's unit."""
        return 1 if self.direction == "maximize" else -1


def scores_of(record: StudyRecord, *, decay: Decay | None = None) -> Scores | None:
    """The complete trials' values; None without one. Where decays are searched, those of one.

    Of a point tried twice the first trial counts. Only random seeds that every point has are used,
    so that points differ by their settings alone; should there be none, then the seeds that most
    points have, without the other points.
    """
    points: dict[tuple[float, float], dict[int, float]] = {}
    for trial in record.trials:
        counts = trial.state == "complete" and trial.decay == decay
        runs = _runs(trial) if counts else {}
        if runs:
            points.setdefault((trial.seed_lr, trial.explore_fraction), runs)
    if not points:
        return None
    tried = Counter(seed for runs in points.values() for seed in runs)
    most = max(tried.values())
    seeds = sorted(seed for seed, count in tried.items() if count == most)
    if not any(runs.keys() >= set(seeds) for runs in points.values()):
        seeds = seeds[:1]
    points = {point: runs for point, runs in points.items() if runs.keys() >= set(seeds)}
    seed_lrs = sorted({lr for lr, _ in points})
    fractions = sorted({fraction for _, fraction in points})
    values = np.full((len(seeds), len(seed_lrs), len(fractions)), np.nan)
    for (lr, fraction), runs in points.items():
        row, column = seed_lrs.index(lr), fractions.index(fraction)
        values[:, row, column] = [runs[seed] for seed in seeds]
    return Scores(
        metric=record.metric,
        direction=record.direction,
        seeds=tuple(seeds),
        seed_lrs=np.array(seed_lrs),
        fractions=np.array(fractions),
        values=values,
        decay=decay,
        percent=record.in_percent(record.metric),
    )


def surface_of(scores: Scores) -> Surface:
    """Means and their standard errors over seeds."""
    count = len(scores.seeds)
    errors = np.full_like(scores.means, np.nan)
    if count > 1:
        errors = scores.values.std(axis=0, ddof=1) / np.sqrt(count)
    return Surface(
        metric=scores.metric,
        direction=scores.direction,
        seed_lrs=tuple(scores.seed_lrs.tolist()),
        explore_fractions=tuple(scores.fractions.tolist()),
        means=_table(scores.values.mean(axis=0)),
        errors=_table(errors),
        seeds=count,
        decay=scores.decay,
    )


def _runs(trial: TrialRecord) -> dict[int, float]:
    """Value by random seed."""
    if trial.replicates:
        return {
            each.seed: each.value
            for each in trial.replicates
            if each.state == "complete" and each.value is not None
        }
    return {} if trial.value is None else {trial.seed: trial.value}


def _table(array: Floats) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(None if np.isnan(value) else float(value) for value in row) for row in array)


OUTER_FENCE = 3.0
"""Interquartile ranges beyond the quartile: what lies farther out is *far out* (Tukey, 1977)."""

FEWEST_VALUES = 4
"""With a spread: quartiles of fewer say nothing."""


def fence_of(values: Iterable[float | None], direction: Direction) -> float | None:
    """The last value on the worse side that is not far out; None where no value lies beyond it.

    The better side has no fence: the best of a study is never taken for a mistake. None, too, of
    fewer than :data:`FEWEST_VALUES`, and where the middle half has no spread.
    """
    sign = 1 if direction == "maximize" else -1
    gains = [sign * value for value in values if value is not None]
    if len(gains) < FEWEST_VALUES:
        return None
    lower, _, upper = statistics.quantiles(gains, n=4, method="inclusive")
    fence = lower - OUTER_FENCE * (upper - lower)
    return sign * fence if upper > lower and min(gains) < fence else None


def without_outliers(scores: Scores) -> Scores:
    """Every value that is worse than the fence of the points' means, moved to that fence.

    For what is fitted to the points: one run that went wrong, but is finite, would bend it
    everywhere. Itself where nothing is far out.
    """
    fence = fence_of((scores.sign * scores.means[scores.tried]).tolist(), scores.direction)
    if fence is None:
        return scores
    gains = np.maximum(scores.gains, scores.sign * fence)
    return replace(scores, values=scores.sign * gains)


# Two smooth surfaces through a study's points. Both are linear in the points' means, so a
# bootstrap is one product of matrices.

GRID_STEP = 0.01
"""Of the explore fractions at which a surface is evaluated."""

LEAST_POINTS = 6
"""For a Gaussian process: it has four hyperparameters."""

MOST_POINTS = 400
"""For a Gaussian process: its cost grows with their third power."""


@dataclass(frozen=True, kw_only=True)
class Smoother:
    """A fitted surface, at every seed LR of the study and over the tried range of fractions."""

    fractions: Floats
    """(grid)."""
    basis: Floats
    """(seed LRs, grid, k): times k numbers that the points' mean gains give it is the surface, less
    an offset."""
    reading: Floats
    """(k, points): times the points' mean gains it is those numbers. Apart from the basis, for both
    together have a number for every point at every place of the surface."""
    doubt: Floats
    """(seed LRs, grid, k'): times k' standard normals, an error of the surface that seeds do not
    show: what lies between the points, or what a polynomial cannot follow."""

    def surface(self, means: Floats) -> Floats:
        """(..., seed LRs, grid): the surface, from the points' means (..., points)."""
        read = means @ self.reading.T
        return np.asarray(np.einsum("lgk,...k->...lg", self.basis, read, optimize=True))

    def optima(self, means: Floats, *, doubts: Floats | None = None) -> Floats:
        """(..., seed LRs): the best fraction, from the points' means (..., points).

        With ``doubts`` (..., seed LRs, k'), standard normals, of a surface that could as well be.
        """
        surface = self.surface(means)
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
    basis, doubt = [], []
    for row in _rows(scores, grid):
        cross = fitted(row, points)
        weight = cross @ inverse
        basis.append(weight)
        doubt.append(scale * _root(fitted(row) - cross @ weight.T - (weight * noise) @ weight.T))
    return Smoother(
        fractions=grid,
        basis=np.array(basis),
        reading=_selection(chosen, scores.tried.sum()),
        doubt=np.array(doubt),
    )


def _selection(chosen: npt.NDArray[np.intp], count: int) -> Floats:
    """(chosen, count): what picks those out of so many."""
    selection = np.zeros((len(chosen), count))
    selection[np.arange(len(chosen)), chosen] = 1.0
    return selection


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
    inverse: Floats = np.asarray(np.linalg.pinv(design), dtype=np.float64)
    higher = _terms(points, 4, 5)
    added = np.linalg.pinv(higher - design @ (inverse @ higher), rcond=1e-6) @ means
    grid = _grid(scores)
    rows = np.concatenate(_rows(scores, grid))
    basis = _terms(rows, 0, 3)
    doubt = (_terms(rows, 4, 5) - basis @ (inverse @ higher)) @ added
    shape = len(scores.seed_lrs), len(grid), -1
    return Smoother(
        fractions=grid, basis=basis.reshape(shape), reading=inverse, doubt=doubt.reshape(shape)
    )


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
