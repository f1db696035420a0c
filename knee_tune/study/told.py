"""What a Gaussian process is told of a study: values it can learn from, of as many trials as pay.

Its time grows with the third power of the trials it sees (``benchmarks/asking.py``).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from knee_tune.records.study import EarlierPoint
from knee_tune.stats.estimates import Floats
from knee_tune.stats.surface import fence_of

BAD_TENTH = 0.1
"""A pruned trial counts as worse than all complete ones but this share of them."""

MOST_TOLD = 150
"""Finished trials that are told: with as many, asking for one takes about 0.3 s on one core."""


def told_of(
    trials: Iterable[FrozenTrial],
    search_space: Mapping[str, BaseDistribution],
    *,
    direction: StudyDirection,
    most: int = MOST_TOLD,
) -> list[FrozenTrial]:
    """Copies of complete, pruned and running trials; none while no trial is complete.

    A pruned one has no value, but it was seen to be bad: it gets that of the worst tenth of the
    complete ones. A value that is far out, though finite, is moved to where far out begins
    (:func:`fence_of`): it would flatten all others. Of more than ``most`` that are
    finished only those that :func:`most_telling` finds, however they came. Nothing is stored.
    """
    trials = list(trials)
    minimize = direction == StudyDirection.MINIMIZE
    worth = _worth(
        [each.values[0] for each in trials if each.state == TrialState.COMPLETE], minimize=minimize
    )
    if worth is None:
        return []
    finished = {
        each.number: worth(each)
        for each in trials
        if each.state in (TrialState.COMPLETE, TrialState.PRUNED)
        and each.params.keys() >= search_space.keys()
    }
    if len(finished) > most:
        known = [each for each in trials if each.number in finished]
        losses = np.array([finished[each.number] for each in known]) * (1 if minimize else -1)
        kept = most_telling(
            losses, _places([each.params for each in known], search_space), most=most
        )
        finished = {known[row].number: finished[known[row].number] for row in kept}
    return [
        optuna.create_trial(
            state=TrialState.COMPLETE if each.number in finished else each.state,
            params=each.params,
            distributions=each.distributions,
            value=finished.get(each.number),
            system_attrs=each.system_attrs if each.state == TrialState.RUNNING else None,
        )
        for each in trials
        if each.number in finished or each.state == TrialState.RUNNING
    ]


def _worth(values: Sequence[float], *, minimize: bool) -> Callable[[FrozenTrial], float] | None:
    """What a complete or pruned trial counts as, by the values of complete ones; None of none."""
    if not values:
        return None
    fence = fence_of(values, "minimize" if minimize else "maximize")

    def near(value: float) -> float:
        """``value``, or the fence's where it lies beyond."""
        if fence is None:
            return value
        return min(value, fence) if minimize else max(value, fence)

    near_values = [near(value) for value in values]
    bad = float(np.quantile(near_values, 1 - BAD_TENTH if minimize else BAD_TENTH))
    return lambda trial: bad if trial.state == TrialState.PRUNED else near(trial.values[0])


def most_telling(losses: Floats, places: Floats, *, most: int) -> list[int]:
    """The rows of as many trials as ``most``, ascending: half are the best ones, half spread out.

    ``losses``: the smaller the better. ``places``: a row of coordinates for each. The best say
    where to look on. Each of the others is the one that is farthest from all those chosen before,
    so that no region that was tried looks untried.
    """
    chosen = np.argsort(losses, kind="stable")[: most // 2].tolist()
    nearest = np.full(len(losses), np.inf)
    for row in chosen:
        nearest = np.minimum(nearest, _squares(places, places[row]))
    while len(chosen) < most:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, _squares(places, places[chosen[-1]]))
    return sorted(chosen)


def _squares(places: Floats, place: Floats) -> Floats:
    """Squared distances of all from one."""
    return np.asarray(((places - place) ** 2).sum(axis=1))


def _places(
    points: Sequence[Mapping[str, Any]], search_space: Mapping[str, BaseDistribution]
) -> Floats:
    """Coordinates from 0 to 1, a row for each point; different choices are as far apart as ends."""
    columns: list[list[float]] = []
    for name, axis in search_space.items():
        values = [point[name] for point in points]
        if isinstance(axis, CategoricalDistribution):
            columns += [
                [math.sqrt(0.5) * (value == choice) for value in values] for choice in axis.choices
            ]
        elif isinstance(axis, FloatDistribution):
            columns.append(_positions(values, axis))
    return np.array(columns).T


def _positions(values: Sequence[Any], axis: FloatDistribution) -> list[float]:
    low, high, at = axis.low, axis.high, np.array(values, dtype=float)
    if axis.log:
        low, high, at = math.log(low), math.log(high), np.log(at)
    return [float(each) for each in (at - low) / ((high - low) or 1.0)]


STUDY = "study"
"""A coordinate of its own for a process that is told of two studies: 0 is the one that searches."""


def beside_earlier(
    told: Sequence[FrozenTrial],
    earlier: Sequence[EarlierPoint],
    search_space: Mapping[str, BaseDistribution],
    *,
    direction: StudyDirection,
) -> list[FrozenTrial]:
    """The told trials, and those of an earlier study at the level that they would have here.

    The level is the median difference of a trial to the earlier one nearest to it, and none is
    better than the best one here. :data:`STUDY` tells the two apart: how alike they are the process
    finds out.
    """
    complete = [each for each in told if each.state == TrialState.COMPLETE]
    values = np.array([each.values[0] for each in complete])
    before = np.array([each.value for each in earlier])
    places = _places([each.params for each in complete], search_space)
    nearest = [
        int(_squares(_places([each.params for each in earlier], search_space), place).argmin())
        for place in places
    ]
    before = before + np.median(values - before[nearest])
    if direction == StudyDirection.MINIMIZE:
        before = np.maximum(before, values.min())
    else:
        before = np.minimum(before, values.max())
    axes = {**search_space, STUDY: FloatDistribution(0.0, 1.0)}
    return [
        *(
            optuna.create_trial(
                state=each.state,
                params=each.params | {STUDY: 0.0},
                distributions=axes,
                value=each.value,
            )
            for each in told
        ),
        *(
            optuna.create_trial(
                params=each.params | {STUDY: 1.0}, distributions=axes, value=float(value)
            )
            for each, value in zip(earlier, before, strict=True)
        ),
    ]
