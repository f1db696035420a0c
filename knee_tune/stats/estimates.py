"""Numbers with intervals over random seeds: all points are resampled together.

Trials that branch off one trunk share its noise, so they are not independent draws; seeds are.
"""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from knee_tune.config.recipe import Direction
from knee_tune.records.findings import CLAIMING_SEEDS, Candidate, Confirmation, Surface
from knee_tune.records.study import StudyRecord, TrialRecord
from knee_tune.records.values import Estimate

# What every point of a study scored with every random seed: the numbers the ridge is made of.

Floats = npt.NDArray[np.float64]


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


def scores_of(record: StudyRecord) -> Scores | None:
    """The complete trials' values; None without one.

    Of a point tried twice the first trial counts. Only random seeds that every point has are used,
    so that points differ by their settings alone; should there be none, then the seeds that most
    points have, without the other points.
    """
    points: dict[tuple[float, float], dict[int, float]] = {}
    for trial in record.trials:
        runs = _runs(trial, record.spec.seed) if trial.state == "complete" else {}
        if runs:
            points.setdefault(trial.point, runs)
    if not points:
        return None
    counts = Counter(seed for runs in points.values() for seed in runs)
    most = max(counts.values())
    seeds = sorted(seed for seed, count in counts.items() if count == most)
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
    )


def _runs(trial: TrialRecord, first_seed: int) -> dict[int, float]:
    """Value by random seed."""
    if trial.replicates:
        return {
            each.seed: each.value
            for each in trial.replicates
            if each.state == "complete" and each.value is not None
        }
    seed = first_seed if trial.seed is None else trial.seed
    return {} if trial.value is None else {seed: trial.value}


def _table(array: Floats) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(None if np.isnan(value) else float(value) for value in row) for row in array)


# Means over random seeds, and how far they can be trusted (Student's t).

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


# Whether a difference is more than chance, in words.


def judged(difference: Estimate, direction: Direction) -> str:
    """What the interval says, to go on with after the number itself."""
    if difference.low is None or difference.high is None:
        return "which one random seed cannot tell from chance"
    if difference.side == 0:
        return "which may be chance: the interval includes zero"
    return f"{'better' if difference.is_better(direction) else 'worse'} beyond chance"


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


# From fresh runs to a verdict: which candidate wins, and is it better than the paper's default?


def judge(candidates: Sequence[Candidate], *, metric: str, direction: Direction) -> Confirmation:
    """Fill in means and differences, and decide.

    The winner has the best mean over the fresh seeds. It is confirmed if it is the paper's default
    itself, or if the interval of its paired difference to the default lies on the better side of
    zero and, with few seeds, has a width: accuracies often differ by the same amount by chance.
    Every candidate that was trained counts as a comparison, those that failed as well: the
    winner is the best of them, so one alone would be believed too easily.
    """
    comparisons = sum(not candidate.default for candidate in candidates)
    default = next((each for each in candidates if each.default and _complete(each)), None)
    measured = tuple(_measured(each, default, comparisons) for each in candidates)
    sign = 1 if direction == "minimize" else -1
    ranked = sorted(
        (sign * each.mean.value, index) for index, each in enumerate(measured) if each.mean
    )
    winner = ranked[0][1] if ranked else None
    best = None if winner is None else measured[winner]
    seeds = len(candidates[0].runs)
    confirmed = best is not None and (
        best.default
        or (
            best.difference is not None
            and best.difference.is_better(direction)
            and (seeds >= CLAIMING_SEEDS or best.difference.low != best.difference.high)
        )
    )
    return Confirmation(
        metric=metric,
        direction=direction,
        candidates=measured,
        comparisons=comparisons,
        winner=winner,
        confirmed=confirmed,
        words=_words(
            best,
            comparisons=comparisons,
            confirmed=confirmed,
            seeds=seeds,
        ),
    )


def _complete(candidate: Candidate) -> bool:
    return len(candidate.values) == len(candidate.runs)


def _measured(candidate: Candidate, default: Candidate | None, comparisons: int) -> Candidate:
    if not _complete(candidate):
        return candidate
    update = {"mean": mean_estimate(candidate.values)}
    if default is not None and not candidate.default:
        update["difference"] = paired_estimate(
            candidate.values, default.values, comparisons=comparisons
        )
    return candidate.model_copy(update=update)


def _words(best: Candidate | None, *, comparisons: int, confirmed: bool, seeds: int) -> str:
    few = f"; {seeds} seeds make wide intervals, take {CLAIMING_SEEDS} or more to claim anything"
    note = few if seeds < CLAIMING_SEEDS else ""
    if best is None:
        return "not confirmed: no candidate was trained to its end with every seed"
    if best.default and not comparisons:
        return "confirmed: the search found nothing better than the paper's default"
    if best.default:
        return f"confirmed: the paper's default itself has the best mean{note}"
    if best.difference is None:
        return "not confirmed: the paper's default could not be trained, so nothing compares"
    if confirmed:
        return f"confirmed: better than the paper's default{note}"
    if best.difference.low == best.difference.high != 0:
        return f"not confirmed: all differences to the default are the same by chance{note}"
    return f"not confirmed: the interval of the difference to the default includes zero{note}"
