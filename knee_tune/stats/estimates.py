"""Estimates over random seeds: means, paired differences, bootstrap; and who wins by them.

Trials that branch off one trunk share its noise, so they are not independent draws; seeds are.
"""

import math
import statistics
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from knee_tune.config.recipe import Direction
from knee_tune.records.findings import (
    CLAIMING_SEEDS,
    FEWEST_PAIRS,
    Candidate,
    Confirmation,
    Race,
)
from knee_tune.records.values import Estimate

Floats = npt.NDArray[np.float64]

LEVEL = 0.95
"""Of every interval; of all differences together where several are looked at."""


def mean_estimate(values: Sequence[float], *, level: float = LEVEL) -> Estimate:
    """The mean with its two-sided t interval; of one value the value alone.

    Values that are all the same have an interval without width.
    """
    from scipy import stats

    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Estimate(value=mean)
    error = statistics.stdev(values) / math.sqrt(count)
    margin = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
    return Estimate(value=mean, low=mean - margin, high=mean + margin, level=level)


def paired_estimate(
    values: Sequence[float], references: Sequence[float], *, comparisons: int = 1
) -> Estimate:
    """Mean of ``values - references``, seed by seed, and its t interval.

    With several ``comparisons`` each interval is wide enough (Bonferroni) that all of them together
    hold the true differences with probability :data:`LEVEL`. Bonferroni, because it is valid
    however the differences depend on one another (they share their reference and their seeds), and
    because it gives an interval: what is printed is what decides.
    """
    differences = [value - reference for value, reference in zip(values, references, strict=True)]
    return mean_estimate(differences, level=1 - (1 - LEVEL) / comparisons)


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


def judge(
    candidates: Sequence[Candidate],
    *,
    metric: str,
    direction: Direction,
    race_ended: str | None = None,
) -> Confirmation:
    """Fill in means and differences over fresh seeds, and decide; without words.

    The winner has the best mean over the fresh seeds. It is confirmed if it is the paper's default
    itself, or if the interval of its paired difference to the default lies on the better side of
    zero and, with few seeds, has a width: accuracies often differ by the same amount by chance.
    Every candidate that was trained counts as a comparison, those that failed as well: the
    winner is the best of them, so one alone would be believed too easily.

    ``race_ended``: why a race is over, empty if it goes on, None if it is none. In a race
    candidates leave before the last seed, and who wins has not. Below :data:`FEWEST_PAIRS` nothing
    is said of differences, so nothing is confirmed.
    """
    comparisons = sum(not candidate.default for candidate in candidates)
    default = next((each for each in candidates if each.default and _complete(each)), None)
    raced = race_ended is not None
    fewest = FEWEST_PAIRS if raced else 1
    measured = tuple(_measured(each, default, comparisons, fewest=fewest) for each in candidates)
    sign = 1 if direction == "minimize" else -1
    ranked = [
        index
        for *_, index in sorted(
            (-len(each.runs), sign * each.mean.value, index)
            for index, each in enumerate(measured)
            if each.mean
        )
    ]
    winner = ranked[0] if ranked else None
    best = None if winner is None else measured[winner]
    seeds = 0 if best is None else len(best.runs)
    confirmed = best is not None and (
        (best.default and seeds >= fewest)
        or (
            best.difference is not None
            and best.difference.is_better(direction)
            and (seeds >= CLAIMING_SEEDS or best.difference.low != best.difference.high)
        )
    )
    race = None
    if race_ended is not None:
        second = ranked[1] if ranked[1:] else None
        lead = None
        if best is not None and second is not None:
            lead = _difference(best, measured[second], comparisons, fewest=fewest)
        race = Race(runner_up=second, lead=lead, ended=race_ended)
    return Confirmation(
        metric=metric,
        direction=direction,
        candidates=measured,
        comparisons=comparisons,
        winner=winner,
        confirmed=confirmed,
        race=race,
    )


def _complete(candidate: Candidate) -> bool:
    return 0 < len(candidate.values) == len(candidate.runs)


def _measured(
    candidate: Candidate, default: Candidate | None, comparisons: int, *, fewest: int
) -> Candidate:
    if not _complete(candidate):
        return candidate
    update: dict[str, Estimate | None] = {"mean": mean_estimate(candidate.values)}
    if default is not None and not candidate.default:
        update["difference"] = _difference(candidate, default, comparisons, fewest=fewest)
    return candidate.model_copy(update=update)


def _difference(
    candidate: Candidate, other: Candidate, comparisons: int, *, fewest: int
) -> Estimate | None:
    """Over the first seeds, those that both were trained with; None if they are too few."""
    pairs = min(len(candidate.values), len(other.values))
    if pairs < fewest:
        return None
    return paired_estimate(candidate.values[:pairs], other.values[:pairs], comparisons=comparisons)
