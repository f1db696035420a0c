"""What every point of a study scored with every random seed: the numbers the ridge is made of."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from knee_tune.specs.recipe import Direction
from knee_tune.specs.records import StudyRecord, TrialRecord
from knee_tune.specs.ridge import Surface

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
