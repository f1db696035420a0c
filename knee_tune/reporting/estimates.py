"""Numbers with intervals over random seeds: all points are resampled together.

Trials that branch off one trunk share its noise, so they are not independent draws; seeds are.
"""

import numpy as np

from knee_tune.reporting.intervals import LEVEL, mean_estimate
from knee_tune.reporting.scores import Floats
from knee_tune.specs.estimate import Estimate


def seed_weights(seeds: int, *, resamples: int, rng: np.random.Generator) -> Floats:
    """(resamples, seeds): what each seed weighs in the mean of a resample; rows sum to 1.

    The Bayesian bootstrap (Rubin, 1981): random weights instead of counts, which with three seeds
    take ten values only. Deviations are stretched, because n seeds vary less about their own mean
    than about the true one, and because their spread is itself a guess (Student's t instead of a
    normal distribution; Hesterberg, 2015, stretches the quantiles to the same end).
    """
    from scipy import stats

    weights = rng.dirichlet(np.ones(seeds), size=resamples)
    quantile = (1 + LEVEL) / 2
    student = stats.t.ppf(quantile, seeds - 1) / stats.norm.ppf(quantile)
    stretch = student * np.sqrt((seeds + 1) / (seeds - 1))
    return np.asarray(1 / seeds + stretch * (weights - 1 / seeds))


def percentile_estimate(value: float, draws: Floats) -> Estimate:
    """A value with the percentile interval of its bootstrap draws, which holds the value."""
    low = float(np.quantile(draws, (1 - LEVEL) / 2, method="lower"))
    high = float(np.quantile(draws, (1 + LEVEL) / 2, method="higher"))
    return Estimate(value=value, low=min(low, value), high=max(high, value), level=LEVEL)


def left_out_estimate(values: Floats) -> Estimate:
    """Mean of what each seed said when it was left out, with a wider t interval.

    What the folds chose, they chose from nearly the same seeds, so their values vary less than
    they would without that (Nadeau and Bengio, 2003: the variance of the mean is 1/n + 1/(n - 1)
    of that of one instead of 1/n).
    """
    plain = mean_estimate(values.tolist())
    if plain.low is None or plain.high is None:
        return plain
    margin = (plain.high - plain.value) * float(np.sqrt(1 + len(values) / (len(values) - 1)))
    return plain.model_copy(update={"low": plain.value - margin, "high": plain.value + margin})
