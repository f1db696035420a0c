"""Two smooth surfaces through a study's points: a Gaussian process and a cubic polynomial.

Both are linear in the points' means, so a bootstrap is one product of matrices.
"""

import warnings
from dataclasses import dataclass

import numpy as np

from knee_tune.reporting.scores import Floats, Scores

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
